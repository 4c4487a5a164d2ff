"""Executes a Dockerfile's instructions without Docker: each stage a Debian root of its own, each RUN line in a chroot.

Needs root, debootstrap and Debian's packages. Instead of the image that stages begin from, which comes from a registry,
they begin from a minimal Debian of the same release with its own Python.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

RELEASE, PACKAGES = "bookworm", "python3,python3-venv,ca-certificates,passwd"
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = re.compile(r"PIP_\w+|SSL_\w+|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy", re.IGNORECASE)


def why_not() -> str:
    """Why this machine cannot do it; empty if it can."""
    if os.geteuid() != 0:
        return "making a Debian root needs root"
    missing = [program for program in ("debootstrap", "unshare", "chroot") if not shutil.which(program)]
    return f"{', '.join(missing)} is not installed" if missing else ""


def instructions(text: str) -> list[tuple[str, str]]:
    """Word and arguments of each instruction, lines that end with a backslash joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in found]


@dataclass
class Stage:
    """An image while it is made."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    ran: list[str] = field(default_factory=list)


class Builder:
    """Builds stages of one Dockerfile.

    Args:
        text: Of the Dockerfile.
        context: Folder that COPY copies from.
        scratch: Gets the roots.
        arguments: As `--build-arg`.
    """

    def __init__(self, text: str, context: Path, scratch: Path, arguments: dict[str, str] | None = None) -> None:
        self._instructions = instructions(text)
        self._context, self._scratch, self._given = context, scratch, arguments or {}
        self.stages: dict[str, Stage] = {}

    def build(self, target: str) -> Stage:
        """Builds a stage and those that it needs."""
        if target in self.stages:
            return self.stages[target]
        own, base, outer = self._of(target)
        stage = self._begin(target, base, outer)
        for word, rest in own:
            self._do(stage, word, rest)
        self.stages[target] = stage
        return stage

    def run(self, stage: Stage, command: str, user: str = "0:0", binds: dict[Path, str] | None = None) -> str:
        """Executes a shell command in a stage's root, with /proc and /dev; its output."""
        done = subprocess.run(self.argv(stage, command, user, binds), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def argv(self, stage: Stage, command: str, user: str = "0:0", binds: dict[Path, str] | None = None) -> list[str]:
        """The same as a command line for somebody else to start; the mounts go when it ends."""
        root = shlex.quote(str(stage.root))
        passed = {key: value for key, value in os.environ.items() if _PASSED.fullmatch(key)}
        variables = {**passed, **stage.environment}
        uid, _, gid = user.partition(":")
        mounts = [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")]
        for source, at in (binds or {}).items():
            mounts.append(f"mkdir -p {root}{at} && mount --bind {shlex.quote(str(source))} {root}{at}")
        assignments = " ".join(shlex.quote(f"{key}={value}") for key, value in variables.items())
        inside = shlex.quote(f"cd {stage.folder} && {command}")
        enter = f"exec chroot --userspec={uid}:{gid or uid} {root} /usr/bin/env -i {assignments} /bin/sh -ec {inside}"
        return ["unshare", "--mount", "--propagation=private", "sh", "-ec", "\n".join([*mounts, enter])]

    def _of(self, target: str) -> tuple[list[tuple[str, str]], str, dict[str, str]]:
        """A stage's instructions, what it begins from, and the arguments before any stage."""
        outer: dict[str, str] = {}
        own: list[tuple[str, str]] = []
        base = name = ""
        for word, rest in self._instructions:
            if word == "FROM":
                image, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
                base = image if name == target else base
            elif not name:
                key, _, value = rest.partition("=")
                outer[key] = self._given.get(key, value)
            elif name == target:
                own.append((word, rest))
        assert base, f"no stage {target}"
        return own, base, outer

    def _begin(self, target: str, base: str, outer: dict[str, str]) -> Stage:
        names = [rest.rpartition(" ")[2] for word, rest in self._instructions if word == "FROM"]
        root = self._scratch / target
        if base in names:
            before = self.build(base)
            subprocess.run(["cp", "-a", "--reflink=auto", before.root, root], check=True)
            return Stage(root, dict(before.environment), {}, before.folder, before.user)
        assert re.fullmatch(r"\$\{(\w+)\}", base) and re.fullmatch(
            r"python:3\.11\.\d+-slim-" + RELEASE, outer["PYTHON"]
        )
        subprocess.run(["cp", "-a", "--reflink=auto", self._empty(), root], check=True)
        return Stage(root, {"PATH": _PATH})

    def _empty(self) -> Path:
        root = self._scratch / "debian"
        if not root.exists():
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            for file in _NETWORK:
                if Path(file).exists():
                    shutil.copy(file, root / file.lstrip("/"))
        return root

    def _do(self, stage: Stage, word: str, rest: str) -> None:
        if word == "ARG":
            key, _, value = rest.partition("=")
            stage.arguments[key] = self._given.get(key, value)
        elif word == "ENV":
            for entry in shlex.split(rest):
                key, _, value = entry.partition("=")
                stage.environment[key] = self._filled(stage, value)
        elif word == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "RUN":
            arguments = "".join(f"{key}={shlex.quote(value)}; " for key, value in stage.arguments.items())
            self.run(stage, arguments + rest, stage.user)
            stage.ran.append(rest)
        elif word == "COPY":
            self._copy(stage, rest)
        elif word == "USER":
            stage.user = rest
        else:
            assert word in ("ENTRYPOINT", "CMD"), f"{word} is not known here"

    def _filled(self, stage: Stage, value: str) -> str:
        known = stage.environment | stage.arguments
        return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], value)

    def _copy(self, stage: Stage, rest: str) -> None:
        words = rest.split()
        whence, ignored = self._context, shutil.ignore_patterns("__pycache__", "*.egg-info", "*.key", "*.crt")
        if words[0].startswith("--from="):
            ignored = shutil.ignore_patterns()
            whence = self.build(words.pop(0).removeprefix("--from=")).root
        *sources, target = words
        into = stage.root / (target if target.startswith("/") else f"{stage.folder}/{target}").lstrip("/")
        for source in sources:
            path = whence / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                assert target.endswith("/")
                shutil.copy2(path, into / path.name)
