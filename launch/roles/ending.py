"""How a role ends when it gets SIGTERM: what it does first, and that nothing keeps it from ending.

A handler of Python runs once the main thread is back in Python, from which a compiled step keeps it for seconds, and
must not wait for a lock that the main thread holds. So the signal only wakes a thread, and that does the work. Process
1 of a container has no default for SIGTERM; a role that has called `on_sigterm` ends there as well.

Exit code 143 says that the process was told to end and did: a cluster that took its machine away starts it elsewhere.
Imports nothing that a shard does not have.
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
    """Has a thread of its own call `action` at SIGTERM; a second SIGTERM ends the process at once.

    Called from the main thread, again whenever there is something else to do.
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
