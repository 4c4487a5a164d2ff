"""`downpour kubernetes`: writes a recipe's job as Kubernetes manifests.

    downpour kubernetes --recipe=quickstart --image=registry.example/downpour-worker:1.0 \
        --shard_image=registry.example/downpour-shard:1.0 --out=deploy
    downpour certs --job=quickstart --out=deploy/base/certs
    openssl rand -hex 32 > deploy/base/certs/token
    kubectl apply -k deploy/base

A second run, for example with other numbers, replaces the files that it has written. Builds the model to size its
shards, so it imports TensorFlow when it runs. docs/kubernetes.md describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch import recipes
from downpour.launch.job import Job, recipe
from downpour.launch.kubernetes import jobs, jobset, names, objects, overlays, tfjob
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.kubernetes.sizes import measure
from downpour.launch.kubernetes.text import render
from downpour.launch.roles import entry, topology
from downpour.launch.roles.topology import ROLES
from downpour.ps.memory.ledger import NUM_WORKERS
from downpour.ps.policy.pace import Sync

_MARK = "Written by `downpour kubernetes`"
_JOB_FILES = {"ps": "shards.yaml", "worker": "workers.yaml", "chief": "chief.yaml", "evaluator": "evaluator.yaml"}
_KEY = re.compile(r"[A-Za-z0-9._-]+")


def main() -> None:
    """Runs `downpour kubernetes`."""
    topology.define_recipe_flags()
    flags.DEFINE_string("image", None, "REPO:TAG of worker, chief and evaluator.")
    flags.DEFINE_string("shard_image", None, "REPO:TAG of shards; --image by default.")
    flags.DEFINE_string("name", None, "Of the job; the recipe's name by default.")
    flags.DEFINE_string("namespace", "", "Of all objects; the one that kubectl is set to by default.")
    flags.DEFINE_integer("gpus_per_worker", 0, "GPUs (nvidia.com/gpu) of one worker.", lower_bound=0)
    flags.DEFINE_string("checkpoint_dir", "", "URL of the checkpoints' folder; the job's claim by default.")
    flags.DEFINE_string("storage", "10Gi", "Size of the job's claim.")
    flags.DEFINE_string("storage_class", "", "Of the job's claim; the cluster's default by default.")
    flags.DEFINE_string(
        "data_claim", None, "Claim that holds what the recipe's data.folder does; NAME-data by default, '' for none."
    )
    flags.DEFINE_string("out", None, "Folder to write to.")
    entry.run(_run, role="kubernetes")


def _run() -> None:
    values = flags.FLAGS.flag_values_dict()
    for flag, example in (("image", "registry.example/downpour-worker:1.0"), ("out", "deploy")):
        if not values[flag]:
            raise ValueError(f"no --{flag}; give one, such as --{flag}={example}")
    out = Path(values["out"])
    _check_folder(out)
    deployment = plan(recipe.from_flags(), values)
    write(out, files(deployment))
    size = deployment.sizes
    print(
        f"{out}: job {deployment.name}, {deployment.count('ps')} shards of {sum(size.requests()['ps'].values())} MiB, "
        f"{deployment.count('worker')} workers; next: downpour certs --job={deployment.name} --out={out}/base/certs"
    )


def plan(job: Job, values: Mapping[str, Any]) -> Deployment:
    """Checks the flags and returns the deployment; the model is built last, since that takes seconds.

    Args:
        job: Job of the recipe with its overrides.
        values: Flags by name.

    Raises:
        ValueError: Kubernetes would refuse a name or the recipe's file, an image has no tag, or the job is refused.
    """
    overrides = tuple(values["set"] or ())
    name = values["name"] or names.default_job(job.name)
    data_claim = _data_claim(job, name, values["data_claim"])
    names.check_job(name)
    names.check_namespace(values["namespace"])
    names.check_image("image", values["image"])
    names.check_image("shard_image", values["shard_image"] or values["image"])
    names.check_url("checkpoint_dir", values["checkpoint_dir"])
    names.check_quantity("storage", values["storage"])
    names.check_object("storage_class", values["storage_class"])
    names.check_object("data_claim", data_claim)
    file, text = _source(values["recipe"])
    gpus = values["gpus_per_worker"]
    return Deployment(
        name=name,
        namespace=values["namespace"],
        job=job,
        recipe_file=file,
        recipe_text=text,
        overrides=(*overrides, *_room(job), *([f"data.folder={names.DATA}"] if data_claim else [])),
        image=values["image"],
        shard_image=values["shard_image"] or values["image"],
        sizes=measure(job, gpu=gpus > 0),
        gpus_per_worker=gpus,
        checkpoint_dir=values["checkpoint_dir"],
        storage=values["storage"],
        storage_class=values["storage_class"],
        data_claim=data_claim,
    )


def files(deployment: Deployment) -> dict[str, str]:
    """Returns the text of every file by its path."""
    head = f"{_MARK} for the job {deployment.name}; run it again instead of editing, or lay an overlay over it."

    def text(*documents: Mapping[str, Any], about: str = "") -> str:
        return render(documents, "\n\n".join(part for part in (head, about) if part))

    def folder(resources: list[str], **more: Any) -> str:
        return text(overlays.kustomization(deployment, resources, **more))

    found = {f"base/jobs/{file}": text(jobs.job(deployment, role), about=_named(deployment, jobs.HEADS[role]))
             for role, file in _JOB_FILES.items()}  # fmt: skip
    found |= {
        "base/kustomization.yaml": folder(["jobs", "common", "certs"]),
        "base/jobs/kustomization.yaml": folder([*_JOB_FILES.values(), "service.yaml"]),
        "base/jobs/service.yaml": text(objects.service(deployment)),
        "base/certs/kustomization.yaml": text(
            overlays.kustomization(deployment, [], **overlays.secrets(deployment)),
            about=f"The files come from\n    downpour certs --job={deployment.name} --out=THIS FOLDER\n"
            "    openssl rand -hex 32 > THIS FOLDER/token",
        ),
        "base/certs/.gitignore": overlays.GITIGNORE,
    }
    common = {
        "recipe.yaml": [objects.recipe(deployment)],
        "storage.yaml": [objects.run_claim(deployment)],
        "account.yaml": [objects.service_account(deployment)],
        "network.yaml": objects.network_policies(deployment),
        "disruption.yaml": [objects.disruption_budget(deployment)],
    }
    found |= {f"base/common/{file}": text(*documents) for file, documents in common.items()}
    found |= {"base/common/kustomization.yaml": folder(list(common))}
    overlay, certificates = overlays.cert_manager(deployment)
    found |= {
        "overlays/spot/kustomization.yaml": text(overlays.spot(deployment)),
        "overlays/arena-claim/kustomization.yaml": text(overlays.arena_claim(deployment)),
        "overlays/arena-claim/claim.yaml": text(objects.arena_claim(deployment)),
        "overlays/cert-manager/kustomization.yaml": text(
            overlay, about="The token comes from\n    openssl rand -hex 32 > THIS FOLDER/token"
        ),
        "overlays/cert-manager/certificates.yaml": text(*certificates),
        "overlays/cert-manager/.gitignore": "# The token belongs into no repository.\ntoken\n",
        "jobset/kustomization.yaml": folder(["jobset.yaml", "../base/common", "../base/certs"]),
        "jobset/jobset.yaml": text(jobset.document(deployment), about=jobset.HEAD),
        "tfjob/kustomization.yaml": folder(["tfjob.yaml", "../base/common", "../base/certs"]),
        "tfjob/tfjob.yaml": text(tfjob.document(deployment), about=tfjob.HEAD),
        "restart.sh": _RESTART.replace("NAMESPACE", deployment.namespace).replace("NAME", deployment.name),
    }
    return found


def write(out: Path, texts: Mapping[str, str]) -> None:
    """Writes files under a folder, each atomically; others in it are kept.

    Raises:
        ValueError: A file cannot be written.
    """
    try:
        for name, text in texts.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_text(text)
            part.chmod(0o755 if name.endswith(".sh") else 0o644)
            part.replace(path)
    except OSError as error:
        raise ValueError(f"--out={out} cannot be written ({error.strerror}: {error.filename}); give another") from None


_RESTART = """\
#!/bin/sh
# Starts the job anew from its newest checkpoint, with the number of shards that the files beside this one say:
#     downpour kubernetes ... --set=cluster.num_ps=24 --out=THIS FOLDER && THIS FOLDER/restart.sh
# The shards go first, as they ask the chief for a last checkpoint. Claims, Secrets and recipe are kept.
set -eu
cd "$(dirname "$0")"
kubectl delete job NAME-ps --namespace="NAMESPACE" --ignore-not-found --cascade=foreground
kubectl delete --kustomize base/jobs --ignore-not-found --cascade=foreground
kubectl apply --kustomize "${1:-base}"
"""


def _named(deployment: Deployment, text: str) -> str:
    return text.replace("NAME", deployment.name)


def _check_folder(out: Path) -> None:
    """Raises `ValueError` for a folder with other files; certificates under `base` may precede the manifests."""
    ours = out / "base" / "kustomization.yaml"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; give a folder")
    others = sorted(path.name for path in out.iterdir() if path.name != "base") if out.is_dir() else []
    if others and not (ours.is_file() and _MARK in ours.read_text()):
        raise ValueError(f"--out={out} holds something else ({others[0]}); give a new folder, or one written before")


def _data_claim(job: Job, name: str, given: str | None) -> str:
    """Name of the data's claim; empty if the data is not read from a folder."""
    if not hasattr(job.data, "folder"):
        if given:
            raise ValueError(f"--data_claim={given}: this recipe's data is read from no folder; leave it out")
        return ""
    return names.object_name(name, "data") if given is None else given


def _source(name: str) -> tuple[str, str]:
    """File name and text of a recipe."""
    path = Path(recipes.__path__[0]) / f"{name}.py" if name in recipe.names() else Path(name)
    if not _KEY.fullmatch(path.name):
        raise ValueError(
            f"recipe {path.name!r}: a ConfigMap's keys are of A-Z, a-z, 0-9, '.', '_' and '-'; rename the file"
        )
    return path.name, path.read_text()


def _room(job: Job) -> list[str]:
    """Override that admits twice the workers while the job runs; none under `Sync` or if the job has one."""
    if job.cluster.max_workers or isinstance(job.pace, Sync):
        return []
    return [f"cluster.max_workers={max(job.cluster.num_workers, min(2 * job.cluster.num_workers, NUM_WORKERS))}"]


assert set(_JOB_FILES) == set(ROLES)

if __name__ == "__main__":
    main()
