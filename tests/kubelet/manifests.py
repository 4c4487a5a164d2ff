"""Manifests as a user makes them: `downpour kubernetes`, `downpour certs`, and a token."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import Security, read_token
from downpour.worker.exchange.clients import ChiefClient
from tests.kubelet.cluster import Cluster

_CHIEF_PORT = 2223


def write(out: Path, recipe: str, name: str, *flags: str) -> Path:
    """Makes them in a folder."""
    image = ["--image=registry.example/downpour-worker:1.0", "--shard_image=registry.example/downpour-shard:1.0"]
    certs = out / "base" / "certs"
    _downpour("kubernetes", f"--recipe={recipe}", f"--name={name}", *image, f"--out={out}", *flags)
    _downpour("certs", f"--job={name}", f"--out={certs}")
    (certs / "token").write_text(secrets.token_hex(32))
    return out


def ask_chief(kubernetes: Cluster, out: Path, pod: str) -> ChiefClient:
    """A client with the evaluator's certificate, on the node."""
    certs = out / "base" / "certs"
    security = Security(Certificates(certs / "evaluator", "evaluator"), read_token(certs / "token"))
    return ChiefClient(f"{kubernetes.pods[pod].address}:{_CHIEF_PORT}", 60.0, security)


def summary(kubernetes: Cluster, name: str) -> dict[str, Any]:
    """What the chief has written."""
    found: dict[str, Any] = json.loads((kubernetes.claims[f"{name}-run"] / "summary.json").read_text())
    return found


def _downpour(command: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "downpour.launch.cli", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
