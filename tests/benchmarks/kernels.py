"""The shards' arithmetic alone, against the bandwidth of this machine's memory.

    python -m tests.benchmarks.kernels [--repetitions=9]            what `make bench-kernels` runs

Every update rule runs over vectors of a shard's real size at the paper's shape, out of cache, with one thread and with
one thread a core, as shards on one machine would: each thread has vectors of its own. The yardstick is a triad,
a = b + s * c, in the manner of STREAM (McCalpin 1995), compiled by numba as the rules are. Bytes are what the loop
reads and writes, 4 an element and vector; as in STREAM, what the processor fetches only to overwrite it is not counted.
The triad has that and an update has not, so a rule can reach up to 4/3 of the triad. Repetitions are interleaved:
whatever else the machine does hits all alike. Figures are medians.

RMSProp with momentum is also measured as a shard applies one push or two at a time: "copied" saves a piece of all
vectors for the undo log and then updates it, "logged" is the loop that does both and saves some hundred elements at a
time, as shards do (`downpour.ps.apply.loops`). Gradients are bfloat16 there. Bytes are those of the update alone.

The last line is `RESULT {json}`: GB/s and the fraction of the triad, by name and number of threads; and the time of
"logged" in parts of that of "copied", by number of pushes, on one thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import flags
from numba import njit, types

from downpour.launch.roles import entry
from downpour.proto.numerics import convert
from downpour.ps.apply import kernels
from downpour.ps.apply.loops import LOGGED_ELEMENTS
from downpour.ps.layout.chunks import PIECE_ELEMENTS
from downpour.ps.policy import rules
from tests.benchmarks import shape

_REPETITIONS = flags.DEFINE_integer("repetitions", 9, "Measurements of each; an odd number.", lower_bound=1)
_ELEMENTS = flags.DEFINE_integer("elements", 0, "Length of a vector; a shard's of the paper's model by default.")

_SPREAD_BYTES = 400 << 20  # vectors of one thread; even a kernel of one vector goes through twice its cache
_NUM_VECTORS = 6  # parameters, up to four slots, gradient
_WORD = 4

Vectors = list[np.ndarray]

_RULE = rules.RMSProp(rho=0.9, momentum=0.9)  # the paper's
_PUSHES = (1, 2)
_INITIAL = {1: 1.0, 2: 0.0}
_BYTES_APPLIED = 6 * _WORD


@dataclass(frozen=True)
class Kernel:
    """Something to measure.

    Attributes:
        name: In the table.
        bytes_per_element: Read and written.
        initial: What vectors are filled with before each measurement, by their number.
        run: Goes once over [n] float32 vectors.
    """

    name: str
    bytes_per_element: int
    initial: dict[int, float]
    run: Callable[[Vectors], object]


_vector = types.float32[::1]


@njit(types.void(_vector, _vector, _vector, types.float32), nogil=True, error_model="numpy")
def _triad(a, b, c, s):  # type: ignore[no-untyped-def]
    for i in range(a.size):
        a[i] = b[i] + s * c[i]


def all_kernels() -> list[Kernel]:
    """The triad, every update rule with its default hyper-parameters, and what surrounds an update."""
    triad = Kernel("triad", 3 * _WORD, {}, lambda v: _triad(v[0], v[1], v[2], np.float32(0.5)))
    others = [
        Kernel("add", 3 * _WORD, {}, lambda v: kernels.add(v[0], v[1])),
        Kernel("widen", 2 + _WORD, {}, lambda v: convert.widen(v[0].view(np.uint16)[: v[0].size], v[1])),
        Kernel("narrow", _WORD + 2, {}, lambda v: convert.narrow(v[0], v[1].view(np.uint16)[: v[0].size])),
        Kernel("num_non_finite", _WORD, {}, lambda v: convert.num_non_finite(v[0])),
    ]
    applied = [kernel(count) for count in _PUSHES for kernel in (_copied, _logged)]
    return [triad, *(_update(name, kind()) for name, kind in rules.BY_NAME.items()), *others, *applied]


def _update(name: str, rule: rules.Rule) -> Kernel:
    slots = list(rule.slots.values())
    assert len(slots) + 2 <= _NUM_VECTORS, f"{name} has {len(slots)} slots"
    update = kernels.update_for(rule)
    num_slots = len(slots)

    def run(v: Vectors) -> None:
        update(v[0], v[1 : 1 + num_slots], v[-1], 1e-3, 1e-4, 0.0, 1)

    return Kernel(name, (2 * (1 + num_slots) + 1) * _WORD, {1 + i: value for i, value in enumerate(slots)}, run)


def _copied(num_pushes: int) -> Kernel:
    update, saved = kernels.update_for(_RULE), np.empty((3, PIECE_ELEMENTS), np.float32)

    def run(v: Vectors) -> None:
        for start in range(0, v[0].size, PIECE_ELEMENTS):
            w, *slots = (vector[start : start + PIECE_ELEMENTS] for vector in v[:3])
            for room, vector in zip(saved, (w, *slots), strict=True):
                room[: w.size] = vector
            for gradient in _gradients(v, num_pushes):
                update(w, slots, gradient[start : start + w.size], 1e-3, 1e-4, 0.0, 1)

    return Kernel(f"copied, {num_pushes}", _BYTES_APPLIED, _INITIAL, run)


def _logged(num_pushes: int) -> Kernel:
    update, saved = kernels.logged_update_for(_RULE), np.empty(3 * LOGGED_ELEMENTS, np.float32)
    progress = np.zeros(3, np.uint64)

    def run(v: Vectors) -> None:
        rates, steps = (1e-3,) * num_pushes, (1,) * num_pushes
        update((v[0], v[1], v[2]), _gradients(v, num_pushes), rates, steps, (1e-4, 0.0), (saved, progress), 0)

    return Kernel(f"logged, {num_pushes}", _BYTES_APPLIED, _INITIAL, run)


def _gradients(v: Vectors, num_pushes: int) -> list[np.ndarray]:
    return [vector.view(np.uint16)[: vector.size] for vector in v[-num_pushes:]]


class Bench:
    """Vectors for some threads, and the clock.

    Args:
        num_elements: Length of a vector.
        num_threads: Most threads that will run at once.
    """

    def __init__(self, num_elements: int, num_threads: int) -> None:
        self._num_elements = num_elements
        num_sets = max(2, -(-_SPREAD_BYTES // (_NUM_VECTORS * num_elements * _WORD)))
        random = np.random.default_rng(0)
        gradient = random.standard_normal(num_elements, np.float32) * np.float32(1e-3)
        # [thread][set] -> vectors. A thread goes from set to set, so that no vector is in a cache when it comes again.
        self._sets = [
            [
                [np.full(num_elements, 0.02, np.float32) for _ in range(_NUM_VECTORS - 1)] + [gradient.copy()]
                for _ in sets
            ]
            for sets in [range(num_sets)] * num_threads
        ]

    def gb_per_s(self, kernel: Kernel, num_threads: int) -> float:
        """Bandwidth of a kernel over all threads together."""
        barrier = threading.Barrier(num_threads)

        def work(sets: list[Vectors]) -> tuple[float, float]:
            for vectors in sets:
                for number, value in kernel.initial.items():
                    vectors[number].fill(value)
            barrier.wait()
            begin = time.perf_counter()
            for vectors in sets:
                kernel.run(vectors)
            return begin, time.perf_counter()

        with ThreadPoolExecutor(num_threads) as pool:
            times = list(pool.map(work, self._sets[:num_threads]))
        seconds = max(end for _, end in times) - min(begin for begin, _ in times)
        return kernel.bytes_per_element * self._num_elements * len(self._sets[0]) * num_threads / seconds / 1e9


def measure(num_elements: int, repetitions: int, num_threads: int) -> dict[str, dict[int, float]]:
    """Median GB/s by kernel's name and number of threads, 1 and `num_threads`."""
    bench, threads = Bench(num_elements, num_threads), sorted({1, num_threads})
    found = all_kernels()
    for kernel in found:
        bench.gb_per_s(kernel, num_threads)  # faults pages in, compiles
    samples: dict[tuple[str, int], list[float]] = {(k.name, n): [] for k in found for n in threads}
    for _ in range(repetitions):
        for kernel in found:
            for n in threads:
                samples[kernel.name, n].append(bench.gb_per_s(kernel, n))
    return {k.name: {n: float(np.median(samples[k.name, n])) for n in threads} for k in found}


