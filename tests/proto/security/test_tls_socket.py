"""TLS between two ends in this process, over a real TCP connection."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from downpour.launch import certs
from downpour.proto.http2.sockets import Closed, PlainSocket
from downpour.proto.security import openssl
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.tls import TlsError, WrongPeer, server_name
from downpour.proto.security.tls_memory import InMemory
from downpour.proto.security.tls_socket import TlsSocket
from tests.certificates import JOB

LENGTHS = [1, 9, 4_096, 65_535, 65_536, 65_537, 17, 3_000_000, 0, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certs")
    certs.make(JOB, made)
    return made


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def shaken(certificates: Certificates, plain: PlainSocket, name: str | None) -> TlsSocket:
    """After its handshake."""
    end = certificates.over_tls(plain, name)
    end.shake_hands()
    return end


@dataclass(frozen=True)
class Pair:
    """The two ends; `under` is what carries the worker's."""

    under: PlainSocket
    worker: TlsSocket
    shard: TlsSocket


def test_the_installed_pyopenssl_is_as_expected() -> None:
    assert openssl.is_usable.__wrapped__()


@pytest.fixture(params=["direct", "public"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the private parts of pyOpenSSL."""
    if request.param == "public":
        monkeypatch.setattr(openssl, "lib", None)
        monkeypatch.setattr(openssl, "is_usable", openssl.is_usable.__wrapped__)


@pytest.fixture
def pair(folder: Path, form: None) -> Iterator[Pair]:
    mine, theirs = (Certificates(folder / role, role) for role in ("worker", "ps"))
    with connected() as (near, far), ThreadPoolExecutor(1) as pool:
        shard = pool.submit(shaken, theirs, PlainSocket(far), None)
        under = PlainSocket(near)
        worker = shaken(mine, under, server_name("ps", JOB))
        yield Pair(under, worker, shard.result())


def test_bytes_arrive_as_they_were_sent_both_ways_at_once(pair: Pair) -> None:
    rng = np.random.default_rng(0)
    sent = [[rng.bytes(length) for length in LENGTHS] for _ in range(2)]

    def receive(end: TlsSocket) -> bytes:
        got = bytearray(sum(LENGTHS))
        view = memoryview(got)
        for length in reversed(LENGTHS):  # other pieces than those that were sent
            end.read_into(view[:length])
            view = view[length:]
        return bytes(got)

    with ThreadPoolExecutor(4) as pool:
        receiving = [pool.submit(receive, end) for end in (pair.shard, pair.worker)]
        sending = [pool.submit(end.send, buffers) for end, buffers in zip((pair.worker, pair.shard), sent, strict=True)]
        for one in sending:
            one.result(30)
        assert [one.result(30) for one in receiving] == [b"".join(buffers) for buffers in sent]
    assert pair.worker.is_quiet() and pair.shard.is_quiet()


def test_both_ends_know_whom_they_have(pair: Pair) -> None:
    assert type(pair.worker._tls) is (openssl.Direct if openssl.lib else InMemory)
    assert pair.worker.names == [server_name("ps", JOB)]
    assert pair.shard.names == [server_name("worker", JOB)]


def test_bytes_that_were_changed_on_the_way_break_the_connection(pair: Pair) -> None:
    pair.worker.send([b"good"])
    got = bytearray(4)
    pair.shard.read_into(memoryview(got))
    assert got == b"good"
    pair.under.send([b"\x17\x03\x03\x00\x40" + bytes(64)])  # a record of application data, encrypted by nobody
    with pytest.raises(TlsError, match="DECRYPTION_FAILED_OR_BAD_RECORD_MAC"):
        pair.shard.read_into(memoryview(got))


def test_the_wrong_role_is_a_mismatch(folder: Path) -> None:
    mine, theirs = (Certificates(folder / role, role) for role in ("worker", "ps"))
    with connected() as (near, far), ThreadPoolExecutor(1) as pool:
        pool.submit(shaken, theirs, PlainSocket(far), None)
        names = re.escape(f"Hostname mismatch: the certificate names {server_name('ps', JOB)}")
        with pytest.raises(WrongPeer, match=names):
            shaken(mine, PlainSocket(near), server_name("chief", JOB))


def test_a_peer_that_takes_its_leave_has_closed(folder: Path, form: None) -> None:
    """Python's own TLS is the peer."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "worker" / "tls.crt", folder / "worker" / "tls.key")
    with connected() as (near, far), ThreadPoolExecutor(1) as pool:
        shard = pool.submit(shaken, Certificates(folder / "ps", "ps"), PlainSocket(far), None)
        with context.wrap_socket(near, server_hostname=server_name("ps", JOB)) as worker:
            shard.result(30).send([b"message"])
            assert worker.recv(100) == b"message"
            worker.sendall(b"last")
            pool.submit(worker.unwrap)
            got = memoryview(bytearray(5))
            with pytest.raises(Closed):
                shard.result().read_into(got)
            assert got[:4] == b"last"
            far.shutdown(socket.SHUT_RDWR)


def test_a_handshake_that_does_not_end_is_broken_off(folder: Path) -> None:
    """Records that are announced as parts of one long message, which OpenSSL would keep."""
    hello = b"\x01" + (90_000).to_bytes(3, "big") + bytes(16_000)
    record = b"\x16\x03\x01" + (16_004).to_bytes(2, "big") + hello
    more = b"\x16\x03\x01" + (16_000).to_bytes(2, "big") + bytes(16_000)
    with connected() as (near, far):
        near.sendall(record + 3 * more)
        with pytest.raises(TlsError, match="HANDSHAKE_TOO_LONG"):
            shaken(Certificates(folder / "ps", "ps"), PlainSocket(far), None)
