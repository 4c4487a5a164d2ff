"""How a run has ended: its summary, and the line that `wait` shows."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from downpour.launch.fitting import ending
from downpour.launch.local import saving
from downpour.launch.local.cluster import LocalCluster
from downpour.launch.local.supervisor import Interrupted, Stopped, Supervisor

JOB: Any = SimpleNamespace(max_train_s=60.0)
CONFIG: Any = object()


def test_a_run_that_was_stopped_has_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "newest", lambda config: "step-0000000343")
    error = Stopped("stopped by the caller")
    error.add_note("the checkpoint of step 343 is in runs/one; continue with: downpour.fit(..., resume=True)")
    found = ending.summary_of_stop(error, "", CONFIG)
    because = f"stopped by the caller; {error.__notes__[0]}"
    assert found == {"ended_by": "stop", "ended_because": because, "global_steps": 343}
    assert ending.line_of(found, JOB) == because
    assert ending.state_text(found, error, 2820) == "ended by stop at step 343 of 2820"
    found = ending.summary_of_stop(error, "Own", CONFIG)
    assert (found["ended_by"], ending.line_of(found, JOB)) == (
        "callback Own",
        "stopped early: Own set model.stop_training",
    )
    for other in (None, Interrupted(signal.SIGTERM), ValueError("x")):
        assert ending.summary_of_stop(other, "", CONFIG) == {}
    assert ending.state_text({}, ValueError("no data\nmore"), 10) == "failed: no data"


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        ({"ended_by": "steps"}, ""),
        ({}, ""),
        (
            {"ended_by": "early stopping", "ended_because": "val_f1 has not improved for 3 epochs"},
            "stopped early: val_f1 has not improved for 3 epochs",
        ),
        ({"ended_by": "max_train_s"}, "stopped early: max_train_s, 60 s of training, are over"),
    ],
)
def test_the_reason_of_an_early_end_is_a_line(summary: dict[str, Any], line: str) -> None:
    assert ending.line_of(summary, JOB) == line


@pytest.mark.parametrize(("reason", "expected"), [(Stopped("x"), False), (Interrupted(signal.SIGINT), True)])
def test_a_second_ctrl_c_is_spoken_of_after_a_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Stopped, expected: bool
) -> None:
    chief = SimpleNamespace(look=lambda s: None, leaving=lambda *a: True, close=lambda: None)
    monkeypatch.setattr(LocalCluster, "chief", lambda self, timeout_s: chief)
    config: Any = SimpleNamespace(job=SimpleNamespace(cluster=SimpleNamespace(num_ps=1)))
    supervisor = Supervisor(tmp_path, {}, handle_signals=False)
    monkeypatch.setattr(supervisor, "ended", lambda name: False)
    supervisor.interrupt(reason)
    shown: list[str] = []
    display: Any = SimpleNamespace(line=lambda name, text: shown.append(text))
    saving.save(LocalCluster(supervisor, config, tmp_path, trained=True), display)
    (line,) = shown
    assert line.startswith("the chief writes a checkpoint, for at most 30 s") and ("Ctrl-C" in line) == expected
