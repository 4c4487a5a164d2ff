"""Every attack, for a moment: the shard stays small, writes little, and lets new clients in.

What attacks cost the training, `make strangers` measures.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hpack
import numpy as np
import pytest

from tests.conftest import wait_until
from tests.strangers import wire
from tests.strangers.attacks import ATTACKS, Attack, Script
from tests.strangers.measure import MAX_LOG_LINES, MAX_NEWCOMER_S, Found, failures, missing, scarcity
from tests.strangers.scarcity import Unavailable
from tests.strangers.scene import Scene, Training, opened
from tests.strangers.watch import Held, Watch, look, wait_for
from tests.strangers.ways import NO_TOKEN, OTHER_CA, WORKER, WORKER_NO_TOKEN, Guard, Way

_AT_MOST = 300  # connections
_SECONDS = 0.5  # of the frames that an attack must have sent
_MORE_LEFT = 4  # threads or descriptors, after all attacks: the pool grows with the training's own calls
_KNOCK_EVERY_S, _GIVE_UP_AFTER_S, _BACK_WITHIN_S, _HAPPENS_WITHIN_S = 0.1, 10.0, 20.0, 20.0

Newcomers = Sequence[tuple[float, float]]  # when each began, and how long it took

_CASES = [
    *((attack.name, NO_TOKEN) for attack in ATTACKS.values() if NO_TOKEN in attack.ways),
    *(("one-byte", OTHER_CA), ("handshakes", OTHER_CA)),
    *((name, WORKER_NO_TOKEN) for name in ("headers-only-unary", "empty-messages", "ping")),
    *((name, WORKER) for name in ("headers-only-stream", "refused-calls", "held-connections")),
]


# Each takes some seconds; the others are attacks that once made a shard deaf, slow or large.
_SLOW = (
    "held-connections", "slow-bytes", "handshakes", "few-descriptors", "refused-calls", "ping-unread", "priority",
    "window-update", "endless-headers", "rapid-reset", "empty-data",
)  # fmt: skip


def _case(name: str, way: Way) -> Any:
    marks = [pytest.mark.slow] if name in _SLOW else []
    return pytest.param(name, way, id=f"{name}, {way.name}", marks=marks)


class Scenes:
    """One scene at a time, for all attacks on shards of the same guard."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._open: tuple[Guard, Scene] | None = None
        self._stack = contextlib.ExitStack()

    def of(self, guard: Guard) -> Scene:
        """The one that is open, or another one in its place."""
        if not self._open or self._open[0] != guard:
            self.close()
            self._open = guard, self._stack.enter_context(_left_as_it_was(self._folders.mktemp("scene"), guard))
        return self._open[1]

    def close(self) -> None:
        """Ends what is open, and looks what is left of attacks."""
        self._open = None
        self._stack.close()

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Has the next attack begin with a new shard if this one does harm."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(AssertionError):  # the one under way is told
                self.close()
            raise


@contextlib.contextmanager
def _left_as_it_was(folder: Path, guard: Guard) -> Iterator[Scene]:
    """A scene of which, after all attacks, nothing may be left of them."""
    with opened(folder, guard) as scene:
        before = look(scene.shard)

        def is_back(now: Held) -> bool:
            grown = now.threads - before.threads, now.descriptors - before.descriptors
            return max(grown) <= _MORE_LEFT

        yield scene
        after = wait_for(scene.shard, is_back, _BACK_WITHIN_S)
        assert is_back(after), (before, after)
        assert scene.num_log_lines() < MAX_LOG_LINES
        training = scene.end_training()
        assert not training.errors
        assert len(training.ends) == training.applied and training.is_exact


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenes]:
    scenes = Scenes(tmp_path_factory)
    try:
        yield scenes
    finally:
        scenes.close()


