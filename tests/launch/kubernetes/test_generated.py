"""`downpour kubernetes` as a user calls it: a small job, the paper's 17 + 50, and its detection fleet of 11 + 9."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch.kubernetes import command, sizes
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from tests.launch.jobs import write_recipe
from tests.launch.kubernetes import schemas_of
from tests.launch.kubernetes.manifests import build, find, job_of

IMAGES = ("--image=registry.example/downpour-worker:1.0", "--shard_image=registry.example/downpour-shard:1.0")
MIB = 1 << 20


def generate(folder: Path, *arguments: str) -> Path:
    """Runs the command; the folder it wrote."""
    line = [sys.executable, "-m", "downpour.launch.cli", "kubernetes", "--out=deploy", *IMAGES, *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "next: downpour certs --job=" in done.stdout
    return folder / "deploy"


def request_mib(job: dict) -> int:
    """Of memory, of a Job's pod."""
    return int(job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"].removesuffix("Mi"))


@pytest.mark.process
def test_a_small_job(tmp_path: Path) -> None:
    """Twice: numbers change, certificates stay."""
    recipe = write_recipe(tmp_path)
    out = generate(tmp_path, f"--recipe={recipe}")
    (out / "base/certs/token").write_text("kept")
    documents = build(out / "base/jobs") + build(out / "base/common")
    for document in documents:
        schemas_of.check(document)
    assert find(documents, "ConfigMap", "tiny-recipe")["data"] == {"tiny.py": recipe.read_text()}
    worker = find(documents, "Job", "tiny-worker")["spec"]["template"]["spec"]["containers"][0]
    assert "--set=cluster.max_workers=4" in worker["command"]  # room for twice the workers
    sync = ("cluster.num_ps=3", "pace=Sync(num_gradients=2)", "exchange.overlap=False")
    command.run(command.ManifestsConfig(str(recipe), out, "registry.example/downpour-worker:1.0", overrides=sync))
    jobs = build(out / "base/jobs")
    assert find(jobs, "Job", "tiny-ps")["spec"]["completions"] == 3
    worker = find(jobs, "Job", "tiny-worker")["spec"]["template"]["spec"]["containers"][0]
    assert not [word for word in worker["command"] if "max_workers" in word]
    assert (out / "base/certs/token").read_text() == "kept"


@pytest.mark.process
@pytest.mark.parametrize(
    ("num_ps", "num_workers", "overrides"),
    [
        (17, 50, ()),
        pytest.param(
            *(11, 9, ("--set=cluster.num_ps=11", "--set=cluster.num_workers=9", "--name=detection")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_papers_fleets(tmp_path: Path, num_ps: int, num_workers: int, overrides: tuple[str, ...]) -> None:
    """Without the private data, and beside other data with other labels."""
    (tmp_path / "data/jft300m").mkdir(parents=True)
    LabelTree(("other",), (-1,)).save(tmp_path / "data/jft300m" / LABELS_FILE)
    out = generate(tmp_path, "--recipe=jft300m", "--gpus_per_worker=1", *overrides)
    name = "detection" if overrides else "jft300m"
    documents = build(out / "base/jobs") + build(out / "base/common")
    for document in documents:
        schemas_of.check(document, schemas_of.VERSIONS[-1:])
    shards, workers = (find(documents, "Job", f"{name}-{role}") for role in ("ps", "worker"))
    assert (shards["spec"]["completions"], workers["spec"]["completions"]) == (num_ps, num_workers)
    # 80.0 M parameters, two vectors of RMSProp's and, from 16 workers on, the sum of gradients, 4 bytes each, evenly
    # shared; and a process, with an undo log of a region where there are sums.
    has_sum = num_workers >= 16
    state = 80.0e6 * (3 + has_sum) * 4 / num_ps / MIB
    assert state + 150 < request_mib(shards) < state + 150 + 40 + 25 * has_sum
    volumes = {volume["name"]: volume for volume in workers["spec"]["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == f"{name}-data"
    assert "--set=data.folder=/var/lib/downpour/data" in workers["spec"]["template"]["spec"]["containers"][0]["command"]


def test_a_shards_memory_is_its_arenas(tmp_path: Path) -> None:
    job = job_of(tmp_path, "cluster.num_ps=3")
    layout = lay_out([Variable("a", (300_000,)), Variable("b", (100_000,)), Variable("c", (7,))], 3)
    found = sizes.of_layout(job, layout, activations=0, picture=0)
    told = pb.ShardSpecification(
        rule=to_message(job.rule), pace=to_message(job.pace), layout=layout.canonical, fingerprint=layout.fingerprint
    )
    told.shard = max(range(3), key=layout.size)
    assert found.arena == Arena.create(None, told).num_bytes > 300_000 * 4 * 2
    assert found.snapshot == 300_000 * 4 * 2  # parameters and momentum
    parts = found.requests()["ps"]
    assert parts["arena"] == sizes.mib(found.arena) and parts["process"] == 150