def _main() -> None:
    num_elements = _ELEMENTS.value or shape.layout_of(shape.PAPER, 17).size(0)
    num_threads = len(os.sched_getaffinity(0))
    measured = measure(num_elements, _REPETITIONS.value, num_threads)
    threads = sorted({1, num_threads})
    print(f"vectors of {num_elements:,} float32; median of {_REPETITIONS.value}")
    headings = [f"GB/s, threads: {n}" for n in threads]
    print(f"{'':<16}" + "".join(f"{heading:>20} {'of triad':>9}" for heading in headings))
    result: dict[str, dict[str, Any]] = {}
    for name, by_threads in measured.items():
        fractions = {n: by_threads[n] / measured["triad"][n] for n in threads}
        print(f"{name:<16}" + "".join(f"{by_threads[n]:>20.1f} {fractions[n]:>9.0%}" for n in threads))
        result[name] = {
            str(n): {"gb_per_s": round(by_threads[n], 2), "of_triad": round(fractions[n], 3)} for n in threads
        }
    result["logged_of_copied"] = {
        str(count): round(measured[f"copied, {count}"][1] / measured[f"logged, {count}"][1], 3) for count in _PUSHES
    }
    print(f"logged in parts of copied, by pushes: {result['logged_of_copied']}")
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="kernels")


if __name__ == "__main__":
    main()
