"""Every document is valid, strictly, in the three newest versions known; a misspelt field is noticed in each kind."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from downpour.launch.kubernetes import command, names, objects
from downpour.launch.roles.topology import ROLES
from tests.launch.kubernetes import schemas_of
from tests.launch.kubernetes.manifests import (
    ALL_PATHS,
    Document,
    build,
    deployment_of,
    every_document,
    find,
    job_of,
    pod_templates,
    write_all,
)

KINDS = {
    "Job",
    "Service",
    "ConfigMap",
    "PersistentVolumeClaim",
    "ServiceAccount",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Secret",
    "JobSet",
    "TFJob",
    "Issuer",
    "Certificate",
    "PodMonitor",
    "PrometheusRule",
}
REPLICAS = ("PS", "Worker", "Chief", "Evaluator")  # of a TFJob
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpus": {"gpus_per_worker": 2, "namespace": "team-a"},
    "url": {"checkpoint_dir": "s3://bucket/run", "data_claim": "pictures", "storage_class": "fast"},
}


@pytest.fixture(params=list(VARIANTS))
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_all(deployment_of(job_of(tmp_path), **VARIANTS[request.param]), tmp_path / "out")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_all(deployment_of(job_of(tmp_path)), tmp_path / "out")


def test_the_newest_three_versions_are_checked() -> None:
    assert len(set(schemas_of.VERSIONS)) == 3
    assert schemas_of.VERSIONS[-1] == schemas_of.kubernetes_validate.latest_version()


def test_every_document_is_valid(out: Path) -> None:
    kinds = set()
    for document in every_document(out):
        schemas_of.check(document)
        kinds.add(document["kind"])
    assert kinds == KINDS


@pytest.mark.process
@pytest.mark.parametrize("version", schemas_of.VERSIONS)
def test_kubernetes_validate_says_so_itself(plain: Path, tmp_path: Path, version: str) -> None:
    """Its own kinds once through the program, as a user would call it; and it notices a misspelt field."""
    theirs = [d for d in every_document(plain) if "." not in d["apiVersion"] or d["apiVersion"].endswith("k8s.io/v1")]
    wrong = misspelt(find(build(plain / "base"), "Job", "tiny-ps"), ("spec", "podReplacementPolicy"))
    for documents, code in ((theirs[:18], 0), ([wrong], 1)):
        file = tmp_path / "all.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        command = [
            sys.executable,
            "-m",
            "kubernetes_validate",
            "--strict",
            f"--kubernetes-version={version}",
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout.count(" passed for ") == (len(documents) if code == 0 else 0), done.stdout
        assert "WARN" not in done.stdout


def fields(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields of a document whose names are the schema's, not the user's."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*at, key)
            user_defined = {
                "annotations",
                "labels",
                "matchLabels",
                "selector",
                "data",
                "requests",
                "limits",
                "tfReplicaSpecs",
            }
            if key == "tfReplicaSpecs":
                for role, replica in child.items():
                    yield from fields(replica, (*at, key, role))
            elif key not in user_defined or (key == "selector" and "matchLabels" in child):
                yield from fields(child, (*at, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from fields(child, (*at, i))


def misspelt(document: Document, path: tuple[Any, ...]) -> Document:
    """A copy with one field under another name."""
    changed = copy.deepcopy(document)
    parent: Any = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    return changed


def test_a_misspelt_field_is_noticed_wherever_it_is(plain: Path) -> None:
    seen = Counter[str]()
    tried = {(kind, name) for kind in KINDS for name in (("apiVersion",), ("kind",))}  # which tell what it is
    for document in every_document(plain):
        for path in fields(document):
            # One schema is for all entries of a list, and for all roles.
            place = document["kind"], tuple("*" if isinstance(key, int) or key in REPLICAS else key for key in path)
            if place in tried:
                continue
            tried.add(place)
            with pytest.raises(jsonschema.ValidationError):
                schemas_of.check(misspelt(document, path), schemas_of.VERSIONS[-1:])
                pytest.fail(f"{document['kind']}: {path} misspelt is not noticed")
            seen[document["kind"]] += 1
    assert set(seen) == KINDS
    assert min(seen["Job"], seen["JobSet"], seen["TFJob"]) > 100


@pytest.mark.parametrize("path", ALL_PATHS)
def test_pods_are_restricted(out: Path, path: str) -> None:
    """The Pod Security Standard "restricted", and more."""
    templates = [t for document in build(out / path) for t in pod_templates(document).values()]
    assert len(templates) == 4
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in [*pod["initContainers"], *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container.get("ports", []))
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        assert {key for volume in pod["volumes"] for key in volume} - {"name"} <= allowed
        mounted = {mount["name"] for c in [*pod["initContainers"], *pod["containers"]] for mount in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", ALL_PATHS)
def test_what_pods_mount_and_use_exists(out: Path, path: str) -> None:
    """But for the Secrets that cert-manager makes, and the claim with the data."""
    documents = build(out / path)
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    there |= {("Secret", d["spec"]["secretName"]) for d in documents if d["kind"] == "Certificate"}
    there |= {("PersistentVolumeClaim", "pictures")}
    for document in documents:
        for template in pod_templates(document).values():
            pod = template["spec"]
            assert ("ServiceAccount", pod["serviceAccountName"]) in there
            for volume in pod["volumes"]:
                if "secret" in volume:
                    assert ("Secret", volume["secret"]["secretName"]) in there
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
                if "persistentVolumeClaim" in volume:
                    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there


def test_the_network_lets_only_callers_in(plain: Path) -> None:
    documents = build(plain / "base")
    for role in ROLES:
        policy = find(documents, "NetworkPolicy", f"tiny-{role}")
        assert policy["spec"]["podSelector"]["matchLabels"] == names.labels("tiny", role)
        *own, health, metrics = policy["spec"]["ingress"]
        assert metrics == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 2225}]}
        assert health == {"ports": [{"protocol": "TCP", "port": 2224}]}
        callers = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for rule in own for peer in rule["from"]
        ]
        assert tuple(callers) == objects.CALLERS[role]
        assert [rule["ports"] for rule in own] == [
            [{"protocol": "TCP", "port": p}] for r, p in names.PORTS.items() if r == role
        ]


@pytest.mark.parametrize("path", ALL_PATHS)
def test_every_pod_carries_the_labels_that_select_it(out: Path, path: str) -> None:
    for document in build(out / path):
        for role, template in pod_templates(document).items():
            assert names.labels("tiny", role).items() <= template["metadata"]["labels"].items()
        if document["kind"] == "Service":
            assert document["spec"]["selector"] == names.labels("tiny")


def test_gpus_and_spot(tmp_path: Path) -> None:
    out = write_all(deployment_of(job_of(tmp_path), gpus_per_worker=2), tmp_path / "out")
    for path, keys in (("base", ["nvidia.com/gpu"]), ("overlays/spot", ["nvidia.com/gpu", "gke", "azure"])):
        documents = build(out / path)
        pod = pod_templates(find(documents, "Job", "tiny-worker"))["worker"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 2
        tolerated = [toleration["key"] for toleration in pod["tolerations"]]
        assert len(tolerated) == len(keys) and all(key in at for key, at in zip(keys, tolerated, strict=True))
        for role in ("ps", "chief", "evaluator"):
            assert "tolerations" not in pod_templates(find(documents, "Job", f"tiny-{role}"))[role]["spec"]


def test_the_arena_is_memory_of_its_size_or_a_claim(plain: Path) -> None:
    volumes = pod_templates(find(build(plain / "base"), "Job", "tiny-ps"))["ps"]["spec"]["volumes"]
    assert volumes[0] == {"name": "arena", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}
    documents = build(plain / "overlays" / "arena-claim")
    volumes = pod_templates(find(documents, "Job", "tiny-ps"))["ps"]["spec"]["volumes"]
    assert volumes[0] == {"name": "arena", "persistentVolumeClaim": {"claimName": "tiny-arena"}}
    claim = find(documents, "PersistentVolumeClaim", "tiny-arena")
    assert claim["spec"]["resources"]["requests"]["storage"] == "64Mi"


def test_failures_count_as_they_should(plain: Path) -> None:
    """Of pods with this policy only; a shard restarts in place, where Kubernetes takes none."""
    documents = build(plain / "base")
    for role, mend in (("worker", "FailIndex"), ("chief", "FailJob"), ("evaluator", "FailJob")):
        spec = find(documents, "Job", f"tiny-{role}")["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        disrupted, told_to_go, configuration = spec["podFailurePolicy"]["rules"]
        assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        for rule, action, code in ((told_to_go, "Ignore", 143), (configuration, mend, 2)):
            assert (rule["action"], rule["onExitCodes"]["values"]) == (action, [code])
            assert rule["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
        assert "activeDeadlineSeconds" not in spec
    shards = find(documents, "Job", "tiny-ps")["spec"]
    assert shards["template"]["spec"]["restartPolicy"] == "OnFailure" and "podFailurePolicy" not in shards
    (jobset,) = (document for document in build(plain / "jobset") if document["kind"] == "JobSet")
    rules = [job["template"]["spec"].get("podFailurePolicy") for job in jobset["spec"]["replicatedJobs"]]
    assert [rule and rule["rules"][2]["action"] for rule in rules] == [None, "FailJob", "FailJob", "FailJob"]


def test_comments_say_why(plain: Path) -> None:
    shards = (plain / "base/jobs/shards.yaml").read_text()
    for word in (
        "StatefulSet",
        "activeDeadlineSeconds",
        "31 (arena) + 150 (process) + 24 (queued pushes) = 205 MiB",
    ):
        assert word in re.sub(r"\n *# ", " ", shards)
    assert "is left open" in (plain / "base/common/network.yaml").read_text()


def test_a_recipe_too_large_for_a_config_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1,048,576"):
        command.files(deployment_of(job_of(tmp_path), recipe_text="#" * (1 << 20)))


def test_several_evaluators_are_pods_of_one_job_and_told_their_index(tmp_path: Path) -> None:
    overrides = ("cluster.num_evaluators=3",)
    out = write_all(deployment_of(job_of(tmp_path, *overrides), overrides=overrides), tmp_path / "out")
    spec = find(build(out / "base"), "Job", "tiny-evaluator")["spec"]
    assert (spec["completions"], spec["parallelism"]) == (3, 3) and spec["successPolicy"]["rules"] == [
        {"succeededCount": 1}
    ]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-1] == "--index=$(JOB_COMPLETION_INDEX)"
    assert "--set=cluster.num_evaluators=3" in container["command"]
    (tfjob,) = (document for document in build(out / "tfjob") if document["kind"] == "TFJob")
    assert tfjob["spec"]["tfReplicaSpecs"]["Evaluator"]["replicas"] == 3
    for document in every_document(out):
        schemas_of.check(document)
