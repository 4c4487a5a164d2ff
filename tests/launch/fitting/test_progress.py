"""What `fit` shows: bars on a terminal and in a notebook, lines elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest

from downpour.launch.fitting.progress import Bars, Latest, state_text, verbosity
from downpour.model.data.epochs import Epochs
from downpour.proto.chief_pb2 import ProgressReply

ROWS: list[dict[str, Any]] = [
    {"epoch": 0, "step": 20, "seconds": 2.0, "loss": 0.3, "val_loss": 0.00012},
    {"epoch": 1, "step": 40, "seconds": 2.0, "loss": 0.25},
]
TRAINING = ProgressReply(
    state=ProgressReply.STATE_TRAINING, step=25, num_steps=50, loss=0.5, epoch_loss=0.4, examples_per_second=1234.0,
    seconds_left=65.0, metrics={"val_loss": 0.75},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def bars(verbose: int) -> tuple[Bars, io.StringIO]:
    stream = io.StringIO()
    return Bars(verbose, Epochs(800, 40), 50, 40, stream), stream


def on_screen(text: str) -> list[str]:
    """The lines that a terminal shows, which a carriage return overwrites."""
    shown = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        shown.append("".join(cells).rstrip())
    return shown


def test_a_bar_an_epoch_and_nothing_left_of_an_unfinished_one() -> None:
    shown, stream = bars(1)
    with pytest.raises(KeyboardInterrupt), shown:
        shown.preparing()
        shown.progress(ProgressReply(state=ProgressReply.STATE_PREPARING))
        assert on_screen(stream.getvalue()) == ["preparing ..."]
        shown.epoch(ROWS[0])
        shown.progress(TRAINING)
        expected = ["Epoch 1/3  20/20 ━━━━━━━━━━━━━━━━━━━━ 2.0s 400 examples/s - loss: 0.3000 - val_loss: 1.2000e-04"]
        unfinished = "Epoch 2/3  5/20 ━━━━━─────────────── 1,234 examples/s 1:05 left - loss: 0.4000 - val_loss: 0.7500"
        assert on_screen(stream.getvalue()) == [*expected, unfinished]
        shown.line("[worker/0] ended with SIGKILL; restart 1 of 3 in 0.2 s")
        expected.append("[worker/0] ended with SIGKILL; restart 1 of 3 in 0.2 s")
        assert on_screen(stream.getvalue()) == [*expected, unfinished]
        shown.epoch(ROWS[1])
        shown.progress(TRAINING)  # older than what is shown
        expected.append("Epoch 2/3  20/20 ━━━━━━━━━━━━━━━━━━━━ 0.0s - loss: 0.2500")
        assert on_screen(stream.getvalue()) == [*expected, ""]
        shown.progress(ProgressReply(state=ProgressReply.STATE_TRAINING, step=45, num_steps=50, seconds_left=-1))
        raise KeyboardInterrupt
    assert on_screen(stream.getvalue()) == [*expected, ""]


def test_a_line_an_epoch_without_a_terminal() -> None:
    shown, stream = bars(2)
    with shown:
        shown.preparing()
        shown.progress(ProgressReply(state=ProgressReply.STATE_PREPARING))
        shown.progress(TRAINING)
        shown.epoch(ROWS[0])
    assert (
        stream.getvalue()
        == "preparing ...\nEpoch 1/3  20/20 2.0s 400 examples/s - loss: 0.3000 - val_loss: 1.2000e-04\n"
    )


def test_nothing_at_all() -> None:
    shown, stream = bars(0)
    with shown:
        shown.preparing()
        shown.progress(TRAINING)
        shown.epoch(ROWS[0])
        shown.line("a warning")
    assert not stream.getvalue()


def test_the_unfinished_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown, stream = bars(1)
    shown.progress(TRAINING)
    assert len(stream.getvalue().removeprefix("\r")) == 39


def test_what_processes_write_is_shown_if_it_is_worth_it() -> None:
    latest = Latest()
    for name, text in (
        ("worker/0", "[worker/0 step=3] connected"),
        ("worker/0", "[worker/0 step=3] warning: record 7 is damaged"),
        ("ps/1", "[ps/1] ended with SIGKILL; restart 1 of 3 in 0.2 s"),
        ("worker/1", "Traceback (most recent call last):"),
        ("local", "the chief writes a checkpoint"),
    ):
        latest.line(name, text)
    assert latest.lines() == [
        "[worker/0 step=3] warning: record 7 is damaged",
        "[ps/1] ended with SIGKILL; restart 1 of 3 in 0.2 s",
        "[local] the chief writes a checkpoint",
    ]
    assert not latest.lines()


def test_bars_are_for_terminals_and_notebooks() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert verbosity("auto", Terminal()) == 1 and verbosity("auto", io.StringIO()) == 2
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()  # as a kernel's sys.stdout
    assert verbosity("auto", cell) == 1 and verbosity(0) == 0
    for given in (3, True, "yes"):
        with pytest.raises(ValueError, match=r"verbose is .*; accepted are 'auto', 0 \(nothing\)"):
            verbosity(given)


def test_the_state_of_a_run_is_one_line() -> None:
    assert state_text(None, Epochs(800, 40), 50) == "preparing"
    assert state_text(TRAINING, Epochs(800, 40), 50) == "training, epoch 2 of 3, step 25 of 50"
