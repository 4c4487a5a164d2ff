"""Shows what a run does, all the time: loss, scores, speed, staleness, workers, shards, findings, events.

    downpour top runs/quickstart
    downpour top 127.0.0.1:2223 --once

It fills the terminal; q or Ctrl-C ends it, and the run goes on. Where there is no terminal, or TERM is dumb, it prints
a line every few seconds, and one each event and finding. It ends when the run ends, and waits a minute for a chief that
is started again.

Exit codes: 0 the run is done, or you have ended the view; 3 the run failed, or was stopped before its end; 2 there is
no such run; 69 nobody answers. Needs no TensorFlow.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from downpour import how_to_install
from downpour.launch import status as command
from downpour.launch.observe import status, status_text
from downpour.launch.roles import entry, role_flags
from downpour.launch.roles.command_line import Syntax
from downpour.proto.security.config import Security

SYNTAX = Syntax("run once tls token_file", positional="run")


def main() -> None:
    """Shows the run."""
    define()
    entry.run(_main, role="top", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("run", None, "Folder of a run, its name below runs/, or host:port of its chief.")
    flags.DEFINE_boolean("once", False, "Print one frame and end.")
    role_flags.define_credentials()


def _main() -> int:
    try:
        import rich  # noqa: F401
    except ImportError:
        raise ValueError(f"top needs rich, which is not installed: {how_to_install('worker')}") from None
    return show(flags.FLAGS["run"].value or "", role_flags.access("").security, once=bool(flags.FLAGS["once"].value))


def show(run: str, security: Security, *, once: bool) -> int:
    """Shows a run until it ends; returns the exit code.

    Args:
        run: Folder, name of a folder below `runs/`, or `host:port` of its chief.
        security: Credentials of this process.
        once: Whether to print one frame only.

    Raises:
        ValueError: There is no such run, or it is the address of a shard.
        Unreachable: Nobody answers at that address.
    """
    from downpour.launch.observe.terminal import watching
    from downpour.launch.observe.terminal.trail import Trail

    look = looks_at(run, security)
    found, folder = look(), command.folder_of(run)
    if "version" in found and "workers" not in found:
        raise ValueError(f"{run} is a shard; give its chief's address, or see downpour status {run}")
    trail = Trail(status.history(folder) if folder else [])
    trail.add(found)
    if once:
        watching.print_frame(trail, sys.stdout)
        return command.exit_code(found)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(entry.TERMINATED))  # so that the terminal is restored
    last = watching.follow(trail, look)
    if last is None:
        return entry.OK
    print(status_text.text(last, status.history(folder) if folder else []))
    return command.exit_code(last)


def looks_at(run: str, security: Security) -> Callable[[], Mapping[str, Any]]:
    """Returns what gives the run's status, with whether its checkpoint is whole; each checkpoint is examined once."""
    whole: dict[str, bool | None] = {}

    def look() -> Mapping[str, Any]:
        found = command.look(run, security)
        if saved := found.get("checkpoint"):
            directory = saved["directory"]
            if directory not in whole:
                whole[directory] = status.is_whole(directory)
            found["checkpoint"] = saved | {"whole": whole[directory]}
        return found

    return look


if __name__ == "__main__":
    main()
