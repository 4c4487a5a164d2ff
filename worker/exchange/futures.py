"""Futures of what follows some calls. Pure.

Threads: any.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def after(calls: Sequence[Future[Any]], collect: Callable[[], Answer]) -> Future[Answer]:
    """Returns a future of what `collect` returns or raises, called by the thread that ends the last of some calls."""
    answer: Future[Answer] = Future()
    left = itertools.count(len(calls) - 1, -1)  # taking one is atomic

    def done(_: Future[Any]) -> None:
        if next(left) == 0:
            try:
                answer.set_result(collect())
            except BaseException as error:  # the caller raises it
                answer.set_exception(error)

    for call in calls:
        call.add_done_callback(done)
    return answer
