"""The controller of JobSets (v1alpha2), for what ours say: makes Jobs and a Service, and ends them together.

Restarts by its failure policy are not played: a Job that fails, fails the JobSet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from tests.kubelet.fields import Document, known
from tests.kubelet.indexed_job import ACTIVE, COMPLETE, FAILED, IndexedJob, Make
from tests.kubelet.pod import Pod

_LABEL = "jobset.sigs.k8s.io/jobset-name"
_SPEC = ("network", "successPolicy", "failurePolicy", "ttlSecondsAfterFinished", "replicatedJobs")


class JobSet:
    """One JobSet; see `TFJob` for arguments.

    Attributes:
        jobs: Of each replicated Job.
    """

    def __init__(
        self, name: str, spec: Document, make: Make, serve: Callable[[Document], None], told: Callable[[str], None]
    ) -> None:
        known(spec, *_SPEC)
        network, success = spec["network"], spec["successPolicy"]
        known(network, "enableDNSHostnames", "subdomain", "publishNotReadyAddresses")
        known(success, "operator", "targetReplicatedJobs")
        assert network["enableDNSHostnames"] is True
        assert success["operator"] == "All"
        self.name, self.state, self.reason = name, ACTIVE, ""
        self.jobs: dict[str, IndexedJob] = {}
        self._targets, self._outcome, self._told = success["targetReplicatedJobs"], ACTIVE, told
        serve(
            {
                "kind": "Service",
                "metadata": {"name": network["subdomain"]},
                "spec": {
                    "clusterIP": "None",
                    "selector": {_LABEL: name},
                    "publishNotReadyAddresses": network["publishNotReadyAddresses"],
                    "ports": [],
                },
            }
        )
        for replicated in spec["replicatedJobs"]:
            known(replicated, "name", "replicas", "template")
            assert replicated["replicas"] == 1
            specification = copy.deepcopy(replicated["template"]["spec"])
            template = specification["template"]
            template["spec"]["subdomain"] = network["subdomain"]
            template["metadata"]["labels"] |= {_LABEL: name}
            job = f"{name}-{replicated['name']}-0"
            self.jobs[replicated["name"]] = IndexedJob(job, specification, make, told)

    def tick(self) -> list[Pod]:
        """Does what is due; pods that are no more."""
        if self.state:
            return []
        gone = [pod for job in self.jobs.values() for pod in job.tick()]
        if not self._outcome:
            failed = [job.name for job in self.jobs.values() if job.state == FAILED]
            if failed:
                self._outcome, self.reason = FAILED, failed[0]
            elif all(self.jobs[name].state == COMPLETE for name in self._targets):
                self._outcome = COMPLETE
        if self._outcome:
            for job in self.jobs.values():
                job.delete()
            if not any(job.pods for job in self.jobs.values()):
                self.state = self._outcome
                self._told(f"JobSet {self.name}: {self.state} {self.reason}")
        return gone
