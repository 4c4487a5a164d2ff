"""How fast a checkpoint of the paper's shape is written and restored, beside the disk, and what pushes see of it.

    python -m tests.benchmarks.checkpoints [--folder=/where/the/disk/is] [--rounds=3]

17 shard processes with 0.96 GB of parameters and slots. Each round measures, one after another: dd writing as many
bytes to the same disk (from memory, with fsync); a checkpoint; dd reading its file back; new shards restoring the
checkpoint, in processes that have loaded their compiled loops and in ones that have not. The kernel is told to forget
the files before they are read, and whatever is measured finds memory at hand (`fetch_memory`). Then, in one shard
alone, what a chunk of a push takes without and beside a checkpoint.
The last line is `RESULT {json}`: medians over the rounds, and ratios to dd of the same round.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.local.scratch import scratch_folder
from downpour.launch.roles import entry
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import write_shard
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.specification import Policies, specification_of
from downpour.ps.policy.staleness import Keep
from downpour.ps.shard.shard import Shard
from downpour.worker.chief.shards import Shards
from tests.benchmarks import shape
from tests.benchmarks.cluster import RULE, Load, cache_kernels, start_shards
from tests.benchmarks.processes import Processes
from tests.chunks import encode_chunk

_FOLDER = flags.DEFINE_string("folder", None, "On the disk to measure; the system's temporary folder by default.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each.", 1)
_SHARDS = flags.DEFINE_integer("shards", 17, "Shard processes.", 1)
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_GIVE_UP_S = 120.0
_DD_BLOCK = 4 << 20
_FETCHED_BYTES = 4 << 30


def pauses(folder: Path, closing: ExitStack) -> tuple[list[float], list[float]]:
    """Seconds that each chunk of a push takes in one shard, alone and while its checkpoint is written."""
    layout = shape.layout_of(Path(_VARIABLES.value), _SHARDS.value)
    told = pb.ShardSpecification(fingerprint=layout.fingerprint, layout=layout.canonical, rule=to_message(RULE),
                                 schedule=to_message(Constant(1e-6)))  # fmt: skip
    shard = Shard(Arena.create(None, told))
    gradient = np.zeros(shard.vector.num_pushed, np.float32)
    cut = [encode_chunk(a, codec.FLOAT32, gradient[a:b]) for a, b in shard.arena.chunks]
    sequence = 0

    def push() -> list[float]:
        nonlocal sequence
        sequence += 1
        opened = shard.begin(pb.PushHeader(worker=0, incarnation=1, sequence=sequence))
        seconds = [timed(functools.partial(shard.apply, opened, codec.decode_chunk(chunk))) for chunk in cut]
        shard.finish(opened)
        return seconds

    push()
    alone = [second for _ in range(20) for second in push()]
    pool = closing.enter_context(ThreadPoolExecutor(1))
    during: list[float] = []
    for number in range(5):

        def write(to: Path) -> None:
            with shard.snapshot() as snapshot:
                write_shard(to, told, snapshot)

        written = pool.submit(write, folder / f"alone-{number}")
        while not written.done():
            during += push()
        written.result()
    return alone, during


class Fleet:
    """Empty shards of the paper's shape, in processes that have loaded their compiled loops if they are `warm`."""

    def __init__(self, closing: ExitStack, *, warm: bool = False) -> None:
        scratch = closing.enter_context(scratch_folder())
        processes = closing.enter_context(Processes(scratch))
        module = "tests.benchmarks.warm_shard" if warm else "downpour.launch.ps"
        load = Load(variables=Path(_VARIABLES.value), num_shards=_SHARDS.value, shard_module=module)
        _, self.addresses = start_shards(processes, scratch, load)
        self.layout = shape.layout_of(load.variables, load.num_shards)
        policies = Policies(RULE, Constant(1e-6), Async(), Keep(), None)
        specification = specification_of(policies, self.layout, num_workers=1)
        self.shards = Shards(self.addresses, self.layout, specification, _GIVE_UP_S)
        closing.callback(self.shards.close)


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def forget(paths: Sequence[Path]) -> None:
    """Has the kernel drop what it holds of some files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fetch_memory() -> None:
    """Touches as much memory as a restore takes twice over: its arenas and what the kernel keeps of the files.

    A virtual machine gives free pages back to its host and fetches them one by one when they are needed again, which
    is slower than any disk and would count as the time of whoever comes first.
    """
    np.zeros(_FETCHED_BYTES, np.uint8)[:: mmap.PAGESIZE] = 1


def dd(*arguments: str) -> None:
    """Runs dd with blocks as long as the pieces of a checkpoint."""
    subprocess.run(["dd", f"bs={_DD_BLOCK}", *arguments], check=True, stderr=subprocess.DEVNULL)


def measure_round(fleet: Fleet, source: Path, folder: Path) -> dict[str, float]:
    """One round, in seconds."""
    fetch_memory()
    found = {"dd_write_s": timed(lambda: dd(f"if={source}", f"of={folder / 'dd'}", "conv=fsync"))}
    written = str(folder / "step-1")
    found["write_s"] = timed(lambda: fleet.shards.write_checkpoint(written, 1, {}))
    forget([folder / "dd"])
    fetch_memory()
    found["dd_read_s"] = timed(lambda: dd(f"if={folder / 'dd'}", "of=/dev/null"))
    saved = checkpoint.load(written)
    for key, warm in (("restore_s", True), ("restore_cold_s", False)):
        with ExitStack() as closing:
            shards = Fleet(closing, warm=warm).shards
            forget([*Path(written).iterdir()])
            fetch_memory()
            found[key] = timed(functools.partial(shards.restore, saved))
    shutil.rmtree(written)
    (folder / "dd").unlink()
    return found


def _main() -> None:
    cache_kernels()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="downpour-", dir=_FOLDER.value)))
        memory = closing.enter_context(scratch_folder())
        fleet = Fleet(closing)
        values = shape.initial_values(fleet.layout)
        fleet.shards.initialize(lambda: values)
        num_bytes = 3 * 4 * sum(v.size for v in fleet.layout.variables)
        source = memory / "source"
        block = np.random.default_rng(0).bytes(_DD_BLOCK)
        with source.open("wb") as file:
            for _ in range(-(-num_bytes // _DD_BLOCK)):
                file.write(block)
        rounds = []
        for number in range(_ROUNDS.value):
            rounds.append(measure_round(fleet, source, folder))
            print(f"round {number}", *(f"{key} {value:.3f}" for key, value in rounds[-1].items()), flush=True)
        alone, during = pauses(folder, closing)
    result: dict[str, Any] = {key: round(statistics.median(r[key] for r in rounds), 4) for key in rounds[0]}
    result |= {
        "chunk_s": round(statistics.median(alone), 5),
        "chunk_longest_s": round(max(alone), 5),
        "chunk_during_s": round(statistics.median(during), 5),
        "chunk_during_longest_s": round(max(during), 5),
        "state_mb": num_bytes / 1e6,
        "write_of_dd": round(statistics.median(r["dd_write_s"] / r["write_s"] for r in rounds), 3),
        "restore_of_dd": round(statistics.median(r["dd_read_s"] / r["restore_s"] for r in rounds), 3),
    }
    print(f"RESULT {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="checkpoints")