@pytest.mark.process
@pytest.mark.xdist_group("strangers")
@pytest.mark.parametrize(("name", "way"), [_case(*case) for case in _CASES])
def test_an_attack_takes_little_and_keeps_nobody_out(scenes: Scenes, name: str, way: Way) -> None:
    scene, attack = scenes.of(way.guard), ATTACKS[name]
    with scenes.closed_on_failure(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(scarcity(scene, attack))
        except Unavailable as error:
            pytest.skip(str(error))
        watch = stack.enter_context(Watch(scene, _KNOCK_EVERY_S, _GIVE_UP_AFTER_S))
        scene.attack(attack, way, _AT_MOST)
        begun = len(watch.newcomers) + 1  # one may have begun before
        smaller = dataclasses.replace(attack, num_connections=min(_AT_MOST, attack.num_connections))
        wait_until(lambda: not missing(smaller, scene.done(), _SECONDS), "the attack", _HAPPENS_WITHIN_S)
        wait_until(lambda: len(watch.newcomers) >= begun + 2, "two new clients", 3 * _GIVE_UP_AFTER_S)
        during = watch.newcomers[begun:]
        scene.rest()
        left = len(watch.newcomers) + 1
        wait_until(lambda: len(watch.newcomers) > left, "a new client afterwards", 3 * _GIVE_UP_AFTER_S)
        _check(attack, watch, during, watch.newcomers[left:])


def _check(attack: Attack, watch: Watch, during: Newcomers, afterwards: Newcomers) -> None:
    growth_mb = max(one.rss_mb for one in watch.samples) - watch.samples[0].rss_mb
    assert growth_mb < attack.growth_mb
    assert max(took_s for _, took_s in afterwards) < MAX_NEWCOMER_S
    assert not attack.lets_in or max(took_s for _, took_s in during) < MAX_NEWCOMER_S


def _found(**more: Any) -> Found:
    """Of an attack that did no harm."""
    harmless: dict[str, Any] = {
        "speed": 1.0,
        "threads": (8, 9, 9),
        "descriptors": (14, 60, 14),
        "done": {"connections": 50, "frames": 100_000},
    }
    return Found("ping", NO_TOKEN.name, **harmless | more)


def _training(**more: Any) -> Training:
    steps = {"ends": np.arange(5.0), "seconds": np.ones(5), "errors": [], "applied": 5, "is_exact": True}
    return Training(**steps | more)


@pytest.mark.parametrize(
    ("found", "training", "failure"),
    [
        (_found(), _training(), ""),
        (_found(speed=0.94), _training(), "steps/s fell to 0.94"),
        (_found(speed=float("nan")), _training(), "steps/s fell to nan"),
        (_found(growth_mb=21.0), _training(), "memory grew by 21 MB"),
        (_found(threads=(8, 90, 11)), _training(), "3 threads left"),
        (_found(descriptors=(14, 90, 17)), _training(), "3 descriptors left"),
        (_found(log_lines=100), _training(), "100 lines of log"),
        (_found(newcomer_s=float("inf")), _training(), "a new client waited inf s"),
        (_found(newcomer_after_s=5.1), _training(), "a new client waited 5.1 s afterwards"),
        (_found(done={"connections": 49, "frames": 100_000}), _training(), "only 49 connections of 50"),
        (_found(done={"connections": 50, "frames": 4_999}), _training(), "only 4999 frames in 10 s"),
        (_found(), _training(applied=4), "5 pushes acknowledged, 4 applied"),
        (_found(), _training(is_exact=False), "5 pushes acknowledged, 5 applied"),
        (_found(), _training(errors=["unreachable"]), "unreachable"),
    ],
)
def test_what_is_too_much_is_said(found: Found, training: Training, failure: str) -> None:
    said = failures(found, ATTACKS["ping"], training, 10.0)
    assert len(said) == bool(failure)
    assert not failure or said[0].startswith(failure)


def test_new_clients_may_be_kept_out_only_where_the_attack_says_so() -> None:
    found = _found(newcomer_s=float("inf"), done={"connections": 300})
    assert not failures(found, ATTACKS["held-connections"], _training(), 10.0)


def test_what_a_server_says_is_counted_however_it_is_cut() -> None:
    said = b"".join(
        [
            wire.frame(wire.SETTINGS, 0, 0),
            wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, b"abc"),
            wire.frame(wire.RST_STREAM, 0, 1, bytes(4)),
            wire.frame(wire.GOAWAY, 0, 0, bytes(4) + (11).to_bytes(4, "big") + b"calm"),
        ]
    )
    for size in (1, 7, len(said)):
        counts: collections.Counter[str] = collections.Counter()
        reader = wire.Reader(counts)
        for at in range(0, len(said), size):
            reader.feed(said[at : at + size])
        assert counts == {"answers": 1, "reset NO_ERROR": 1, "goaway ENHANCE_YOUR_CALM": 1}


@pytest.mark.parametrize("size", [1, 126, 127, 300, 20_000])
def test_a_block_of_headers_is_as_hpack_reads_it(size: int) -> None:
    block = wire.header_block("Status", "the-token", ("x-large", "x" * size))
    headers = dict(hpack.Decoder(max_header_list_size=1 << 16).decode(block))
    assert headers[":path"] == "/downpour.v1.ParameterServer/Status"
    assert headers["downpour-token"] == "the-token" and headers["x-large"] == "x" * size


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_script_sends_whole_frames(attack: Attack) -> None:
    script = attack.script("the-token")
    if script.has_preface:
        data = b"".join([*script.opening, *(frame for turn in range(3) for frame in _again(script, turn))])
        data = data.removesuffix(b"\0\0")  # of `idle`
        while data:
            assert len(data) >= 9 and data[3] <= wire.CONTINUATION
            data = data[9 + int.from_bytes(data[:3], "big") :]


def _again(script: Script, turn: int) -> Sequence[bytes]:
    return script.again(turn) if script.again else ()
