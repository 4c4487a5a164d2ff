"""Norms by layer from flat vectors of sliced variables, and how many layers there are at most."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Slicing, Variable, lay_out
from downpour.worker import norms
from downpour.worker.exchange.exchange import Parameters
from downpour.worker.norms import MOST_LAYERS, OTHERS, StepNorms, layers_of

VARIABLES = [
    Variable("stem/conv/kernel", (3, 3, 7)),
    Variable("stem/conv/bias", (7,)),
    Variable("mean", (7,), STATISTIC),
    Variable("head/kernel", (70, 300), FACTORED),
    Variable("scale", ()),
    Variable("old/kernel", (9,), FROZEN),
]
LAYOUT = lay_out(VARIABLES, 3, [Slicing("head/*", 5)])
LAYERS = {"stem/conv": (0, 1), "head": (3,), "scale": (4,)}


class Result:
    def gradient_norms(self) -> dict[int, float]:
        return {0: 3.0, 1: 4.0, 3: 2.0, 4: 0.5}


def pulled(values: list[np.ndarray], wire: type) -> Parameters:
    vectors = LAYOUT.scatter(values)
    trained = [vector[: LAYOUT.num_trained(shard)] for shard, vector in enumerate(vectors)]
    bits = [(v.view(np.uint32) >> 16).astype(np.uint16) if wire is np.uint16 else v.astype(wire) for v in trained]
    return Parameters(bits, [], [4, 7, 5])


@pytest.mark.parametrize("wire", [np.float32, np.float16, np.uint16])
def test_they_are_those_of_whole_variables_in_any_wire_dtype(wire: type) -> None:
    rng = np.random.default_rng(0)
    wide = [np.asarray(rng.normal(1, 1, v.shape), np.float32) for v in VARIABLES]
    # What every wire dtype holds exactly.
    values = [np.round(value * 8).astype(np.float32) / 8 for value in wide]
    found = StepNorms(LAYOUT).look(pulled(values, wire), Result())
    assert found is not None and found.version == 7
    exact = {
        layer: np.sqrt(sum(float(np.square(values[i].astype(np.float64)).sum()) for i in numbers))
        for layer, numbers in LAYERS.items()
    }
    assert dict(found.weights) == pytest.approx(exact, rel=1e-6)
    assert dict(found.gradients) == {"stem/conv": 5.0, "head": 2.0, "scale": 0.5}


def test_they_are_taken_again_after_a_thousand_times_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: Any = Parameters([], [], [1])
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def takes_10_ms(*_: Any) -> str:
        now[0] += 0.01
        return "norms"

    monkeypatch.setattr(norms, "norms", takes_10_ms)
    taken = StepNorms(LAYOUT)
    times = []
    while now[0] < 130:
        if taken.look(parameters, Result()):
            times.append(round(now[0]))
        now[0] += 0.1
    assert times == [100, 110, 120]


def test_deep_models_share_the_beginnings_of_names() -> None:
    blocks = [f"net/stage{s}_block{b}_{part}/kernel" for s in range(4) for b in range(8) for part in ("a", "b", "norm")]
    layers = layers_of(lay_out([Variable(name, (2,)) for name in ["net/head/kernel", "net/head/bias", *blocks]], 2))
    assert len(layers) == 98 and set(layers.values()) == {"net/head"} | {
        f"net/stage{s}_block{b}" for s in range(4) for b in range(8)
    }
    flat = [Variable(f"dense{i}/kernel", (1 + i,)) for i in range(100)]
    layers = layers_of(lay_out(flat, 1))
    assert len(set(layers.values())) == MOST_LAYERS
    assert layers[99] == "dense99" and layers[61] == "dense61" and layers[60] == layers[0] == OTHERS
