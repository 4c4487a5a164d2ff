"""Checkpoints in an object store: real shard processes, a real S3 server on loopback."""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import Slicing, Variable, lay_out
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.specification import Policies, specification_of
from downpour.ps.policy.staleness import Keep
from downpour.worker.chief.shards import Shards
from tests.conftest import ShardProcesses
from tests.ps.checkpoint.saving import save

VARIABLES = [Variable("w", (300, 7)), Variable("head", (9, 41))]


def use(monkeypatch: pytest.MonkeyPatch, host: str, port: int) -> None:
    """Processes of the test find their object store there."""
    settings = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    use(monkeypatch, *server.get_host_and_port())
    fsspec.filesystem("s3").makedirs("checkpoints", exist_ok=True)
    yield "s3://checkpoints"
    server.stop()


def fleet(addresses: list[str]) -> Shards:
    layout = lay_out(VARIABLES, len(addresses), [Slicing("head", 5)])
    specification = specification_of(Policies(RMSProp(), Constant(0.1), Async(), Keep(), None), layout, num_workers=1)
    return Shards(addresses, layout, specification, 60.0)


def test_shards_write_to_it_and_others_restore_from_it(shards: ShardProcesses, bucket: str) -> None:
    rng = np.random.default_rng(0)
    values = [rng.random(v.shape, np.float32) for v in VARIABLES]
    first = fleet(shards.start(2))
    first.initialize(lambda: values)
    folder = Folder(f"{bucket}/run")
    first.check_may_write(folder.url)
    saved = first.write_checkpoint(f"{folder.url}/step-0000000007", 7, {"of": "the chief"})
    first.close()
    assert checkpoint.to_resume(folder) == saved.directory
    loaded = checkpoint.load(saved.directory)
    assert loaded.progress == {"of": "the chief"}
    again = fleet(shards.start(3))
    assert again.restore(loaded) == [0, 0, 0]
    other = again.write_checkpoint(f"{folder.url}/step-0000000008", 8, {})
    again.close()
    for a, b in zip(other.layout.gather(other.parameters()), values, strict=True):
        np.testing.assert_array_equal(a, b)
    folder.remove("step-0000000007")
    assert checkpoint.complete(folder) == ["step-0000000008"]


def test_a_damaged_one_is_passed_over_and_set_aside(bucket: str) -> None:
    folder = Folder(f"{bucket}/spoilt")
    layout = lay_out(VARIABLES, 1)
    for step in (7, 8):
        save(f"{folder.url}/step-{step}", layout, [{"parameters": np.ones(layout.size(0), np.float32)}], step=step)
    name = "shard-00000-of-00001.safetensors"
    content = bytearray((folder / "step-8").read(name))
    content[-99] ^= 4
    (folder / "step-8").write(name, [bytes(content)])
    found = checkpoint.newest(folder, passed_over=checkpoint.set_aside)
    assert found is not None and found.step == 7
    assert checkpoint.complete(folder) == ["step-7"]
    checkpoint.discard(f"{folder.url}/step-8")
    assert folder.names() == ["step-7"]


@pytest.mark.parametrize("left", ["nothing", "some of the header's length", "the header", "some of the data"])
def test_one_that_was_cut_off_is_damaged(bucket: str, left: str) -> None:
    """A store refuses to read from the end of a file on, which must not count as a store that cannot be read."""
    folder = Folder(f"{bucket}/{left.replace(' ', '-')}")
    layout = lay_out(VARIABLES, 1)
    saved = save(folder.url, layout, [{"parameters": np.ones(layout.size(0), np.float32)}])
    content = folder.read(saved.shards[0].file)
    data = 8 + int.from_bytes(content[:8], "little")
    sizes = {"nothing": 0, "some of the header's length": 4, "the header": data, "some of the data": data + 40}
    folder.write(saved.shards[0].file, [content[: sizes[left]]])
    with pytest.raises(Damaged, match="is damaged"):
        saved.verify()


def test_a_broken_upload_leaves_nothing(bucket: str) -> None:
    def breaks() -> Iterator[bytes]:
        yield bytes(20 << 20)
        raise OSError("the process is out of luck")

    with pytest.raises(OSError, match="cannot write half in s3://checkpoints/broken: the process is out of luck"):
        Folder(f"{bucket}/broken").write("half", breaks())
    assert Folder(f"{bucket}/broken").names() == []


class Forbids(http.server.BaseHTTPRequestHandler):
    """Answers everything with what S3 says to somebody without rights."""

    def answer(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_bucket_without_permission_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbids)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        use(monkeypatch, *server.server_address[:2])  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"s3://private/run: .*; give another folder, or permission to write there"
        ):
            Folder("s3://private/run").check()
    finally:
        server.shutdown()
