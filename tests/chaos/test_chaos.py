"""A small job under faults of every kind keeps every push it has acknowledged, counts none twice, leaves nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.attacks import may_fill_disks
from tests.chaos.schedule import FILL, KINDS
from tests.launch.jobs import write_recipe

NUM_FAULTS, SEED = 9, 297
SETTINGS = (
    "exchange.give_up_after_s=120",  # on a busy machine a chief takes its time to load TensorFlow
    "checkpoint_every_steps=300",
    "clip=Clip(by_global_norm=1)",  # two channels wide: where both have died, gradients explode
)


MEANS = ("staleness=Lookahead(gradients=3)", "rule=KerasRMSProp(momentum=0.9)")


@pytest.mark.process
@pytest.mark.parametrize("more", [pytest.param((), id=""), pytest.param(MEANS, id="means", marks=pytest.mark.slow)])
def test_a_job_under_faults_loses_nothing_and_doubles_nothing(tmp_path: Path, more: tuple[str, ...]) -> None:
    kinds = [kind for kind in KINDS if kind != FILL or may_fill_disks()]
    command = [
        *(
            sys.executable,
            "-m",
            "tests.chaos.run",
            f"--recipe={write_recipe(tmp_path)}",
            f"--run_dir={tmp_path / 'run'}",
        ),
        *(f"--faults={NUM_FAULTS}", f"--seed={SEED}", "--seconds=24", "--steps_per_s=160", "--undisturbed="),
        *(f"--set={setting}" for setting in (*SETTINGS, *more)),
        f"--kinds={','.join(kinds)}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    last = ended.stdout.splitlines()[-1] if ended.stdout else ""
    assert last.startswith("RESULT {"), ended.stderr
    result = json.loads(last.removeprefix("RESULT "))
    assert ended.returncode == 0, f"{result}\n{ended.stderr}"
    assert result["faults_fired"] == NUM_FAULTS
    assert set(result["faults_by_kind"]) == set(kinds)
    assert result["pushes_acknowledged"] > 100
    assert result["score"] is not None
    assert (result["pushes_lost"], result["pushes_doubled"], result["processes_left"]) == (0, 0, 0)
