"""Treatments of staleness: the number s of updates between a gradient's base version and the shard's version. Pure.

| treatment | effect on the gradient g of a push that begins with staleness s |
|---|---|
| `Auto` | the default: `Lookahead()` or `Keep`; see `resolved` |
| `Keep` | applied as it is |
| `Divide(power)` | its rate is divided by max(s, 1)^power (Zhang et al. 2016, arXiv 1511.05950: power 1) |
| `Compensate(strength)` | g + strength * g * g * (w_now - w_then) (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326) |
| `Lookahead(updates, strength, ...)` | computed where w is expected when it is applied; see below |
| `Drop(limit)` | not applied, but counted, if s > limit |

`Compensate` needs w_then: the worker keeps the parameters it pulled and sends them with the gradient, in the same
codec, so a push has twice the size. The correction is only as precise as the codec: bfloat16 rounds w_then to 8 bits,
and the rounding counts as movement; use it with float32. Differences of statistics are added unchanged, unless dropped.

`Lookahead` is DANA (Hakimi et al. 2019, arXiv 1907.11612) without a momentum for each worker. DANA's momentum of a
worker decays with that worker's pushes, so all of them together decay 1 + k times as slowly, where k is the number of
others' updates between a pull and its push. The rule's single momentum is prolonged to the same effect:

    beta' = 1 - (1 - beta) / (1 + k)          lr' = lr / (1 + k) where the momentum is a sum, so not for Adam

A gradient moves w as far in all as without it, over 1 + k times as many updates. That is why Adam's bias is corrected
by 1 - beta_1^t, not beta'^t: the first gradients, which all workers compute at one place, would move w 1 + k times as
far, and at a high rate nothing recovers (docs/asynchrony.md). Most of what happens between a pull and its push is known
when it is pulled: k updates without a gradient move w by the last movement times

    S = strength * (beta' + beta'^2 + ... + beta'^k) = strength * beta' * (1 - beta'^k) / (1 - beta')

| rule | workers pull |
|---|---|
| `Momentum` | w - S * lr' * m |
| `KerasMomentum` | w + S * m |
| `RMSProp`, `KerasRMSProp` with momentum | w - S * mom |
| `Adam`, `KerasAdam`, `AdamW` | w - S * alpha * m / (sqrt(v) + epsilon), v_hat in place of v with amsgrad |

with `nesterov` beta' * S in place of S, beta = beta_1 for Adam; lr and alpha are those of the next push, divided as for
staleness k. k is `updates`, or the mean staleness of the last pushes, as the shard measures it: with one worker that
does not overlap it is 0, and everything is as under `Keep`, to the bit. Statistics, frozen variables and those with a
constraint do not move, and checkpoints have w itself.

With `gradients` above 1, so many pushes make one update, with the mean of their gradients (n-softsync of Zhang et al.
2016). No push waits; the version counts pushes as ever, and k and the staleness that divides the rate are those of the
pushes over `gradients`. RMSProp and Adam divide by the root of squares, which a mean makes less noisy, so they move the
same way in fewer and surer updates. Differences of statistics are added at once. What is left at the end of a job, too
few gradients for an update, is not applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from downpour.ps.policy import rules
from downpour.ps.policy.pace import WORKERS_A_GRADIENT, Mode, Sync, most_workers
from downpour.ps.policy.rules import Adam, KerasAdam, KerasRMSProp, RMSProp, Rule

_PUSHES_OF_A_WORKER = 50  # from which on means are better
_DIVIDE_BY_SQUARES = (RMSProp, KerasRMSProp, Adam, KerasAdam)


@dataclass(frozen=True)
class Auto:
    """What is best for the job; shards are given what it stands for."""


@dataclass(frozen=True)
class Keep:
    """Applies every gradient as it is."""


@dataclass(frozen=True)
class Divide:
    """Divides the rate by a power of the staleness."""

    power: float = 1.0

    def __post_init__(self) -> None:
        _check_power(self.power)


@dataclass(frozen=True)
class Compensate:
    """Corrects the gradient to first order for how far the parameters have moved."""

    strength: float

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"staleness: strength is {self.strength}; give a number above 0")


@dataclass(frozen=True)
class Drop:
    """Drops gradients whose staleness is above `limit`."""

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"staleness: limit is {self.limit}; give 0 or more updates")


@dataclass(frozen=True)
class Lookahead:
    """Prolongs the momentum, and sends workers the parameters that it will lead to after `updates` updates.

    Attributes:
        updates: How many updates ahead; 0 for the measured staleness.
        strength: Multiplies the movement. Gradients from a little beyond the place that is reached damp the momentum.
        power: The rate of a push is divided by this power of its staleness; 0 for never.
        divided_until: Version until which this power falls to 0, linearly: it is at first that a high rate destroys
            what stale gradients cannot mend, and later that a lower one learns less; 0 to divide always.
        gradients: Pushes whose mean is one update.
    """

    updates: float = 0.0
    strength: float = 2.0
    power: float = 0.5
    divided_until: int = 1000
    gradients: int = 1

    def __post_init__(self) -> None:
        _check_power(self.power)
        if self.divided_until < 0:
            raise ValueError(
                f"staleness: divided_until is {self.divided_until}; give a number of pushes, or 0 to divide always"
            )
        if not 0 < self.strength < math.inf:
            raise ValueError(f"staleness: strength is {self.strength}; give a number above 0")
        if not 0 <= self.updates < math.inf:
            raise ValueError(
                f"staleness: updates is {self.updates}; give a number of updates, or 0 for the measured staleness"
            )
        if self.gradients < 1:
            raise ValueError(f"staleness: gradients is {self.gradients}; give the pushes of an update, at least 1")


Treatment = Auto | Keep | Divide | Compensate | Drop | Lookahead
BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (Auto, Keep, Divide, Compensate, Drop, Lookahead)}


def resolved(
    treatment: Treatment,
    rule: Rule,
    pace: Mode,
    num_workers: int,
    num_steps: int,
    *,
    pushes_gradients: bool,
    keeps_average: bool,
) -> Treatment:
    """Returns the treatment that `Auto` stands for, any other as it is.

    That is `Lookahead()` where the rule has a momentum, else `Keep()`. From 16 workers on, rules that divide by a root
    of squares take the mean of an eighth of the workers' gradients, if these are let in one after another or make 50
    pushes each: else there is no time for fewer updates (docs/asynchrony.md).

    Args:
        treatment: As the job says.
        rule: The job's.
        pace: The job's.
        num_workers: Workers that the job may have.
        num_steps: The job's.
        pushes_gradients: Whether pushes are gradients, not what a worker's own steps have changed.
        keeps_average: Whether the job keeps an average of the parameters, whose decay is that of an update.
    """
    if not isinstance(treatment, Auto):
        return treatment
    if not (pushes_gradients and rules.momentum_of(rule)) or isinstance(pace, Sync):
        return Keep()
    is_long = most_workers(pace, 0) < num_workers or num_steps >= _PUSHES_OF_A_WORKER * num_workers
    divides = isinstance(rule, _DIVIDE_BY_SQUARES) and is_long and not keeps_average
    return Lookahead(gradients=max(1, num_workers // WORKERS_A_GRADIENT) if divides else 1)


def check(treatment: Treatment, rule: Rule, pace: Mode) -> None:
    """Raises `ValueError` for a treatment that does not go with a rule or pace."""
    if not isinstance(treatment, Lookahead):
        return
    if not rules.momentum_of(rule):
        raise ValueError(
            f"staleness: Lookahead extrapolates the momentum of the rule, and {rule!r} has none; give "
            "staleness=Keep(), or a rule with momentum or beta_1 above 0"
        )
    if isinstance(pace, Sync):
        raise ValueError("staleness: Lookahead has nothing to do under the pace Sync, which applies no stale gradient")


def rate_factor(treatment: Treatment, staleness: float, version: int) -> float:
    """Returns the factor of the learning rate of a push to a shard of this version."""
    if not isinstance(treatment, Divide | Lookahead):
        return 1.0
    power = treatment.power
    if isinstance(treatment, Lookahead) and treatment.divided_until:
        power *= max(0.0, 1 - version / treatment.divided_until)
    return float(max(staleness, 1) ** -power)


def gradients_of(treatment: Treatment) -> int:
    """Returns how many pushes make one update."""
    return treatment.gradients if isinstance(treatment, Lookahead) else 1


def drops(treatment: Treatment, staleness: int) -> bool:
    """Whether the gradient is dropped."""
    return isinstance(treatment, Drop) and staleness > treatment.limit


def extrapolated(beta: float, updates: float) -> float:
    """The sum beta + beta^2 + ... + beta^updates, also for a fraction of an update."""
    return beta * (1 - math.pow(beta, updates)) / (1 - beta)


def prolonged(beta: float, updates: float) -> float:
    """The momentum of workers that look `updates` ahead: 1 - (1 - beta) / (1 + updates), exactly beta for 0."""
    return 1 - (1 - beta) / (1 + updates) if updates else beta


def _check_power(power: float) -> None:
    if not 0 <= power <= 1:
        raise ValueError(f"staleness: power is {power}; give a number from 0 to 1, 1 to divide by the staleness itself")
