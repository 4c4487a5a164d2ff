"""A pod as its kubelet runs it: init containers, the container, its probes, restarts, and the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubelet.container import Container, Image, Settings
from tests.kubelet.fields import Document, arguments, check_pod, environment, matches, size
from tests.kubelet.network import Network
from tests.kubelet.probes import Probe
from tests.kubelet.volumes import FindObject, Volumes

PENDING, RUNNING, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"
_BACK_OFF_S, _MOST_BACK_OFF_S = 10.0, 300.0
_GRACE_S = 30
_TERMINATION_LOG, _MOST_OF_FILE = "/dev/termination-log", 4096
_MOST_OF_LOG, _MOST_LINES = 2048, 80  # bytes and lines of it, where they are the message
_KINDS = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass
class Node:
    """What pods share.

    Attributes:
        network: Of all pods.
        folder: Of this node.
        image: Of all containers.
        find: Looks an object up.
        claims: Folders by claim.
        told: Takes a line of what has happened.
        memory: The most that a container has used, by the name of the pod.
    """

    network: Network
    folder: Path
    image: Image
    find: FindObject
    claims: Mapping[str, Path]
    told: Callable[[str], None]
    memory: dict[str, int] = field(default_factory=dict)


class Pod:
    """One pod, from its creation to its removal.

    Args:
        node: Where it runs.
        name: Of the pod; others may have had it before.
        uid: Nobody else's, ever.
        template: With `metadata` and `spec`, as a controller has completed it.

    Attributes:
        labels: Of its metadata.
        annotations: Of its metadata.
        phase: As Kubernetes says it.
        exit_code: Of its container, when that has ended last; None before.
        message: As `kubectl describe pod` shows it of that end.
        conditions: Those that are True.
        restarts: Of its container.
        started_s: From the start of each container to the first success of its startup probe.
        deleted: Whether somebody has asked for its end.
        finished_at: When its phase became final, on the monotonic clock.
    """

    def __init__(self, node: Node, name: str, uid: str, template: Document) -> None:
        check_pod(template["spec"])
        self.name, self.uid, self.labels = name, uid, template["metadata"]["labels"]
        self.annotations: Mapping[str, str] = template["metadata"].get("annotations", {})
        self.phase, self.exit_code, self.conditions = PENDING, None, set[str]()
        self.message = ""
        self.restarts, self.started_s = 0, list[float]()
        self.deleted, self.finished_at = False, 0.0
        self._node, self._spec = node, template["spec"]
        self._folder = node.folder / "pods" / uid
        self._names = self._folder / "names"
        self._names.mkdir(parents=True)
        self._namespace, self.address = node.network.add()
        self._volumes = Volumes(self._spec, self._folder / "volumes", node.find, node.claims)
        self._waiting = [*self._spec.get("initContainers", []), *self._spec["containers"]]
        self._running: Container | None = None
        self._probes: dict[str, Probe] = {}
        self._begin_at, self._kill_at = time.monotonic(), float("inf")
        self._num_started, self._told_to_end = 0, True
        self.write_names("")

    @property
    def hostname(self) -> str:
        """What the pod calls itself; with a subdomain also what the DNS calls it."""
        return str(self._spec.get("hostname", self.name))

    @property
    def subdomain(self) -> str:
        """The Service that names it, "" for none."""
        return str(self._spec.get("subdomain", ""))

    @property
    def ready(self) -> bool:
        """Whether it has started, and its readiness probe says so."""
        probe, startup = self._probes.get("readinessProbe"), self._probes.get("startupProbe")
        started = startup is None or startup.passed_after_s is not None
        return self._is_main and not self.deleted and started and (probe is None or probe.passed)

    @property
    def ended(self) -> bool:
        """Whether its phase is final."""
        return self.phase in (SUCCEEDED, FAILED)

    @property
    def log(self) -> Path:
        """Of its newest container."""
        return self._node.folder / "logs" / f"{self.uid}-{max(self._num_started - 1, 0)}.log"

    @property
    def container_name(self) -> str:
        """Of its main container."""
        return str(self._spec["containers"][0]["name"])

    @property
    def _is_main(self) -> bool:
        return self._running is not None and not self._waiting

    def is_selected(self, selector: Mapping[str, str]) -> bool:
        """By its labels."""
        return matches(selector, self.labels)

    def write_names(self, names: str) -> None:
        """Exchanges what its containers have as /etc/hosts."""
        part = self._names / "hosts.part"
        part.write_text(f"127.0.0.1 localhost\n{self.address} {self.hostname}\n{names}")
        part.replace(self._names / "hosts")

    def tick(self) -> None:
        """Does what is due."""
        if self.ended:
            return
        if self._running is None:
            self._start_next()
            return
        if not self._told_to_end:
            self._told_to_end = self._running.signal(signal.SIGTERM)
        if time.monotonic() > self._kill_at:
            self._kill_at = float("inf")
            self._node.told(f"{self.name}: killed after its grace period")
            self.kill()
        code = self._running.exit_code()
        if code is not None:
            self._ended(code)
        elif self._is_main and not self.deleted:
            self._probe()

    def kill(self) -> None:
        """SIGKILL for the running container, as the kernel does it when memory is short."""
        assert self._running is not None
        assert self._running.signal(signal.SIGKILL)

    def delete(self) -> None:
        """As `kubectl delete pod` does: SIGTERM now, SIGKILL after the grace period; no restart."""
        if self.deleted or self.ended:
            return
        self.deleted = True
        self._close_probes()
        if self._running is None:
            self._finish(FAILED)
        else:
            self._terminate()

    def evict(self) -> None:
        """As a drain or a spot machine's end does."""
        self.conditions.add("DisruptionTarget")
        self.delete()

    def close(self) -> None:
        """Removes it and what it has written to its own volumes; its logs stay."""
        with ExitStack() as closing:
            closing.callback(self._node.network.remove, self._namespace)
            closing.callback(self._volumes.close)
            if self._running:
                closing.callback(self._running.close)
            self._close_probes()

    def _terminate(self) -> None:
        self._told_to_end = False
        self._kill_at = time.monotonic() + self._spec.get("terminationGracePeriodSeconds", _GRACE_S)

    def _start_next(self) -> None:
        if self.deleted:
            self._finish(FAILED)
        elif time.monotonic() >= self._begin_at:
            container = self._waiting.pop(0)
            self._running = self._start(container)
            if not self._waiting:
                self.phase = RUNNING
                kinds = [kind for kind in _KINDS if kind in container]
                self._probes = {kind: Probe(container[kind], self.address) for kind in kinds}

    def _start(self, container: Document) -> Container:
        security, own = self._spec["securityContext"], container["securityContext"]
        variables = environment(container)
        self._num_started += 1
        settings = Settings(
            image=self._node.image,
            namespace=self._namespace,
            hostname=self.hostname,
            command=arguments(container, variables),
            environment=variables,
            mounts=self._volumes.mounts(container),
            names=self._names,
            termination=(self._termination(), container.get("terminationMessagePath", _TERMINATION_LOG)),
            user=security["runAsUser"],
            group=security["runAsGroup"],
            groups=[security["fsGroup"]],
            memory=size(container["resources"]["limits"]["memory"]),
            read_only=own["readOnlyRootFilesystem"],
        )
        self._told_to_end, self._kill_at = True, float("inf")
        self.log.parent.mkdir(exist_ok=True)
        return Container(settings, self._folder / f"container-{self._num_started}", self.log)

    def _probe(self) -> None:
        """Readiness and liveness count once the startup probe has passed."""
        startup = self._probes.get("startupProbe")
        if startup is not None and startup.passed_after_s is None:
            startup.tick()
            if startup.passed_after_s is not None:
                self.started_s.append(startup.passed_after_s)
                self._node.told(f"{self.name}: started after {startup.passed_after_s:.1f} s")
            due = [startup]
        else:
            due = [probe for kind, probe in self._probes.items() if kind != "startupProbe"]
            for probe in due:
                probe.tick()
        if self._told_to_end and any(p.failed for p in due if p is not self._probes.get("readinessProbe")):
            self._node.told(f"{self.name}: a probe has failed, the container is ended")
            self._terminate()

    def _ended(self, code: int) -> None:
        """The running container has."""
        assert self._running is not None
        used, main = self._running.close(), self._is_main
        self._running = None
        self._close_probes()
        if main:
            self.exit_code, self.message = code, self._message(code)
            self._node.memory[self.name] = max(used, self._node.memory.get(self.name, 0))
        else:
            assert code == 0 or self.deleted, f"an init container ended with {code}:\n{self.log.read_text()}"
        if not main and not self.deleted:
            return
        said = f": {self.message}" if main and self.message else ""
        self._node.told(f"{self.name}: {'' if main else 'init '}container ended with {code}{said}")
        if self.deleted or self._spec["restartPolicy"] == "Never" or code == 0:
            self._finish(SUCCEEDED if main and code == 0 else FAILED)
        else:
            self._restart()

    def _termination(self) -> Path:
        """An empty file for the newest container, which any user may write to."""
        path = self._folder / f"termination-{self._num_started}"
        path.touch()
        path.chmod(0o666)
        return path

    def _message(self, code: int) -> str:
        """What the container has written to its file; with `FallbackToLogsOnError` else the end of its log."""
        written = (self._folder / f"termination-{self._num_started}").read_bytes()[:_MOST_OF_FILE]
        policy = self._spec["containers"][0].get("terminationMessagePolicy", "File")
        assert policy in ("File", "FallbackToLogsOnError"), policy
        if not written and code and policy == "FallbackToLogsOnError":
            written = b"".join(self.log.read_bytes().splitlines(keepends=True)[-_MOST_LINES:])[-_MOST_OF_LOG:]
        return written.decode(errors="replace")

    def _restart(self) -> None:
        """The first time at once, then with growing pauses."""
        pause_s = 0.0 if self.restarts == 0 else min(_BACK_OFF_S * 2 ** (self.restarts - 1), _MOST_BACK_OFF_S)
        self.restarts += 1
        self._waiting = list(self._spec["containers"])
        self._begin_at = time.monotonic() + pause_s

    def _finish(self, phase: str) -> None:
        self.phase, self.finished_at = phase, time.monotonic()
        self._close_probes()

    def _close_probes(self) -> None:
        for probe in self._probes.values():
            probe.close()
        self._probes = {}
