"""README.md, docs/ and the other pages: links, anchors and paths lead to something, or `make docs` fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page.relative_to(ROOT) for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))]
FOLDERS = ("proto", "ps", "worker", "model", "launch", "tests", "docs")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/(?:[\w./*-]*[\w/*])?(?:::\w+)?")


def text_of(page: Path) -> str:
    """A page without what is shown as code."""
    return _FENCE.sub("", (ROOT / page).read_text())


def anchors(page: Path) -> set[str]:
    """Names that GitHub and MkDocs give to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {_slug(re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading)) for heading in headings}


def _slug(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip())


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files or headings of the checkout that do not exist."""
    for target in _LINK.findall(text_of(page)):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (ROOT / page.parent / file).resolve() if file else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.relative_to(ROOT))):
            yield target


def missing_paths(page: Path) -> Iterator[str]:
    """Files and folders of the checkout that a page, or a figure of docs/, names and that do not exist."""
    for named in _PATH.findall((ROOT / page).read_text()):
        path, _, function = named.partition("::")
        found = [file for file in (ROOT.glob(path) if "*" in path else [ROOT / path]) if file.exists()]
        if not found or (function and f"def {function}(" not in found[0].read_text()):
            yield named


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_anchors_lead_to_something(page: Path) -> None:
    assert not list(broken_links(page))


@pytest.mark.parametrize("page", [*PAGES, *sorted(file.relative_to(ROOT) for file in ROOT.glob("docs/*.svg"))], ids=str)
def test_paths_that_are_named_exist(page: Path) -> None:
    assert not list(missing_paths(page))


def test_fifteen_questions_are_answered_by_paths() -> None:
    rows = re.findall(r"^\| (.+\?) \| (.+) \|$", text_of(Path("CONTRIBUTING.md")), re.MULTILINE)
    assert len(rows) >= 15
    assert not [question for question, answer in rows if not _PATH.search(answer)]


def test_the_four_walks_name_their_modules() -> None:
    walks = re.split(r"^## ", text_of(Path("docs/architecture.md")), flags=re.MULTILINE)
    by_title = {walk.partition("\n")[0]: walk for walk in walks}
    for title in ("A gradient's way", "A pull's way", "A record's way", "A job's way"):
        assert len(set(_PATH.findall(by_title[title]))) >= 5, title


def test_pages_are_as_short_as_they_should_be() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "BUILD_NOTES.md").read_text().split()) <= 1500


@pytest.mark.process
@pytest.mark.slow
def test_make_docs_notices_what_leads_nowhere_and_what_has_no_docstring(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    for name in (*FOLDERS, "src", "mkdocs.yml", *(str(page) for page in PAGES if page.parent == Path())):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        options = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")} if (ROOT / name).is_dir() else {}
        copy(ROOT / name, tmp_path / name, **options)
    with (tmp_path / "docs" / "faults.md").open("a") as page:
        page.write("\n[no page](nowhere.md), [no heading](security.md#nowhere), `ps/shard/nowhere.py`\n")
    with (tmp_path / "ps" / "policy" / "pace.py").open("a") as module:
        module.write("\n\ndef undocumented() -> None:\n    pass\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    warned = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for what in (
        "'nowhere.md'",
        "'security.md#nowhere'",
        "downpour.ps.shard.nowhere'",
        "undocumented has no docstring",
    ):
        assert any(what in line for line in warned), (what, done.stderr)
    assert len(warned) == 4, done.stderr
