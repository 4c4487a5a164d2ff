"""Lays runs side by side: the fields of the job and versions that differ, scores, loss, speed, staleness, faults.

    downpour compare runs/yesterday runs/today
    downpour compare runs/seed-* runs/other --html=comparison.html

Runs of one job that differ in nothing but the seed share a column, with mean and range. `--html` also writes a page
with the curves over each other, one file that needs nothing else to be read.

Exit codes: 0; 2 there is no such run, or nothing to show of one, or the file cannot be written.
Needs no TensorFlow and no matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from downpour.launch.observe.reports import comparison, comparison_page
from downpour.launch.observe.reports.recorded import read
from downpour.launch.observe.reports.run import write_page
from downpour.launch.report import run_folder
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax("run html", positional="run", repeats=True)


def main() -> None:
    """Prints the comparison."""
    define()
    entry.run(_main, role="compare", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_multi_string("run", None, "Folder of a run, or its name below runs/; two or more.")
    flags.DEFINE_string("html", None, "Page to write, with the curves.")


def _main() -> None:
    folders = [run_folder(run) for run in flags.FLAGS["run"].value or ()]
    found = comparison.compare(tuple(read(folder) for folder in comparison.different(folders)))
    print(comparison.text(found))
    if out := flags.FLAGS["html"].value:
        print(f"\n{write_page(comparison_page.page(found), Path(out))}")


if __name__ == "__main__":
    main()
