"""`python -m tests.structure --check`, a part of `make lint`, reports each kind of fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import structure

CIRCLE = '''"""Module."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downpour.{folder} import {other}
'''
BARE = '''"""Module."""


class Bare:
    """Class."""

    def method(self) -> None:
        def inner() -> None:
            pass

    def _private(self) -> None:
        pass
'''
FAULTY = {
    "proto/one.py": CIRCLE.format(folder="proto", other="two"),
    "proto/two.py": CIRCLE.format(folder="proto", other="one"),
    "ps/long.py": '"""Module."""\n' + "X = 1\n" * 400,
    "worker/large.py": '"""Module."""\n\n\nclass Large:\n    """Class."""\n' + "\n    x = 1" * 200 + "\n",
    "model/bare.py": BARE,
    "launch/made_pb2.py": "X = 1\n" * 500,
}
WORDS = [
    "ps/long.py has 401 lines, at most 400",
    "downpour.worker.large.Large has 203 lines, at most 200",
    "these import each other: downpour.proto.one, downpour.proto.two",
    "downpour.model.bare.Bare.method has no docstring",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one fault of each kind."""
    for name, text in FAULTY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_kind_of_fault_is_reported(checkout: Path) -> None:
    assert structure.structure(checkout).faults() == WORDS


def test_a_check_fails_for_faults_and_for_a_table_that_is_not_current(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = checkout / "architecture.md"
    page.write_text(f"{structure.BEGIN}\n{structure.END}\n")
    monkeypatch.setattr(structure, "PAGE", page)
    found = structure.structure(checkout)
    monkeypatch.setattr(structure, "structure", lambda: found)
    monkeypatch.setattr("sys.argv", ["structure", "--check"])
    with pytest.raises(SystemExit, match="1"):
        structure.main()
    assert capsys.readouterr().err.splitlines() == [
        *WORDS,
        "docs/architecture.md is not current; run python -m tests.structure",
    ]
    monkeypatch.setattr("sys.argv", ["structure"])
    structure.main()
    monkeypatch.setattr("sys.argv", ["structure", "--check"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        structure.main()
    assert capsys.readouterr().err.splitlines() == WORDS
