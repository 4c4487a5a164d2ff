"""The TLS state machine of one connection, with its bytes in memory, through pyOpenSSL's public interface.

`downpour.proto.security.openssl` has a faster form of it.

Threads: any, under the lock of the socket that has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from OpenSSL import SSL

from downpour.proto.http2.sockets import Closed
from downpour.proto.security.tls import PeerAlert, TlsError, WrongPeer

# Encrypted or received at a time. 2^16 takes a tenth more processor time an exchange, 2^18 no less, and more memory.
PIECE = 1 << 17
_FIRST_PIECE = 1 << 11  # until a longer read or send: a connection may be unauthenticated
_OVERHEAD = 1 << 10  # that TLS records add to a piece

# OpenSSL's names of errors that mean that the peer is not one of the job.
_NOT_OURS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the CA in this process's ca.crt, or has expired",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; start it with --tls, too",
}


class InMemory(SSL.Connection):
    """The TLS state machine.

    Args:
        context: Certificate of this side, and the CA that it trusts.

    Attributes:
        piece: Bytes received or sent at a time.
        outgoing: Room for encrypted bytes to be sent.
    """

    def __init__(self, context: SSL.Context) -> None:
        super().__init__(context)
        self.piece = _FIRST_PIECE
        self._incoming = self.outgoing = memoryview(b"")

    def encrypt(self, view: memoryview) -> None:
        """Encrypts all bytes of `view`; raises `TlsError`."""
        with mapped_errors():
            while len(view):
                view = view[self.send(view) :]

    def take(self) -> int:
        """Moves encrypted bytes to `outgoing`, as many as it holds; returns how many."""
        self._make_room_to_take()
        try:
            data = self.bio_read(len(self.outgoing))
        except SSL.WantReadError:
            return 0
        self.outgoing[: len(data)] = data
        return len(data)

    def room(self) -> memoryview:
        """Returns where to write received bytes; earlier ones must be decrypted."""
        if len(self._incoming) < self.piece:
            self._incoming = memoryview(bytearray(self.piece))
        return self._incoming

    def give(self, count: int) -> None:
        """Passes `count` bytes in `room` to OpenSSL; they must not change until they are decrypted."""
        self.bio_write(self._incoming[:count])

    def decrypt(self, view: memoryview) -> int:
        """Decrypts into the view; returns how many bytes: fewer than it holds only if none is left.

        Raises:
            Closed: The peer has ended the TLS connection.
            TlsError: The received bytes are not those that were sent.
        """
        done = 0
        with contextlib.suppress(SSL.WantReadError), mapped_errors():
            while done < len(view):
                done += self.recv_into(view[done:])
        return done

    def _make_room_to_take(self) -> None:
        if len(self.outgoing) < self.piece:
            self.outgoing = memoryview(bytearray(self.piece + _OVERHEAD))


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Maps OpenSSL's errors to `Closed` and `TlsError`, except that more bytes must be received first."""
    try:
        yield
    except SSL.WantReadError:
        raise
    except SSL.ZeroReturnError:
        raise Closed("Socket closed") from None
    except SSL.Error as error:
        raise tls_error(error) from None


def tls_error(error: SSL.Error) -> TlsError:
    """Returns our error for one of OpenSSL, whose arguments are its library, function and reason, as texts."""
    given = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(one[-1]).upper().replace(" ", "_") for one in given]
    words = ", ".join(reasons) or str(error) or "TLS broke"
    for reason in reasons:
        if reason in _NOT_OURS:
            return WrongPeer(words, _NOT_OURS[reason])
        if "ALERT" in reason.split("_"):
            return PeerAlert(words)
    return TlsError(words)
