"""An environment that has what an extra of setup.py brings and nothing else, and what pages of the project show."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import sys
import types
import venv
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def setup_arguments() -> dict[str, Any]:
    """What setup.py tells setuptools, which need not be installed."""
    found: dict[str, Any] = {}
    stand_in = types.ModuleType("setuptools")
    stand_in.__dict__.update(setup=lambda **values: found.update(values), find_namespace_packages=lambda *_, **__: [])
    with mock.patch.dict(sys.modules, {"setuptools": stand_in}):
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def make_environment(folder: Path, extras: Collection[str]) -> Path:
    """Links what pip would install for some extras out of this interpreter's packages; the folder of the programs.

    Downpour itself is not in it: `downpour` there runs what PYTHONPATH names.
    """
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in _closure(extras):
        distribution = importlib.metadata.distribution(name)
        for entry in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if entry != "__pycache__" and not (site / entry).exists():
                (site / entry).symlink_to(Path(str(distribution.locate_file(entry))))
    script = folder / "bin" / "downpour"
    script.write_text(f"#!{folder}/bin/python\nfrom downpour.launch.cli import main\nmain()\n")
    script.chmod(0o755)
    return script.parent


def _closure(extras: Collection[str]) -> set[str]:
    """Names of the distributions that are needed, directly or not."""
    arguments = setup_arguments()
    wanted = [
        *arguments["install_requires"],
        *(line for extra in extras for line in arguments["extras_require"][extra]),
    ]
    waiting, seen, found = [Requirement(line) for line in wanted], set(), set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(requirement.name)
        for line in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                waiting.append(needed)
    return found


def commands_of(page: Path) -> list[str]:
    """The lines of a page's fenced blocks of commands, joined where they are continued, without comments."""
    found = []
    for _, language, block in _FENCE.findall(page.read_text()):
        if not language:
            joined = re.sub(r"\\\n\s*", "", block)
            found += [line.partition(" #")[0].strip() for line in joined.splitlines()]
    return [line for line in found if line]


def files_of(page: Path) -> dict[str, str]:
    """The Python files that a page shows in fenced blocks whose first line is their name, `# NAME.py`."""
    blocks = [block for _, language, block in _FENCE.findall(page.read_text()) if language == "python"]
    return {found[1]: block for block in blocks if (found := re.match(r"# (\w+\.py)\n", block))}
