r"""Writes a recipe's job as Kubernetes manifests.

    downpour kubernetes quickstart --image=registry.example/worker:1.0 \
        --shard_image=registry.example/shard:1.0 --out=deploy
    downpour certs --job=quickstart --out=deploy/base/certs
    openssl rand -hex 32 > deploy/base/certs/token
    kubectl apply -k deploy/base

A second run, for example with other numbers, replaces the files that it has written. Builds the model to size its
shards, so it imports TensorFlow when it runs. docs/kubernetes.md describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from downpour.files import replacing
from downpour.launch import recipes
from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.kubernetes import jobs, jobset, names, objects, overlays, tfjob
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.kubernetes.sizes import measure
from downpour.launch.kubernetes.text import render
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.topology import ROLES
from downpour.ps.memory.ledger import NUM_WORKERS
from downpour.ps.policy.pace import Sync

_MARK = "Written by `downpour kubernetes`"
_JOB_FILES = {"ps": "shards.yaml", "worker": "workers.yaml", "chief": "chief.yaml", "evaluator": "evaluator.yaml"}
_KEY = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ManifestsConfig:
    """Which manifests to write, and where; `downpour kubernetes --help` describes the values.

    Attributes:
        recipe: Name or path of the recipe.
        out: Folder to write to.
        image: REPO:TAG of worker, chief and evaluator.
        overrides: Overrides of the recipe, each `key=value`.
        shard_image: REPO:TAG of shards; "" for `image`.
        name: Name of the job; "" for the recipe's.
        namespace: Namespace of all objects; "" for none.
        gpus_per_worker: GPUs of one worker.
        checkpoint_dir: URL of the checkpoints' folder; "" for the job's claim.
        storage: Size of the job's claim.
        storage_class: Storage class of the job's claim; "" for the cluster's default.
        data_claim: Claim that holds the data; None for NAME-data if the recipe reads a folder, "" for none.
        log_format: `--log_format` of every process.
    """

    recipe: str
    out: Path
    image: str
    overrides: tuple[str, ...] = ()
    shard_image: str = ""
    name: str = ""
    namespace: str = ""
    gpus_per_worker: int = 0
    checkpoint_dir: str = ""
    storage: str = "10Gi"
    storage_class: str = ""
    data_claim: str | None = None
    log_format: str = "text"


SYNTAX = Syntax(
    shown="recipe set image shard_image out name namespace gpus_per_worker checkpoint_dir storage "
    "storage_class data_claim log_format",
    positional="recipe",
)


def main() -> None:
    """Runs `downpour kubernetes`."""
    define()
    entry.run(lambda: run(from_flags()), role="kubernetes", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    entry.define_log_format()
    flags.DEFINE_string("image", None, "Image of worker, chief and evaluator, REPO:TAG.")
    flags.DEFINE_string("shard_image", None, "Image of the shards, REPO:TAG; --image by default.")
    flags.DEFINE_string("name", None, "Name of the job; the recipe's name by default.")
    flags.DEFINE_string("namespace", "", "Namespace of all objects; kubectl's by default.")
    flags.DEFINE_integer("gpus_per_worker", 0, "GPUs (nvidia.com/gpu) of one worker.", lower_bound=0)
    flags.DEFINE_string("checkpoint_dir", "", "URL of the checkpoints' folder; the job's claim by default.")
    flags.DEFINE_string("storage", "10Gi", "Size of the job's claim.")
    flags.DEFINE_string("storage_class", "", "Storage class of the job's claim; the cluster's default by default.")
    flags.DEFINE_string(
        "data_claim", None, "Claim with the contents of the recipe's data.folder; NAME-data by default, '' for none."
    )
    flags.DEFINE_string("out", None, "Folder to write to.")


def from_flags() -> ManifestsConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: A flag is missing, or the folder to write to holds something else.
    """
    values = flags.FLAGS.flag_values_dict()
    for flag, example in (("image", "registry.example/downpour-worker:1.0"), ("out", "deploy")):
        if not values[flag]:
            raise ValueError(f"no --{flag}; give one, such as --{flag}={example}")
    _check_folder(Path(values["out"]))
    name, overrides = recipe_flags.read()
    return ManifestsConfig(
        name,
        Path(values["out"]),
        values["image"],
        overrides=overrides,
        shard_image=values["shard_image"] or "",
        name=values["name"] or "",
        namespace=values["namespace"],
        gpus_per_worker=values["gpus_per_worker"],
        checkpoint_dir=values["checkpoint_dir"],
        storage=values["storage"],
        storage_class=values["storage_class"],
        data_claim=values["data_claim"],
        log_format=values["log_format"],
    )


def run(config: ManifestsConfig) -> None:
    """Writes the manifests and prints what was written."""
    out, deployment = config.out, checked_deployment(config)
    write(out, files(deployment))
    size = deployment.sizes
    print(
        f"{out}: job {deployment.name}, {deployment.count('ps')} shards of {sum(size.requests()['ps'].values())} MiB, "
        f"{deployment.count('worker')} workers; next: downpour certs --job={deployment.name} --out={out}/base/certs"
    )


def checked_deployment(config: ManifestsConfig) -> Deployment:
    """Checks the configuration and returns the deployment; the model is built last, since that takes seconds.

    Raises:
        ValueError: Kubernetes would refuse a name or the recipe's file, an image has no tag, or the job is refused.
    """
    job = recipe.load(config.recipe, config.overrides)
    name, shard_image = config.name or names.default_job(job.name), config.shard_image or config.image
    data_claim = _data_claim(job, name, config.data_claim)
    names.check_job(name)
    names.check_namespace(config.namespace)
    names.check_image("image", config.image)
    names.check_image("shard_image", shard_image)
    names.check_url("checkpoint_dir", config.checkpoint_dir)
    names.check_quantity("storage", config.storage)
    names.check_object("storage_class", config.storage_class)
    names.check_object("data_claim", data_claim)
    file, text = _source(config.recipe)
    return Deployment(
        name=name,
        namespace=config.namespace,
        job=job,
        recipe_file=file,
        recipe_text=text,
        overrides=(*config.overrides, *_room(job), *([f"data.folder={names.DATA}"] if data_claim else [])),
        image=config.image,
        shard_image=shard_image,
        sizes=measure(job, gpu=config.gpus_per_worker > 0),
        gpus_per_worker=config.gpus_per_worker,
        checkpoint_dir=config.checkpoint_dir,
        storage=config.storage,
        storage_class=config.storage_class,
        data_claim=data_claim,
        log_format=config.log_format,
    )


def files(deployment: Deployment) -> dict[str, str]:
    """Returns the text of every file by its path."""
    head = f"{_MARK} for the job {deployment.name}; run it again instead of editing, or change it by an overlay."

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
        "overlays/cert-manager/.gitignore": "# Do not commit the token.\ntoken\n",
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
            with replacing(path) as temporary:
                temporary.write_text(text)
                temporary.chmod(0o755 if name.endswith(".sh") else 0o644)
    except OSError as error:
        raise ValueError(f"--out={out} cannot be written ({error.strerror}: {error.filename}); give another") from None


_RESTART = """\
#!/bin/sh
# Restarts the job from its newest checkpoint, with the number of shards in the files beside this one:
#     downpour kubernetes ... --set=cluster.num_ps=24 --out=THIS FOLDER && THIS FOLDER/restart.sh
# Shards are stopped first, since they request a last checkpoint from the chief. Claims, Secrets and recipe are kept.
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
