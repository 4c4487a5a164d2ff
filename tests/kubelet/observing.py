"""Who looks at a job from outside: a Prometheus that finds pods by their annotations, and Kubeflow Trainer."""

from __future__ import annotations

import base64
import http.client
import re
import urllib.request
from pathlib import Path

from tests.kubelet.cluster import Cluster
from tests.kubelet.fields import Document
from tests.kubelet.pod import Pod
from tests.launch.kubernetes.manifests import pod_templates
from tests.launch.trainer import Trainer

_TRAINER = "kubeflow-trainer"
_MOUNTED = Path("/var/run/secrets/kubeflow/trainer")  # where Trainer mounts the token and the CA


class Scrapes:
    """What pods have said at `/metrics`.

    Attributes:
        texts: The newest answer of each pod that has given one, by its name.
    """

    def __init__(self, kubernetes: Cluster) -> None:
        self.texts: dict[str, str] = {}
        self._pods = kubernetes.pods
        self._left: list[str] = []

    def look(self) -> None:
        """Asks the next pod, in turn; one that does not serve yet or any more keeps its last answer."""
        self._left = self._left or list(self._pods)
        pod = self._pods.get(self._left.pop()) if self._left else None
        if pod is None or pod.ended or pod.annotations.get("prometheus.io/scrape") != "true":
            return
        port, path = (pod.annotations[f"prometheus.io/{name}"] for name in ("port", "path"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{pod.address}:{port}{path}", timeout=2.0) as answer:
                self.texts[pod.name] = answer.read().decode()
        except (OSError, http.client.HTTPException):
            return


def target_labels(monitor: Document, pod: Pod) -> dict[str, str]:
    """The labels that a PodMonitor gives a pod, which it must select."""
    assert pod.is_selected(monitor["spec"]["selector"]["matchLabels"])
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    named = {f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}": v for key, v in pod.labels.items()}
    found = {}
    for rule in endpoint["relabelings"]:
        [source] = rule["sourceLabels"]
        if re.fullmatch(rule["regex"], named.get(source, "")):
            found[rule["targetLabel"]] = named[source]
    return found


def report_to(trainer: Trainer, documents: list[Document]) -> list[Document]:
    """Puts into the chief's pods what Trainer puts into those of its trainer step; returns them and a Secret."""
    files = {"ca.crt": trainer.ca_file, "token": trainer.token_file}
    environment = {"URL": trainer.url, "CA_CERT": str(_MOUNTED / "ca.crt"), "TOKEN": str(_MOUNTED / "token")}
    for document in documents:
        template = pod_templates(document).get("chief")
        if template is None:
            continue
        [container] = template["spec"]["containers"]
        container["env"] += [{"name": f"KUBEFLOW_TRAINER_SERVER_{n}", "value": v} for n, v in environment.items()]
        container["volumeMounts"].append({"name": _TRAINER, "mountPath": str(_MOUNTED), "readOnly": True})
        template["spec"]["volumes"].append({"name": _TRAINER, "secret": {"secretName": _TRAINER}})
    data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
    return [*documents, {"kind": "Secret", "metadata": {"name": _TRAINER}, "data": data}]
