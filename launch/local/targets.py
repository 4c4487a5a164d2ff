"""Where the processes of a run serve their metrics, and the file by which a Prometheus finds them."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from downpour.files import replacing
from downpour.launch.job import Job
from downpour.launch.roles.topology import FlagValue, process_name

HOST = "127.0.0.1"
FILE = "metrics_targets.json"  # in the folder of the run


def processes(job: Job, *, evaluator: bool) -> list[str]:
    """Names of the processes of a local run: chief, evaluators, shards, workers."""
    names = ["chief", *(evaluators(job) if evaluator else [])]
    names += [f"ps/{i}" for i in range(job.cluster.num_ps)]
    return names + [f"worker/{i}" for i in range(job.cluster.num_workers)]


def ports(names: Sequence[str], first: int) -> dict[str, int]:
    """Returns each process' port, by its name, one after another.

    Raises:
        ValueError: There are not as many ports.
    """
    if first + len(names) > 1 << 16:
        raise ValueError(
            f"--metrics_port={first}: {len(names)} processes need a port each, up to 65535; give a lower one"
        )
    return {name: first + number for number, name in enumerate(names)}


def evaluators(job: Job) -> list[str]:
    """Returns the names of a job's evaluators: `evaluator`, or `evaluator/0` and so on."""
    count = job.cluster.num_evaluators
    return [process_name("evaluator", index, count) for index in range(count)]


def check_free(job: Job, first: int, *, evaluator: bool) -> None:
    """Raises `ValueError` if one of the ports is taken."""
    for name, port in ports(processes(job, evaluator=evaluator), first).items():
        if reason := _obstacle(port):
            raise ValueError(
                f"--metrics_port={first}: {name} cannot listen on {HOST}:{port} for metrics ({reason}); give another "
                "--metrics_port, or 0 for none"
            )


def check_page(port: int) -> None:
    """Raises `ValueError` if the port of the chief's page is taken; 0 is any."""
    if reason := _obstacle(port):
        raise ValueError(f"cannot listen on {HOST}:{port} for the page: {reason}; give another --page_port")


def _obstacle(port: int) -> str:
    """Why nobody can listen on a port of loopback; "" if one can."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        return os.strerror(error.errno or errno.EADDRINUSE)  # its own text repeats the address
    return ""


def flags(where: Mapping[str, int], name: str, host: str = HOST) -> dict[str, FlagValue]:
    """Returns a process' flags; none without a port. With the host "" it listens on every interface."""
    return {"metrics_port": where[name], "metrics_host": host} if name in where else {}


def write(run_dir: Path, where: Mapping[str, str]) -> None:
    """Writes the targets as Prometheus' `file_sd_configs` reads them, with the labels `run`, `role` and `index`.

    Args:
        run_dir: Folder of the run.
        where: `host:port` by name of the process.
    """
    found = []
    for name, address in where.items():
        role, _, index = name.partition("/")
        labels = {"run": run_dir.name, "role": role, "index": index or "0"}
        found.append({"targets": [address], "labels": labels})
    with replacing(run_dir / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
