"""Sessions of real clients with a real shard, recorded by a pipe between them and parsed into frames.

Two dialects of HTTP/2: our own client's (plain literals, one call at a time) and grpcio's (dynamic table, Huffman code,
`te`, `user-agent`, gzip). A recording does not depend on the moment: ports and pings are taken out, so that a case is
the same in every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import hpack
import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto import parameter_server_pb2_grpc as pb_grpc
from downpour.proto.errors import DownpourError
from downpour.proto.numerics import convert
from downpour.proto.security.config import PLAIN, TOKEN_KEY, Security
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.pulled import Pulled
from tests.channels import plain
from tests.fuzz import frames as h2
from tests.fuzz.frames import Frame
from tests.fuzz.shard import FUZZER, JOB_ID, LAYOUT, NUM_PUSHED, NUM_TRAINED, factors, specification

AUTHORITY = "127.0.0.1:65535"  # stands for the pipe's in recordings; as long as that of any port above 9999
_CALL_S = 30.0


@dataclass(frozen=True)
class Session:
    """What one connection carried.

    Attributes:
        name: Dialect and topic.
        role: Of the client.
        is_admitted: Whether its calls carry the token.
        sent: By the client, after the preface.
        answered: By the server.
        statuses: gRPC status of each stream.
        pushes: Streams that are pushes.
    """

    name: str
    role: str
    is_admitted: bool
    sent: tuple[Frame, ...]
    answered: tuple[Frame, ...]
    statuses: dict[int, str] = field(default_factory=dict)
    pushes: tuple[int, ...] = ()


class Pipe:
    """Passes one connection to a server on this machine, and keeps what both sides say; a context manager.

    Attributes:
        port: The client connects to.
        sent: By the client.
        answered: By the server.
    """

    def __init__(self, server_port: int) -> None:
        self.sent, self.answered = bytearray(), bytearray()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pipe:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as client:
            with socket.create_connection(("127.0.0.1", self._server_port)) as server:
                back = threading.Thread(target=_pass, args=(server, client, self.answered))
                back.start()
                _pass(client, server, self.sent)
                back.join()


def _pass(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """Until the source has ended; then the target is told so."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def record_all(port: int, token: str) -> list[Session]:
    """Every session, with a shard in plain text that asks for this token."""
    sessions = []
    for dialect, connect in _DIALECTS.items():
        for topic, (role, talk) in _TOPICS.items():
            sessions.append(_record(f"{dialect}/{topic}", role, port, Security(token=token), connect, talk))
        for topic in _UNARY:
            role, talk = _TOPICS[topic]
            sessions.append(_record(f"{dialect}/{topic}/no token", role, port, PLAIN, connect, talk))
    sessions += [_with_wrong_token(session, token) for session in sessions if session.name in _WITH_WRONG_TOKEN]
    sessions.append(_record("grpcio/gzip", "chief", port, Security(token=token), _Grpcio.gzip, _talk_of_restores))
    return sessions


def digest(sessions: Sequence[Session]) -> str:
    """Names what was sent, so that runs can be compared."""
    whole = hashlib.sha256()
    for session in sessions:
        whole.update(session.name.encode() + h2.encode(session.sent))
    return whole.hexdigest()[:12]


def _with_wrong_token(session: Session, token: str) -> Session:
    """The same from somebody who does not know it: how much of a stream a refused client sends is up to chance."""
    sent = tuple(replace(f, payload=f.payload.replace(token.encode(), token[::-1].encode())) for f in session.sent)
    assert sent != session.sent, f"{session.name} does not carry the token as it is"
    statuses = dict.fromkeys(session.statuses, str(grpc.StatusCode.UNAUTHENTICATED.value[0]))
    return replace(
        session, name=f"{session.name}/wrong token", is_admitted=False, sent=sent, answered=(), statuses=statuses
    )


def _record(
    name: str, role: str, port: int, security: Security, connect: Callable[..., Any], talk: Callable[[Any], None]
) -> Session:
    with Pipe(port) as pipe:
        client = connect(f"127.0.0.1:{pipe.port}", security)
        talk(client)
        client.close()
    sent = bytes(pipe.sent).replace(f"127.0.0.1:{pipe.port}".encode(), AUTHORITY.encode())
    assert sent.startswith(h2.PREFACE), f"{name}: the client says no preface"
    frames, answered = _settled(h2.parse(sent[len(h2.PREFACE) :])), _settled(h2.parse(bytes(pipe.answered)))
    paths = {number: pairs.get(":path", "") for number, pairs in blocks_of(frames).items()}
    statuses = {number: pairs.get("grpc-status", "") for number, pairs in blocks_of(answered).items()}
    assert set(statuses) == set(paths), f"{name}: streams {sorted(paths)} were answered as {statuses}"
    pushes = tuple(number for number, path in paths.items() if path.endswith(("/Push", "/PushPull")))
    return Session(name, role, bool(security.token), tuple(frames), tuple(answered), statuses, pushes)


