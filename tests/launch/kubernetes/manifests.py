"""What tests of manifests share: a small deployment, and kustomize's building as far as our folders need it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from downpour.launch.job import Job, recipe
from downpour.launch.kubernetes import command
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.kubernetes.sizes import Sizes
from tests.launch.jobs import RECIPE

MIB = 1 << 20
SIZES = Sizes(
    arena=30 * MIB + 1,
    waiting=24 * MIB,
    published=0,
    snapshot=20 * MIB,
    parameters=100 * MIB,
    batches=10 * MIB,
    activations=200 * MIB,
)
ALL_PATHS = (
    "base",
    "overlays/spot",
    "overlays/arena-claim",
    "overlays/cert-manager",
    "jobset",
    "tfjob",
)
_CERTIFICATES = [f"{role}/{file}" for role in ("ps", "worker", "chief", "evaluator") for file in
                 ("tls.crt", "tls.key", "ca.crt")]  # fmt: skip

Document = dict[str, Any]


def job_of(folder: Path, *overrides: str) -> Job:
    """Of the tiny recipe."""
    path = folder / "tiny.py"
    path.write_text(RECIPE)
    return recipe.load(path, overrides)


def deployment_of(job: Job, **changes: Any) -> Deployment:
    """Of a job, with made-up sizes: no model is built."""
    values: dict[str, Any] = {
        "name": "tiny",
        "namespace": "",
        "job": job,
        "recipe_file": "tiny.py",
        "recipe_text": RECIPE,
        "overrides": (),
        "image": "registry.example/downpour-worker:1.0",
        "shard_image": "registry.example/downpour-shard:1.0",
        "sizes": SIZES,
    }
    return Deployment(**values | changes)


def write_all(deployment: Deployment, out: Path) -> Path:
    """Manifests in a folder, with files where certificates and token belong."""
    command.write(out, command.files(deployment))
    for name in _CERTIFICATES:
        path = out / "base" / "certs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"made up: {name}\n")
    for folder in ("base/certs", "overlays/cert-manager"):
        (out / folder / "token").write_text("made up\n")
    return out


def build(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a folder; every path that is named must exist below or beside it."""
    text = (folder / "kustomization.yaml").read_text()
    kustomization = yaml.safe_load(text)
    known = {"apiVersion", "kind", "namespace", "resources", "generatorOptions", "secretGenerator", "patches"}
    assert set(kustomization) <= known, set(kustomization) - known
    documents = [document for name in kustomization.get("resources", []) for document in _resource(folder / name)]
    if "secretGenerator" in kustomization:
        assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
        documents += [_secret(folder, generator) for generator in kustomization["secretGenerator"]]
    for patch in kustomization.get("patches", []):
        _patch(documents, patch)
    if "namespace" in kustomization:
        for document in documents:
            document["metadata"]["namespace"] = kustomization["namespace"]
    return documents


def every_document(out: Path) -> Iterator[Document]:
    """Of every folder that somebody may apply."""
    for path in (*ALL_PATHS, "monitoring"):
        yield from build(out / path)


def find(documents: list[Document], kind: str, name: str) -> Document:
    """The one of a kind and name."""
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def pod_templates(document: Document) -> dict[str, Document]:
    """Of a Job, JobSet or TFJob, by role; none of other kinds."""
    spec = document.get("spec", {})
    if document["kind"] == "Job":
        templates = [spec["template"]]
    elif document["kind"] == "JobSet":
        templates = [replicated["template"]["spec"]["template"] for replicated in spec["replicatedJobs"]]
    elif document["kind"] == "TFJob":
        templates = [replica["template"] for replica in spec["tfReplicaSpecs"].values()]
    else:
        templates = []
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def _resource(path: Path) -> list[Document]:
    if path.is_dir():
        return build(path)
    assert path.is_file(), path
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _secret(folder: Path, generator: Document) -> Document:
    data = {Path(name).name: base64.b64encode((folder / name).read_bytes()).decode() for name in generator["files"]}
    metadata = {"name": generator["name"]}
    kind = generator.get("type", "Opaque")
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": data}


def _patch(documents: list[Document], patch: Document) -> None:
    """JSON patches with the operations that ours use."""
    document = find(documents, patch["target"]["kind"], patch["target"]["name"])
    assert document["apiVersion"] == f"{patch['target']['group']}/{patch['target']['version']}"
    for operation in yaml.safe_load(patch["patch"]):
        *path, last = operation["path"].lstrip("/").split("/")
        parent: Any = document
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        key: Any = int(last) if isinstance(parent, list) and last != "-" else last
        if operation["op"] == "test":
            assert parent[key] == operation["value"]
        elif operation["op"] == "add" and last == "-":
            parent.append(operation["value"])
        elif operation["op"] == "add":
            assert key not in parent
            parent[key] = operation["value"]
        else:
            assert operation["op"] == "replace" and (isinstance(parent, list) or key in parent)
            parent[key] = operation["value"]
