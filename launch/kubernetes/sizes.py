"""Memory of a job's processes, computed from the layout of its model.

Only `measure` builds the model, and so imports TensorFlow; the computations are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from downpour.launch.job import Job
from downpour.launch.job.build import build
from downpour.model.data.batches import blank_batch
from downpour.model.data.nests import flatten
from downpour.proto import codec
from downpour.ps.layout import Layout
from downpour.ps.memory import arena
from downpour.ps.policy.specification import specification_of

_MI = 1 << 20
_SHARD_PROCESS = 150 * _MI  # measured: state + at most this (PSS); see docs/exchange.md
_RECEIVED_AT_A_TIME = 3  # pushes, each with one chunk on the wire and one decoded
_TENSORFLOW_PROCESS = 1000 * _MI  # measured: 700 to 800 MB
_COPIES = 6  # of all parameters: pulled, pushed, their wire forms, the graph's own, and one in reserve
_BATCHES = 8  # prefetched


@dataclass(frozen=True)
class Sizes:
    """Memory in bytes, by purpose; for shards, of the largest one.

    Attributes:
        arena: File with vectors, ledger and undo log.
        waiting: Chunks of pushes that have been received and are not applied yet.
        published: A publication, and the differences that lead to it; 0 for live pulls.
        snapshot: Copies for a checkpoint of what pushes change before it is read: at most all vectors.
        parameters: Parameters of all shards, as float32.
        batches: Prefetched, decoded images.
        activations: Activations of one batch, forwards and backwards.
        on_gpu: Whether workers keep activations on a GPU; the evaluator has none.
    """

    arena: int
    waiting: int
    published: int
    snapshot: int
    parameters: int
    batches: int
    activations: int
    on_gpu: bool = False

    def requests(self) -> Mapping[str, dict[str, int]]:
        """Parts of each role's memory request, in MiB, by purpose."""
        shard = {
            "arena": self.arena,
            "process": _SHARD_PROCESS,
            "queued pushes": self.waiting,
            "publication": self.published,
        }
        model = {"TensorFlow": _TENSORFLOW_PROCESS, f"{_COPIES} copies of the parameters": _COPIES * self.parameters}
        batches = {"batches decoded ahead": self.batches}
        forwards = {"activations": self.activations // 2}
        both = {} if self.on_gpu else {"activations, forwards and backwards": self.activations}
        chief = {"TensorFlow": _TENSORFLOW_PROCESS, "3 copies of the parameters": 3 * self.parameters}
        parts = {"ps": shard, "worker": model | batches | both, "chief": chief, "evaluator": model | batches | forwards}
        return {role: {name: mib(size) for name, size in of.items() if size} for role, of in parts.items()}

    def limits(self) -> Mapping[str, dict[str, int]]:
        """Parts of each role's memory limit beyond its request, in MiB, by purpose."""
        spare = {role: {"as much again": sum(parts.values())} for role, parts in self.requests().items()}
        return spare | {"ps": {"copies for a checkpoint": mib(self.snapshot)}}


def mib(num_bytes: float) -> int:
    """Converts bytes to MiB, rounded up."""
    return math.ceil(num_bytes / _MI)


def measure(job: Job, *, gpu: bool) -> Sizes:
    """Builds the job's model and computes its memory.

    Raises:
        ValueError: As `downpour.launch.job.build.build` says.
    """
    model, layout = build(job)
    shapes = (layer.output.shape for layer in model.layers if hasattr(layer.output, "shape"))
    activations = sum(math.prod(shape[1:]) for shape in shapes)
    leaves = flatten(blank_batch(job.data, 1)[0]).values()
    example = sum(leaf.nbytes for leaf in leaves if leaf is not None)
    sizes = of_layout(job, layout, activations=2 * 4 * job.batch_size * activations, picture=example)
    return replace(sizes, on_gpu=gpu)


def of_layout(job: Job, layout: Layout, *, activations: int, picture: int) -> Sizes:
    """Computes the sizes from a layout.

    Args:
        job: The job.
        layout: Layout of its model.
        activations: Bytes of one batch's activations.
        picture: Bytes of one decoded image.
    """
    shards = range(layout.num_shards)
    largest = max(shards, key=layout.size)
    specification = specification_of(job, layout, job.cluster.num_workers, largest)
    vectors = len(arena.vector_names(specification)) * 4 * layout.size(largest)
    chunk = min(codec.CHUNK_ELEMENTS, layout.size(largest))
    trained = layout.num_trained(largest)
    return Sizes(
        arena=arena.bytes_needed(specification),
        waiting=_RECEIVED_AT_A_TIME * 2 * 4 * chunk,
        published={"live": 0, "int8": 2 * 2 + 2, "int4": 2 * 2 + 1}[job.exchange.pull] * trained,
        snapshot=vectors,
        parameters=4 * sum(layout.size(shard) for shard in shards),
        batches=_BATCHES * job.batch_size * picture,
        activations=activations,
    )
