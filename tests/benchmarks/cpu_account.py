"""Where the CPU time of shards and workers goes: `python -m tests.benchmarks.exchange --profile`.

Needs Linux' `perf` (Debian: `apt-get install linux-perf`) and the right to use it (root, or
`kernel.perf_event_paranoid` at most -1). It samples all shards and worker processes for the length of the window, each
sample with its call chain; a sample belongs to the first group of `_GROUPS` whose pattern its chain matches.
The chain begins where the processor was: `memmove@libc < _contig_to_contig@_multiarray_umath < ...`.

`perf` sees machine code, not Python: what the interpreter itself does is one group.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.processes import Child

_FREQUENCY = 499  # a second of CPU time; not a divisor of any clock's
_STACK_BYTES = 8192  # copied with each sample, to find the callers

_COPY = r"^\w*(memmove|memcpy|memset)\w*@\S+ < "
_KERNEL = r"@kernel( |$)"

# Name, then pattern of the chain; the first that matches. "copy" means by the processor, in the process' own memory.
_GROUPS: tuple[tuple[str, str], ...] = (
    ("decode: bfloat16 to float32", r"^loop:widen"),
    ("check: is it finite", r"^loop:count_non_finite"),
    ("encode: float32 to bfloat16", r"^loop:narrow"),
    ("apply: update rule, statistics", r"^loop:"),
    ("apply: products x^T d", r"^\S+@libscipy_openblas"),
    ("receive: kernel", r"tcp_recvmsg|__sys_recvmsg"),
    ("send: kernel", r"tcp_sendmsg|__sys_sendmsg"),
    ("memory: faults, map, unmap", r"(page_fault|mmap|munmap|brk|madvise)\w*@kernel"),
    ("wait: futex, epoll, switches", r"(futex|epoll|schedule|switch|poll)\w*@kernel"),
    ("kernel: other", _KERNEL),
    ("copy by numpy: undo log; worker: decode", _COPY + r"\S+@_multiarray"),
    ("memory: malloc, free", r"^\S*(malloc|free|calloc|realloc|consolidate)\S*@libc"),
    ("numpy", r"^\S+@_multiarray"),
    ("Python", r"^\S+@(libpython|python)"),
    ("compiled loops, not told which", r"^\[unknown\]@(\[unknown\]|perf-)"),
    ("other", r""),
)
SHARDS, WORKERS = "shards", "workers"
_FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.*) \((?P<file>[^()]*)\)$")


class Account:
    """Samples the whole machine during a window and sorts the samples of some processes into groups.

    The whole machine, because perf misses threads that begin while it watches a process, and gRPC begins many.

    Args:
        folder: For the recording, about 100 MB.

    Raises:
        ValueError: There is no `perf`.
    """

    def __init__(self, folder: Path) -> None:
        if not shutil.which("perf"):
            raise ValueError("--profile needs perf; install Debian's linux-perf, or your distribution's package of it")
        self._file = folder / "samples.perf"
        self._roles: dict[int, str] = {}  # by process id
        self._shards: list[int] = []

    @contextmanager
    def recording(self, shards: Sequence[Child], workers: Sequence[Child]) -> Iterator[None]:
        """Records while the block runs."""
        self._shards = [shard.pid for shard in shards]
        self._roles = {pid: SHARDS for pid in self._shards} | {worker.pid: WORKERS for worker in workers}
        options = ["-a", "-F", str(_FREQUENCY), "--call-graph", f"dwarf,{_STACK_BYTES}", "-m", "32M"]
        recorder = subprocess.Popen(
            ["perf", "record", *options, "-o", str(self._file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # ended by us, not by a Ctrl-C in the terminal
        )
        try:
            yield
        finally:
            recorder.send_signal(signal.SIGINT)
            recorder.wait()

    def shares(self) -> dict[str, dict[str, float]]:
        """For SHARDS and WORKERS the share of each group in its samples, the largest first.

        To be called when the shards have ended: only then have they written their maps.

        Raises:
            ValueError: Nothing was recorded.
        """
        counts: dict[str, Counter[str]] = {SHARDS: Counter(), WORKERS: Counter()}
        for pid, chain in self._chains():
            if pid in self._roles:
                counts[self._roles[pid]][group_of(chain)] += 1
        if not all(counts.values()):
            raise ValueError("perf recorded no sample; may this user watch the whole machine? (perf_event_paranoid)")
        return {
            role: {group: n / counter.total() for group, n in counter.most_common()} for role, counter in counts.items()
        }

    def close(self) -> None:
        """Removes the maps that the shards have written."""
        for pid in self._shards:
            map_file(pid).unlink(missing_ok=True)

    def _chains(self) -> Iterator[tuple[int, str]]:
        """Process id and call chain of every sample."""
        fields = "pid,tid,ip,sym,dso"
        text = subprocess.run(
            ["perf", "script", "--no-inline", "-F", fields, "-i", str(self._file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        ).stdout
        for sample in text.split("\n\n"):
            heading, *frames = sample.strip("\n").splitlines() or [""]
            if frames:
                yield int(heading.partition("/")[0]), " < ".join(map(_short, frames))


def map_file(pid: int) -> Path:
    """Where `perf` looks for the names of a process' compiled code."""
    return Path(f"/tmp/perf-{pid}.map")


def _short(frame: str) -> str:
    """`symbol@library`, without path, version and blanks."""
    found = _FRAME.match(frame)
    if not found:
        return "?@?"
    symbol, file = found["symbol"].replace(" ", ""), found["file"].rpartition("/")[2]
    if symbol.startswith("loop:"):
        return symbol
    return f"{symbol}@{'kernel' if 'kernel' in file else file.partition('.')[0]}"


def group_of(chain: str) -> str:
    """The group of a call chain, as the module describes them."""
    return next(name for name, pattern in _GROUPS if re.search(pattern, chain))
