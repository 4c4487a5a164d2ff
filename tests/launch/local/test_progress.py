from __future__ import annotations

import io

import pytest

from downpour.launch.local import progress
from downpour.proto import chief_pb2


def reply(**changes):
    known = {
        "state": chief_pb2.ProgressReply.STATE_TRAINING,
        "step": 120,
        "num_steps": 3000,
        "loss": 12.3456,
        "examples_per_second": 210.04,
        "pushes_per_second": 6.94,
        "staleness_mean": 1.25,
        "seconds_left": 125.0,
        "metrics": {"map_at_100": 0.6149},
    }
    return chief_pb2.ProgressReply(**known | changes)


def test_one_line_says_everything():
    assert progress.summary(reply()) == (
        "training 120/3000  loss 12.35  210.0 examples/s  6.94 pushes/s  staleness 1.25  mAP@100 0.615  2:05 left"
    )


def test_what_is_unknown_is_left_out():
    assert progress.summary(reply(step=0, seconds_left=-1, metrics={})) == "training 0/3000"
    assert "left" not in progress.summary(reply(seconds_left=-1))


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "0:42"), (725.4, "12:05"), (11220, "3:07:00"), (61 * 86400, "61 days")]
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_lines_get_a_prefix_once():
    assert progress.prefixed("ps/3", "raw") == "[ps/3] raw"
    assert progress.prefixed("ps/3", "[ps/3] own") == "[ps/3] own"
    assert progress.prefixed("ps/3", "[ps/3 step=1] own") == "[ps/3 step=1] own"
    assert progress.prefixed("ps/3", "[ps/33] other") == "[ps/3] [ps/33] other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I0000 00:00:1795426184.687132    9451 port.cc:153] oneDNN custom operations are on.", True),
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", True),
        ("E0000 00:00:1795426153.190807 9451 cuda_platform.cc:52] failed call to cuInit: INTERNAL", True),
        ("E0000 00:00:1795426153.190807 9451 other.cc:52] out of memory", False),
        ("[worker/0] I0000 words", False),
    ],
)
def test_chatter_of_tensorflow_is_noise(text, expected):
    assert progress.is_noise(text) == expected


def test_plain_display_is_sparing():
    stream = io.StringIO()
    with progress.PlainDisplay(stream, every_s=1000) as display:
        display.show(reply(step=1))
        display.show(reply(step=2))
        display.line("ps/0", "hello")
        display.show(reply(step=3, state=chief_pb2.ProgressReply.STATE_SCORING))
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "[progress] training 1/3000",
        "[ps/0] hello",
        "[progress] scoring 3/3000",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_lines_above_the_newest_frame(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    details = chief_pb2.ProgressReply.Details(recipe="mine", workers=[{"index": 0, "state": 2, "steps": 70}])
    stream = Terminal()
    with progress.display(stream) as display:
        display.show(reply(details=details))
        display.line("ps/0", "hello [not markup]")
    shown = stream.getvalue()
    assert "hello [not markup]" in shown
    assert "mine: training, step 120 of 3000, 2:05 left" in shown and "210 examples/s" in shown
    assert shown.rindex("hello [not markup]") < shown.rindex("mine: training"), "the frame is drawn again, below"
    assert display.detailed


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.display(Terminal()), progress.PlainDisplay)


def test_a_chief_that_is_away_is_no_error():
    watcher = progress.ChiefWatcher("127.0.0.1:1")
    assert watcher.ask() is None
    watcher.close()
