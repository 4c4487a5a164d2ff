"""The controller of Kubeflow's TFJobs (training operator v1), for what ours say.

After pkg/controller.v1/tensorflow and /common: every replica is a pod JOB-ROLE-INDEX with a headless Service of that
name, which publishes it once it is ready; TF_CONFIG names the cluster without the evaluator; the job is done when its
chief is, and then pods that still run are ended.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

from tests.kubelet.fields import Document, known
from tests.kubelet.indexed_job import ACTIVE, COMPLETE, FAILED, Make
from tests.kubelet.pod import SUCCEEDED, Pod

_CONTAINER, _PORT = "tensorflow", "tfjob-port"
_RETRYABLE = 128  # exit codes from there on
_LABELS = {"group": "training.kubeflow.org/job-name", "role": "training.kubeflow.org/replica-type",
           "index": "training.kubeflow.org/replica-index"}  # fmt: skip


def tf_config(name: str, namespace: str, replicas: Document, role: str, index: int) -> str:
    """What the controller puts into a pod of a role (PS, Worker, Chief or Evaluator)."""
    cluster = {}
    for kind, replica in replicas.items():
        if kind != "Evaluator":
            host = f"{name}-{kind.lower()}-{{}}.{namespace}.svc:{_port(replica)}"
            cluster[kind.lower()] = [host.format(number) for number in range(replica["replicas"])]
    return json.dumps({"cluster": cluster, "task": {"type": role.lower(), "index": index}, "environment": "cloud"})


def _port(replica: Document) -> int:
    """Of the container's port of that name; the operator adds 2222 where there is none."""
    (container,) = [c for c in replica["template"]["spec"]["containers"] if c["name"] == _CONTAINER]
    return int(next((p["containerPort"] for p in container.get("ports", []) if p["name"] == _PORT), 2222))


class TFJob:
    """One TFJob; see `IndexedJob` for arguments and attributes.

    Args:
        serve: Makes a Service.
        namespace: Of the job.
    """

    def __init__(
        self, name: str, spec: Document, namespace: str, make: Make, serve: Callable[[Document], None],
        told: Callable[[str], None],
    ) -> None:  # fmt: skip
        known(spec, "runPolicy", "tfReplicaSpecs")
        known(spec["runPolicy"], "cleanPodPolicy", "backoffLimit", "ttlSecondsAfterFinished")
        assert spec["runPolicy"]["cleanPodPolicy"] == "Running"
        self.name, self.state, self.reason = name, ACTIVE, ""
        self.pods: dict[tuple[str, int], Pod] = {}
        self.failed_pods = 0
        self._spec, self._namespace, self._outcome = spec, namespace, ACTIVE
        self._make, self._told = make, told
        for role, replica in spec["tfReplicaSpecs"].items():
            known(replica, "replicas", "restartPolicy", "template")
            assert replica["restartPolicy"] in ("OnFailure", "ExitCode", "Never")
            for index in range(replica["replicas"]):
                ports = [{"name": _PORT, "port": _port(replica)}]
                service = {"clusterIP": "None", "selector": self._labels(role, index), "ports": ports}
                serve({"kind": "Service", "metadata": {"name": self._host(role, index)}, "spec": service})

    def tick(self) -> list[Pod]:
        """Does what is due; pods that are no more."""
        if self.state:
            return []
        gone = [pod for key, pod in list(self.pods.items()) if pod.ended and self._take(key, pod)]
        limit = self._spec["runPolicy"]["backoffLimit"]
        if not self._outcome and sum(pod.restarts for pod in self.pods.values()) > limit:
            self._outcome, self.reason = FAILED, "BackoffLimitExceeded"
        if self._outcome:
            for pod in self.pods.values():
                pod.delete()
            if all(pod.ended for pod in self.pods.values()):
                self.state = self._outcome
                self._told(f"TFJob {self.name}: {self.state} {self.reason}")
            return gone
        for role, replica in self._spec["tfReplicaSpecs"].items():
            for index in range(replica["replicas"]):
                if (role, index) not in self.pods:
                    self.pods[role, index] = self._make(self._host(role, index), self._template(role, index))
        return gone

    def _take(self, key: tuple[str, int], pod: Pod) -> bool:
        """Whether a pod that has ended is to be replaced."""
        policy = self._spec["tfReplicaSpecs"][key[0]]["restartPolicy"]
        if pod.phase == SUCCEEDED:
            if key[0] == "Chief":
                self._outcome = COMPLETE
            return False
        if self._outcome:
            return False
        if policy == "OnFailure" or (policy == "ExitCode" and (pod.exit_code or 0) >= _RETRYABLE):
            self.failed_pods += 1
            del self.pods[key]
            return True
        self._outcome, self.reason = FAILED, f"{pod.name} ended with {pod.exit_code}"
        return False

    def _host(self, role: str, index: int) -> str:
        return f"{self.name}-{role.lower()}-{index}"

    def _labels(self, role: str, index: int) -> dict[str, str]:
        return {_LABELS["group"]: self.name, _LABELS["role"]: role.lower(), _LABELS["index"]: str(index)}

    def _template(self, role: str, index: int) -> Document:
        replicas = self._spec["tfReplicaSpecs"]
        template = copy.deepcopy(replicas[role]["template"])
        policy = replicas[role]["restartPolicy"]
        template["spec"]["restartPolicy"] = "Never" if policy == "ExitCode" else policy
        template["metadata"]["labels"] |= self._labels(role, index)
        (container,) = [c for c in template["spec"]["containers"] if c["name"] == _CONTAINER]
        told = tf_config(self.name, self._namespace, replicas, role, index)
        container.setdefault("env", []).append({"name": "TF_CONFIG", "value": told})
        return template
