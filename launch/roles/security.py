"""Security of a role: its settings from files, its health service, and what a server sets of its process.

Imports only what a shard has installed.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path

from downpour.proto.rpc.health import Health
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import PLAIN, Security, read_token

_MOST_FILES = 1 << 16  # enough, and code that closes every possible descriptor stays fast


def load(role: str, folder: Path | None, token_file: Path | None, plain_text_on_the_network: bool = False) -> Security:
    """Returns a role's security settings.

    Args:
        role: The role; "" for a command that only calls, with the certificate of any role.
        folder: Folder with its certificate and key; None for plain text.
        token_file: File with the job's token; None for none.
        plain_text_on_the_network: Whether a server may listen in plain text on other interfaces than loopback.

    Raises:
        ValueError: The certificate or the token cannot be used by this role.
    """
    if not folder and not token_file and not plain_text_on_the_network:
        return PLAIN
    return Security(
        certificates=Certificates(folder, role) if folder else None,
        token=read_token(token_file) if token_file else "",
        plain_text_on_the_network=plain_text_on_the_network,
    )


def health(port: int | None, ready: Callable[[], bool]) -> contextlib.AbstractContextManager[object]:
    """Serves health until the block ends.

    Args:
        port: Port; None for no service.
        ready: Whether this process is ready to do its work; called by other threads.
    """
    return contextlib.nullcontext() if port is None else Health(port, ready)


def prepare_server() -> None:
    """Makes new files private to this user, and raises the limit of open files for many connections."""
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
