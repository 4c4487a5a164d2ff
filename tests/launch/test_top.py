"""`downpour top` and the local run on real terminals: one job, whose chief is killed once, and all who look at it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from downpour.launch.observe.status import of_folder
from tests.conftest import wait_until
from tests.launch import jobs
from tests.worker.test_job import Parameters, serving, toward_one

pytestmark = pytest.mark.process

GIVE_UP_S = 120.0
_WIDTH, _HEIGHT = 100, 30
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>78])")
_TOP = [sys.executable, "-m", "downpour.launch.cli", "top"]
_JOB = "set=cluster.num_workers=1", "set=num_steps=500", "set=checkpoint_every_steps=100", "noevaluator"


class Terminal:
    """A process on a terminal of its own, and everything that it has drawn there."""

    def __init__(self, *command: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, _WIDTH, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=environment | {"TERM": "xterm-256color", "PYTHONUTF8": "1"},
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )  # fmt: skip
        os.close(theirs)
        self._bytes = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._bytes += os.read(self._ours, 65536)
            except OSError:  # its other end is closed
                return

    @property
    def raw(self) -> str:
        """With the escape codes."""
        return self._bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        """Without."""
        return _ESCAPES.sub("", self.raw)

    def frame(self) -> list[str]:
        """The last frame that is complete; each begins at the top of the screen."""
        frames = self.raw.split("\x1b[H")
        return [line.rstrip() for line in _ESCAPES.sub("", frames[-2] if len(frames) > 2 else "").splitlines()]

    @property
    def frames(self) -> int:
        """How many have been begun."""
        return self.raw.count("\x1b[H")

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def end(self) -> int:
        code = self.process.wait(GIVE_UP_S)
        self._reader.join(5.0)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def _wait(condition: Callable[[], object]) -> None:
    wait_until(lambda: bool(condition()), "what is waited for", GIVE_UP_S)


def _asserted(status: dict[str, Any]) -> list[Any]:
    """What frames are compared with."""
    checkpoint, workers = status["checkpoint"] or {}, [worker["steps"] for worker in status["workers"]]
    versions = [shard["version"] for shard in status["shards"]]
    return [status["step"], status["epochs"], status["loss"], checkpoint.get("step"), workers, versions]


class Halted:
    """What was seen of a chief and three shards in this process, whose only worker waits at step 15 of 30.

    Attributes:
        status: Of the run, meanwhile.
        frame: Of a view on a terminal.
        ended: Exit codes of views that were ended by `q` and by Ctrl-C.
        screen: All that the first of them has drawn, with the escape codes.
        plain: Lines and exit code of a view without a terminal, to the end of the run.
    """

    def __init__(self, folder: Path) -> None:
        go_on, halted = threading.Event(), threading.Event()

        def step(parameters: Parameters, images: Any, labels: Any) -> Any:
            if max(parameters.versions) >= 15:
                halted.set()
                go_on.wait(GIVE_UP_S)
            return toward_one(parameters, images, labels)

        with serving(folder, description={"job": {"num_steps": "30"}}) as cluster, contextlib.ExitStack() as closing:
            closing.callback(go_on.set)
            cluster.run_chief()
            worker = cluster.pool.submit(cluster.work, 0, step=step, overlap=False)
            assert halted.wait(GIVE_UP_S)
            run = str(cluster.run_dir)
            plain = closing.enter_context(subprocess.Popen([*_TOP, run], stdout=subprocess.PIPE, text=True))
            closing.callback(plain.kill)
            views = [Terminal(*_TOP, run), Terminal(*_TOP, f"127.0.0.1:{cluster.chief.port}")]
            for view, key in zip(views, "q\x03", strict=True):
                closing.callback(view.close)
                _wait(lambda view=view: any(line.startswith("     0  ") for line in view.frame()))
                _wait(lambda view=view: self._seen_at_rest(view, cluster.run_dir))
                view.press(key)
            self.ended, self.screen = [view.end() for view in views], views[0].raw
            lines = iter(plain.stdout or ())
            first = next(lines)
            go_on.set()
            worker.result(GIVE_UP_S)
            _wait(lambda: of_folder(cluster.run_dir)["state"] == "done")
            self.plain = [line.rstrip() for line in (first, *lines)], plain.wait(GIVE_UP_S)

    def _seen_at_rest(self, view: Terminal, run_dir: Path) -> bool:
        """Takes a frame, and says whether the run was the same before and after it was drawn.

        What the last push has brought about, such as a checkpoint, ends after that push.
        """
        before, drawn = of_folder(run_dir), view.frames
        _wait(lambda: view.frames >= drawn + 2)  # so one of them asked after `before`
        self.frame, self.status = view.frame(), of_folder(run_dir)
        return _asserted(before) == _asserted(self.status)


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> Halted:
    return Halted(tmp_path_factory.mktemp("halted"))


def test_the_numbers_of_a_frame_are_those_of_the_run(halted: Halted) -> None:
    found, lines = halted.status, halted.frame
    text = "\n".join(lines)
    assert lines[0].startswith(f"{found['chief']}: training, step {found['step']} of 30, epoch {found['epochs']:.2f}")
    assert f"loss       {found['loss']:.4g} " in text and f"checkpoint step {found['checkpoint']['step']}, " in text
    row = next(line.split() for line in lines if line.startswith("     0  "))
    assert row[:2] == ["0", str(found["workers"][0]["steps"])]
    assert any(line.startswith("     1 ") and "expected" in line for line in lines)
    begin = next(number for number, line in enumerate(lines) if line.startswith(" shard version"))
    for number, shard in enumerate(found["shards"]):
        cells = lines[begin + 1 + number].split()
        assert (cells[:2], cells[-1]) == ([str(number), str(shard["version"])], "ready")
    assert len(lines) <= _HEIGHT and max(map(len, lines)) <= _WIDTH and lines[-1].startswith("q ends this view")


def test_q_and_ctrl_c_end_the_view_and_not_the_run(halted: Halted) -> None:
    assert halted.ended == [0, 0]
    assert halted.screen.count("\x1b[?1049h") == halted.screen.count("\x1b[?1049l") == 1, "the screen is given back"
    assert halted.plain[0][-1] and "step 30" in "\n".join(halted.plain[0])


def test_without_a_terminal_lines_are_printed_until_the_run_is_done(halted: Halted) -> None:
    lines, code = halted.plain
    assert code == 0
    assert lines[0].startswith("[run] ") and "training, step 1" in lines[0]
    assert any(line.startswith("[event] ") and "the checkpoint at step" in line for line in lines)
    assert any(re.fullmatch(r".*: done, step 3\d of 30, epoch 1.5\d", line) for line in lines), "the status comes last"
    assert "\x1b" not in "".join(lines)


class Watched:
    """What was seen of one job.

    Attributes:
        run_dir: Its folder.
        local: The terminal of the local run, which has ended.
        top: That of a view that was ended by `q`.
        frame: The last frame of it before the chief was killed.
        between: Steps of the run before and after that frame was drawn.
        back: The frame after the chief was back.
        plain: Lines and exit code of a view without a terminal, to the end of the run.
        once: What `--once` printed.
    """

    def __init__(self) -> None:
        self._closing: list[Callable[[], None]] = []

    def watch(self, folder: Path) -> None:
        """Runs the job, and looks at it from its beginning to its end."""
        recipe = jobs.write_recipe(folder, jobs.PACED)
        self.run_dir, slow = folder / "run", folder / "slow"
        slow.touch()
        command = ["-m", "downpour.launch.local", f"--recipe={recipe}", f"--run_dir={self.run_dir}"]
        self.local = self._terminal(sys.executable, *command, *(f"--{word}" for word in _JOB))
        _wait(lambda: self._state() == "training")
        self.top = self._terminal(*_TOP, str(self.run_dir))
        plain = subprocess.Popen(
            [*_TOP, str(self.run_dir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._closing.append(plain.kill)
        first, line = self._step(), plain.stdout.readline() if plain.stdout else ""
        _wait(lambda: self._drawn_step() > first)
        before = self._drawn_step()
        self.frame = self.top.frame()
        self.between = before, self._step()
        chief = self._chief()
        chief.suspend()  # as one that is killed and takes a while to start again
        _wait(lambda: "the chief has not answered for" in self.top.text)
        chief.kill()
        _wait(lambda: self._drawn_step() > self.between[1] and self._state() == "training")
        _wait(lambda: "has not answered" not in "\n".join(self.top.frame()))
        self.back = self.top.frame()
        self.top.press("q")
        self.top.end()
        self.once = subprocess.run([*_TOP, "--once", str(self.run_dir)], capture_output=True, text=True)
        slow.unlink()
        lines = plain.communicate(timeout=GIVE_UP_S)[0].splitlines()
        self.plain = [line, *lines], plain.returncode
        self.local.end()

    def close(self) -> None:
        for close in reversed(self._closing):
            close()

    def _terminal(self, *command: str) -> Terminal:
        terminal = Terminal(*command)
        self._closing.append(terminal.close)
        return terminal

    def _status(self) -> dict[str, Any]:
        return of_folder(self.run_dir)

    def _step(self) -> int:
        return int(self._status().get("step") or 0)

    def _state(self) -> str:
        return str(self._status()["state"]) if (self.run_dir / "launcher.lock").exists() else ""

    def _drawn_step(self) -> int:
        found = re.search(r"training, step (\d+) of 500", "\n".join(self.top.frame()))
        return int(found[1]) if found else -1

    def _chief(self) -> psutil.Process:
        children = psutil.Process(self.local.process.pid).children()
        (chief,) = [child for child in children if "downpour.launch.chief" in child.cmdline()]
        return chief


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    found = Watched()
    try:
        found.watch(tmp_path_factory.mktemp("watched"))
        yield found
    finally:
        found.close()


@pytest.mark.slow
def test_a_real_run_is_followed(watched: Watched) -> None:
    text = "\n".join(watched.frame)
    assert watched.frame[0].startswith(f"{watched.run_dir}: training, step ") or str(watched.run_dir)[:40] in text
    low, high = watched.between
    assert 0 < low <= high
    for words in ("loss  ", "examples/s", "staleness  mean ", "worker  steps", "shard version", "q ends this view"):
        assert words in text, text
    (worker,) = [line.split() for line in watched.frame if re.match(r" +0 +\d+ +\d+ +\d\.\d ", line)]
    assert low - 3 <= int(worker[1]) <= high + 3, "a single worker does every step"
    assert len(watched.frame) <= _HEIGHT and max(map(len, watched.frame)) <= _WIDTH


@pytest.mark.slow
def test_a_chief_that_was_killed_is_missed_and_then_followed_again(watched: Watched) -> None:
    assert "! the chief has not answered for 0:" in watched.top.text
    assert "has not answered" not in "\n".join(watched.back)


@pytest.mark.slow
def test_lines_say_that_the_chief_was_away(watched: Watched) -> None:
    lines, code = watched.plain
    assert code == 0
    assert "\x1b" not in "".join(lines)
    runs = [line for line in lines if line.startswith("[run] ")]
    assert "training, step" in runs[0] and any("has not answered for" in line for line in runs)
    assert any(line.startswith("[event] ") and "the checkpoint at step" in line for line in lines)
    assert any(line.startswith(f"{watched.run_dir}: done, step 50") for line in lines), "the status comes last"


@pytest.mark.slow
def test_once_prints_one_frame(watched: Watched) -> None:
    assert watched.once.returncode == 0, watched.once.stderr
    assert watched.once.stdout.count("training, step") == 1 and "\x1b" not in watched.once.stdout


@pytest.mark.slow
def test_the_local_run_shows_the_same_view_below_its_lines(watched: Watched) -> None:
    text = watched.local.text
    for words in ("tiny: training, step ", "worker  steps", "shard version", "[chief] ended with signal SIGKILL"):
        assert words in text, text[-3000:]
    assert text.rstrip().splitlines()[-1].startswith("RESULT {")


def test_without_rich_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['rich'] = None; from downpour.launch import cli; sys.argv[1:] = ['top']; cli.main()"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert refused.returncode == 2 and "top needs rich, which is not installed: pip install" in refused.stderr


def test_a_run_that_failed_ends_with_3_and_nobody_with_69(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"recipe": "a", "global_steps": 7, "failure": "worker 1: loss nan"}')
    failed = subprocess.run([*_TOP, str(tmp_path)], capture_output=True, text=True)
    assert failed.returncode == 3 and "worker 1: loss nan" in failed.stdout
    nobody = subprocess.run([*_TOP, "127.0.0.1:1"], capture_output=True, text=True)
    assert nobody.returncode == 69 and "does not answer" in nobody.stderr
