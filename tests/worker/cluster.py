"""What tests need to bring real shards up without a chief process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.ps.named import to_message
from downpour.worker.clients import ShardClient


def initialize(
    addresses: Sequence[str], layout: Layout, values: Sequence[np.ndarray], rule: Any, schedule: Any
) -> None:
    """Gives every shard the layout and its part of the values."""
    for i, (address, vector) in enumerate(zip(addresses, layout.scatter(values), strict=True)):
        client = ShardClient(i, address, layout, give_up_after_s=30)
        client.initialize(
            pb.ShardSpecification(
                shard=i,
                fingerprint=layout.fingerprint,
                layout=layout.canonical,
                rule=to_message(rule),
                schedule=to_message(schedule),
            ),
            vector,
        )
        client.close()
