"""grpcio's channels as a stranger opens them, whatever proxy the environment names."""

from __future__ import annotations

import grpc

WITHOUT_PROXY = (("grpc.enable_http_proxy", 0),)


def plain(address: str, *options: tuple[str, object]) -> grpc.Channel:
    """A channel in plain text."""
    return grpc.insecure_channel(address, [*WITHOUT_PROXY, *options])
