"""Parameters and accumulated gradients of a worker between two exchanges, by cadence. No TensorFlow, no sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.ps.apply import kernels
from downpour.ps.policy.rules import SGD, Rule
from downpour.worker.exchange.cadence import Accumulate, Cadence, Downpour, EveryStep, LocalSteps
from downpour.worker.exchange.exchange import Gradients, Parameters


class Contribution(Protocol):
    """The parameters a worker computes with, and its gradients accumulated until the next push."""

    @property
    def parameters(self) -> Parameters:
        """Parameters to compute the next gradient at."""
        ...

    def fetched(self, parameters: Parameters) -> None:
        """Replaces the parameters by newly pulled ones."""
        ...

    def computed(self, gradients: Gradients) -> None:
        """Adds a gradient computed at `parameters`."""
        ...

    def take(self) -> Gradients:
        """Returns the content of the next push, of everything computed since the last."""
        ...


def contribution(cadence: Cadence, wire: pb.Codec) -> Contribution:
    """Returns the implementation of a cadence; `wire` is the codec of the exchange."""
    return _Direct() if isinstance(cadence, EveryStep) else _Replica(cadence, wire)


def step_codec(cadence: Cadence, wire: pb.Codec) -> pb.Codec:
    """The codec of the compiled step: the wire's, or float32 where the worker accumulates gradients."""
    return wire if isinstance(cadence, EveryStep) else codec.FLOAT32


class _Direct:
    """Passes parameters and gradients unchanged."""

    parameters: Parameters
    _gradients: Gradients

    def fetched(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def computed(self, gradients: Gradients) -> None:
        self._gradients = replace(gradients, base=self.parameters.trained)

    def take(self) -> Gradients:
        return self._gradients


class _Replica:
    """A float32 copy that the cadence may update between two fetches, and the sum of gradients since the last push."""

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
        trained = [_widened(vector) for vector in parameters.trained]
        statistics = [vector.copy() for vector in parameters.statistics]
        frozen = [_widened(vector) for vector in parameters.frozen]
        staleness = parameters.staleness * self._cadence.push_every  # each push is of so many batches
        self.parameters = Parameters(trained, statistics, list(parameters.versions), frozen, staleness)
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
            writable = g if g.flags.writeable else g.copy()  # what the compiled loops take; memory of a tensor is not
            self._update(w, slots, writable, self._rate, 0.0, 0.0, self._num_computed)
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


def _widened(vector: np.ndarray) -> np.ndarray:
    """Returns a float32 copy of a vector in a wire dtype."""
    wide = np.empty(vector.size, np.float32)
    convert.to_float32(vector, wide)
    return wide


def _narrowed(vector: np.ndarray, wire: pb.Codec) -> np.ndarray:
    """Returns a float32 vector in the wire dtype."""
    if wire == codec.FLOAT32:
        return vector
    narrow = np.empty(vector.size, codec.WIRE_DTYPES[wire])
    convert.to_wire(vector, narrow)
    return narrow
