"""Treatments of staleness: the number s of updates between a gradient's base version and the shard's version. Pure.

| treatment | effect on the gradient g of a push that begins with staleness s |
|---|---|
| `Keep` | applied as it is |
| `Divide` | its rate is divided by max(s, 1) (Zhang et al. 2016, arXiv 1511.05950) |
| `Compensate(strength)` | g + strength * g * g * (w_now - w_then) (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326) |
| `Drop(limit)` | not applied, but counted, if s > limit |
| `Lookahead(updates)` | computed where w is expected when it is applied (DANA: Hakimi et al. 2019, arXiv 1907.11612) |

`Compensate` needs w_then: the worker keeps the parameters it pulled and sends them with the gradient, in the same
codec, so a push has twice the size. The correction is only as precise as the codec: bfloat16 rounds w_then to 8 bits,
and the rounding counts as movement; use it with float32. Differences of statistics are added unchanged, unless dropped.

`Lookahead` changes what workers pull, in place of what they push. An update by momentum moves w even if no gradient
arrives: the next k updates by beta + beta^2 + ... + beta^k times the last movement,

    S = beta * (1 - beta^k) / (1 - beta)

| rule | workers pull |
|---|---|
| `Momentum` | w - S * lr * m |
| `KerasMomentum` | w + S * m |
| `RMSProp`, `KerasRMSProp` with momentum | w - S * mom |
| `Adam`, `KerasAdam`, `AdamW` | w - S * alpha * m / (sqrt(v) + epsilon), v_hat in place of v with amsgrad |

with `nesterov` beta * S in place of S, beta = beta_1 for Adam; lr and alpha are those of the next push. DANA keeps a
momentum for each worker; here all share the shard's, as the rule has it. k is `updates`, or the mean staleness of the
last pushes, as the shard measures it: with one worker that does not overlap it is 0, and workers pull w itself, as
checkpoints always have it. Statistics, frozen variables and those with a constraint are not moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from downpour.ps.policy import rules
from downpour.ps.policy.pace import Mode, Sync
from downpour.ps.policy.rules import Rule


@dataclass(frozen=True)
class Keep:
    """Applies every gradient as it is."""


@dataclass(frozen=True)
class Divide:
    """Divides the rate by the staleness."""


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
    """Sends workers the parameters that are expected after `updates` more updates; 0 for the measured staleness."""

    updates: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.updates < math.inf:
            raise ValueError(
                f"staleness: updates is {self.updates}; give a number of updates, or 0 for the measured staleness"
            )


Treatment = Keep | Divide | Compensate | Drop | Lookahead
BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (Keep, Divide, Compensate, Drop, Lookahead)}


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


def rate_factor(treatment: Treatment, staleness: int) -> float:
    """Returns the factor of the learning rate."""
    return 1 / max(staleness, 1) if isinstance(treatment, Divide) else 1.0


def drops(treatment: Treatment, staleness: int) -> bool:
    """Whether the gradient is dropped."""
    return isinstance(treatment, Drop) and staleness > treatment.limit


def extrapolated(beta: float, updates: float) -> float:
    """The sum beta + beta^2 + ... + beta^updates, also for a fraction of an update."""
    return beta * (1 - math.pow(beta, updates)) / (1 - beta)
