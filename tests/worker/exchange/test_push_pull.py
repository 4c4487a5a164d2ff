"""A push and the pull after it in one call are what two calls are, also where they break between the two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto.errors import MalformedChunk, NotReady
from downpour.ps.layout import FROZEN, STATISTIC, Variable, lay_out
from downpour.ps.policy.pace import Async, Mode, Sync
from downpour.ps.policy.rules import Momentum
from downpour.ps.policy.schedules import Constant
from downpour.ps.service import servicer
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Answer, Exchanger, Gradients
from tests.worker.cluster import initialize

LAYOUT = lay_out(
    [Variable("w", (30_000,)), Variable("b", (7,)), Variable("m", (5,), STATISTIC), Variable("f", (9,), FROZEN)], 2
)


@contextlib.contextmanager
def serving(pace: Mode = Async()) -> Iterator[list[ShardServer]]:  # noqa: B008
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ShardServer(i)) for i in range(2)]
        values = [np.full(v.shape, 0.5, np.float32) for v in LAYOUT.variables]
        initialize(addresses(servers), LAYOUT, values, Momentum(0.9), Constant(0.1), pace=pace)
        yield servers


def addresses(servers: list[ShardServer]) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in servers]


@contextlib.contextmanager
def exchanging(servers: list[ShardServer], *, joined: bool) -> Iterator[Exchanger]:
    settings: dict[str, Any] = {"wire": codec.FLOAT32, "worker": 0, "incarnation": 1, "give_up_after_s": 20}
    with contextlib.closing(Exchanger(addresses(servers), LAYOUT, joined=joined, **settings)) as exchange:
        exchange.connect()
        yield exchange


def gradients(seed: int, versions: list[int]) -> Gradients:
    rng = np.random.default_rng(seed)

    def random(sizes: list[int]) -> list[np.ndarray]:
        return [rng.standard_normal(size).astype(np.float32) for size in sizes]

    trained = [LAYOUT.num_trained(shard) for shard in range(2)]
    return Gradients(random(trained), random([LAYOUT.num_pushed(i) - trained[i] for i in range(2)]), versions)


def five_steps(exchange: Exchanger) -> Answer:
    answer = exchange.start().result()
    for seed in range(5):
        answer = exchange.start(gradients(seed, answer.versions)).result()
        assert answer.acknowledged and answer.staleness in (0, 1) and answer.push_s > 0 and answer.pull_s >= 0
    return answer


@pytest.mark.parametrize("pace", [Async(), Sync(1)])
def test_one_call_is_as_two(pace: Mode) -> None:
    found = []
    for joined in (False, True):
        with serving(pace) as servers, exchanging(servers, joined=joined) as exchange:
            found.append(five_steps(exchange))
    apart, together = found
    assert apart.versions == together.versions == [5, 5]
    assert apart.bytes_pushed == together.bytes_pushed and apart.bytes_pulled == together.bytes_pulled
    assert apart.parameters is not None and together.parameters is not None
    for name in ("trained", "statistics", "frozen"):
        for one, other in zip(getattr(apart.parameters, name), getattr(together.parameters, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_pull_that_breaks_behind_its_push_has_it_applied_once() -> None:
    with serving() as servers, exchanging(servers, joined=True) as exchange:
        served, fired = servers[1]._servicer, list[int]()
        pull = served._pull

        def broken(*arguments: Any) -> Any:
            if not fired:
                fired.append(1)
                raise NotReady("it restarts")
            return pull(*arguments)

        answer = exchange.start().result()
        served._pull = broken  # type: ignore[method-assign]
        answer = exchange.start(gradients(0, answer.versions)).result()
        assert fired and answer.versions == [1, 1]
        clients = [ShardClient(i, address, LAYOUT, 20) for i, address in enumerate(addresses(servers))]
        statuses = [client.status() for client in clients]
        assert [(s.version, s.pushes, s.pushes_repeated) for s in statuses] == [(1, 1, 0), (1, 1, 1)]
        for client in clients:
            client.close()


def test_an_answer_without_that_to_the_push_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as servers, exchanging(servers, joined=True) as exchange:
        vector = servicer.messages_of_pull
        monkeypatch.setattr(servicer, "messages_of_pull", lambda request, shard, pushed: vector(request, shard, None))
        answer = exchange.start().result()
        with pytest.raises(MalformedChunk, match=r"pulling from shard \d at .*: there is no answer to the push"):
            exchange.start(gradients(0, answer.versions)).result()
