"""A container: namespaces, a root file system and a memory limit of its own, and an image to run.

An image is this machine's /usr, the interpreter of this environment and the folders that Downpour is installed from,
all read-only, with the compiled loops where the image's build leaves them. It gives a container PATH, and the
processor that the loops are for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from downpour.launch.kubernetes.names import BUILT_KERNELS

_CHECKOUT = Path(__file__).resolve().parents[2]
_RUNTIME = Path(__file__).with_name("runtime.py")
_LEAN = "tests/lean"  # which makes Keras find no more than what the image's extras bring
_SOURCES = ("src", "proto", "ps", "worker", "model", "launch", _LEAN)
_LINKS = {"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/sbin": "usr/sbin"}
_CGROUPS = Path("/sys/fs/cgroup")
_GONE_WITHIN_S = 30.0


@dataclass(frozen=True)
class Image:
    """What a container finds in its root.

    Attributes:
        kernels: Folder with the compiled loops.
    """

    kernels: Path

    def describe(self) -> dict[str, object]:
        """For `runtime`."""
        interpreter = Path(sys.base_prefix)
        paths = ["/usr", *([] if interpreter.is_relative_to("/usr") else [str(interpreter)]), sys.prefix]
        return {
            "image": [*paths, *(str(_CHECKOUT / name) for name in _SOURCES)],
            "built": {str(self.kernels): BUILT_KERNELS},
        }

    @property
    def environment(self) -> dict[str, str]:
        """What the image gives, as the Dockerfile's ENV does; the other variables of that are in the manifests, too."""
        processor = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
        path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        sources = os.pathsep.join(str(_CHECKOUT / name) for name in (_LEAN, "src"))  # not another checkout's
        return {"PATH": path, "PYTHONPATH": sources, **processor}


@dataclass(frozen=True)
class Settings:
    """Of one container.

    Attributes:
        image: To run.
        namespace: Of the network.
        hostname: Of the pod.
        command: With its arguments.
        environment: What the manifest gives.
        mounts: Folder, place, whether read-only; in the order of their places.
        names: Folder with the file `hosts`, which may change.
        termination: File of this machine, and where the container finds it.
        user: Its id.
        group: Its group's id.
        groups: Further groups.
        memory: Bytes it may use.
        read_only: Whether it may not write to its root.
    """

    image: Image
    namespace: str
    hostname: str
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[tuple[str, str, bool]]
    names: Path
    termination: tuple[Path, str]
    user: int
    group: int
    groups: Sequence[int]
    memory: int
    read_only: bool


class Container:
    """A running container.

    Args:
        settings: What runs.
        folder: For its root; made.
        log: Gets its output.
    """

    def __init__(self, settings: Settings, folder: Path, log: Path) -> None:
        self._cgroup = _make_cgroup(f"downpour-{os.getpid()}-{settings.namespace}-{log.stem}"[:200], settings.memory)
        root = folder / "root"
        root.mkdir(parents=True)
        specification = folder / "container.json"
        specification.write_text(json.dumps(self._describe(settings, root)))
        into = ["sh", "-c", 'echo 0 > "$0"; exec "$@"', str(self._cgroup / "cgroup.procs")] if self._cgroup else []
        command = [
            *into,
            *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", settings.namespace),
            *(sys.executable, "-I", "-S", str(_RUNTIME), str(specification)),
        ]
        inherited = {"PATH": os.environ["PATH"]}  # for those commands; nothing of it reaches the container
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=inherited)

    def _describe(self, settings: Settings, root: Path) -> dict[str, object]:
        described = settings.image.describe()
        users = f"root:x:0:0::/:/bin/false\nuser:x:{settings.user}:{settings.group}::/:/bin/false\n"
        return described | {
            "root": str(root),
            "files": {"/etc/nsswitch.conf": "hosts: files\n", "/etc/passwd": users},
            "links": {**_links(), "/etc/hosts": "names/hosts"},
            "mounts": [*settings.mounts, (str(settings.names), "/etc/names", True)],
            "termination": [str(settings.termination[0]), settings.termination[1]],
            "hostname": settings.hostname,
            "user": settings.user,
            "group": settings.group,
            "groups": list(settings.groups),
            "command": list(settings.command),
            "environment": {**settings.image.environment, **settings.environment},
            "read_only": settings.read_only,
        }

    def signal(self, number: int) -> bool:
        """Sends a signal to its process 1; False if that is not there yet, or no more."""
        try:
            (first,) = psutil.Process(self._process.pid).children()
            first.send_signal(number)
        except (psutil.NoSuchProcess, ValueError):
            return False
        return True

    def exit_code(self) -> int | None:
        """None while it runs; 128 + N after signal N."""
        return self._process.poll()

    def close(self) -> int:
        """Ends it; the most memory it has had, 0 if nobody counted."""
        self._process.kill()  # process 1 ends with it, and all others with that
        self._process.wait()
        return _remove_cgroup(self._cgroup)


def _links() -> dict[str, str]:
    """Of this machine's root into /usr."""
    return {link: target for link, target in _LINKS.items() if Path(link).is_symlink()}


def _make_cgroup(name: str, limit: int) -> Path | None:
    """A control group with a memory limit, where this kernel's are version 1 and writable."""
    memory = _CGROUPS / "memory"
    if not (memory / "memory.limit_in_bytes").exists():
        return None
    group = memory / name
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))
    return group


def _remove_cgroup(group: Path | None) -> int:
    """The most that its processes have used."""
    if group is None:
        return 0
    most = int((group / "memory.max_usage_in_bytes").read_text())
    deadline = time.monotonic() + _GONE_WITHIN_S
    while True:
        try:
            group.rmdir()
            return most
        except OSError:  # busy, as processes of it are still being ended
            assert time.monotonic() < deadline, f"processes are left in {group}"
            time.sleep(0.01)
