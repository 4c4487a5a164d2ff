"""A cluster of one node: applies documents, plays the controllers, and does what a user of kubectl asks for.

with cluster(tmp_path, image) as kubernetes:
    kubernetes.apply(build(folder / "base"))
    kubernetes.wait(lambda: kubernetes.jobs["tiny-chief"].state, "the end of the chief")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kubelet.container import Image
from tests.kubelet.fields import Document, known
from tests.kubelet.indexed_job import COMPLETE, IndexedJob
from tests.kubelet.jobset import JobSet
from tests.kubelet.network import Network, network
from tests.kubelet.pod import Node, Pod
from tests.kubelet.tfjob import TFJob

_NAMESPACE = "default"
_PAUSE_S = 0.03
_LISTED = ("ConfigMap", "Secret", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount")


class Cluster:
    """Made by `cluster`.

    Attributes:
        pods: Those that there are, by name.
        jobs: Jobs, TFJobs and JobSets by name.
        claims: Folders by claim; a test puts those in that nobody makes.
        events: What has happened, with seconds since the beginning.
    """

    def __init__(self, folder: Path, image: Image, made: Network) -> None:
        self.pods: dict[str, Pod] = {}
        self.jobs: dict[str, IndexedJob | TFJob | JobSet] = {}
        self.claims: dict[str, Path] = {}
        self.events: list[tuple[float, str]] = []
        self._begin = time.monotonic()
        self._objects: dict[tuple[str, str], Document] = {}
        self._folder, self._num_pods, self._names = folder, 0, ""
        self._node = Node(made, folder, image, self.find, self.claims, self.told)

    @property
    def address(self) -> str:
        """Of the node, as pods reach it."""
        return self._node.network.node

    @property
    def memory(self) -> Mapping[str, int]:
        """The most bytes that a container of a pod has had, by name, of those that have ended."""
        return self._node.memory

    def told(self, event: str) -> None:
        """Keeps what has happened."""
        self.events.append((round(time.monotonic() - self._begin, 1), event))

    def find(self, kind: str, name: str) -> Document:
        """An object that was applied."""
        assert (kind, name) in self._objects, f"there is no {kind} {name}"
        return self._objects[kind, name]

    def apply(self, documents: list[Document]) -> None:
        """As `kubectl apply` does, everything for the first time."""
        for document in documents:
            kind, name = document["kind"], document["metadata"]["name"]
            assert (kind, name) not in self._objects, f"{kind} {name} is there twice"
            self._objects[kind, name] = document
            if kind == "Job":
                known(document, "apiVersion", "kind", "metadata", "spec")
                self.jobs[name] = IndexedJob(name, document["spec"], self.make_pod, self.told)
            elif kind == "TFJob":
                self.jobs[name] = TFJob(name, document["spec"], _NAMESPACE, self.make_pod, self.serve, self.told)
            elif kind == "JobSet":
                self.jobs[name] = JobSet(name, document["spec"], self.make_pod, self.serve, self.told)
            elif kind == "PersistentVolumeClaim":
                self.claims[name] = self._folder / "claims" / name
                self.claims[name].mkdir(parents=True)
            else:
                assert kind in _LISTED, f"nobody acts on a {kind}"

    def make_pod(self, name: str, template: Document) -> Pod:
        """For controllers."""
        self._num_pods += 1
        pod = Pod(self._node, name, f"{name}-{self._num_pods}", template)
        assert name not in self.pods, f"there is still a pod {name}"
        self.pods[name] = pod
        self.told(f"{name}: made at {pod.address}")
        return pod

    def serve(self, service: Document) -> None:
        """Makes a Service, for controllers."""
        self._objects["Service", service["metadata"]["name"]] = service

    def tick(self) -> None:
        """Does what is due, everywhere."""
        for job in self.jobs.values():
            for pod in job.tick():
                self.remove(pod)
        for pod in list(self.pods.values()):
            pod.tick()
        names = self._resolve()
        if names != self._names:
            self._names = names
            for pod in self.pods.values():
                pod.write_names(names)

    def remove(self, pod: Pod) -> None:
        """A controller needs it no more."""
        del self.pods[pod.name]
        pod.close()

    def wait(self, condition: Callable[[], object], what: str, deadline_s: float) -> None:
        """Lets everything happen until a condition holds."""
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen within {deadline_s:.0f} s:\n{self.describe()}"
            self.tick()
            time.sleep(_PAUSE_S)

    def evict(self, name: str) -> None:
        """Evicts a pod, as a drain does; the disruption budgets must allow it."""
        pod = self.pods[name]
        for (kind, _), budget in self._objects.items():
            selector = budget["spec"]["selector"]["matchLabels"] if kind == "PodDisruptionBudget" else None
            if selector is not None and pod.is_selected(selector):
                ready = sum(other.ready for other in self.pods.values() if other.is_selected(selector))
                assert ready > budget["spec"]["minAvailable"], "its disruption budget does not allow that"
        self.told(f"{name}: evicted")
        pod.evict()

    def all_complete(self) -> bool:
        """Whether every Job is; fails at once when one has failed."""
        for job in self.jobs.values():
            assert job.state in ("", COMPLETE), f"{job.name} has {job.state}, {job.reason}:\n{self.describe()}"
        return all(job.state for job in self.jobs.values())

    def logs(self, owner: str) -> dict[str, str]:
        """What containers of a Job's pods have written, by file: POD-NUMBER-CONTAINER.log."""
        return {path.name: path.read_text() for path in sorted((self._folder / "logs").glob(f"{owner}-*.log"))}

    def describe(self) -> str:
        """For whoever wants to know why something did not happen."""
        pods = [f"{pod.name}: {pod.phase}, ready: {pod.ready}, restarts: {pod.restarts}" for pod in self.pods.values()]
        events = [f"{at:7.1f} {event}" for at, event in self.events[-60:]]
        tails = ["\n".join([f"--- {p.name}", *p.read_text().splitlines()[-6:]]) for p in
                 sorted((self._folder / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)]  # fmt: skip
        return "\n".join([*events, *pods, *tails])

    def close(self) -> None:
        """Ends whatever runs."""
        with ExitStack() as closing:
            for pod in list(self.pods.values()):
                closing.callback(self.remove, pod)

    def _resolve(self) -> str:
        """What the DNS would say, as lines of /etc/hosts: headless Services, and pods with a name of their own."""
        lines = []
        for (kind, name), service in self._objects.items():
            if kind != "Service":
                continue
            spec = service["spec"]
            known(spec, "clusterIP", "publishNotReadyAddresses", "selector", "ports")
            assert spec["clusterIP"] == "None"
            for pod in self.pods.values():
                published = spec.get("publishNotReadyAddresses", False) or pod.ready
                if published and not pod.ended and pod.is_selected(spec["selector"]):
                    own = [f"{pod.hostname}.{name}"] if pod.subdomain == name else []
                    lines += [f"{pod.address} {_everywhere(known_as)}\n" for known_as in (*own, name)]
        return "".join(lines)


def _everywhere(name: str) -> str:
    """A name, and what the search path of a pod makes of it."""
    return " ".join(
        f"{name}{end}" for end in ("", f".{_NAMESPACE}", f".{_NAMESPACE}.svc", f".{_NAMESPACE}.svc.cluster.local")
    )


@contextmanager
def cluster(folder: Path, image: Image) -> Iterator[Cluster]:
    """A cluster without anything; whatever was started is ended at the end."""
    with network() as made:
        running = Cluster(folder, image, made)
        try:
            yield running
        finally:
            running.close()
