"""What a shard's process has used since it began: bytes, seconds by cause, memory.

A push's chunks are timed one by one: two reads of a clock for waiting and two for applying, some 2 us a chunk of 2 MB.
Totals change once a push or pull, when it ends, whether it succeeded or not.

Threads: any; `Usage` has a lock. A `PushMeter` belongs to the thread that serves its push.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.http2.connection import Message
from downpour.ps.apply.admission import Admission, Member
from downpour.ps.apply.regions import Push
from downpour.ps.shard.shard import Shard

_MEMORY_FOR_S = 1.0  # that a reading of the memory is used again; one takes the kernel about a millisecond
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class PushMeter:
    """Measures one push while it is served.

    Attributes:
        num_bytes: Bytes of its chunks so far.
        receive_s: Seconds of waiting for its chunks.
        apply_s: Processor seconds of applying them; group commit may apply chunks of other pushes with them.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.receive_s = self.apply_s = 0.0

    def chunks(self, messages: Iterator[bytes]) -> Iterator[codec.Chunk]:
        """Decodes the chunks of a push; each is valid until the next is requested."""
        while True:
            began_s = time.perf_counter()
            message = next(messages, None)
            self.receive_s += time.perf_counter() - began_s
            if message is None:
                return
            self.num_bytes += len(message)
            yield codec.decode_chunk(message)

    def apply(self, shard: Shard, push: Push, chunk: codec.Chunk) -> None:
        """Applies a chunk; see `Shard.apply`."""
        began_s = time.thread_time()
        shard.apply(push, chunk)
        self.apply_s += time.thread_time() - began_s


class Usage:
    """Totals since the process began; the fields of `StatusReply` say what each is.

    Args:
        pushing: Admits pushes.
        pulling: Admits pulls.
    """

    def __init__(self, pushing: Admission, pulling: Admission) -> None:
        self._pushing, self._pulling = pushing, pulling
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._memory = Memory()
        # Guarded by `_lock`.
        self._pulls = self._bytes_received = self._bytes_sent = 0
        self._queue_s = self._push_s = self._receive_s = self._apply_s = self._pull_s = self._pace_s = 0.0

    @contextlib.contextmanager
    def push(self, patience_s: float) -> Iterator[tuple[Member, PushMeter]]:
        """Waits for a push to be admitted, and measures it to the end of the block; see `Admission.place`."""
        queued_s, meter = time.perf_counter(), PushMeter()
        with self._pushing.place(patience_s) as member:
            began_s = time.perf_counter()
            try:
                yield member, meter
            finally:
                push_s = time.perf_counter() - began_s
                with self._lock:
                    self._queue_s += began_s - queued_s
                    self._push_s += push_s
                    self._receive_s += meter.receive_s
                    self._apply_s += meter.apply_s
                    self._bytes_received += meter.num_bytes

    @contextlib.contextmanager
    def pace(self) -> Iterator[None]:
        """Counts the block as waiting for the pace."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._pace_s += time.perf_counter() - began_s

    def pull(self, messages: Iterator[Message], admitted: Callable[[], None] = lambda: None) -> Iterator[Message]:
        """Waits for a pull to be admitted, calls `admitted`, and measures the pull while its answer is sent."""
        queued_s = time.perf_counter()
        with self._pulling.place():
            admitted()
            began_s, num_bytes, num_pulls = time.perf_counter(), 0, 0
            try:
                for message in messages:
                    num_bytes += sum(map(len, message))
                    yield message
                num_pulls = 1
            finally:
                with self._lock:
                    self._queue_s += began_s - queued_s
                    self._pull_s += time.perf_counter() - began_s
                    self._bytes_sent += num_bytes
                    self._pulls += num_pulls

    def status(self) -> pb.StatusReply:
        """The totals, and what the process is now."""
        with self._lock:
            return pb.StatusReply(
                bytes_received=self._bytes_received,
                bytes_sent=self._bytes_sent,
                pulls=self._pulls,
                queue_seconds=self._queue_s,
                push_seconds=self._push_s,
                receive_seconds=self._receive_s,
                apply_seconds=self._apply_s,
                pull_seconds=self._pull_s,
                pace_seconds=self._pace_s,
                pushes_waiting=self._pushing.num_waiting,
                pulls_waiting=self._pulling.num_waiting,
                memory_bytes=self._memory.read(),
                uptime_seconds=time.monotonic() - self._began_s,
            )


class Memory:
    """Memory of this process, read at most once a second. The caller's lock guards it."""

    def __init__(self) -> None:
        self._bytes, self._read_s = 0, float("-inf")

    def read(self) -> int:
        """Bytes: PSS, which divides shared pages among the processes that map them; not on Linux peak RSS."""
        now_s = time.monotonic()
        if now_s - self._read_s >= _MEMORY_FOR_S:
            self._bytes, self._read_s = _memory_bytes(), now_s
        return self._bytes


def _memory_bytes() -> int:
    with contextlib.suppress(OSError):
        if pss := _PSS.search(Path("/proc/self/smaps_rollup").read_bytes()):
            return int(pss[1]) << 10
    with contextlib.suppress(OSError):  # a Linux that hides it
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
