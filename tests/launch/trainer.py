"""Kubeflow Trainer's status server: https with a certificate of a CA of its own, a token, and the checks that
`pkg/statusserver` and the schema of `TrainerStatus` make (`pkg/apis/trainer/v1alpha1/trainjob_types.go`).
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from downpour.launch import certs
from tests import certificates

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/mine/status"
_MOST_BYTES = 1 << 16
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Trainer:
    """A status server; a context manager.

    Args:
        folder: For its certificates and the token.
        host: Where it listens, and what its certificate is for.

    Attributes:
        token_file: The token that it accepts is in this file.
        ca_file: The CA of its certificate.
        accepted: Every `trainerStatus` that it has accepted, in order.
        refused: Code and message of every refusal.
        before: Called before every answer.
    """

    def __init__(self, folder: Path, host: str = "localhost") -> None:
        certs.make(certificates.JOB, folder / "authority")
        own = certificates.forge(folder / "authority", folder / "tls", [host])
        self.token_file, self.ca_file = folder / "token", own / "ca.crt"
        self.token_file.write_text("a.service-account.token\n")
        self.accepted: list[dict[str, Any]] = []
        self.refused: list[tuple[int, str]] = []
        self.before: Callable[[], object] = lambda: None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
        self._host = host
        self._server = ThreadingHTTPServer((host, 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        """Where a job posts."""
        return f"https://{self._host}:{self._server.server_address[1]}{PATH}"

    @property
    def environment(self) -> dict[str, str]:
        """What Trainer gives a pod."""
        values = {"URL": self.url, "CA_CERT": str(self.ca_file), "TOKEN": str(self.token_file)}
        return {f"KUBEFLOW_TRAINER_SERVER_{name}": value for name, value in values.items()}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        trainer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                trainer.before()
                code, message = trainer._take(self.path, self.headers["Authorization"], body)
                answer = json.dumps({"status": "Failure", "message": message, "code": code}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(answer if message else body)

            def log_message(self, format: str, *args: object) -> None: ...

        return Handler

    def _take(self, path: str, authorization: str, body: bytes) -> tuple[int, str]:
        code, message = 200, ""
        if path != PATH:
            code, message = 404, "Not found"
        elif authorization != f"Bearer {self.token_file.read_text().strip()}":
            code, message = 403, "Forbidden"
        elif len(body) > _MOST_BYTES:
            code, message = 413, "Payload too large"
        elif wrong := check(json.loads(body)):
            code, message = 422, wrong
        if message:
            self.refused.append((code, message))
        else:
            self.accepted.append(json.loads(body)["trainerStatus"])
        return code, message


def check(request: Any) -> str:
    """What the schema of `UpdateTrainJobStatusRequest` finds wrong; "" for nothing."""
    status = request["trainerStatus"]
    unknown = request.keys() - {"trainerStatus"} | status.keys() - {
        *("progressPercentage", "estimatedRemainingSeconds", "metrics", "lastUpdatedTime")
    }
    if unknown:
        return f"unknown: {sorted(unknown)}"
    for name, most in (("progressPercentage", 100), ("estimatedRemainingSeconds", (1 << 31) - 1)):
        value = status.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            return f"{name}: {value!r}"
    metrics = status.get("metrics", [])
    words = [word for metric in metrics for word in (metric["name"], metric["value"])]
    if len(metrics) > 256 or not all(isinstance(word, str) and 1 <= len(word) <= 64 for word in words):
        return f"metrics: {metrics!r}"
    if not _RFC_3339.fullmatch(status["lastUpdatedTime"]) or not datetime.fromisoformat(status["lastUpdatedTime"]):
        return f"lastUpdatedTime: {status['lastUpdatedTime']!r}"
    return ""
