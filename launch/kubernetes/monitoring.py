"""What the Prometheus operator and Grafana need: a PodMonitor of the job, alert rules, a dashboard. Pure.

They are in a folder of their own, since a cluster without the operator does not know these kinds. Rules and dashboard
are the same for every job, and so have the same names.
"""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import names
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.observe.metrics import alerts, dashboard

_API = "monitoring.coreos.com/v1"
_EVERY = "15s"
_POD = "__meta_kubernetes_pod_label_"
HEAD = """\
For the Prometheus operator and Grafana. Apply it once the operator's kinds are known to the cluster:
    kubectl apply -k THIS FOLDER
If the operator selects monitors and rules by a label, such as `release`, add that by an overlay."""


def pod_monitor(deployment: Deployment) -> dict[str, Any]:
    """A PodMonitor that scrapes every pod of the job."""
    labels = {
        "role": [f"{_POD}app_kubernetes_io_component"],
        "run": [f"{_POD}app_kubernetes_io_instance"],
        "index": [
            f"{_POD}batch_kubernetes_io_job_completion_index",
            f"{_POD}training_kubeflow_org_replica_index",
        ],
    }
    relabelings = [
        {"sourceLabels": [source], "regex": "(.+)", "targetLabel": target}
        for target, sources in labels.items()
        for source in sources
    ]
    return {
        "apiVersion": _API,
        "kind": "PodMonitor",
        "metadata": {"name": deployment.name, "labels": names.labels(deployment.name)},
        "spec": {
            "selector": {"matchLabels": names.labels(deployment.name)},
            "podMetricsEndpoints": [
                {"port": "metrics", "path": "/metrics", "interval": _EVERY, "relabelings": relabelings}
            ],
        },
    }


def rules() -> dict[str, Any]:
    """The alert rules as a PrometheusRule."""
    return {"apiVersion": _API, "kind": "PrometheusRule", "metadata": _metadata("downpour"), "spec": alerts.groups()}


def grafana() -> dict[str, Any]:
    """The dashboard as a ConfigMap with the label by which Grafana's sidecar finds dashboards."""
    metadata = _metadata("downpour-dashboard", grafana_dashboard="1")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"downpour.json": dashboard.text()}}


def _metadata(name: str, **labels: str) -> dict[str, Any]:
    return {"name": name, "labels": {"app.kubernetes.io/name": "downpour"} | labels}
