"""Trains under faults and counts: what was lost, what was doubled, who was held up, who was left.

    python -m tests.chaos.run [--recipe=quickstart] [--seconds=600] [--faults=150] [--seed=0] [--undisturbed=0.69,0.7]

Kills and pauses processes, breaks connections, fills disks, shifts clocks, damages files and starts processes that must
be refused, as `tests.chaos.schedule` says; every fault must be seen to have happened. Without `--undisturbed` the same
number of steps is trained once more in peace, for its score. The last line on stdout is `RESULT {json}`. Exit code 1
if an acknowledged push was lost or any push counted twice, a process was left, a fault did not fire, or the job did
not come to its end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.job import recipe_flags
from downpour.launch.local.supervisor import Interrupted
from downpour.launch.roles import entry
from tests.chaos import harness
from tests.chaos.attacks import may_fill_disks
from tests.chaos.schedule import FILL, KINDS, schedule

recipe_flags.define()
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/chaos", "Folder of logs and checkpoints.")
_SECONDS = flags.DEFINE_float("seconds", 600.0, "Of training, roughly: it is the steps that are given.", 5.0)
_STEPS_PER_S = flags.DEFINE_float(
    "steps_per_s", 15.0, "How many of them in a second; what two cores do under faults.", 0.1
)
_FAULTS = flags.DEFINE_integer("faults", 150, "How many.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the schedule of faults.")
_KINDS = flags.DEFINE_list("kinds", list(KINDS), "Kinds of faults; to fill disks takes root.")
_ROLES = flags.DEFINE_list("roles", ["ps", "worker", "chief", "evaluator"], "Roles that are struck.")
_UNDISTURBED = flags.DEFINE_list("undisturbed", None, "Scores of undisturbed runs; one is made if there are none.")

_CALM_S = 5.0, 20.0  # at the beginning; and at the end, where what died comes back
_CALM_PART = 0.2  # of all the seconds, at most
_LATEST = 3.0  # times the seconds, after which the job ends anyway
_HALVE_EVERY = 300 / 700  # of the quickstart's steps, as in its recipe


def _overrides(seconds: float) -> tuple[str, ...]:
    """The job made to last so long."""
    steps = round(seconds * _STEPS_PER_S.value)
    values: dict[str, Any] = {"num_steps": steps, "max_train_s": _LATEST * seconds}
    if flags.FLAGS["recipe"].value == "quickstart":
        values |= {"schedule.every": round(steps * _HALVE_EVERY), "checkpoint_every_steps": max(1, steps // 20)}
    return (*(f"{key}={value}" for key, value in values.items()), *(flags.FLAGS["set"].value or ()))


def _undisturbed(disturbed: harness.Run, num_steps: int) -> dict[str, Any]:
    """The figures of a run of so many steps in peace."""
    overrides = (*disturbed.overrides, f"num_steps={num_steps}")
    peace = harness.Run(disturbed.recipe, overrides, disturbed.run_dir / "undisturbed", disturbed.seconds)
    return harness.run(peace, [], with_proxies=False).result()


def _scores(what: harness.Run, result: dict[str, Any]) -> dict[str, Any]:
    if _UNDISTURBED.value is not None:
        return {"score_undisturbed": [float(score) for score in _UNDISTURBED.value]}
    if not result["global_steps"]:
        return {"score_undisturbed": None}
    peace = _undisturbed(what, result["global_steps"])
    return {
        "score_undisturbed": peace["score"],
        "seconds_undisturbed": peace["seconds"],
        "stall_undisturbed_s": peace["longest_stall_s"],
    }


def _is_bad(result: dict[str, Any]) -> bool:
    figures = ("pushes_lost", "pushes_doubled", "processes_left", "failure")
    unfired = result["faults_fired"] != result["faults_planned"]
    return unfired or not result["pushes_acknowledged"] or any(result[key] for key in figures)


def _main() -> int | None:
    seconds = _SECONDS.value
    flags.FLAGS["recipe"].value = flags.FLAGS["recipe"].value or "quickstart"
    what = harness.Run(flags.FLAGS["recipe"].value, _overrides(seconds), Path(_RUN_DIR.value), seconds)
    cluster = what.job().cluster
    counts = {"ps": cluster.num_ps, "worker": cluster.num_workers, "chief": 1, "evaluator": 1}
    roles = {role: count for role, count in counts.items() if role in _ROLES.value}
    calm_s = min(_CALM_S[0], _CALM_PART * seconds), min(_CALM_S[1], _CALM_PART * seconds)
    if FILL in _KINDS.value and not may_fill_disks():
        raise ValueError("--kinds: small disks to fill can be mounted by root only; leave out `fill`")
    faults = schedule(_SEED.value, seconds, _FAULTS.value, roles, kinds=_KINDS.value, calm_s=calm_s)
    try:
        outcome = harness.run(what, faults)
        result = outcome.result() | {"recipe": what.recipe, "seed": _SEED.value}
        for line in (*outcome.left, *(outcome.count.lost[:20] if outcome.count else ())):
            print(f"[chaos] left or lost: {line}", file=sys.stderr)
        result |= _scores(what, result)
    except Interrupted as error:
        print(f"[chaos] {error}; every process has ended", file=sys.stderr)
        return error.code
    print(f"RESULT {json.dumps(result)}", flush=True)
    return 1 if _is_bad(result) else None


if __name__ == "__main__":
    entry.run(_main, role="chaos")
