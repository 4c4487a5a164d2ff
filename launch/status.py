"""Shows what a run does, or how it ended: step, speed, loss, scores, workers, shards, checkpoint, faults, findings.

    downpour status runs/quickstart
    downpour status 127.0.0.1:2223 --json

It is asked of the chief, whose address is in the folder of a run that goes on, or given as host:port; a shard's address
shows that shard. A run that does not go on is described by its summary, journal and history. Findings are what is worth
knowing: a slow worker and in which phase, a hot shard, growing staleness, an old checkpoint, what has died or was lost.

Exit codes: 0 the run goes on or is done; 3 it failed, or was stopped before its end; 2 there is no such run; 69 nobody
answers. Needs no TensorFlow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.observe import status, status_text
from downpour.launch.observe.findings import findings
from downpour.launch.roles import entry, role_flags
from downpour.launch.roles.command_line import Syntax
from downpour.proto.security.config import Security

SYNTAX = Syntax("run json tls token_file", positional="run")
NOT_GOING_ON = 3  # as that of `systemctl status`
_ADDRESS = re.compile(r"(\[[^]/]+\]|[^:/\s]+):(\d{1,5})")
_RUNS = Path("runs")


def main() -> None:
    """Shows the status."""
    define()
    entry.run(_main, role="status", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("run", None, "Folder of a run, its name below runs/, or host:port of its chief or of a shard.")
    flags.DEFINE_boolean("json", False, "Print one JSON object, with everything that is known.")
    role_flags.define_credentials()


def _main() -> int:
    run = flags.FLAGS["run"].value or ""
    found, folder = look(run, role_flags.access("").security), folder_of(run)
    if saved := found.get("checkpoint"):
        found["checkpoint"] = saved | {"whole": status.is_whole(saved["directory"])}
    history = status.history(folder) if folder else []
    if flags.FLAGS["json"].value:
        found["findings"] = [vars(finding) for finding in findings(found, history)]
        print(json.dumps(found, indent=2), flush=True)
    else:
        print(status_text.text(found, history), flush=True)
    return exit_code(found)


def look(run: str, security: Security) -> dict[str, Any]:
    """Describes a run or shard.

    Args:
        run: Folder, name of a folder below `runs/`, or `host:port`.
        security: Credentials of this process.

    Raises:
        ValueError: There is no such run.
        Unreachable: Nobody answers at that address.
    """
    if folder := folder_of(run):
        return status.of_folder(folder, security)
    if _is_address(run):
        return status.of_address(run, security)
    given = f"{run!r} is no folder and no host:port" if run else "no run"
    known = sorted(str(folder) for folder in _RUNS.glob("*/") if folder.is_dir())
    there = f"; there are {', '.join(known)}" if known else ""
    raise ValueError(f"{given}; give the folder of a run, or host:port of its chief or of a shard{there}")


def folder_of(run: str) -> Path | None:
    """The folder that is meant, itself or below `runs/`; None if there is none."""
    return next((folder for folder in (Path(run), _RUNS / run) if folder.is_dir()), None) if run else None


def _is_address(run: str) -> bool:
    """Whether it is `host:port`."""
    address = _ADDRESS.fullmatch(run)
    return address is not None and 0 < int(address[2]) < 65536


def exit_code(found: Mapping[str, Any]) -> int:
    """Exit code for a status."""
    if found.get("problem"):
        return entry.UNREACHABLE
    return NOT_GOING_ON if found["state"] in ("failed", "stopped") else entry.OK


if __name__ == "__main__":
    main()
