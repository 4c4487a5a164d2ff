"""Look-ahead through a shard: beside plain numpy, what never moves, the measured staleness, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.ps.layout import FROZEN, STATISTIC, Layout, Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy import staleness
from downpour.ps.policy.constraints import NonNeg
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async, Mode, Sync
from downpour.ps.policy.rules import (
    SGD,
    Adam,
    AdamW,
    KerasAdagrad,
    KerasAdam,
    KerasMomentum,
    KerasRMSProp,
    Momentum,
    RMSProp,
    Rule,
)
from downpour.ps.policy.schedules import Constant, Piecewise, StaircaseExponential
from downpour.ps.policy.staleness import Divide, Keep, Lookahead, Treatment
from downpour.ps.shard import rounds
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk

LAYOUT = lay_out([Variable("w", (40,)), Variable("b", (7,))], 1)
SCHEDULE, ASYNC = StaircaseExponential(0.1, 0.5, 3), Async(0)


def new_shard(
    rule: Rule,
    treatment: Treatment,
    layout: Layout = LAYOUT,
    schedule: Any = SCHEDULE,
    path: Path | None = None,
    pace: Mode = ASYNC,
) -> Shard:
    specification = pb.ShardSpecification(
        fingerprint=layout.fingerprint,
        layout=layout.canonical,
        rule=to_message(rule),
        schedule=to_message(schedule),
        staleness=to_message(treatment),
        pace=to_message(pace),
        num_workers=3 * isinstance(pace, Sync),
    )
    arena = Arena.create(path, specification)
    arena.parameters[:] = np.random.default_rng(1).standard_normal(layout.size(0))
    arena.mark_complete()
    return Shard(arena)


def push(shard: Shard, sequence: int, values: np.ndarray, base_version: int | None = None, worker: int = 0) -> None:
    """One push, computed at the present version unless said."""
    base_version = shard.version if base_version is None else base_version
    opened = shard.begin(pb.PushHeader(worker=worker, incarnation=1, sequence=sequence, base_version=base_version))
    if values.size:
        shard.apply(opened, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, values.astype(np.float32))))
    shard.finish(opened)


def pulled(shard: Shard) -> np.ndarray:
    """What a worker pulls."""
    vector = shard.vector
    return np.concatenate([vector.encoded(a, b, codec.FLOAT32) for a, b in vector.cut(0, vector.size)])


# What k updates without a gradient do, one after another, in float64 numpy, with the prolonged beta of `Lookahead(k)`
# and the rate that it lowers: (rule, w, slots, lr, number, k) -> new w. The rules themselves are in `test_rules`.


def prolonged(beta: float, k: float) -> float:
    """Decays in 1 + k updates as much as beta does in one, to first order."""
    return 1 - (1 - beta) / (1 + k)


def momentum(rule: Momentum, w: np.ndarray, s: list[np.ndarray], lr: float, t: int, k: int) -> np.ndarray:
    [m], beta = s, prolonged(rule.momentum, k)
    for _ in range(k):
        m = beta * m
        w = w - lr / (1 + k) / np.sqrt(k) * (beta * m if rule.nesterov else m)
    return w


def keras_momentum(rule: KerasMomentum, w: np.ndarray, s: list[np.ndarray], lr: float, t: int, k: int) -> np.ndarray:
    [m], beta = s, prolonged(rule.momentum, k)
    for _ in range(k):
        m = beta * m
        w = w + (beta * m if rule.nesterov else m)
    return w


def rmsprop(rule: RMSProp | KerasRMSProp, w: np.ndarray, s: list[np.ndarray], lr: float, t: int, k: int) -> np.ndarray:
    mom, beta = s[-1], prolonged(rule.momentum, k)
    for _ in range(k):
        mom = beta * mom
        w = w - mom
    return w


def adam(rule: Adam | KerasAdam, w: np.ndarray, s: list[np.ndarray], lr: float, t: int, k: int) -> np.ndarray:
    m, v, beta = s[0], s[-1], prolonged(rule.beta_1, k)
    rate = lr / np.sqrt(k) / (1 - rule.beta_1**t)
    root = np.sqrt(v) / np.sqrt(1 - rule.beta_2**t)
    epsilon = rule.epsilon / np.sqrt(1 - rule.beta_2**t)  # TensorFlow's "epsilon hat"
    for _ in range(k):
        m = beta * m
        w = w - rate * m / (root + epsilon)
    return w


REFERENCES: list[tuple[Rule, Callable[..., np.ndarray]]] = [
    *((Momentum(0.9, nesterov), momentum) for nesterov in (False, True)),
    *((KerasMomentum(0.8, nesterov), keras_momentum) for nesterov in (False, True)),
    *((kind(0.9, 0.9, 1e-3, centered), rmsprop) for kind in (RMSProp, KerasRMSProp) for centered in (False, True)),
    *((rule, adam) for rule in (Adam(), KerasAdam(0.8), KerasAdam(amsgrad=True), AdamW())),
]


@pytest.mark.parametrize(("rule", "reference"), REFERENCES, ids=[repr(rule) for rule, _ in REFERENCES])
def test_workers_pull_what_updates_without_gradients_lead_to(rule: Rule, reference: Callable[..., np.ndarray]) -> None:
    shard, rng = new_shard(rule, Lookahead(4, strength=2, divided_until=0)), np.random.default_rng(2)
    np.testing.assert_array_equal(pulled(shard), shard.arena.parameters)
    for sequence in range(1, 8):
        push(shard, sequence, rng.standard_normal(LAYOUT.size(0)))
        w = shard.arena.parameters.copy()
        slots = [slot.astype(np.float64) for slot in shard.arena.slots]
        expected = reference(rule, w.astype(np.float64), slots, SCHEDULE.rate(sequence), sequence + 1, 4)
        moved = pulled(shard)
        expected = w + 2 * (expected - w)
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(moved - w).max() > 1e-3
        np.testing.assert_array_equal(shard.arena.parameters, w)


@pytest.mark.parametrize("rule", [rule for rule, _ in REFERENCES], ids=repr)
def test_pushes_are_applied_by_the_rule_with_a_longer_momentum_and_a_lower_rate(rule: Rule) -> None:
    """As the rule with other hyper-parameters does; staleness 4 halves the rate."""
    k = 3
    if isinstance(rule, AdamW):
        rule = replace(rule, weight_decay=0.0)  # it is times the rate, which differs here
    field = "beta_1" if isinstance(rule, Adam | KerasAdam) else "momentum"
    other = replace(rule, **{field: prolonged(getattr(rule, field), k)})  # type: ignore[type-var]
    is_adam = field == "beta_1"
    ahead = new_shard(rule, Lookahead(k, divided_until=0), schedule=Constant(0.1))
    # Adam's bias is corrected by its own beta_1, not the longer one.
    beta, longer = getattr(rule, field), getattr(other, field)
    rates = tuple(0.1 * ((1 - longer**t) / (1 - beta**t) if is_adam else 1 / (1 + k)) for t in range(1, 6))
    kept = new_shard(other, Keep(), schedule=Piecewise((1, 2, 3, 4), rates))
    halved = new_shard(other, Keep(), schedule=Piecewise((1, 2, 3, 4), tuple(rate / 2 for rate in rates)))
    gradients = np.random.default_rng(5).standard_normal((5, LAYOUT.size(0)))
    for sequence, gradient in enumerate(gradients[:4], 1):
        for shard in (ahead, kept, halved):
            push(shard, sequence, gradient)
        halved.arena.parameters[:] = kept.arena.parameters
        for mine, theirs in zip(halved.arena.slots, kept.arena.slots, strict=True):
            mine[:] = theirs
    np.testing.assert_allclose(ahead.arena.parameters, kept.arena.parameters, rtol=1e-5, atol=1e-6)
    for shard in (ahead, halved):
        push(shard, 5, gradients[4], base_version=0)
    np.testing.assert_allclose(ahead.arena.parameters, halved.arena.parameters, rtol=1e-5, atol=1e-6)


VARIABLES = [
    Variable("plain", (5,)),
    Variable("slow", (5,), rate=0.125),
    Variable("positive", (5,), constraint=NonNeg()),
    Variable("decayed", (5,), weight_decay=0.5),
    Variable("statistic", (5,), STATISTIC),
    Variable("frozen", (5,), FROZEN),
]


def test_each_variable_moves_at_its_rate_or_not_at_all() -> None:
    layout = lay_out(VARIABLES, 1)
    shard = new_shard(Momentum(0.5), Lookahead(1, strength=1), layout, Constant(1.0))
    for sequence in (1, 2):
        push(shard, sequence, np.ones(layout.num_pushed(0)))
    vectors = shard.arena.parameters, pulled(shard), shard.arena.slots[0]
    each = zip(VARIABLES, (1, 0.125, 0, 1, 0, 0), *(layout.gather([vector]) for vector in vectors), strict=True)
    for variable, rate, before, after, m in each:
        np.testing.assert_allclose(after, before - np.float32(rate * 0.5 * 0.75) * m, rtol=1e-6, err_msg=variable.name)
        if not rate:
            np.testing.assert_array_equal(after, before, variable.name)
    parts = [shard.vector.values(start, start + 1) for start in range(layout.size(0))]
    np.testing.assert_array_equal(np.concatenate(parts), pulled(shard), "however it is cut")


def test_without_staleness_nothing_changes_bit_for_bit() -> None:
    """One worker that does not overlap: every gradient is computed at the version that it is applied to."""
    kept, ahead = new_shard(KerasAdam(), Keep()), new_shard(KerasAdam(), Lookahead())
    for sequence in range(1, 30):
        for shard in (kept, ahead):
            push(shard, sequence, np.sin(pulled(shard) * sequence))
    np.testing.assert_array_equal(pulled(kept), pulled(ahead))
    np.testing.assert_array_equal(ahead.arena.parameters, pulled(ahead))


def test_the_measured_staleness_decides_how_far_and_survives_a_restart(tmp_path: Path) -> None:
    """Two workers in turn are one push late each; a push that is sent again does not count."""
    path = tmp_path / "arena"
    shard = new_shard(KerasMomentum(0.5), Lookahead(strength=1), path=path)
    bases = [0, 0]
    for step in range(40):
        worker = step % 2
        for _ in range(1 + (step == 20)):
            push(shard, step // 2 + 1, np.ones(LAYOUT.size(0)), bases[worker], worker)
        bases[worker] = shard.version
    measured, counts = shard._books.staleness, shard.status().staleness_histogram
    assert (counts[0], counts[1], sum(counts)) == (1, 39, 40)
    assert measured == pytest.approx(1, abs=0.15), "a mean of the last 8 to 16 pushes"
    w, m = shard.arena.parameters, shard.arena.slots[0]
    beta = prolonged(0.5, measured)
    np.testing.assert_allclose(pulled(shard), w + m * beta * (1 - beta**measured) / (1 - beta), rtol=1e-5)
    shard.close()
    arena = Arena.open(path)
    assert arena is not None
    again = Shard(arena)
    assert again._books.staleness == pytest.approx(39 / 64)
    w, m, beta = again.arena.parameters, again.arena.slots[0], prolonged(0.5, 39 / 64)
    np.testing.assert_allclose(pulled(again), w + m * beta * (1 - beta ** (39 / 64)) / (1 - beta), rtol=1e-5)
    again.close()


def test_a_delayed_gradient_that_diverges_converges_with_look_ahead() -> None:
    """A quadratic that momentum 0.9 with a delay of one cannot follow."""

    def distance(treatment: Treatment) -> float:
        shard = new_shard(KerasMomentum(0.9), treatment, schedule=Constant(0.15))
        held = [(pulled(shard), 0)] * 2
        for step in range(400):
            at, base = held[step % 2]
            push(shard, step // 2 + 1, at, base, step % 2)
            held[step % 2] = pulled(shard), shard.version
        return float(np.abs(shard.arena.parameters).max())

    assert distance(Lookahead()) < 0.01 < 1000 < distance(Keep())


MEANS = Lookahead(gradients=3)
WITH_STATISTICS = lay_out([Variable("w", (40,)), Variable("s", (5,), kind=STATISTIC)], 1)


@pytest.mark.parametrize("rule", [KerasRMSProp(momentum=0.9), KerasAdam()], ids=repr)
def test_some_pushes_make_one_update_with_their_mean(rule: Rule) -> None:
    """As each of the means, pushed alone, makes one; staleness counts updates, and statistics wait for no mean."""
    k, size = 2.0, WITH_STATISTICS.size(0)
    means = new_shard(rule, replace(MEANS, updates=k, divided_until=0), WITH_STATISTICS, Constant(0.1))
    alone = new_shard(rule, Lookahead(k, divided_until=0), WITH_STATISTICS, Constant(0.1))
    rng = np.random.default_rng(4)
    for update in range(4):
        before, mean = means.arena.parameters.copy(), np.zeros(size)
        for i in range(3):
            values = rng.standard_normal(size)
            push(means, 3 * update + i + 1, values, worker=0)
            mean[:40] += values[:40].astype(np.float32)
            np.testing.assert_allclose(means.arena.parameters[40:], before[40:] + values[40:], rtol=1e-6)
            before[40:] = means.arena.parameters[40:]
            assert means.version == 3 * update + i + 1, "a version for each push"
            assert (means.arena.parameters[:40] == before[:40]).all() == (i < 2), "an update after three"
        mean /= 3
        push(alone, update + 1, mean)
        np.testing.assert_allclose(means.arena.parameters[:40], alone.arena.parameters[:40], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(pulled(means)[:40], pulled(alone)[:40], rtol=2e-5, atol=1e-6)
    assert means.status().pushes == 12


def test_measured_staleness_and_its_rate_count_updates() -> None:
    """Pushes six versions late, three to an update, are two updates late."""
    shard = new_shard(KerasMomentum(0.5), replace(MEANS, strength=1, power=1), schedule=Constant(0.1))
    shard._books.staleness = 6.0
    assert shard._books.updates_ahead == 2.0
    assert shard._books.rate_of_mean(0) == pytest.approx(0.05)


def test_the_rate_is_divided_less_and_less() -> None:
    """Pushes nine versions late: by 9^(1/2), at half of the time by 9^(1/4), and then by nothing."""
    treatment, always = Lookahead(9, power=0.5, divided_until=40), Lookahead(9, power=0.5, divided_until=0)
    factors = [staleness.rate_factor(treatment, 9, version) for version in (0, 20, 40, 1000)]
    assert factors == pytest.approx([1 / 3, 3**-0.5, 1, 1])
    for divided in (always, Divide(0.5)):
        assert staleness.rate_factor(divided, 9, 10**9) == pytest.approx(1 / 3)
    moved = []
    for treated in (treatment, replace(treatment, divided_until=9)):
        shard = new_shard(KerasMomentum(0.5), treated, schedule=Constant(0.1))
        for sequence in range(1, 10):
            push(shard, sequence, np.zeros(LAYOUT.size(0)))
        before = shard.arena.parameters.copy()
        push(shard, 10, np.ones(LAYOUT.size(0)), base_version=0)
        moved.append(shard.arena.parameters - before)
    np.testing.assert_allclose(moved[0] / moved[1], 9 ** -(0.5 * 31 / 40), rtol=1e-4)
    with pytest.raises(ValueError, match="divided_until is -1; give a number of pushes, or 0 to divide always"):
        Lookahead(divided_until=-1)


def test_a_snapshot_has_the_sum_of_its_moment_under_sync_too() -> None:
    """Its ledger and its sum are of the same pushes, so that none counts twice after a restore."""
    shard = new_shard(KerasMomentum(0.9), Keep(), pace=Sync(3))
    first, second = np.random.default_rng(7).standard_normal((2, LAYOUT.size(0))).astype(np.float32)
    push(shard, 1, first, worker=0)
    with shard.snapshot() as snapshot:
        push(shard, 1, second, worker=1)
        vectors = np.concatenate(list(snapshot.pieces())).reshape(-1, LAYOUT.size(0))
    np.testing.assert_array_equal(vectors[-1], first)
    assert snapshot.records["rounds"]["count"].tolist() == [1]
    np.testing.assert_array_equal(shard.arena.sum, first + second)


def test_a_sum_survives_a_restart_and_is_not_in_a_snapshot_made_before(tmp_path: Path) -> None:
    path, size = tmp_path / "arena", LAYOUT.size(0)
    shard = new_shard(KerasRMSProp(momentum=0.9), MEANS, path=path)
    whole = new_shard(KerasRMSProp(momentum=0.9), MEANS)
    gradients = np.random.default_rng(5).standard_normal((3, size))
    push(shard, 1, gradients[0])
    with shard.snapshot() as snapshot:
        push(shard, 2, gradients[1])
        vectors = np.concatenate(list(snapshot.pieces())).reshape(-1, size)
        np.testing.assert_array_equal(vectors[-1], gradients[0].astype(np.float32))
        assert snapshot.records["rounds"]["count"].tolist() == [1]
    shard.close()
    arena = Arena.open(path)
    assert arena is not None
    again = Shard(arena)
    push(again, 3, gradients[2])
    for sequence, gradient in enumerate(gradients, 1):
        push(whole, sequence, gradient)
    np.testing.assert_array_equal(again.arena.parameters, whole.arena.parameters)
    again.close()


@pytest.mark.parametrize("point", ["sync.arrived", "sync.summed", "sync.completed", "sync.updated"])
def test_a_push_that_fails_between_is_summed_once_when_it_is_repeated(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = WITH_STATISTICS.size(0)
    gradients = np.random.default_rng(6).standard_normal((3, size))
    broken, whole = (new_shard(KerasRMSProp(momentum=0.9), MEANS, WITH_STATISTICS) for _ in range(2))
    for sequence, gradient in enumerate(gradients, 1):
        push(whole, sequence, gradient)
        if sequence == 3:
            fail_at(point, monkeypatch)
            with pytest.raises(RuntimeError, match=point):
                push(broken, sequence, gradient)
            monkeypatch.undo()
            broken = Shard(broken.arena)
        push(broken, sequence, gradient)
    np.testing.assert_array_equal(broken.arena.parameters, whole.arena.parameters)
    assert broken.version == whole.version == 3


def fail_at(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises once a shard's sum has come to a point."""

    def fail(name: str) -> None:
        if name == point:
            raise RuntimeError(point)

    monkeypatch.setattr(rounds, "reach", fail)


