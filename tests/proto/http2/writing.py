"""HTTP/2 by hand, as far as a stranger needs it: a call is begun, and a message announced that never comes."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

_SETTINGS, _HEADERS, _DATA, _RST_STREAM = 4, 1, 0, 3
_END_HEADERS, _END_STREAM = 4, 1


class RawCall:
    """A call of one method over a TLS connection of its own, with the certificate of a folder.

    Args:
        address: Host and port.
        folder: Holds `tls.crt`, `tls.key` and `ca.crt`.
        path: Of the method.
        metadata: Goes with it.
    """

    def __init__(self, address: tuple[str, int], folder: Path, path: str, metadata: dict[str, str]) -> None:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.check_hostname = False  # the certificate names no host
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        context.set_alpn_protocols(["h2"])
        self._socket = context.wrap_socket(socket.create_connection(address, timeout=10))
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        headers = {
            ":method": "POST",
            ":scheme": "https",
            ":path": path,
            ":authority": "stranger",
            "content-type": "application/grpc",
            "te": "trailers",
            **metadata,
        }
        # Literals that nobody must remember (RFC 7541, 6.2.2): no tables, no Huffman code.
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers.items())
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, 1, block))

    def announce(self, num_bytes: int, data: bytes) -> None:
        """The five bytes before a message of this length, then some of it."""
        self._socket.sendall(_frame(_DATA, 0, 1, b"\x00" + num_bytes.to_bytes(4, "big") + data))

    def is_ended(self, timeout_s: float) -> bool:
        """Whether the server ends the call, or the connection, before so many seconds without a word."""
        self._socket.settimeout(timeout_s)
        try:
            while head := self._exactly(9):
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                self._exactly(int.from_bytes(head[:3], "big"))
                if stream == 1 and (kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM)):
                    return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, num_bytes: int) -> bytes:
        """So many bytes, or none when the connection has ended."""
        got = b""
        while len(got) < num_bytes:
            more = self._socket.recv(num_bytes - len(got))
            if not more:
                return b""
            got += more
        return got


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _string(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()
