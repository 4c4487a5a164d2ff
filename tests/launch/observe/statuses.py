"""Statuses and histories as `as_json` and the chief give them, of made-up runs of any size."""

from __future__ import annotations

from typing import Any


def worker(index: int, **changes: Any) -> dict[str, Any]:
    """A worker that computes for 0.1 s of a step of 0.13 s; parts of a step may be given by name."""
    parts = {"input": 0.004, "pull": 0.01, "compute": 0.1, "push": 0.016, "wait": 0.026}
    parts |= {name: changes.pop(name) for name in tuple(changes) if name in parts}
    return {
        **{"worker": index, "state": "running", "host": f"host-{index} process 1", "incarnation": index + 1},
        **{"steps": 400 + index, "examples": 12800, "version": 800, "silent_seconds": 0.4, "input_share": 0.03},
        **{"examples_per_second": 246.0, "staleness_mean": 0.98, "seconds_per_step": parts},
        **{"seconds": {name: 400 * value for name, value in parts.items()}},
        **{"bytes_pulled": 4 * 10**9, "bytes_pushed": 2 * 10**9},
        **changes,
    }


def evaluator(index: int, **changes: Any) -> dict[str, Any]:
    """An evaluator that has scored for 3 s."""
    return {
        **{"evaluator": index, "state": "scoring", "step": 700, "seconds": 3.0, "scored": 6, "silent_seconds": 0.3},
        **changes,
    }


def shard(index: int, **changes: Any) -> dict[str, Any]:
    """A shard that receives 15 pushes a second of a megabyte."""
    return {
        **{"shard": index, "address": f"127.0.0.1:{5000 + index}", "state": "ready", "version": 800, "pushes": 800},
        **{"pulls": 801, "pushes_per_second": 15.4, "pushes_waiting": 0, "pushes_refused": 0, "pushes_dropped": 0},
        **{"staleness_mean": 0.98, "seconds_per_push": {"receive": 0.003, "queue": 0.0002, "apply": 0.002}},
        **{"bytes_received_per_second": 15_400_000, "bytes_sent_per_second": 30_800_000},
        **{"bytes_received": 8 * 10**8, "bytes_sent": 16 * 10**8, "state_bytes": 8 * 10**6},
        **{"memory_bytes": 150 * 10**6, "uptime_seconds": 61.0},
        **changes,
    }


def status(num_workers: int = 2, num_shards: int = 3, **changes: Any) -> dict[str, Any]:
    """A run that trains, healthy unless something is changed."""
    return {
        **{"run": "runs/mine", "chief": "127.0.0.1:4000", "state": "training", "recipe": "mine", "job_id": "5a1e"},
        **{"step": 800, "num_steps": 2000, "epochs": 1.6, "seconds": 52.0, "seconds_left": 78.0, "loss": 0.4213},
        **{"learning_rate": 5e-4, "examples_per_second": 492.0, "pushes_per_second": 15.4, "staleness_mean": 0.98},
        **{"staleness_histogram": [300, 1500, 500, 100, 0, 0], "scores": {"accuracy": 0.871}, "score_step": 700},
        **{"seconds_per_step": {"input": 0.004, "pull": 0.01, "compute": 0.1, "push": 0.016, "wait": 0.026}},
        **{"checkpoint": {"step": 700, "directory": "runs/mine/checkpoints/step-700", "age_seconds": 6.5}},
        **{"checkpoint_every_steps": 100, "lease_seconds": 30.0},
        **{"evaluators": [evaluator(0)]},
        **{"failure": "", "faults": {}, "input_bound": {}},
        **{"workers": [worker(index) for index in range(num_workers)]},
        **{"shards": [shard(index) for index in range(num_shards)]},
        **{"events": [event("checkpoint", step) for step in range(100, 701, 100)]},
        **changes,
    }


def event(kind: str, step: int, text: str = "") -> dict[str, Any]:
    """An event of a run that began at some time."""
    return {"time": 1.7e9 + step / 15, "step": step, "event": kind, "text": text or f"{kind} at step {step}"}


def entry(number: int, staleness: dict[str, int], num_workers: int = 2, **changes: Any) -> dict[str, Any]:
    """An entry of the history, one every two seconds and 30 steps."""
    workers = {str(index): {"state": "running", "steps": 15 * number} for index in range(num_workers)}
    return {
        **{"kind": "progress", "step": 30 * number, "seconds": 2.0 * number, "staleness": staleness},
        **{"workers": workers, "shards": []},
        **changes,
    }
