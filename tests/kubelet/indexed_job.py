"""The Job controller, for Indexed Jobs: which index needs a pod, what a failed one counts as, and when all is done."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable

from tests.kubelet.fields import Document, known
from tests.kubelet.pod import SUCCEEDED, Pod

COMPLETE, FAILED, DELETED, ACTIVE = "Complete", "Failed", "Deleted", ""
BACK_OFF_S, _MOST_BACK_OFF_S = 10.0, 600.0
_INDEX = "JOB_COMPLETION_INDEX"
_SPEC = (
    "completionMode",
    "completions",
    "parallelism",
    "backoffLimit",
    "backoffLimitPerIndex",
    "podFailurePolicy",
    "podReplacementPolicy",
    "successPolicy",
    "ttlSecondsAfterFinished",
    "template",
)

Make = Callable[[str, Document], Pod]  # of a name and a template


class IndexedJob:
    """One Job.

    Args:
        name: Of the Job.
        spec: Of the Job.
        make: Makes a pod.
        told: Takes a line of what has happened.

    Attributes:
        state: `ACTIVE`, `COMPLETE`, `FAILED` or `DELETED`.
        reason: Why it failed.
        pods: By index, those that have not been replaced.
        failures: Failed pods by index that count; what is ignored does not.
        ignored: Failed pods by index that do not count.
        succeeded: Indices that are done.
    """

    def __init__(self, name: str, spec: Document, make: Make, told: Callable[[str], None]) -> None:
        known(spec, *_SPEC)
        assert spec["completionMode"] == "Indexed"
        assert spec["podReplacementPolicy"] == "Failed"
        on_failure = spec["template"]["spec"]["restartPolicy"] == "OnFailure"
        assert not (on_failure and "podFailurePolicy" in spec), "Kubernetes refuses a podFailurePolicy there"
        self.name, self.spec = name, copy.deepcopy(spec)
        self.state, self.reason = ACTIVE, ""
        self.pods: dict[int, Pod] = {}
        self.failures: Counter[int] = Counter()
        self.ignored: Counter[int] = Counter()
        self.succeeded: set[int] = set()
        self._gave_up: set[int] = set()
        self._outcome = ACTIVE  # the state once no pod runs any more
        self._not_before: dict[int, float] = {}
        self._make, self._told = make, told

    def scale(self, number: int) -> None:
        """Patches completions and parallelism together: an elastic Indexed Job."""
        self.spec["completions"] = self.spec["parallelism"] = number

    def delete(self) -> None:
        """Ends its pods, if it is not done yet."""
        self._outcome = self._outcome or DELETED

    def tick(self) -> list[Pod]:
        """Does what is due; pods that are no more."""
        if self.state:
            return []
        gone = [self._take(index, pod) for index, pod in list(self.pods.items()) if pod.ended]
        self._decide()
        if self._outcome:
            for pod in self.pods.values():
                pod.delete()
            self.state = self._outcome if not self.pods else ACTIVE
            if self.state:
                self._told(f"job {self.name}: {self.state} {self.reason}")
            return gone
        for index, pod in self.pods.items():
            if index >= self.spec["completions"]:
                pod.delete()
        self._start()
        return gone

    def _take(self, index: int, pod: Pod) -> Pod:
        """Counts a pod that has ended."""
        del self.pods[index]
        if self._outcome or index >= self.spec["completions"]:
            return pod
        if pod.phase == SUCCEEDED:
            self.succeeded.add(index)
            return pod
        action = self._action(pod)
        self._told(f"job {self.name}: index {index} failed with {pod.exit_code}: {action}")
        if action == "FailJob":
            self._fail("PodFailurePolicy")
        elif action == "FailIndex":
            self._gave_up.add(index)
        elif action == "Ignore":
            self.ignored[index] += 1
        else:
            self.failures[index] += 1
        self._pause(index, pod)
        return pod

    def _action(self, pod: Pod) -> str:
        policy = self.spec.get("podFailurePolicy", {"rules": []})
        known(policy, "rules")
        for rule in policy["rules"]:
            known(rule, "action", "onExitCodes", "onPodConditions")
            assert rule["action"] in ("Ignore", "FailJob", "FailIndex", "Count"), rule
            if self._fits(rule, pod):
                return str(rule["action"])
        return "Count"

    def _fits(self, rule: Document, pod: Pod) -> bool:
        for condition in rule.get("onPodConditions", []):
            known(condition, "type", "status")
            assert condition["status"] == "True"
            if condition["type"] in pod.conditions:
                return True
        codes = rule.get("onExitCodes")
        if not codes or not pod.exit_code:
            return False
        known(codes, "containerName", "operator", "values")
        assert codes["operator"] == "In"
        assert codes["containerName"] == pod.container_name, "such a rule never fits"
        return pod.exit_code in codes["values"]

    def _pause(self, index: int, pod: Pod) -> None:
        per_index = "backoffLimitPerIndex" in self.spec
        counted = self.failures + self.ignored
        number = counted[index] if per_index else counted.total()
        until = pod.finished_at + min(BACK_OFF_S * 2 ** max(number - 1, 0), _MOST_BACK_OFF_S)
        for each in [index] if per_index else range(self.spec["completions"]):
            self._not_before[each] = until

    def _decide(self) -> None:
        """Whether the Job is to end, and how."""
        if self._outcome:
            return
        limit = self.spec.get("backoffLimitPerIndex")
        if limit is not None:
            self._gave_up |= {index for index, number in self.failures.items() if number > limit}
        elif self.failures.total() + sum(pod.restarts for pod in self.pods.values()) > self.spec["backoffLimit"]:
            self._fail("BackoffLimitExceeded")
            return
        done = self.succeeded & set(range(self.spec["completions"]))
        for rule in self.spec.get("successPolicy", {"rules": []})["rules"]:
            known(rule, "succeededCount")
            if len(done) >= rule["succeededCount"]:
                self._outcome = COMPLETE
                return
        if len(done | self._gave_up) >= self.spec["completions"]:
            if self._gave_up:
                self._fail("FailedIndexes")
            self._outcome = self._outcome or COMPLETE

    def _fail(self, reason: str) -> None:
        self._outcome, self.reason = FAILED, reason

    def _start(self) -> None:
        """Starts what is missing, so many at a time."""
        for index in range(self.spec["completions"]):
            if len(self.pods) >= self.spec["parallelism"]:
                return
            if index in self.pods or index in self.succeeded | self._gave_up:
                continue
            if time.monotonic() >= self._not_before.get(index, 0.0):
                self.pods[index] = self._make(f"{self.name}-{index}", self._template(index))

    def _template(self, index: int) -> Document:
        template = copy.deepcopy(self.spec["template"])
        spec, hostname = template["spec"], f"{self.name}-{index}"
        assert len(hostname) < 64
        spec["hostname"] = hostname
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            # As the controller's downward API does, at the end.
            container.setdefault("env", []).append({"name": _INDEX, "value": str(index)})
        template["metadata"]["labels"] |= {
            "batch.kubernetes.io/job-name": self.name,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        return template
