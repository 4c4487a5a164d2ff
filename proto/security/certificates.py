"""The certificate files of a process, read again after they have been renewed.

Threads: any; there is a lock.
"""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from downpour.proto.http2.sockets import PlainSocket
from downpour.proto.security import tls

if TYPE_CHECKING:
    from OpenSSL import SSL

    from downpour.proto.security.tls_socket import TlsSocket

_LOOK_EVERY_S = 1.0  # for renewed certificates


class Certificates:
    """The certificate files of a process, read again after they have been renewed.

    Args:
        folder: Folder of the files; see `downpour.proto.security.tls`.
        role: Role of this process; "" for that of the certificate, of a process that only calls.

    Attributes:
        job: Job that the certificate names.

    Raises:
        ValueError: The files cannot be used.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder, self._role = folder, role
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._files = tls.read(folder)
        self.job = tls.check(folder, self._files, role).job
        self._number = 1
        self._contexts: dict[bool, tuple[int, SSL.Context]] = {}  # by whether it is a server's
        self._for_browsers: tuple[int, ssl.SSLContext] | None = None
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def latest(self) -> tuple[int, tls.Files]:
        """Returns the number of the files, one more after each renewal, and the files; ignores unusable new ones."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_EVERY_S
                self._look()
            return self._number, self._files

    def over_tls(self, plain: PlainSocket, server_name: str | None) -> TlsSocket:
        """Wraps a new connection in TLS, before its handshake; presents the newest certificate, requires one of its CA.

        Args:
            plain: The connection.
            server_name: DNS name that the peer must have; None on the server's side.
        """
        from downpour.proto.security import tls_socket

        number, files = self.latest()
        is_server = server_name is None
        with self._lock:
            if self._contexts.get(is_server, (0, None))[0] != number:
                self._contexts[is_server] = number, tls_socket.context(files, is_server=is_server)
            context = self._contexts[is_server][1]
        return tls_socket.TlsSocket(plain, context, server_name)

    def for_browsers(self) -> ssl.SSLContext:
        """Returns a server's context with the newest certificate, which asks browsers for none of theirs."""
        number, _ = self.latest()
        with self._lock:
            if self._for_browsers is None or self._for_browsers[0] != number:
                made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                made.minimum_version = ssl.TLSVersion.TLSv1_2
                made.load_cert_chain(self._folder / tls.CERTIFICATE, self._folder / tls.KEY)
                self._for_browsers = number, made
            return self._for_browsers[1]

    def _look(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            files = tls.read(self._folder)
            identity = tls.check(self._folder, files, self._role)
            if identity.job != self.job:
                raise ValueError(f"--tls={self._folder} is of job {identity.job!r} now, not of {self.job!r}")
        except ValueError as error:
            logging.warning("renewed certificates cannot be used: %s", error)
            return
        self._files, self._number = files, self._number + 1
        logging.info("certificates renewed, valid until %s UTC", f"{identity.ends:%Y-%m-%d %H:%M}")

    def _stamp_now(self) -> tuple[object, ...]:
        """Returns a value that changes when a file, or what a secret's link points to, is replaced or written."""
        stamp: list[object] = []
        for name in (tls.CERTIFICATE, tls.KEY, tls.CA):
            try:
                found = (self._folder / name).stat()
            except OSError:
                stamp.append(None)
            else:
                stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamp)
