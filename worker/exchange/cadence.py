"""How often a worker exchanges with the shards, and what it computes meanwhile; `replica` implements it.

| cadence | between two fetches the worker | a push carries |
|---|---|---|
| `EveryStep` | computes one gradient | that gradient |
| `Accumulate(num_batches)` | computes gradients at one point | their mean |
| `Downpour(push_every, fetch_every, learning_rate)` | steps by SGD on its own copy | the sum of its gradients |
| `LocalSteps(num_steps, rule, learning_rate)` | trains its own copy by a rule | the copy's start - its end |

`Downpour` is n_push and n_fetch of Dean et al. 2012, algorithm 7.1. `LocalSteps` is the inner loop of DiLoCo (Douillard
et al. 2023): the shards' rule is then the outer one, `Momentum(0.9, nesterov=True)` with a rate near 0.7, and their
weight decay should be 0. Differences of statistics are summed between two pushes, whatever the cadence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from downpour.ps.policy.rules import Rule


class Cadence(Protocol):
    """Number of batches between two pushes, and between two fetches; implemented by frozen dataclasses."""

    @property
    def push_every(self) -> int:
        """Batches from one push to the next."""
        ...

    @property
    def fetch_every(self) -> int:
        """Batches from one fetch to the next."""
        ...


@dataclass(frozen=True)
class EveryStep:
    """Pushes each gradient and fetches parameters after each."""

    push_every: int = field(default=1, init=False)
    fetch_every: int = field(default=1, init=False)


@dataclass(frozen=True)
class Accumulate:
    """Pushes the mean gradient of `num_batches` batches: a batch that many times larger in the same memory."""

    num_batches: int

    def __post_init__(self) -> None:
        _at_least_one("num_batches", self.num_batches)

    @property
    def push_every(self) -> int:
        """See `Cadence`."""
        return self.num_batches

    @property
    def fetch_every(self) -> int:
        """See `Cadence`."""
        return self.num_batches


@dataclass(frozen=True)
class Downpour:
    """Pushes the sum of its gradients every `push_every` batches, fetches every `fetch_every`, steps by SGD between."""

    push_every: int
    fetch_every: int
    learning_rate: float

    def __post_init__(self) -> None:
        _at_least_one("push_every", self.push_every)
        _at_least_one("fetch_every", self.fetch_every)
        _positive(self.learning_rate)


@dataclass(frozen=True)
class LocalSteps:
    """Trains its own copy for `num_steps` batches by `rule`, whose slots stay on the worker; pushes start - end."""

    num_steps: int
    rule: Rule
    learning_rate: float

    def __post_init__(self) -> None:
        _at_least_one("num_steps", self.num_steps)
        _positive(self.learning_rate)

    @property
    def push_every(self) -> int:
        """See `Cadence`."""
        return self.num_steps

    @property
    def fetch_every(self) -> int:
        """See `Cadence`."""
        return self.num_steps


BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (EveryStep, Accumulate, Downpour, LocalSteps)}


def permits_overlap(cadence: Cadence) -> bool:
    """Whether the exchange may run while a batch is computed."""
    return isinstance(cadence, EveryStep | Accumulate)


def check(cadence: Cadence, *, overlap: bool) -> None:
    """Raises `ValueError` for a cadence that cannot be overlapped with the exchange."""
    if overlap and not permits_overlap(cadence):
        raise ValueError(
            f"cadence: {type(cadence).__name__} needs exchange.overlap=False; parameters pulled ahead would lack the "
            "updates of the worker's own copy"
        )


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"cadence: {name} is {value}; give at least 1")


def _positive(learning_rate: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"cadence: learning_rate is {learning_rate}; give a number above 0")