def test_publications_and_differences_from_them_are_of_moved_values() -> None:
    shard, rng = new_shard(KerasMomentum(0.9), Lookahead(10)), np.random.default_rng(3)
    for sequence in range(1, 4):
        push(shard, sequence, rng.standard_normal(LAYOUT.size(0)))
        published = np.empty(LAYOUT.size(0), np.float32)
        convert.widen(shard.publishers[codec.INT8].latest(1).trained, published)
        moved, w = pulled(shard), shard.arena.parameters
        error, movement = np.abs(published - moved).max(), np.abs(moved - w).max()
        assert error < 0.02 < 0.1 < movement


@pytest.mark.parametrize("rule", [SGD(), Momentum(0.0), KerasRMSProp(), KerasAdagrad(), KerasAdam(0.0)], ids=repr)
def test_a_rule_without_momentum_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"Lookahead extrapolates the momentum of the rule, and .* has none; give"):
        staleness.check(Lookahead(), rule, Async())
    with pytest.raises(ValueError, match="has no momentum"):
        new_shard(rule, Lookahead())
    staleness.check(Divide(), rule, Async())


def test_synchronous_pace_and_updates_that_are_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="Lookahead has nothing to do under the pace Sync"):
        staleness.check(Lookahead(), KerasAdam(), Sync(2))
    for power in (-0.5, 1.5, np.nan):
        for treatment in (Divide, lambda power: Lookahead(1, power=power)):
            with pytest.raises(ValueError, match=f"power is {power}; give a number from 0 to 1"):
                treatment(power)
    with pytest.raises(ValueError, match="gradients is 0; give the pushes of an update, at least 1"):
        Lookahead(gradients=0)
    with pytest.raises(ValueError, match="strength is 0; give a number above 0"):
        Lookahead(strength=0)
    for updates in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"updates is {updates}; give a number of updates"):
            Lookahead(updates)
