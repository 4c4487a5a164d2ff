"""Reports a job's progress to Kubeflow Trainer (v2), which shows it as `status.trainerStatus` of the TrainJob.

The contract is that of KEP-2779 of kubeflow/trainer (`docs/proposals/2779-trainjob-progress/README.md`), as its
`pkg/statusserver/server.go`, `pkg/apis/trainer/v1alpha1/trainjob_types.go` and `docs/user-guides/trainjob-progress.md`
have it, with the feature gate `TrainJobStatus` (alpha since Trainer 2.2). Trainer gives every container of a trainer
pod three environment variables: an https URL, a file with the CA that has signed the certificate of that server, and a
file with a token of the pod's service account, which Kubernetes replaces every hour. Their names are those of the
releases, `KUBEFLOW_TRAINER_SERVER_URL`, `_CA_CERT` and `_TOKEN`, or those of the first version of the proposal,
`KUBEFLOW_TRAINER_STATUS_URL` and so on. One process of the job posts

    POST URL
    Authorization: Bearer TOKEN
    Content-Type: application/json

    {"trainerStatus": {"progressPercentage": 45, "estimatedRemainingSeconds": 795649,
                       "metrics": [{"name": "loss", "value": "0.2347"}], "lastUpdatedTime": "2026-01-23T10:30:45Z"}}

and is answered with 200 and the same object, or an error code and a `Status` of Kubernetes. Percentage (0 to 100) and
seconds are int32 and may be missing; there are at most 256 metrics, names and values are strings of 1 to 64 characters,
and a post has at most 64 kB.
Trainer asks for one post in five seconds at most, as kubeflow/sdk (`update_trainjob_status`) and the `KubeflowCallback`
of transformers make them; like those, 100 % is reported only when the job is done.

Threads: one posts; nothing waits for it but the end of the job, for `LAST_WITHIN_S` at most. What goes wrong is logged
once and changes nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import math
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from absl import logging

from downpour.proto.chief_pb2 import ProgressReply

EVERY_S = 5.0  # between two posts
LAST_WITHIN_S = 10.0  # for the post of the job's end
_WITHIN_S = 5.0  # for connecting, and for every read or write of a post
_PREFIXES = ("KUBEFLOW_TRAINER_SERVER", "KUBEFLOW_TRAINER_STATUS")
_MOST_METRICS, _MOST_CHARACTERS, _MOST_SECONDS = 256, 64, (1 << 31) - 1
_MOST_OF_ANSWER = 1 << 16  # bytes


@dataclass(frozen=True)
class StatusServer:
    """Where Trainer takes a job's progress.

    Attributes:
        url: Address to which it is posted.
        token_file: Path of the file with the token, read for every post.
        ca_file: Path of the file with the CA of the server's certificate; "" for the system's.
        variable: Environment variable of the URL.
    """

    url: str
    token_file: str
    ca_file: str
    variable: str = f"{_PREFIXES[0]}_URL"


def server_of(environment: Mapping[str, str]) -> StatusServer | None:
    """Returns the server that the environment names; None outside a TrainJob."""
    for prefix in _PREFIXES:
        if url := environment.get(f"{prefix}_URL"):
            token_file, ca_file = environment.get(f"{prefix}_TOKEN", ""), environment.get(f"{prefix}_CA_CERT", "")
            return StatusServer(url, token_file, ca_file, f"{prefix}_URL")
    return None


def reporting(
    server: StatusServer | None, progress: Callable[[], ProgressReply], *, has_time_limit: bool = False
) -> contextlib.AbstractContextManager[object]:
    """Reports progress while the block lasts, and once more at its end; does nothing without a server.

    Args:
        server: The server; None for none.
        progress: Returns the progress with its details; called by another thread.
        has_time_limit: Whether a time, not only a number of steps, may end the job.
    """
    if server is None:
        return contextlib.nullcontext()
    return Reporter(server, lambda: trainer_status(progress(), has_time_limit=has_time_limit))


class Reporter:
    """Posts a status every `every_s` seconds while the block lasts. A context manager.

    Args:
        server: Where to.
        status: Returns what is posted.
        every_s: Seconds between two posts.
    """

    def __init__(self, server: StatusServer, status: Callable[[], Mapping[str, Any]], every_s: float = EVERY_S) -> None:
        self._server, self._status, self._every_s = server, status, every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubeflow trainer", daemon=True)
        self._has_failed = False  # for the thread alone

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(LAST_WITHIN_S)

    def _run(self) -> None:
        over = False
        while True:
            self._attempt()
            if over:
                return
            over = self._ending.wait(self._every_s)

    def _attempt(self) -> None:
        try:
            post(self._server, self._status())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._has_failed:
                said = " ".join(str(error).split()) or repr(error)
                logging.warning("no progress for Kubeflow Trainer, later errors are not logged: %s", said)
            self._has_failed = True


def trainer_status(
    reply: ProgressReply, *, has_time_limit: bool = False, now: datetime.datetime | None = None
) -> dict[str, Any]:
    """Returns what is posted of a job's progress.

    Args:
        reply: The progress; the seconds of training and the epochs are taken from its details.
        has_time_limit: Whether a time, not only a number of steps, may end the job.
        now: The time; the clock's by default.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    status: dict[str, Any] = {"progressPercentage": _percentage(reply, has_time_limit)}
    left = 0.0 if reply.state == ProgressReply.STATE_DONE else reply.seconds_left
    if reply.state != ProgressReply.STATE_FAILED and (reply.step or not left) and left >= 0:
        status["estimatedRemainingSeconds"] = min(math.ceil(left), _MOST_SECONDS)
    pairs = ((name[:_MOST_CHARACTERS], f"{value:.6g}") for name, value in _metrics(reply).items() if name)
    status["metrics"] = [{"name": name, "value": value} for name, value in pairs][:_MOST_METRICS]
    status["lastUpdatedTime"] = now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"trainerStatus": status}


