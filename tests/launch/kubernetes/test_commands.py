"""What the manifests start is what the roles accept, and the names in it are the names of pods."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.kubernetes import names
from downpour.launch.roles import topology
from downpour.launch.roles.topology import ROLES
from tests.launch.kubernetes.manifests import Document, build, deployment_of, find, job_of, pod_templates, write_all

# Has a role's own module parse one command line after another, as each pod's process would, and say where it stands.
PARSE = """
import importlib, json, os, sys

role = sys.argv[1]
module = importlib.import_module(f"downpour.launch.{role}")
from absl import flags
from downpour.launch.job import recipe, recipe_flags
from downpour.launch.roles import role_flags

if role != "ps":
    recipe_flags.define()
role_flags.define(role)
for line in sys.stdin:
    case = json.loads(line)
    os.environ.update(case["environment"])
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    rest = flags.FLAGS(["role", *case["arguments"]])[1:]
    assert not rest, rest
    job = recipe.load(*recipe_flags.read()) if role != "ps" else None
    where, index = role_flags.cluster(role, job)
    found = role_flags.listening(role, where, index)
    listen = (found.host, found.port) if role in ("ps", "chief") else None
    values = flags.FLAGS.flag_values_dict()
    kept = ("arena", "stop_shards", "resume_if_any", "grace_s", "health_port", "metrics_port", "tls", "token_file")
    kept += ("run_dir",)
    print(json.dumps({
        "ps": where.ps, "chief": where.chief, "index": index, "listen": listen, "set": values.get("set"),
        "job": repr(job), "max_workers": job and job.cluster.max_workers, **{key: values.get(key) for key in kept},
    }))
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    changes = ("cluster.max_workers=6",)
    overrides = (*changes, "undecayed=*/bias,*$(HOME)*")
    return write_all(deployment_of(job_of(tmp_path, *overrides), overrides=overrides), tmp_path / "out")


def parsed(role: str, cases: list[tuple[list[str], dict[str, str]]], folder: Path) -> list[dict[str, Any]]:
    """What a role makes of command lines, each with its environment."""
    lines = [json.dumps({"arguments": arguments, "environment": environment}) for arguments, environment in cases]
    done = subprocess.run([sys.executable, "-c", PARSE, role], input="\n".join(lines), text=True, capture_output=True,
                          cwd=folder, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def arguments_of(template: Document, role: str, environment: dict[str, str], recipe: Path) -> list[str]:
    """Of a pod's process, its variables put in as the kubelet does, its recipe from a file here."""
    (container,) = template["spec"]["containers"]
    (
        python,
        *module,
    ) = container["command"][:3]
    assert (python, module) == ("python", ["-m", f"downpour.launch.{role}"])
    words = []
    for word in container["command"][3:]:
        word = word.replace("$$", "\0")
        for key, value in environment.items():
            word = word.replace(f"$({key})", value)
        assert "$" not in word, word
        words.append(word.replace("\0", "$").replace(f"{names.RECIPE}/tiny.py", str(recipe)))
    return words


def templates_of(document: Document) -> dict[str, tuple[int, Document]]:
    """Pods of a JobSet or TFJob: how many, and their template."""
    spec = document["spec"]
    if document["kind"] == "JobSet":
        counts = {entry["name"]: entry["template"]["spec"]["completions"] for entry in spec["replicatedJobs"]}
    else:
        counts = {role.lower(): replica["replicas"] for role, replica in spec["tfReplicaSpecs"].items()}
    return {role: (counts[role], template) for role, template in pod_templates(document).items()}


@pytest.mark.process
@pytest.mark.parametrize(("path", "host"), [("base", "tiny-{}-{}.tiny"), ("jobset", "tiny-{}-0-{}.tiny")])
def test_roles_accept_their_commands_and_addresses_are_hosts(out: Path, tmp_path: Path, path: str, host: str) -> None:
    documents = build(out / path)
    if path == "base":
        jobs = {role: find(documents, "Job", f"tiny-{role}") for role in ROLES}
        pods = {role: (job["spec"]["completions"], job["spec"]["template"]) for role, job in jobs.items()}
        assert find(documents, "Service", "tiny")["spec"]["clusterIP"] == "None"
        # An Indexed Job names its pods' hosts after itself and their index, in the subdomain that the pod says.
        assert {template["spec"]["subdomain"] for _, template in pods.values()} == {"tiny"}
    else:
        (jobset,) = (document for document in documents if document["kind"] == "JobSet")
        assert jobset["spec"]["network"]["subdomain"] == jobset["metadata"]["name"] == "tiny"
        pods = templates_of(jobset)
    assert {role: count for role, (count, _) in pods.items()} == {"ps": 2, "worker": 2, "chief": 1, "evaluator": 1}
    shards = [f"{host.format('ps', i)}:2222" for i in range(2)]
    chief = f"{host.format('chief', 0)}:2223"
    jobs_seen = set()
    for role, (count, template) in pods.items():
        environments = [{"JOB_COMPLETION_INDEX": str(i)} for i in range(count)]
        cases = [(arguments_of(template, role, e, tmp_path / "tiny.py"), e) for e in environments]
        for index, found in enumerate(parsed(role, cases, tmp_path)):
            assert found["index"] == (index if role in ("ps", "worker") else 0)
            assert found["ps"] == ([] if role == "ps" else shards)
            assert found["chief"] == ("" if role == "chief" else chief)
            assert found["listen"] == {"ps": ["0.0.0.0", 2222], "chief": ["0.0.0.0", 2223]}.get(role)
            assert (found["tls"], found["token_file"]) == (names.TLS, f"{names.TOKEN}/token")
            assert (found["health_port"], found["metrics_port"]) == (names.HEALTH_PORT, names.METRICS_PORT)
            if role == "ps":
                assert found["arena"] == f"{names.ARENA}/shard-{index}.arena"
                assert found["grace_s"] < template["spec"]["terminationGracePeriodSeconds"]
            else:
                assert found["set"] == ["cluster.max_workers=6", "undecayed=*/bias,*$(HOME)*"]
                jobs_seen.add(re.sub(" at 0x[0-9a-f]+", "", found["job"]))
            if role == "chief":
                assert found["stop_shards"] and found["resume_if_any"] and found["run_dir"] == names.RUN
    assert len(jobs_seen) == 1


def tf_config(role: str, index: int, namespace: str = "default") -> dict[str, str]:
    """As the training operator sets it: a Service for every pod, the port of the container port `tfjob-port`."""

    def hosts(of: str, count: int, port: int) -> list[str]:
        return [f"tiny-{of}-{i}.{namespace}.svc:{port}" for i in range(count)]

    cluster = {"ps": hosts("ps", 2, 2222), "worker": hosts("worker", 2, 2222), "chief": hosts("chief", 1, 2223)}
    task = {"type": role, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})}


