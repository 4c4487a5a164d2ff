"""How often a worker talks to the shards, and what it does on its own meanwhile. No TensorFlow, no sockets.

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

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps import kernels
from downpour.ps.rules import SGD, Rule
from downpour.worker.exchange import Gradients, Parameters


class Cadence(Protocol):
    """A frozen dataclass: batches between two pushes, and between two fetches."""

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
    """Pushes each gradient and fetches after each."""

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
    """Trains alone for `num_steps` batches by `rule`, whose slots stay with the worker, then pushes start - end."""

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


def check(cadence: Cadence, *, overlap: bool) -> None:
    """Raises `ValueError` for a cadence that cannot be overlapped with the exchange."""
    if overlap and not isinstance(cadence, EveryStep | Accumulate):
        raise ValueError(
            f"cadence: {type(cadence).__name__} needs exchange.overlap=False; parameters pulled ahead would lack what "
            "the worker's own copy has learned"
        )


class Contribution(Protocol):
    """What a worker computes with, and what becomes of its gradients until the next push."""

    @property
    def parameters(self) -> Parameters:
        """To compute the next gradient at."""
        ...

    def fetched(self, parameters: Parameters) -> None:
        """New parameters have come."""
        ...

    def computed(self, gradients: Gradients) -> None:
        """A gradient at `parameters`."""
        ...

    def take(self) -> Gradients:
        """What to push, of everything computed since the last push."""
        ...


def contribution(cadence: Cadence, wire: pb.Codec) -> Contribution:
    """What carries out a cadence; `wire` is the codec of the exchange."""
    return _Direct() if isinstance(cadence, EveryStep) else _Replica(cadence, wire)


def step_codec(cadence: Cadence, wire: pb.Codec) -> pb.Codec:
    """The codec the compiled step computes with: the wire's, or float32 where gradients meet a copy of the worker."""
    return wire if isinstance(cadence, EveryStep) else codec.FLOAT32


class _Direct:
    """Parameters and gradients pass as they are."""

    parameters: Parameters
    _gradients: Gradients

    def fetched(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def computed(self, gradients: Gradients) -> None:
        self._gradients = replace(gradients, base=self.parameters.trained)

    def take(self) -> Gradients:
        return self._gradients


class _Replica:
    """A copy in float32 that moves between two fetches, and what it has gathered since the last push."""

    parameters: Parameters

    def __init__(self, cadence: Cadence, wire: pb.Codec) -> None:
        self._cadence, self._wire = cadence, wire
        self._rule: Rule | None = None
        if isinstance(cadence, LocalSteps):
            self._rule, self._rate = cadence.rule, cadence.learning_rate
        elif isinstance(cadence, Downpour):
            self._rule, self._rate = SGD(), cadence.learning_rate
        self._update = kernels.update_for(self._rule) if self._rule else None
        self._slots: list[list[np.ndarray]] = []
        self._num_computed = 0
        self._start: list[np.ndarray] = []
        self._sum: list[np.ndarray] = []
        self._statistics: list[np.ndarray] = []
        self._num_gathered = 0

    def fetched(self, parameters: Parameters) -> None:
        trained = [_widened(vector, self._wire) for vector in parameters.trained]
        statistics = [vector.copy() for vector in parameters.statistics]
        self.parameters = Parameters(trained, statistics, list(parameters.versions))
        if isinstance(self._cadence, LocalSteps):
            self._start = [vector.copy() for vector in trained]
        if self._rule and not self._slots:
            self._slots = [[np.full_like(w, value) for value in self._rule.slots.values()] for w in trained]

    def computed(self, gradients: Gradients) -> None:
        if self._num_gathered == 0:
            self._sum = [np.zeros_like(g) for g in gradients.trained]
            self._statistics = [np.zeros_like(d) for d in gradients.statistics]
        self._num_gathered += 1
        self._num_computed += 1
        for total, gradient in zip(self._sum, gradients.trained, strict=True):
            total += gradient
        for total, difference in zip(self._statistics, gradients.statistics, strict=True):
            total += difference
        if self._update is None:
            return
        for w, slots, g in zip(self.parameters.trained, self._slots, gradients.trained, strict=True):
            self._update(w, slots, g, self._rate, 0.0, 0.0, self._num_computed)
        for statistic, difference in zip(self.parameters.statistics, gradients.statistics, strict=True):
            statistic += difference

    def take(self) -> Gradients:
        trained = self._sum
        if isinstance(self._cadence, LocalSteps):
            trained = [start - end for start, end in zip(self._start, self.parameters.trained, strict=True)]
        elif isinstance(self._cadence, Accumulate):
            trained = [total / np.float32(self._num_gathered) for total in trained]
        self._num_gathered = 0
        versions = list(self.parameters.versions)
        return Gradients([_narrowed(vector, self._wire) for vector in trained], self._statistics, versions)


def _widened(vector: np.ndarray, wire: pb.Codec) -> np.ndarray:
    """A float32 copy of a vector of the wire."""
    if wire == codec.FLOAT32:
        return vector.copy()
    wide = np.empty(vector.size, np.float32)
    kernels.widen(vector, wide)
    return wide


def _narrowed(vector: np.ndarray, wire: pb.Codec) -> np.ndarray:
    """A float32 vector as the wire carries it."""
    if wire == codec.FLOAT32:
        return vector
    narrow = np.empty(vector.size, codec.WIRE_DTYPES[wire])
    kernels.narrow(vector, narrow)
    return narrow


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"cadence: {name} is {value}; give at least 1")


def _positive(learning_rate: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"cadence: learning_rate is {learning_rate}; give a number above 0")
