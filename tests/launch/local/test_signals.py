"""A signal that another thread takes is handled while the main thread waits."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from downpour.launch.local import signals


@pytest.mark.parametrize("timeout_s", [None, 20.0])
def test_a_signal_that_another_thread_takes_ends_the_wait(timeout_s: float | None) -> None:
    heard, begin = threading.Event(), time.monotonic()

    def take() -> None:
        time.sleep(0.3)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        time.sleep(60)  # takes no lock that would wake the main thread

    with signals.handled(lambda number: heard.set()):
        threading.Thread(target=take, daemon=True).start()
        assert signals.wait(heard, timeout_s)
    assert time.monotonic() - begin < 15


def test_a_wait_ends_after_its_time() -> None:
    begin = time.monotonic()
    assert not signals.wait(threading.Event(), 0.25)
    assert 0.2 < time.monotonic() - begin < 30
