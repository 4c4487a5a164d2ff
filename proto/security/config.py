"""Security settings of a process: its certificates, the job's token, and where it may listen."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from downpour.proto.security.certificates import Certificates

TOKEN_KEY = "downpour-token"
_TOKEN = re.compile(r"[!-~]{16,1024}")  # what a header may carry


@dataclass(frozen=True)
class Security:
    """Security settings of a process; the default is plain text on loopback, without a token.

    Attributes:
        certificates: Certificates of this process; None for plain text.
        token: Token of the job; empty for none.
        plain_text_on_the_network: Whether it may listen in plain text on more than loopback.
    """

    certificates: Certificates | None = None
    token: str = field(default="", repr=False)
    plain_text_on_the_network: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Metadata sent with every call; None without a token."""
        return ((TOKEN_KEY, self.token),) if self.token else None

    def check_host(self, host: str) -> None:
        """Raises `ValueError` if a server may not listen on `host`."""
        if self.certificates or self.plain_text_on_the_network or is_loopback(host):
            return
        raise ValueError(
            f"listening on {host} in plain text would let every peer on the network read and change the model; give "
            "--tls=FOLDER (downpour certs makes its files), --host=127.0.0.1, or, if nobody else can reach this "
            "machine, --listen_in_plain_text_on_the_network"
        )


PLAIN = Security()


def read_token(path: Path) -> str:
    """Reads the token from a file.

    Raises:
        ValueError: The file cannot be read or holds no valid token. The message does not show it.
    """
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"--token_file={path} cannot be read: {reason}") from None
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            f"--token_file={path} holds no token: give 16 to 1024 ASCII letters, digits or signs without blanks on one "
            f"line, such as those of `openssl rand -hex 32`; it has {len(token)} characters"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface, by address or as `localhost`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
