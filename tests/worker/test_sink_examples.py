"""The sinks that the documents show, run as they stand on the entries of a job, against stand-ins of the packages."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import downpour
from downpour.worker.chief.sinks import Sinks

PAGE = Path(__file__).parents[2] / "docs" / "watching.md"
JOB = {"recipe": "mine", "job_id": "ab12", "fields": {"rule": "KerasAdam"}, "step": 0}
LOSS = {"kind": "loss", "step": 5, "seconds": 1.5, "loss": 0.25}
EVENT = {"kind": "event", "step": 6, "seconds": 1.75, "time": 9.0, "event": "worker_lost", "text": "worker 1"}
END = {"failure": ""}


def shown(name: str) -> Any:
    """The class of that name, out of the page's blocks of Python."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if f"class {name}(" in block]
    module = types.ModuleType("example")
    sys.modules["example"] = module  # where dataclasses looks
    exec(code, vars(module))
    return getattr(module, name)


def heard(sink: downpour.Sink) -> None:
    """Has a sink hear of a job, in the chief's way, to its end."""
    sinks = Sinks([sink])
    sinks.begin(JOB)
    for entry in (LOSS, EVENT):
        sinks.entry(entry)
    sinks.end(END)


def test_csv_has_the_losses(tmp_path: Path) -> None:
    heard(shown("Csv")(str(tmp_path / "loss.csv")))
    assert (tmp_path / "loss.csv").read_text() == "5,0.25\n"


def test_wandb_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Run:
        def log(self, data: dict[str, Any]) -> None:
            calls.append(("log", data))

        def finish(self, exit_code: int | None = None) -> None:
            calls.append(("finish", exit_code))

    def init(*, project: str, id: str, resume: str, config: dict[str, Any]) -> Run:
        calls.append(("init", project, id, resume, config))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    heard(shown("Wandb")("pictures"))
    assert calls[0] == ("init", "pictures", "ab12", "allow", {"rule": "KerasAdam"})
    assert calls[1:] == [
        ("log", {"loss/loss": 0.25, "step": 5}),
        ("log", {"event/time": 9.0, "step": 6}),
        ("finish", 0),
    ]


def test_mlflow_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    stand_in = types.SimpleNamespace(
        set_experiment=lambda name: calls.append(("experiment", name)),
        start_run=lambda *, run_name, tags: calls.append(("start", run_name, tags)),
        log_metrics=lambda metrics, *, step: calls.append(("log", metrics, step)),
        end_run=lambda status: calls.append(("end", status)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    heard(shown("MLflow")("pictures"))
    assert calls == [
        ("experiment", "pictures"),
        ("start", "ab12", {"recipe": "mine"}),
        ("log", {"loss/loss": 0.25}, 5),
        ("log", {"event/time": 9.0}, 6),
        ("end", "FINISHED"),
    ]
