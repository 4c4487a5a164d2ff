"""The flags of a role for its identity, access to it and its health service.

| flag | roles | meaning |
|---|---|---|
| `--tls` | all | folder with `tls.crt`, `tls.key` and `ca.crt` of the role; `downpour certs` makes them |
| `--token_file` | all | file with the job's token, which is then sent with every call |
| `--health_port` | all | port of grpc.health.v1, in plain text; none by default |
| `--listen_in_plain_text_on_the_network` | ps, chief | without it a server listens on loopback or with `--tls` |

Imports only what a shard has installed.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from downpour.proto.rpc.health import Health
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import PLAIN, Security, read_token

_PORT = {"lower_bound": 0, "upper_bound": 65535}
_MOST_FILES = 1 << 16  # enough, and code that closes every possible descriptor stays fast


def define_flags(role: str) -> None:
    """Defines the flags above."""
    _define(flags.DEFINE_string, "tls", None, "Folder with tls.crt, tls.key and ca.crt of this role (downpour certs).")
    _define(flags.DEFINE_string, "token_file", None, "File with the job's token, asked for and sent with every call.")
    _define(flags.DEFINE_integer, "health_port", None, "Port of the gRPC health service, in plain text.", **_PORT)
    if role in ("ps", "chief"):
        text = "Serve anybody who can reach this machine, unencrypted. Use --tls instead."
        _define(flags.DEFINE_boolean, "listen_in_plain_text_on_the_network", False, text)


def from_flags(role: str) -> Security:
    """Returns the security settings of the flags.

    Raises:
        ValueError: The certificate or the token cannot be used by this role.
    """
    folder, token_file = _value("tls"), _value("token_file")
    plain = bool(_value("listen_in_plain_text_on_the_network"))
    if not folder and not token_file and not plain:
        return PLAIN
    return Security(
        certificates=Certificates(Path(folder), role) if folder else None,
        token=read_token(Path(token_file)) if token_file else "",
        plain_text_on_the_network=plain,
    )


def health(ready: Callable[[], bool]) -> contextlib.AbstractContextManager[object]:
    """Serves health on `--health_port`, if there is one, until the block ends.

    Args:
        ready: Whether this process is ready to do its work; called by other threads.
    """
    port = _value("health_port")
    return contextlib.nullcontext() if port is None else Health(port, ready)


def prepare_server() -> None:
    """Makes new files private to this user, and raises the limit of open files for many connections."""
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _define(define: Any, name: str, default: Any, text: str, **more: Any) -> None:
    if name not in flags.FLAGS:
        define(name, default, text, flag_values=flags.FLAGS, **more)


def _value(name: str) -> Any:
    return flags.FLAGS[name].value if name in flags.FLAGS else None