@pytest.mark.process
def test_roles_of_a_tfjob_find_themselves_in_tf_config(out: Path, tmp_path: Path) -> None:
    (tfjob,) = (document for document in build(out / "tfjob") if document["kind"] == "TFJob")
    for role, (count, template) in templates_of(tfjob).items():
        (container,) = template["spec"]["containers"]
        assert container["name"] == "tensorflow"
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.get("tfjob-port") == names.PORTS.get(role)
        cases = [(arguments_of(template, role, {}, tmp_path / "tiny.py"), tf_config(role, i)) for i in range(count)]
        for index, found in enumerate(parsed(role, cases, tmp_path)):
            assert found["index"] == (index if role in ("ps", "worker") else 0)
            assert found["ps"] == [f"tiny-ps-{i}.default.svc:2222" for i in range(2)]
            assert found["chief"] == "tiny-chief-0.default.svc:2223"
            assert found["listen"] == {"ps": ["0.0.0.0", 2222], "chief": ["0.0.0.0", 2223]}.get(role)


@pytest.mark.process
def test_a_command_with_a_wrong_flag_is_noticed(out: Path, tmp_path: Path) -> None:
    template = pod_templates(find(build(out / "base"), "Job", "tiny-chief"))["chief"]
    arguments = arguments_of(template, "chief", {}, tmp_path / "tiny.py")
    with pytest.raises(AssertionError, match="stop_shard"):
        parsed("chief", [([word.replace("--stop_shards", "--stop_shardss") for word in arguments], {})], tmp_path)


def test_commands_are_those_of_the_topology(out: Path, tmp_path: Path) -> None:
    """Nothing is said twice: what `topology.command` makes of flags, with the index put in by Kubernetes."""
    deployment = deployment_of(job_of(tmp_path))
    for role in ROLES:
        command = deployment.command(role, deployment.topology)
        expected = topology.command(role, 0, {}, python="python")
        assert command[:3] == expected[:3]
        assert ("--index=$(JOB_COMPLETION_INDEX)" in command) == ("--index=0" in expected)


def cluster_of(make: Callable[..., Any], num_ps: int, num_workers: int, folder: Path) -> Any:
    job = job_of(folder, f"cluster.num_ps={num_ps}", f"cluster.num_workers={num_workers}")
    return make(job)


@pytest.mark.parametrize(("num_ps", "num_workers"), [(17, 50), (11, 9)])
def test_numbers_of_the_paper(tmp_path: Path, num_ps: int, num_workers: int) -> None:
    deployment = cluster_of(deployment_of, num_ps, num_workers, tmp_path)
    documents = build(write_all(deployment, tmp_path / "out") / "base")
    shards, workers = (find(documents, "Job", f"tiny-{role}")["spec"] for role in ("ps", "worker"))
    assert shards["completions"] == shards["parallelism"] == num_ps
    assert workers["completions"] == workers["parallelism"] == num_workers
    (word,) = (w for w in workers["template"]["spec"]["containers"][0]["command"] if w.startswith("--ps="))
    assert word.removeprefix("--ps=").split(",") == [f"tiny-ps-{i}.tiny:2222" for i in range(num_ps)]
    assert find(documents, "PodDisruptionBudget", "tiny-ps")["spec"]["minAvailable"] == num_ps - 1
