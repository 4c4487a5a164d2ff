"""Where the processes of a run on this machine serve their metrics, and the file by which a Prometheus finds them."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

from downpour.files import replacing
from downpour.launch.job import Job
from downpour.launch.roles.topology import FlagValue, process_name

HOST = "127.0.0.1"
FILE = "metrics_targets.json"  # in the folder of the run


def ports(job: Job, first: int, *, evaluator: bool) -> dict[str, int]:
    """Returns each process' port, by its name: chief, evaluators, shards, workers, one after another.

    Raises:
        ValueError: There are not as many ports.
    """
    names = ["chief", *(evaluators(job) if evaluator else [])]
    names += [f"ps/{i}" for i in range(job.cluster.num_ps)] + [f"worker/{i}" for i in range(job.cluster.num_workers)]
    if first + len(names) > 1 << 16:
        raise ValueError(
            f"--metrics_port={first}: {len(names)} processes need a port each, up to 65535; give a lower one"
        )
    return {name: first + number for number, name in enumerate(names)}


def evaluators(job: Job) -> list[str]:
    """Returns the names of a job's evaluators: `evaluator`, or `evaluator/0` and so on."""
    count = job.cluster.num_evaluators
    return [process_name("evaluator", index, count) for index in range(count)]


def check_free(job: Job, first: int, *, evaluator: bool) -> None:
    """Raises `ValueError` if one of the ports is taken."""
    for name, port in ports(job, first, evaluator=evaluator).items():
        try:
            socket.create_server((HOST, port)).close()
        except OSError as error:
            raise ValueError(
                f"--metrics_port={first}: {name} cannot listen on {HOST}:{port} for metrics ({error.strerror}); give "
                "another --metrics_port, or 0 for none"
            ) from None


def flags(where: Mapping[str, int], name: str) -> dict[str, FlagValue]:
    """Returns a process' flags; none without a port."""
    return {"metrics_port": where[name], "metrics_host": HOST} if name in where else {}


def write(run_dir: Path, where: Mapping[str, int]) -> None:
    """Writes the targets as Prometheus' `file_sd_configs` reads them, with the labels `run`, `role` and `index`."""
    found = []
    for name, port in where.items():
        role, _, index = name.partition("/")
        labels = {"run": run_dir.name, "role": role, "index": index or "0"}
        found.append({"targets": [f"{HOST}:{port}"], "labels": labels})
    with replacing(run_dir / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
