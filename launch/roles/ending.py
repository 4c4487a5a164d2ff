"""Ends a role at SIGTERM: runs an action first, and lets nothing block the end.

A Python signal handler runs only once the main thread is back in Python code, which a compiled step delays for seconds,
and must not wait for a lock that the main thread holds. So the signal only wakes a thread, which does the work. Process
1 of a container has no default action for SIGTERM; a role that has called `on_sigterm` ends there as well.

Exit code 143 means that the process ended at SIGTERM: a cluster that reclaimed its machine restarts it elsewhere.
Imports only what a shard has installed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import NoReturn

from downpour.launch.roles import entry

_actions: list[Callable[[], object]] = []  # one at most; set by the main thread, read by the thread that listens


def end_now() -> NoReturn:
    """Ends this process, whatever its threads are doing."""
    os._exit(entry.TERMINATED)


def on_sigterm(action: Callable[[], object] = end_now) -> None:
    """Has a separate thread call `action` at SIGTERM; a second SIGTERM ends the process at once.

    Called from the main thread; a later call replaces the action.
    """
    first = not _actions
    _actions[:] = [action]
    if first:
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)  # without a handler nothing would be written to the pipe
        threading.Thread(target=_listen, args=(heard,), name="sigterm", daemon=True).start()


def _listen(heard: int) -> None:
    told = False
    while number := os.read(heard, 1):
        if number[0] != signal.SIGTERM:
            continue
        if told:
            end_now()
        told = True
        threading.Thread(target=_actions[0], name="ending", daemon=True).start()
