"""Serves a role's metrics where `--metrics_port` asks for them; prometheus-client is imported only then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from downpour.launch.roles.config import Access

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape


def serve(access: Access, add: Callable[[Scrape], None]) -> contextlib.AbstractContextManager[object]:
    """Serves metrics, from this call on until the block ends; does nothing without a port.

    Args:
        access: Host and port.
        add: Adds the metrics of this process; called by other threads.

    Raises:
        ValueError: The port is taken.
    """
    if not access.metrics_port:
        return contextlib.nullcontext()
    from downpour.launch.observe.metrics.server import MetricsServer

    return MetricsServer(access.metrics_port, access.metrics_host, add)
