"""Writes the report of a run: one HTML file that needs nothing else to be read.

    downpour report runs/quickstart
    downpour report quickstart --out=quickstart.html

It says what ran, how loss, scores and speed went, where the time of a step went, how stale pushes were, what died and
what was lost, what each role cost, and whether the checkpoints are whole; of a run that was killed, up to where. It is
`report.html` in the folder of the run, where `downpour train` writes it at the end of every run.

Exit codes: 0, and the path on stdout; 2 there is no such run, or nothing to show of it, or the file cannot be written.
Needs no TensorFlow and no matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from downpour.launch.observe.reports.run import write_report
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.launch.status import folder_of

SYNTAX = Syntax("run out", positional="run")


def main() -> None:
    """Writes the report."""
    define()
    entry.run(_main, role="report", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("run", None, "Folder of a run, or its name below runs/.")
    flags.DEFINE_string("out", None, "File to write; report.html in the folder of the run by default.")


def _main() -> None:
    out = flags.FLAGS["out"].value
    print(write_report(run_folder(flags.FLAGS["run"].value or ""), Path(out) if out else None))


def run_folder(run: str) -> Path:
    """The folder of a run.

    Raises:
        ValueError: There is no such folder.
    """
    if folder := folder_of(run):
        return folder
    known = sorted(str(folder) for folder in Path("runs").glob("*/") if folder.is_dir())
    there = f"; there are {', '.join(known)}" if known else ""
    given = f"{run!r} is no folder" if run else "no run"
    raise ValueError(f"{given}; give the folder of a run, or its name below runs/{there}")


if __name__ == "__main__":
    main()
