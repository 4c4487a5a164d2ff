"""Names, hosts, ports, labels and paths of a job on Kubernetes, and what Kubernetes accepts as such. Pure."""

from __future__ import annotations

import re

PORTS = {"ps": 2222, "chief": 2223}
HEALTH_PORT = 2224
METRICS_PORT = 2225

# Without an account in a small image; distroless images use it. It only must not be root's.
USER = 65532

TLS, TOKEN = "/var/run/downpour/tls", "/var/run/downpour/token"
RECIPE, RUN, DATA = "/etc/downpour", "/var/lib/downpour/run", "/var/lib/downpour/data"
ARENA, TEMPORARY, KERNELS = "/var/lib/downpour/arena", "/tmp", "/var/cache/downpour/kernels"
BUILT_KERNELS = "/opt/downpour/kernels"  # in the images; see Dockerfile

# Kubernetes appends "-evaluator-0-0-xxxxx" for a JobSet's pods, and a host name has at most 63 characters.
LONGEST_NAME = 40

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
_PATH_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"([A-Za-z0-9.-]+(:[0-9]+)?/)?{_PATH_PART}(/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def object_name(job: str, role: str) -> str:
    """Name of a role's objects, such as its Job: `NAME-ps`."""
    return f"{job}-{role}"


def host(job: str, role: str, index: int) -> str:
    """Host name of an Indexed Job's pod within its namespace: its own name, then the headless Service's."""
    return f"{job}-{role}-{index}.{job}"


def labels(job: str, role: str | None = None) -> dict[str, str]:
    """Labels that select all pods of a job, or those of one role."""
    common = {"app.kubernetes.io/name": "downpour", "app.kubernetes.io/instance": job}
    return common | ({"app.kubernetes.io/component": role} if role else {})


def default_job(recipe: str) -> str:
    """The name a job gets from its recipe's: `paper_shape` is no DNS label, `paper-shape` is."""
    return recipe.replace("_", "-")


def check_job(name: str) -> None:
    """Raises `ValueError` for a name that Service, Jobs or pods cannot have."""
    if not _LABEL.fullmatch(name) or not name[0].isalpha() or len(name) > LONGEST_NAME:
        raise ValueError(
            f"--name={name}: Kubernetes names a Service and hosts after it, so it must be a DNS label that begins with "
            f"a letter: a-z, 0-9 and '-', the last a letter or digit, at most {LONGEST_NAME} characters (63 with what "
            "pods add); give another --name"
        )


def check_namespace(name: str) -> None:
    """Raises `ValueError` for an invalid namespace."""
    if name and (not _LABEL.fullmatch(name) or len(name) > 63):
        raise ValueError(
            f"--namespace={name} is no DNS label: a-z, 0-9 and '-', no '-' at its ends, at most 63 characters"
        )


def check_image(flag: str, image: str) -> None:
    """Raises `ValueError` unless an image is named with a tag or digest."""
    repository, at, digest = image.partition("@")
    head, colon, tag = repository.rpartition(":")
    if not colon or "/" in tag:  # a colon before a slash belongs to the registry's port
        head, tag = repository, ""
    if not tag and not at:
        raise ValueError(
            f"--{flag}={image} has no tag, so nobody could say later which version ran; "
            "give REPO:TAG or REPO@sha256:..."
        )
    if not _REPOSITORY.fullmatch(head) or (tag and not _TAG.fullmatch(tag)) or (at and not _DIGEST.fullmatch(digest)):
        raise ValueError(
            f"--{flag}={image} is no image's name; give REPO:TAG, the repository in lower case, such as "
            "registry.example/team/downpour-worker:1.0"
        )


def check_quantity(flag: str, text: str) -> None:
    """Raises `ValueError` unless a size is written as Kubernetes reads it."""
    if not _QUANTITY.fullmatch(text) or float(re.sub("[A-Za-z]", "", text)) == 0:
        raise ValueError(f"--{flag}={text} is no size; give a number with Ki, Mi, Gi or Ti, such as 10Gi")


def check_object(flag: str, name: str) -> None:
    """Raises `ValueError` for a name that a claim or storage class cannot have."""
    if name and (not _SUBDOMAIN.fullmatch(name) or len(name) > 253):
        raise ValueError(f"--{flag}={name} cannot be an object's name: a-z, 0-9, '-' and '.', at most 253 characters")


def check_url(flag: str, text: str) -> None:
    """Raises `ValueError` unless a folder is given as a URL."""
    if text and not _URL.fullmatch(text):
        raise ValueError(
            f"--{flag}={text} is no URL; give one that every pod reaches, such as s3://bucket/run, or leave it out: "
            "checkpoints then go to the job's claim"
        )
