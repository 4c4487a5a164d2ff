"""Who does not belong to a job is turned away by a shard, and counted, while a worker of the job goes on pushing."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from downpour.launch import certs
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import Forbidden, MalformedChunk, Unauthenticated, Unreachable, from_rpc_error
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import TOKEN_KEY, Security
from downpour.worker.exchange.clients import ShardClient
from tests.certificates import TOKEN, forge
from tests.channels import WITHOUT_PROXY
from tests.conftest import wait_until
from tests.launch.strangers import LAYOUT, GuardedShard, Pusher, SilentConnections, push
from tests.proto.http2.writing import RawCall

pytestmark = pytest.mark.process

_DAY = datetime.timedelta(days=1)
_METHOD = "/downpour.v1.ParameterServer/"
_GOOD = ((TOKEN_KEY, TOKEN),)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedShard]:
    with GuardedShard(tmp_path_factory.mktemp("shard")) as shard:
        yield shard


@pytest.fixture(scope="module")
def pusher(shard: GuardedShard) -> Iterator[Pusher]:
    with Pusher(shard) as pusher:
        yield pusher
    assert pusher.acknowledged == shard.pushes()
    assert pusher.longest_s < 5, "a push had to wait for strangers"


class Change:
    """By how much the counters of a shard have grown since."""

    def __init__(self, shard: GuardedShard) -> None:
        self._shard, self._before = shard, shard.guests()

    def of(self, field: str) -> int:
        return int(getattr(self._shard.guests(), field) - getattr(self._before, field))

    def refused(self) -> dict[str, int]:
        """Calls, by reason."""
        fields = [field.name for field in pb.StatusReply.Guests.DESCRIPTOR.fields if "refused" in field.name]
        return {field: number for field in fields if (number := self.of(field))}


def status(shard: GuardedShard, credentials: grpc.ChannelCredentials | None, token: object = _GOOD) -> pb.StatusReply:
    """Asks with gRPC's own means for what every role may know; one attempt."""
    options = [
        ("grpc.ssl_target_name_override", "ps.fashion.downpour"),
        ("grpc.use_local_subchannel_pool", 1),
        *WITHOUT_PROXY,
    ]
    opened = (
        grpc.secure_channel(shard.address, credentials, options)
        if credentials
        else grpc.insecure_channel(shard.address, options)
    )
    with opened as channel:
        ask = channel.unary_unary(_METHOD + "Status", pb.StatusRequest.SerializeToString, pb.StatusReply.FromString)
        reply: pb.StatusReply = ask(pb.StatusRequest(), timeout=60, metadata=token)
        return reply


