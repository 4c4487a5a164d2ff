"""A small real job whose roles have certificates and a token: it trains, tells no secret, and knows its own."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from downpour.launch import certs
from downpour.launch.roles import topology
from downpour.proto.chief_pb2 import RegisterRequest, Score
from downpour.proto.errors import Forbidden, Unauthenticated
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import Security
from downpour.worker.exchange.clients import ChiefClient
from tests.certificates import JOB, TOKEN, forge, security
from tests.channels import plain
from tests.conftest import wait_until
from tests.launch import jobs
from tests.launch.fleet import free_ports

pytestmark = pytest.mark.process

_ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}


class SecureJob:
    """The tiny recipe on two shards, a chief, a worker and an evaluator, each with `--tls` and `--token_file`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir, self.logs = folder, folder / "run", folder / "logs"
        self.token_file, self.certificates = folder / "token", folder / "certs"
        self.logs.mkdir()
        self.token_file.write_text(TOKEN + "\n")
        certs.make(JOB, self.certificates)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.health_ports = dict(zip(("ps/0", "chief", "worker/0", "evaluator"), free_ports(4), strict=True))
        self._flags: dict[str, topology.FlagValue] = {
            "recipe": jobs.write_recipe(folder, jobs.PACED),
            "set": ["cluster.num_workers=1"],
            "run_dir": self.run_dir,
        }
        listens: dict[str, topology.FlagValue] = {"host": "127.0.0.1", "port": 0}
        for i in range(2):
            files: dict[str, topology.FlagValue] = {
                "arena": folder / f"{i}.arena",
                "port_file": folder / f"ps-{i}.port",
            }
            self.start(f"ps/{i}", listens | files)
        self._flags["ps"] = ",".join(self._address(f"ps-{i}.port") for i in range(2))
        wait_until(lambda: self.health("ps/0", "") == "SERVING", "a living shard")
        assert self.health("ps/0", "ready") == "NOT_SERVING"
        self.start("chief", self._flags | listens | {"port_file": folder / "chief.port"})
        self.chief = self._flags["chief"] = self._address("chief.port")

    def start(self, name: str, values: dict[str, topology.FlagValue], *, title: str = "") -> subprocess.Popen[bytes]:
        """A process with the certificate of its role, unless the values say otherwise."""
        role, _, index = name.partition("/")
        mine: dict[str, topology.FlagValue] = {
            "tls": self.certificates / role,
            "token_file": self.token_file,
            "die_with_parent": os.getpid(),
            "health_port": None if title else self.health_ports.get(name),
        }
        title = title or name
        with (self.logs / f"{title.replace('/', '-')}.log").open("wb") as log:
            command = topology.command(role, int(index or 0), mine | values)
            self.processes[title] = subprocess.Popen(command, stdout=log, stderr=log, env=_ENVIRONMENT)
        return self.processes[title]

    def start_client(self, name: str, title: str = "", **more: topology.FlagValue) -> subprocess.Popen[bytes]:
        """A worker or the evaluator."""
        return self.start(name, self._flags | more, title=title)

    def log(self, title: str) -> str:
        return (self.logs / f"{title.replace('/', '-')}.log").read_text()

    def health(self, name: str, service: str) -> str:
        """What a probe sees."""
        with plain(f"127.0.0.1:{self.health_ports[name]}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            except grpc.RpcError:
                return "nothing"
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def client(self, role: str, give_up_after_s: float = 30.0) -> ChiefClient:
        return ChiefClient(self.chief, give_up_after_s, security(self.certificates, role, self.token_file))

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _address(self, name: str) -> str:
        wait_until((self.folder / name).exists, name, jobs.START_S)
        return f"127.0.0.1:{(self.folder / name).read_text().strip()}"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[SecureJob]:
    before = os.umask(0o022)  # what most systems have
    try:
        job = SecureJob(tmp_path)
        try:
            yield job
        finally:
            job.kill()
    finally:
        os.umask(before)


@pytest.mark.slow
def test_a_job_with_certificates_and_token(job: SecureJob) -> None:
    slow = job.folder / "slow"
    slow.touch()
    job.start_client("worker/0")
    job.start_client("evaluator")
    watcher = job.client("worker")
    wait_until(lambda: watcher.progress().step > 0, "the first step", jobs.START_S)
    for name in job.health_ports:
        wait_until(lambda name=name: job.health(name, "ready") == "SERVING", name)  # type: ignore[misc]

    _the_chief_refuses_other_roles(job)
    no_token = job.folder / "no-token"
    no_token.write_text("another-token-of-another-job")
    expectations = {
        "wrong token": ({"token_file": no_token}, "no token or not this job's"),
        "wrong role": (
            {"tls": job.certificates / "evaluator"},
            "is that of role 'evaluator' of job 'fashion', but",
        ),
        "no files": ({"tls": job.folder / "nothing"}, "tls.crt cannot be read: No such file or directory"),
    }
    strangers = {title: job.start_client("worker/0", title, **flags) for title, (flags, _) in expectations.items()}
    for title, (_, message) in expectations.items():
        assert strangers[title].wait(jobs.START_S) == 2, job.log(title)
        last = job.log(title).splitlines()[-1]
        assert "] error: " in last and message in last and "Traceback" not in job.log(title), job.log(title)

    for process in job.processes.values():
        if process.poll() is None:
            assert TOKEN not in " ".join(psutil.Process(process.pid).cmdline())
    slow.unlink()
    for name in ("chief", "worker/0", "evaluator"):
        assert job.processes[name].wait(jobs.START_S) == 0, job.log(name)
    _nothing_tells_a_secret(job)
    _files_are_for_their_owner_alone(job)
    watcher.close()


def _the_chief_refuses_other_roles(job: SecureJob) -> None:
    for role, call in {
        "worker": lambda client: client.next_checkpoint(0),
        "ps": lambda client: client.report_score(Score(step=1)),
        "evaluator": lambda client: client.register(RegisterRequest(worker=1)),
        "chief": lambda client: client.lease(0, 1, 0),
    }.items():
        client = job.client(role)
        with pytest.raises(Forbidden, match=f"role '{role}' may not call Chief/"):
            call(client)
        assert client.progress().step > 0
        client.close()
    stranger = ChiefClient(job.chief, 5.0, security(job.certificates, "worker"))
    with pytest.raises(Unauthenticated, match="carries no token"):
        stranger.progress()
    stranger.close()
    other = Certificates(forge(job.certificates, job.folder / "other", ["worker.other.downpour"]), "worker")
    stranger = ChiefClient(job.chief, 5.0, Security(other, TOKEN))
    with pytest.raises(Unauthenticated, match="is not one of this job: its certificate names another job"):
        stranger.progress()
    stranger.close()


def _nothing_tells_a_secret(job: SecureJob) -> None:
    """Neither the token nor a line of a key is in anything that was written."""
    secrets = [TOKEN.encode(), b"another-token-of-another-job"]
    for key in job.certificates.rglob("*.key"):
        secrets += key.read_bytes().splitlines()[1:-1]
    written = [*job.logs.iterdir(), *(path for path in job.run_dir.rglob("*") if path.is_file())]
    assert {"summary.json", "journal.json", "manifest.json", "chief.log"} <= {path.name for path in written}
    for path in written:
        assert not [secret for secret in secrets if secret in path.read_bytes()], path


def _files_are_for_their_owner_alone(job: SecureJob) -> None:
    found = [*job.folder.glob("*.arena"), *job.run_dir.rglob("*")]
    assert len([path for path in found if path.suffix in (".arena", ".safetensors")]) >= 4
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("role", ["ps", "chief"])
def test_a_server_does_not_listen_on_the_network_in_plain_text(tmp_path: Path, role: str) -> None:
    values: dict[str, topology.FlagValue] = {"port": 0, "port_file": tmp_path / "port"}
    if role == "chief":
        values |= {"recipe": jobs.write_recipe(tmp_path), "ps": "127.0.0.1:1,127.0.0.1:2", "run_dir": tmp_path / "run"}
    command = topology.command(role, 0, values)
    done = subprocess.run(command, capture_output=True, text=True, timeout=jobs.START_S, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: listening on 0.0.0.0 in plain text would let every peer on the network" in done.stderr
    assert not (tmp_path / "port").exists()


def test_it_does_when_the_flag_says_so(tmp_path: Path) -> None:
    values: dict[str, topology.FlagValue] = {
        "port_file": tmp_path / "port",
        "listen_in_plain_text_on_the_network": True,
        "die_with_parent": os.getpid(),
    }
    shard = subprocess.Popen(topology.command("ps", 0, values))
    try:
        wait_until((tmp_path / "port").exists, "the shard's port")
    finally:
        shard.terminate()
        assert shard.wait(120) == 0
