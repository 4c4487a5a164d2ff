"""Who may see the page: where it may listen, and which requests are admitted. Pure: no sockets.

On loopback it needs no token, unless the job has one; beyond loopback it always does. A browser shows that it knows the
token by a cookie, which holds a keyed hash of a constant, so that the token itself is not kept by the browser. The name
of the host that a request asks for is checked on loopback: else a page of a stranger whose name is made to resolve to
127.0.0.1 (DNS rebinding) could read this one.
"""

from __future__ import annotations

import hashlib
import hmac
from email.message import Message

from downpour.proto.security.config import Security, is_loopback

_BEARER = "Bearer "
_PURPOSE = b"downpour page 1"


def check(host: str, security: Security) -> None:
    """Raises `ValueError` if the page may not be served on `host`."""
    if not is_loopback(host) and not security.token:
        raise ValueError(
            f"--page_host={host} would show the run to every peer on the network; give the job a --token_file, which "
            "the page then asks for, or --page_host=127.0.0.1 (a tunnel such as `ssh -L` or `kubectl port-forward` "
            "reaches it)"
        )
    if not is_loopback(host):
        security.check_host(host)


class Access:
    """Admits or refuses requests.

    Args:
        host: Interface that the page listens on.
        port: Its port; cookies are kept by host name only, so their name has the port.
        security: Security settings of this process.

    Attributes:
        has_token: Whether requests must show that they know the token.
        is_secure: Whether the page is served over TLS: beyond loopback, where the job has certificates.
    """

    def __init__(self, host: str, port: int, security: Security) -> None:
        self._token = security.token.encode()
        self._is_loopback, self._cookie_name = is_loopback(host), f"downpour-{port}"
        self.is_secure = security.certificates is not None and not self._is_loopback
        self.has_token = bool(self._token)

    def knows_host(self, header: str | None) -> bool:
        """Whether the header `Host` of a request may be that of this page: on loopback only loopback's own names."""
        if not self._is_loopback:
            return True
        given = (header or "").lower()
        name, _, port = given.rpartition(":")
        return is_loopback(name if name and port.isdigit() else given)

    def admits(self, headers: Message) -> bool:
        """Whether a request shows that it knows the token, by `Authorization: Bearer` or by the cookie."""
        if not self._token:
            return True
        given = headers.get("Authorization") or ""
        if given.startswith(_BEARER):
            return hmac.compare_digest(given.removeprefix(_BEARER).strip().encode(), self._token)
        cookies = dict(one.strip().partition("=")[::2] for one in (headers.get("Cookie") or "").split(";"))
        return hmac.compare_digest(cookies.get(self._cookie_name, "").encode(), self._proof().encode())

    def cookie(self, token: str) -> str | None:
        """The header `Set-Cookie` that answers a login; None for a wrong token."""
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return None
        secure = "; Secure" if self.is_secure else ""
        return f"{self._cookie_name}={self._proof()}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _proof(self) -> str:
        return hmac.new(self._token, _PURPOSE, hashlib.sha256).hexdigest()
