"""What is refused before a connection is made, and what decides who may call what."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from downpour.launch import certs
from downpour.proto import chief_pb2
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.server import Server
from downpour.proto.security import tls
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import PLAIN, Security, read_token
from downpour.proto.security.gate import Gate
from downpour.proto.security.policy import MAY_CALL
from tests.certificates import JOB, TOKEN, forge, security

_DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("certs")
    certs.make(JOB, folder)
    yield folder


def test_the_table_lists_every_method_and_no_other() -> None:
    services = (pb.DESCRIPTOR.services_by_name["ParameterServer"], chief_pb2.DESCRIPTOR.services_by_name["Chief"])
    assert set(MAY_CALL) == {f"{service.name}/{method.name}" for service in services for method in service.methods}


def test_a_role_may_do_its_own_work_and_nothing_else() -> None:
    may = {role: {name.partition("/")[2] for name, roles in MAY_CALL.items() if role in roles} for role in tls.ROLES}
    assert may["worker"] == {"Status", "Progress", "Push", "Pull", "PushPull", "Register", "Report", "Lease"}
    assert may["evaluator"] == {"Status", "Progress", "NextCheckpoint", "ReportScore"}
    assert may["ps"] == {"Status", "Progress", "Leaving"}
    assert may["chief"] == {
        *("Status", "Progress", "Initialize", "Restore", "WriteCheckpoint", "Absent", "SetRate", "Stop"),
    }


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["worker.fashion.downpour"], "worker"),
        (["fashion-worker-0.fashion", "worker.fashion.downpour"], "worker"),
        (["worker.other.downpour"], ""),
        (["worker.fashion.downpour", "chief.fashion.downpour"], ""),
        (["*.fashion.downpour"], ""),
        (["root.fashion.downpour"], ""),
        ([], ""),
    ],
)
def test_only_one_role_of_this_job_counts(names: list[str], role: str) -> None:
    assert tls.role_in(iter(names), "fashion") == role


@pytest.mark.parametrize(
    ("names", "times", "message"),
    [
        (["worker.fashion.downpour"], (-2 * _DAY, -_DAY), r"tls.crt expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC"),
        (
            ["worker.fashion.downpour"],
            (_DAY, 2 * _DAY),
            r"tls.crt is valid from .* UTC on, .*check this machine's clock",
        ),
        (
            ["chief.fashion.downpour"],
            (-_DAY, _DAY),
            "is that of role 'chief' of job 'fashion', but this process is a",
        ),
        (["a.example.com"], (-_DAY, _DAY), r"names a.example.com; its .* must have one DNS name ROLE.JOB.downpour"),
        ([], (-_DAY, _DAY), "names nobody"),
        (["root.fashion.downpour"], (-_DAY, _DAY), "with ROLE one of ps, worker, chief, evaluator"),
        (["worker.fashion.downpour", "worker.other.downpour"], (-_DAY, _DAY), "must have one DNS name"),
        (["*.fashion.downpour"], (-_DAY, _DAY), "must have one DNS name"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused(
    folder: Path, tmp_path: Path, names: list[str], times: tuple[datetime.timedelta, datetime.timedelta], message: str
) -> None:
    forge(folder, tmp_path, names, begins=times[0], ends=times[1])
    with pytest.raises(ValueError, match=message):
        Certificates(tmp_path, "worker")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tls.crt",
            None,
            "tls.crt cannot be read: No such file or directory; the folder must hold tls.crt, tls.k",
        ),
        ("tls.key", b"garbage", r"tls.key is no PEM file that can be read"),
        ("tls.crt", b"garbage", r"tls.crt is no PEM file that can be read"),
        ("ca.crt", b"", r"ca.crt is no PEM file that can be read"),
        ("tls.key", "another", "tls.key is not the key of tls.crt"),
        ("ca.crt", "another", "tls.crt is not signed by the CA in ca.crt; take both from the same job"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    folder: Path, tmp_path: Path, file: str, content: bytes | str | None, message: str
) -> None:
    certs.make(JOB, tmp_path / "another")
    mine = forge(folder, tmp_path / "mine", ["worker.fashion.downpour"])
    if content is None:
        (mine / file).unlink()
    else:
        (mine / file).write_bytes(
            content if isinstance(content, bytes) else (tmp_path / "another" / "worker" / file).read_bytes()
        )
    with pytest.raises(ValueError, match=message) as caught:
        Certificates(mine, "worker")
    assert "\n" not in str(caught.value) and "PRIVATE" not in str(caught.value)


def test_renewed_files_are_taken_up_and_broken_ones_are_not(folder: Path, tmp_path: Path) -> None:
    mine = forge(folder, tmp_path, ["worker.fashion.downpour"])
    certificates = Certificates(mine, "worker")
    number, before = certificates.latest()
    for names, taken in ((["worker.other.downpour"], False), (["worker.fashion.downpour"], True)):
        forge(folder, mine, names)
        certificates._look_at = 0.0
        now, files = certificates.latest()
        assert (now == number + 1, files != before) == (taken, taken)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.7", "ps-0.fashion", ""])
def test_plain_text_on_the_network_is_refused_unless_it_is_wanted(folder: Path, host: str) -> None:
    with pytest.raises(ValueError, match=r"would let every peer on the network .* --tls=FOLDER .* --listen_in_plain"):
        PLAIN.check_host(host)
    with pytest.raises(ValueError, match="would let every peer"):
        Server(grpc.method_handlers_generic_handler("Nothing", {}), host, 0, 1)
    with pytest.raises(ValueError, match="would let every peer"):
        Security(token=TOKEN).check_host(host)
    Security(plain_text_on_the_network=True).check_host(host)
    security(folder, "ps").check_host(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_flag(host: str) -> None:
    PLAIN.check_host(host)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no token: give 16 to 1024 ASCII letters"),
        (b"short-secret", "it has 12 characters"),
        (b"two words that are long", "holds no token"),
        (b"\xff" * 20, "cannot be read: it is no text"),
        ("umlaut-geheimnis-ä".encode(), "holds no token"),
    ],
)
def test_a_file_without_a_token_is_refused_and_not_shown(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_token(tmp_path / "token")
    if content and len(content) > 1:
        assert content.decode(errors="replace") not in str(caught.value)


def test_secrets_do_not_show(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    mine = security(folder, "worker", tmp_path / "token")
    assert mine.token == TOKEN
    assert mine.certificates is not None
    shown = f"{mine} {mine!r} {mine.certificates.latest()} {Gate(mine)!r}"
    assert TOKEN not in shown and "PRIVATE" not in shown


class Context:
    """What `Gate` asks of a call without TLS."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = tokens

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("downpour-token", token) for token in self._tokens]

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def test_strangers_are_logged_once_a_while_and_only_when_there_are_more(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(Security(token=TOKEN), log_every_s=0.0)
    for tokens in ((TOKEN,), (), (TOKEN,), (TOKEN,), ("x" * len(TOKEN),), (TOKEN, TOKEN)):
        try:
            gate.admit("/downpour.v1.ParameterServer/Push", Context(*tokens))
        except Exception as error:
            gate.refused(error)
    lines = [re.sub(r".*role, (\d+) for their token.*", r"\1", record.message) for record in caplog.records]
    assert lines == ["1", "2", "3"]
    assert gate.counts().refused_token == 3
    quiet = Gate(Security(token=TOKEN), log_every_s=3600.0)
    with pytest.raises(Exception, match="carries no token"):
        quiet.admit("/downpour.v1.ParameterServer/Push", Context())
    assert len(caplog.records) == 3
    assert TOKEN not in caplog.text


def test_a_key_that_others_can_read_is_no_reason_to_fail(folder: Path, tmp_path: Path) -> None:
    """Kubernetes mounts secrets with the mode of the volume."""
    mine = forge(folder, tmp_path, ["worker.fashion.downpour"])
    os.chmod(mine / "tls.key", 0o644)
    assert Certificates(mine, "worker").job == "fashion"