def credentials(folder: Path, ca: Path | None = None) -> grpc.ChannelCredentials:
    ca_pem = ((ca or folder) / "ca.crt").read_bytes()
    return grpc.ssl_channel_credentials(ca_pem, (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes())


def no_certificate(shard: GuardedShard, folder: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials((shard.certificates / "ca.crt").read_bytes())


def another_ca(shard: GuardedShard, folder: Path) -> grpc.ChannelCredentials:
    certs.make("fashion", folder)
    return credentials(folder / "worker", ca=shard.certificates)  # trusts the shard, so only the shard can refuse


def expired(shard: GuardedShard, folder: Path) -> grpc.ChannelCredentials:
    return credentials(
        forge(shard.certificates, folder, ["worker.fashion.downpour"], begins=-2 * _DAY, ends=-_DAY / 24)
    )


def not_yet_valid(shard: GuardedShard, folder: Path) -> grpc.ChannelCredentials:
    return credentials(forge(shard.certificates, folder, ["worker.fashion.downpour"], begins=_DAY, ends=2 * _DAY))


def plain_text(shard: GuardedShard, folder: Path) -> None:
    return None


def test_a_process_of_the_job_gets_through_each_of_the_ways_used_below(
    shard: GuardedShard, pusher: Pusher, tmp_path: Path
) -> None:
    good = forge(shard.certificates, tmp_path, ["worker.fashion.downpour"])
    change = Change(shard)
    assert status(shard, credentials(good)).ready
    assert change.of("connections_admitted") == 1
    assert change.refused() == {}
    call = RawCall(("127.0.0.1", shard.port), good, _METHOD + "Push", dict(_GOOD))
    call.announce(1 << 20, b"x" * 1000)
    assert not call.is_ended(1.0), "a message of 1 MB is waited for"
    call.close()


@pytest.mark.parametrize("stranger", [no_certificate, another_ca, expired, not_yet_valid, plain_text])
def test_a_stranger_is_turned_away_in_the_handshake(
    shard: GuardedShard, pusher: Pusher, tmp_path: Path, stranger: Callable[..., grpc.ChannelCredentials | None]
) -> None:
    shown = stranger(shard, tmp_path / "stranger")
    change = Change(shard)
    with pytest.raises(grpc.RpcError) as caught:
        status(shard, shown)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value
    assert from_rpc_error(caught.value) is None, "it came to the gate"
    assert change.of("connections") >= 1
    assert change.of("connections_admitted") == 0
    assert change.refused() == {}
    pusher.wait_for_more()


@pytest.mark.parametrize(
    "names", [["worker.other.downpour"], ["worker.fashion.downpour", "chief.fashion.downpour"], ["*.fashion.downpour"]]
)
def test_a_certificate_of_the_same_ca_that_names_no_role_of_the_job_may_not_even_ask(
    shard: GuardedShard, pusher: Pusher, tmp_path: Path, names: list[str]
) -> None:
    shown = credentials(forge(shard.certificates, tmp_path, names))
    change = Change(shard)
    with pytest.raises(grpc.RpcError) as caught:
        status(shard, shown)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert isinstance(from_rpc_error(caught.value), Forbidden)
    assert change.of("connections_admitted") == 0
    assert change.refused() == {"refused_role": 1}
    pusher.wait_for_more()


NOT_THEIRS: list[tuple[str, Callable[[ShardClient], object], str]] = [
    ("worker", lambda client: client.write_checkpoint("/tmp"), "WriteCheckpoint, chief may"),
    ("worker", lambda client: client.initialize(pb.ShardSpecification(), np.ones(1000)), "Initialize, chief may"),
    ("worker", lambda client: client.restore(pb.ShardSpecification(), "/tmp", with_slots=True), "Restore, chief may"),
    ("worker", lambda client: client.absent([(1, 1)]), "Absent, chief may"),
    ("evaluator", lambda client: push(client, 1_000_000), "Push, worker may"),
    ("chief", lambda client: push(client, 1_000_000), "Push, worker may"),
    ("ps", lambda client: push(client, 1_000_000), "Push, worker may"),
]


@pytest.mark.parametrize(("role", "call", "message"), NOT_THEIRS)
def test_the_right_certificate_with_the_wrong_role_is_refused(
    shard: GuardedShard, pusher: Pusher, role: str, call: Callable[[ShardClient], object], message: str
) -> None:
    client, change = shard.client(role), Change(shard)
    with pytest.raises(Forbidden, match=f"role '{role}' may not call ParameterServer/{message}"):
        call(client)
    client.close()
    assert change.refused() == {"refused_role": 1}
    pusher.wait_for_more()


@pytest.mark.parametrize("token", ["", "x" * len(TOKEN), TOKEN[:-1], TOKEN + "x", "9" + TOKEN[1:]])
def test_a_wrong_or_missing_token_is_refused(shard: GuardedShard, pusher: Pusher, token: str) -> None:
    mine = Security(Certificates(shard.certificates / "worker", "worker"), token)
    client, change = ShardClient(0, shard.address, LAYOUT, 30, mine), Change(shard)
    for call in (client.status, lambda: push(client, 1_000_000)):
        with pytest.raises(Unauthenticated, match=r"carries no token or not this job's; .* same --token_file") as one:
            call()
        assert TOKEN not in str(one.value)
    client.close()
    assert change.of("connections_admitted") == 0
    assert change.refused() == {"refused_token": 2}
    pusher.wait_for_more()


def test_two_tokens_are_as_good_as_none(shard: GuardedShard, tmp_path: Path) -> None:
    good = credentials(shard.certificates / "worker")
    with pytest.raises(grpc.RpcError) as caught:
        status(shard, good, ((TOKEN_KEY, "x" * 30), (TOKEN_KEY, TOKEN)))
    assert isinstance(from_rpc_error(caught.value), Unauthenticated)


def test_a_message_of_two_gigabytes_is_refused_before_it_comes(
    shard: GuardedShard, pusher: Pusher, tmp_path: Path
) -> None:
    before = psutil.Process(shard.pid).memory_info().rss
    change = Change(shard)
    worker = shard.certificates / "worker"
    for _ in range(5):
        call = RawCall(("127.0.0.1", shard.port), worker, _METHOD + "Push", dict(_GOOD))
        call.announce((1 << 31) - 1, b"x" * 10_000)
        assert call.is_ended(10.0)
        call.close()
    # One or the other, whatever the shard learns first: that the call has ended, or that there is no message.
    wait_until(lambda: change.of("broken_off") + change.of("refused_malformed") >= 5, "five refusals")
    assert psutil.Process(shard.pid).memory_info().rss - before < 100 << 20
    pusher.wait_for_more()


def test_a_message_that_is_a_little_too_large_is_refused_at_once_and_says_so(
    shard: GuardedShard, pusher: Pusher
) -> None:
    client, large = shard.client("worker"), b"x" * (16 << 20)
    request = pb.PullRequest(fingerprint=large)
    with pytest.raises(MalformedChunk, match=r"larger than max .*slice the variable, or make the batch smaller"):
        client.pull(request, into=_Nothing())  # type: ignore[arg-type]
    client.close()
    options = [
        ("grpc.ssl_target_name_override", "ps.fashion.downpour"),
        ("grpc.max_send_message_length", -1),
        *WITHOUT_PROXY,
    ]
    with grpc.secure_channel(shard.address, credentials(shard.certificates / "worker"), options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(_METHOD + "Pull")(request.SerializeToString(), timeout=60, metadata=_GOOD))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pusher.wait_for_more()


class _Nothing:
    def begin(self) -> int:
        return 0

    def place(self, beginning: memoryview, num_bytes: int) -> None: ...


def test_what_a_client_can_tell_of_the_server_it_reached(shard: GuardedShard, tmp_path: Path) -> None:
    certs.make("fashion", tmp_path / "foreign")
    other = forge(shard.certificates, tmp_path / "other", ["worker.other.downpour"])
    for folder, message in (
        (tmp_path / "foreign" / "worker", "is not one of this job: its certificate is not signed by the CA"),
        (other, "is not one of this job: its certificate names another job or role"),
    ):
        client = ShardClient(0, shard.address, LAYOUT, 0.5, Security(Certificates(folder, "worker"), TOKEN))
        with pytest.raises(Unauthenticated, match=message):
            client.status()
        client.close()
    client = ShardClient(0, shard.address, LAYOUT, 0.5)
    with pytest.raises(Unreachable, match="it may have refused this process's certificate"):
        client.status()
    client.close()


@pytest.mark.parametrize(
    "number", [pytest.param(2000, id="2000"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]
)
def test_connections_that_say_nothing_make_room_and_nobody_waits_for_them(
    shard: GuardedShard, pusher: Pusher, number: int
) -> None:
    process = psutil.Process(shard.pid)
    before, change = process.memory_info().rss, Change(shard)
    with SilentConnections(shard.port, number) as silent:
        pusher.wait_for_more(100)
        wait_until(lambda: silent.num_open() <= number - 200, "the end of the first of them")
        assert process.memory_info().rss - before < 20 << 20
        assert process.num_fds() < 300
        late = shard.client("worker", 60.0)
        assert late.status().ready
        late.close()
    assert change.of("connections") >= 200
    assert change.of("connections_dropped") >= 200
    assert change.of("connections_admitted") == 1
    wait_until(lambda: process.num_fds() < 50, "the end of their descriptors")


def test_garbage_is_turned_away(shard: GuardedShard, pusher: Pusher) -> None:
    change = Change(shard)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"\x16\x03\x01\xff\xff" + b"\xff" * 5000):
        with socket.create_connection(("127.0.0.1", shard.port), timeout=20) as stranger:
            stranger.sendall(garbage)
            try:
                while stranger.recv(1000):
                    pass
            except ConnectionError:
                pass
    assert change.of("connections") >= 3
    assert change.of("connections_admitted") == 0
    pusher.wait_for_more()


def test_the_log_holds_no_secret_and_no_line_a_stranger(shard: GuardedShard) -> None:
    assert TOKEN not in shard.log and "PRIVATE" not in shard.log
    assert len(shard.log.splitlines()) < 10, shard.log
