"""A process that is short of threads or descriptors gets no more of them, until it is short no longer."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.strangers.scarcity import Unavailable, few_descriptors, few_threads

_MORE = 5
# Takes as many threads and as many descriptors as it gets, up to 20, and says how many; then gives them back.
_GREEDY = """
import os, sys, threading
for _ in sys.stdin:
    ending, threads, files = threading.Event(), [], []
    try:
        while len(threads) < 20:
            threads.append(threading.Thread(target=ending.wait))
            threads[-1].start()
    except RuntimeError:
        threads.pop()
    try:
        while len(files) < 20:
            files.append(os.dup(0))
    except OSError:
        pass
    ending.set()
    for thread in threads:
        thread.join()
    for file in files:
        os.close(file)
    print(len(threads), len(files), flush=True)
"""


@pytest.fixture
def greedy() -> Iterator[tuple[int, Callable[[], list[int]]]]:
    """A process, and what makes it take what it can: threads and descriptors."""
    with subprocess.Popen(
        [sys.executable, "-c", _GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout

        def take() -> list[int]:
            print(file=process.stdin, flush=True)
            return [int(number) for number in process.stdout.readline().split()]

        assert take() == [20, 20]
        yield process.pid, take


def test_threads(greedy: tuple[int, Callable[[], list[int]]]) -> None:
    pid, take = greedy
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(few_threads(pid, _MORE))
        except Unavailable as error:
            pytest.skip(str(error))
        # Without root the limit counts all threads of the user, of whom other processes may end some meanwhile.
        assert _MORE <= take()[0] < 20
    assert take() == [20, 20]


def test_descriptors(greedy: tuple[int, Callable[[], list[int]]]) -> None:
    pid, take = greedy
    with few_descriptors(pid, _MORE):
        assert take() == [20, _MORE]
    assert take() == [20, 20]