def post(server: StatusServer, status: Mapping[str, Any]) -> None:
    """Posts a status. Follows no redirect, which would get the token, and uses no proxy.

    Raises:
        ValueError: The URL is not https, or the token is none.
        OSError: A file cannot be read, or the server does not answer, has another certificate, or refuses the status.
        http.client.HTTPException: What answers speaks no HTTP.
    """
    parts = urlsplit(server.url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{server.variable} is {server.url!r}, no https://HOST:PORT/PATH")
    token = Path(server.token_file).read_text().strip() if server.token_file else ""
    if not token or not (token.isascii() and token.isprintable()):
        raise ValueError(f"{server.variable.removesuffix('URL')}TOKEN names no file with a token")
    context = ssl.create_default_context(cafile=server.ca_file or None)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_WITHIN_S, context=context)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", parts._replace(scheme="", netloc="").geturl() or "/", json.dumps(status), headers)
        answer = connection.getresponse()
        text = answer.read(_MOST_OF_ANSWER).decode(errors="replace")
    if answer.status != http.client.OK:
        raise OSError(f"{parts.netloc} answers {answer.status} {answer.reason}: {text[:200]}")


def _percentage(reply: ProgressReply, has_time_limit: bool) -> int:
    """The part of the steps that is done, or of the time if that ends the job earlier; 100 only when it is over."""
    if reply.state == ProgressReply.STATE_DONE:
        return 100
    done = reply.step / reply.num_steps if reply.num_steps else 0.0
    train_s, left_s = reply.details.train_seconds, reply.seconds_left
    if has_time_limit and left_s >= 0 and train_s > 0:
        done = max(done, train_s / (train_s + left_s))
    return min(int(100 * done), 99)


def _metrics(reply: ProgressReply) -> dict[str, float]:
    """The newest held-out scores and figures of the training, by the names that a run's files have."""
    found = {
        "loss": reply.loss,
        "step": reply.step,
        "num_steps": reply.num_steps,
        "epochs": reply.details.epochs,
        "examples_per_second": reply.examples_per_second,
        "staleness_mean": reply.staleness_mean,
    }
    if not reply.step:
        del found["loss"]
    return {**reply.metrics, **found}
