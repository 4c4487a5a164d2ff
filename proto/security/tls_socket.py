"""TLS over a TCP connection, with pyOpenSSL.

Python's own `ssl` is bound to the OpenSSL that Python was built with, and 3.0, which Debian 12 has, takes twice as long
to encrypt as the one in cryptography's wheels, where the processor has AVX-512.

Threads: as in `downpour.proto.http2.sockets`. The reading and the sending thread share one state machine, in memory and
under a lock, which neither holds while it waits for the network.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from downpour.proto.http2.sockets import Buffer, PlainSocket
from downpour.proto.security import openssl, tls
from downpour.proto.security.tls_memory import PIECE, tls_error

_HANDSHAKE_BYTES = 1 << 15  # that a peer may send in it: OpenSSL would keep certificates of 100 KB
_SMALL = 1 << 12
_PROTOCOL = b"h2"


def context(files: tls.Files, *, is_server: bool) -> SSL.Context:
    """Returns a context that presents a certificate and requires one of the same CA; `files` have been checked."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD if is_server else SSL.TLS_CLIENT_METHOD)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    if openssl.is_usable():
        openssl.prepare(made)
    leaf, *chain = x509.load_pem_x509_certificates(files.certificate)
    made.use_certificate(leaf)
    for issuer in chain:
        made.add_extra_chain_cert(issuer)
    key: Any = load_pem_private_key(files.key, None)  # of any kind that a certificate can have
    made.use_privatekey(key)
    trusted = made.get_cert_store()
    assert trusted is not None
    for authority in x509.load_pem_x509_certificates(files.ca):
        trusted.add_cert(crypto.X509.from_cryptography(authority))
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    if is_server:
        made.set_session_id(b"downpour")  # without one OpenSSL disconnects a client that resumes a session
        made.set_alpn_select_callback(_choose)
    else:
        made.set_alpn_protos([_PROTOCOL])
    return made


def _choose(_: SSL.Connection, offered: list[bytes]) -> Any:
    return _PROTOCOL if _PROTOCOL in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _joined(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yields the same bytes, with consecutive small buffers joined."""
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < _SMALL:
            small.append(buffer)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield buffer
    if small:
        yield b"".join(small)


class TlsSocket:
    """TLS over a TCP connection; `shake_hands` must be called first.

    Args:
        plain: The connection.
        context: Certificate of this side, and the CA that it trusts.
        server_name: DNS name that the peer's certificate must have; None on the server's side.

    Attributes:
        names: DNS names in the peer's certificate, after the handshake.
        num_shaken: Bytes of the handshake that were received.
    """

    def __init__(self, plain: PlainSocket, context: SSL.Context, server_name: str | None) -> None:
        self._plain = plain
        self._tls = openssl.in_memory(context)
        if server_name is None:
            self._tls.set_accept_state()
        else:
            self._tls.set_connect_state()
            self._tls.set_tlsext_host_name(server_name.encode())
        self._lock = threading.Lock()  # guards `_tls`
        self._ahead = b""  # a byte that `is_quiet` has read
        self._server_name = server_name
        self.num_shaken = 0
        self.names: list[str] = []

    def shake_hands(self) -> None:
        """Makes the handshake; on a non-blocking socket, as much of it as is possible now.

        Raises:
            BlockingIOError: More bytes must arrive first.
            TlsError: The handshake failed.
            OSError: The connection broke.
        """
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                self._flush()
                self.num_shaken += self._receive()
                if self.num_shaken > _HANDSHAKE_BYTES:
                    raise tls.TlsError("HANDSHAKE_TOO_LONG") from None
            except SSL.Error as error:
                with contextlib.suppress(OSError):  # the alert with the reason
                    self._flush()
                raise tls_error(error) from None
            else:
                self._flush()
                break
        certificate = self._tls.get_peer_certificate(as_cryptography=True)
        self.names = tls.dns_names(certificate) if certificate else []
        if self._server_name not in (None, *self.names):
            reason = f"Hostname mismatch: the certificate names {', '.join(self.names) or 'nobody'}"
            raise tls.WrongPeer(reason, "its certificate names another job or role")

    def read_into(self, view: memoryview) -> None:
        """See `Socket`."""
        if view and self._ahead:
            view[:1] = self._ahead
            view = view[1:]
            self._ahead = b""
        self._make_room(len(view))
        while True:
            with self._lock:
                count = self._tls.decrypt(view)
            if count == len(view):
                return
            view = view[count:]
            self._receive()

    def read_ahead(self, view: memoryview) -> bool:
        """See `Socket`: bytes read ahead are still encrypted."""
        return False

    def read_some(self, view: memoryview) -> int:
        """See `Socket`."""
        while True:
            with self._lock:
                if count := self._tls.decrypt(view):
                    return count
            self._receive()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """See `Socket`."""
        waiting = 0  # bytes that are encrypted but not sent
        for buffer in _joined(buffers):
            view = memoryview(buffer)
            self._make_room(len(view))
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                with self._lock:
                    self._tls.encrypt(piece)
                waiting += len(piece)
                if waiting >= PIECE:
                    self._flush()
                    waiting = 0
        if waiting:
            self._flush()

    def set_deadline(self, at: float | None) -> None:
        """See `Socket`."""
        self._plain.set_deadline(at)

    def is_quiet(self) -> bool:
        """See `Socket`. TLS's own records, such as session tickets, do not count."""
        byte = bytearray(1)
        while not self._ahead:
            try:
                with self._lock:
                    self._ahead = bytes(byte[: self._tls.decrypt(memoryview(byte))])
                if not self._ahead:
                    if self._plain.is_quiet():
                        return True
                    self._receive()
            except OSError:
                return False
        return False

    def shut_down(self) -> None:
        """See `Socket`."""
        self._plain.shut_down()

    def close(self) -> None:
        """See `Socket`."""
        self._plain.close()

    def _make_room(self, num_bytes: int) -> None:
        if num_bytes > self._tls.piece:
            self._tls.piece = PIECE

    def _flush(self) -> None:
        """Sends the encrypted bytes; after the handshake only `send` calls it."""
        while True:
            with self._lock:
                count = self._tls.take()
            if count:
                self._plain.send([self._tls.outgoing[:count]])
            if count < len(self._tls.outgoing):
                return

    def _receive(self) -> int:
        """Receives bytes, once all earlier ones are decrypted; returns how many."""
        room = self._tls.room()
        count = self._plain.read_now(room)
        with self._lock:
            self._tls.give(count)
        return count
