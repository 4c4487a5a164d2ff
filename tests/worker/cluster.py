"""What tests need to bring real shards up without a chief process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.security.config import PLAIN, Security
from downpour.ps.layout import Layout
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async
from downpour.ps.policy.staleness import Keep
from downpour.worker.exchange.clients import ShardClient

_ASYNC, _KEEP = Async(), Keep()


def initialize(
    addresses: Sequence[str],
    layout: Layout,
    values: Sequence[np.ndarray],
    rule: Any,
    schedule: Any,
    *,
    pace: Any = _ASYNC,
    staleness: Any = _KEEP,
    num_workers: int = 1,
    average: Any = None,
    security: Security = PLAIN,
) -> None:
    """Gives every shard the layout, what to do with pushes, and its part of the values."""
    for i, (address, vector) in enumerate(zip(addresses, layout.scatter(values), strict=True)):
        client = ShardClient(i, address, layout, 30, security)
        client.initialize(
            pb.ShardSpecification(
                shard=i,
                fingerprint=layout.fingerprint,
                layout=layout.canonical,
                rule=to_message(rule),
                schedule=to_message(schedule),
                pace=to_message(pace),
                staleness=to_message(staleness),
                num_workers=num_workers,
                average=None if average is None else to_message(average),
            ),
            vector,
        )
        client.close()
