"""The only code that uses private parts of pyOpenSSL: a TLS state machine that calls OpenSSL directly.

pyOpenSSL's methods copy once or twice more, and check more, for every record of 16 KB. Whether these parts are as
expected is checked once a process, with a conversation in memory; if not, its public interface is used.

Threads: as in `downpour.proto.security.tls_memory`.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
from typing import Any

from absl import logging
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from downpour.proto.security.tls_memory import InMemory, mapped_errors

_util = importlib.import_module("OpenSSL._util") if importlib.util.find_spec("OpenSSL._util") else None
ffi: Any = getattr(_util, "ffi", None)  # None in another version
lib: Any = getattr(_util, "lib", None)

_ENABLE_PARTIAL_WRITE = 0x1  # SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL's public interface
_CHECKED_FLIGHTS, _CHECKED_PIECES = 3, 400  # of the handshake; of the message, which is several records


class Direct(InMemory):
    """The TLS state machine, with calls of OpenSSL where bytes are moved; its context must be `prepare`d."""

    def encrypt(self, view: memoryview) -> None:
        """See `InMemory`."""
        if len(view) and (count := lib.SSL_write(self._ssl, ffi.from_buffer(view), len(view))) <= 0:
            self._fail(count)

    def take(self) -> int:
        """See `InMemory`."""
        self._make_room_to_take()
        return max(0, int(lib.BIO_read(self._from_ssl, ffi.from_buffer(self.outgoing), len(self.outgoing))))

    def give(self, count: int) -> None:
        """See `InMemory`."""
        self._into_ssl = lib.BIO_new_mem_buf(ffi.from_buffer(self._incoming), count)  # reads them where they are
        lib.BIO_set_mem_eof_return(self._into_ssl, -1)  # their end is not that of the connection
        lib.SSL_set_bio(self._ssl, self._into_ssl, self._from_ssl)

    def decrypt(self, view: memoryview) -> int:
        """See `InMemory`."""
        read, ssl, to, size, done = lib.SSL_read, self._ssl, ffi.from_buffer(view), len(view), 0
        while done < size:
            count = read(ssl, to + done, size - done)  # at most a record
            if count <= 0:
                if lib.SSL_get_error(ssl, count) != lib.SSL_ERROR_WANT_READ:
                    self._fail(count)
                break
            done += count
        return done

    def _fail(self, count: int) -> None:
        with mapped_errors():
            self._raise_ssl_error(self._ssl, count)


def prepare(context: SSL.Context) -> None:
    """Makes a new context fit for `Direct`: one call writes all bytes, not one record."""
    context.clear_mode(_ENABLE_PARTIAL_WRITE)


def in_memory(context: SSL.Context) -> InMemory:
    """Returns a new TLS state machine, the faster one if it can be used."""
    return Direct(context) if is_usable() else InMemory(context)


@functools.cache
def is_usable() -> bool:
    """Whether `Direct` works with the installed pyOpenSSL; checked once, which takes a few milliseconds."""
    try:
        _check()
    except (AttributeError, TypeError, ValueError, OSError, SSL.Error) as error:
        logging.warning("TLS is slower: this version of pyOpenSSL is used through its public interface: %r", error)
        return False
    return True


def _check() -> None:
    """Exchanges messages between two ends in memory; raises if they do not arrive."""
    client, server = Direct(_context(SSL.TLS_CLIENT_METHOD)), Direct(_context(SSL.TLS_SERVER_METHOD))
    client.set_connect_state()
    server.set_accept_state()
    both = (client, server), (server, client)
    for end, peer in both * _CHECKED_FLIGHTS:
        end.decrypt(memoryview(bytearray(1)))  # makes the handshake, as much of it as is possible now
        _carry(end, peer, bytearray(1))
    for end, peer in both:
        message, got = bytes(range(256)) * _CHECKED_PIECES, bytearray(256 * _CHECKED_PIECES)
        end.encrypt(memoryview(message))
        _carry(end, peer, got)
        if got != message:
            raise ValueError("a message has not arrived as it was sent")


def _carry(end: Direct, peer: Direct, got: bytearray) -> None:
    """Moves all encrypted bytes of one end to the other, which decrypts them into `got`."""
    left = memoryview(got)
    while count := end.take():
        for start in range(0, count, peer.piece):
            piece = end.outgoing[start : min(count, start + peer.piece)]
            peer.room()[: len(piece)] = piece
            peer.give(len(piece))
            left = left[peer.decrypt(left) :]


def _context(method: int) -> SSL.Context:
    made = SSL.Context(method)
    prepare(made)
    if method == SSL.TLS_SERVER_METHOD:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "check")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now)
        made.use_certificate(builder.sign(key, hashes.SHA256()))
        made.use_privatekey(key)
    return made
