"""A container's begin: namespaces of its own, a root file system, no rights; then process 1 becomes the command.

    ip netns exec POD python runtime.py SPECIFICATION.json

Ends as its process 1 does, with 128 + N after signal N. If this process is killed, process 1 is, too. Nothing but the
standard library, as it runs before the image is there.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path

_READ_ONLY, _NO_SUID, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_IPC, _NEW_PROCESSES = 0x20000, 0x4000000, 0x8000000, 0x20000000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES = 64  # more than there are
_CANNOT_START = 128
_DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Never returns."""
    told = json.loads(Path(sys.argv[1]).read_text())
    if _libc.unshare(_NEW_MOUNTS | _NEW_HOSTNAME | _NEW_IPC | _NEW_PROCESSES):
        raise OSError(ctypes.get_errno(), "no namespaces")
    first = os.fork()
    if first == 0:
        _become(told)
    _, status = os.waitpid(first, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def _become(told: dict) -> None:
    socket.sethostname(told["hostname"])
    root = Path(told["root"])
    _make_root(root, told)
    os.chroot(root)
    os.chdir("/")
    os.umask(0o022)
    for capability in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(told["groups"])
    os.setgid(told["group"])
    os.setuid(told["user"])  # every capability goes with it
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # which forgot that
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(told["command"][0], told["command"], told["environment"])
    except OSError as error:
        print(f"cannot start {told['command'][0]}: {error}", file=sys.stderr, flush=True)
        os._exit(_CANNOT_START)


def _make_root(root: Path, told: dict) -> None:
    _mount("none", Path("/"), flags=_PRIVATE | _RECURSIVE)
    _mount("tmpfs", root, "tmpfs", data="mode=755")
    for path, target in told["links"].items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for path, text in told["files"].items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for source, place, read_only in told["mounts"]:
        _bind(source, _place(root, place), read_only=read_only)
    # After the volumes: a checkout in /tmp lies in one of them.
    for path in told["image"]:
        _bind(path, _place(root, path), read_only=True)
    for source, place in told["built"].items():
        _bind(source, _place(root, place), read_only=True)
    _mount("proc", _place(root, "/proc"), "proc")
    _bind("/sys", _place(root, "/sys"), read_only=True)
    _mount("tmpfs", _place(root, "/dev"), "tmpfs", data="mode=755")
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", root / "dev" / name, flags=_BIND)
    source, path = told["termination"]
    place = root / path.lstrip("/")
    place.touch()
    _mount(source, place, flags=_BIND)
    _mount("tmpfs", _place(root, "/dev/shm"), "tmpfs", data="mode=1777,size=64m")
    if told["read_only"]:
        _mount("tmpfs", root, flags=_REMOUNT | _READ_ONLY, data="mode=755")


def _place(root: Path, path: str) -> Path:
    place = root / path.lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _bind(source: str, place: Path, *, read_only: bool) -> None:
    _mount(source, place, flags=_BIND)
    if read_only:
        _mount("none", place, flags=_BIND | _REMOUNT | _READ_ONLY | _NO_SUID)


def _mount(source: str, place: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = (source.encode(), os.fsencode(place), kind.encode() or None, flags, data.encode() or None)
    if _libc.mount(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot mount {source}: {os.strerror(error)}", str(place))


if __name__ == "__main__":
    main()