def _settled(frames: list[Frame]) -> list[Frame]:
    """Without what depends on the moment: pings, GOAWAY at the end, and what opens windows, of which one stays."""
    kept = [frame for frame in frames if frame.kind in (h2.HEADERS, h2.DATA, h2.CONTINUATION, h2.RST_STREAM)]
    settings = [frame for frame in frames if frame.kind == h2.SETTINGS and not frame.flags & h2.ACK][:1]
    window = Frame(h2.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big"))
    return [*settings, Frame(h2.SETTINGS, h2.ACK, 0), window, *_recut(kept)]


def _recut(frames: list[Frame]) -> list[Frame]:
    """The DATA of a stream in frames as long as may be: where the sender cut it depends on the moment."""
    cut: list[Frame] = []
    for (kind, stream), run in itertools.groupby(frames, key=lambda frame: (frame.kind, frame.stream)):
        together = list(run)
        if kind != h2.DATA:
            cut += together
            continue
        data, flags = b"".join(frame.payload for frame in together), together[-1].flags
        parts = [data[at : at + h2.MAX_PAYLOAD_BYTES] for at in range(0, max(1, len(data)), h2.MAX_PAYLOAD_BYTES)]
        cut += [Frame(h2.DATA, 0, stream, part) for part in parts[:-1]] + [Frame(h2.DATA, flags, stream, parts[-1])]
    return cut


def blocks_of(frames: Sequence[Frame]) -> dict[int, dict[str, str]]:
    """The header fields of every stream, trailers included, as a peer reads them."""
    decoder, found = hpack.Decoder(), dict[int, dict[str, str]]()
    for frame in frames:
        if frame.kind != h2.HEADERS:
            continue
        body = frame.payload[5 if frame.flags & h2.HAS_PRIORITY else 0 :]
        pairs = [(str(name), str(value)) for name, value in decoder.decode(body)]
        found.setdefault(frame.stream, {}).update(pairs)
    return found


class _Ours:
    """`ShardClient`, as every role uses it."""

    def __init__(self, address: str, security: Security) -> None:
        self._client = ShardClient(0, address, LAYOUT, _CALL_S, security, JOB_ID)
        self.close = self._client.close

    def status(self, with_layout: bool) -> None:
        with contextlib.suppress(DownpourError):
            self._client.described() if with_layout else self._client.status()

    def push(self, sequence: int, wire: pb.Codec) -> None:
        with contextlib.suppress(DownpourError):
            self._client.push(push_header(sequence), chunks_of(wire))

    def pull(self, wire: pb.Codec, differences: pb.Codec | None) -> None:
        into = Pulled(LAYOUT, 0, wire, differences=bool(differences))
        with contextlib.suppress(DownpourError):
            self._client.pull(pull_request(wire, differences), into)

    def push_pull(self, sequence: int) -> None:
        header = push_header(sequence)
        header.pull.CopyFrom(pull_request(codec.FLOAT32, None))
        with contextlib.suppress(DownpourError):
            self._client.push_pull(header, chunks_of(codec.FLOAT32), Pulled(LAYOUT, 0, codec.FLOAT32))()

    def initialize(self) -> None:
        with contextlib.suppress(DownpourError):
            self._client.initialize(specification(), np.zeros(LAYOUT.size(0), np.float32))

    def restore(self) -> None:
        with contextlib.suppress(DownpourError):
            self._client.restore(specification(), "nowhere", with_slots=True)

    def absent(self) -> None:
        with contextlib.suppress(DownpourError):
            self._client.absent([(FUZZER, 1), (FUZZER + 1, 2)])


class _Grpcio:
    """grpcio's client, without deadlines: they would be different numbers each time."""

    def __init__(self, address: str, security: Security, *options: tuple[str, Any], **more: Any) -> None:
        self._channel = plain(address, ("grpc.default_authority", AUTHORITY), *options)
        self._stub = pb_grpc.ParameterServerStub(self._channel)
        self._more = {"metadata": ((TOKEN_KEY, security.token),) if security.token else None, **more}
        self.close = self._channel.close

    @classmethod
    def gzip(cls, address: str, security: Security) -> _Grpcio:
        """One that compresses what it sends."""
        return cls(address, security, compression=grpc.Compression.Gzip)

    def status(self, with_layout: bool) -> None:
        self._call(self._stub.Status, pb.StatusRequest(with_layout=with_layout))

    def push(self, sequence: int, wire: pb.Codec) -> None:
        self._call(self._stub.Push, _messages_of(push_header(sequence), wire))

    def push_pull(self, sequence: int) -> None:
        header = push_header(sequence)
        header.pull.CopyFrom(pull_request(codec.FLOAT32, None))
        with contextlib.suppress(grpc.RpcError):
            list(self._stub.PushPull(_messages_of(header, codec.FLOAT32), **self._more))

    def pull(self, wire: pb.Codec, differences: pb.Codec | None) -> None:
        with contextlib.suppress(grpc.RpcError):
            list(self._stub.Pull(pull_request(wire, differences), **self._more))

    def initialize(self) -> None:
        chunk = pb.Chunk(initialize=specification(), codec=pb.CODEC_FLOAT32, count=LAYOUT.size(0))
        chunk.payload = bytes(4 * LAYOUT.size(0))
        self._call(self._stub.Initialize, iter([chunk]))

    def restore(self) -> None:
        self._call(self._stub.Restore, pb.RestoreRequest(specification=specification(), directory="nowhere"))

    def absent(self) -> None:
        worker = pb.AbsentRequest.Worker(index=FUZZER, incarnation=1)
        self._call(self._stub.Absent, pb.AbsentRequest(fingerprint=LAYOUT.fingerprint, workers=[worker]))

    def _call(self, method: Callable[..., Any], request: Any) -> None:
        with contextlib.suppress(grpc.RpcError):
            method(request, **self._more)


def _messages_of(header: pb.PushHeader, wire: pb.Codec) -> Iterator[pb.Chunk]:
    bodies = [b"".join(map(bytes, chunk.encode(None))) for chunk in chunks_of(wire)]
    messages = [pb.Chunk.FromString(body) for body in bodies]
    messages[0].push.CopyFrom(header)
    return iter(messages)


def push_header(sequence: int) -> pb.PushHeader:
    """Of a push of the fuzzer."""
    header = pb.PushHeader(fingerprint=LAYOUT.fingerprint, worker=FUZZER, incarnation=1, shard=0, job_id=JOB_ID)
    header.sequence = sequence
    return header


def pull_request(wire: pb.Codec, differences: pb.Codec | None) -> pb.PullRequest:
    """Of the fuzzer; with a codec of differences, of those to a publication."""
    request = pb.PullRequest(fingerprint=LAYOUT.fingerprint, worker=FUZZER, incarnation=1, shard=0, job_id=JOB_ID)
    request.codec = wire
    if differences:
        request.publish_every, request.differences = 10, differences
    return request


def chunks_of(wire: pb.Codec) -> list[codec.Outgoing]:
    """A whole push: factors and the rest in one codec, then the statistics in float32."""
    first = factors(wire)
    rest = NUM_TRAINED - first.count
    if wire == codec.INT8:
        payload, scales, q = codec.new_blocks(codec.INT8, rest)
        convert.quantize(np.ones(rest, np.float32), scales, q)
        trained = codec.Outgoing(first.count, rest, codec.INT8, payload)
    else:
        trained = codec.Outgoing(first.count, rest, wire, np.zeros(rest, codec.WIRE_DTYPES[wire]))
    num_statistics = NUM_PUSHED - NUM_TRAINED
    last = codec.Outgoing(NUM_TRAINED, num_statistics, codec.FLOAT32, np.ones(num_statistics, np.float32))
    return [first, trained, last]


def _talk_of_statuses(client: Any) -> None:
    client.status(False)
    client.status(True)


def _talk_of_pushes(client: Any) -> None:
    for sequence, wire in enumerate((codec.FLOAT32, codec.BFLOAT16, codec.INT8, codec.FLOAT16), start=1):
        client.push(sequence, wire)


def _talk_of_pulls(client: Any) -> None:
    client.pull(codec.FLOAT32, None)
    client.pull(codec.BFLOAT16, None)
    client.pull(codec.BFLOAT16, codec.INT8)
    client.pull(codec.BFLOAT16, codec.INT4)


def _talk_of_restores(client: Any) -> None:
    """One long message a call, which gzip shortens; of a stream that is refused, a part would be sent by chance."""
    client.restore()
    client.restore()


def _talk_of_steps(client: Any) -> None:
    for sequence in (1, 2):
        client.pull(codec.FLOAT32, None)
        client.push(sequence, codec.FLOAT32)
        client.status(False)
    client.push_pull(3)


def _talk_of_the_chief(client: Any) -> None:
    client.initialize()
    client.restore()
    client.absent()
    client.status(False)


_DIALECTS: dict[str, Callable[..., Any]] = {"ours": _Ours, "grpcio": _Grpcio}
_TOPICS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "statuses": ("worker", _talk_of_statuses),
    "pushes": ("worker", _talk_of_pushes),
    "pulls": ("worker", _talk_of_pulls),
    "steps": ("worker", _talk_of_steps),
    "chief": ("chief", _talk_of_the_chief),
}
_UNARY = ("statuses", "pulls")
_WITH_WRONG_TOKEN = ("ours/pushes", "ours/steps", "ours/chief")
