"""What `--help` shows of every command."""

from __future__ import annotations

import importlib
import re

import pytest

from downpour.launch import cli
from downpour.launch.roles import command_line


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_fits_a_screen_and_has_an_example(name: str, columns: int) -> None:
    module = importlib.import_module(cli.COMMANDS[name][0])
    defined = command_line.flags_of(module.define)
    text = command_line.screen(module.__doc__ or "", module.SYNTAX, defined, columns)
    lines = text.splitlines()
    assert len(lines) <= 40, text
    assert max(map(len, lines)) <= columns, max(lines, key=len)
    example = next(line for line in lines if line.startswith("    "))
    spellings = {name, "train" if name == "local" else name}
    assert any(spelling in text[: text.index(example)] + example for spelling in spellings)
    for flag in module.SYNTAX.shown.split():
        assert re.search(rf"^  \[?--(\[no\])?{flag}\b", text, re.MULTILINE), flag
    assert not re.search(r"--(alsologtostderr|verbosity|die_with_parent)", text)


def test_usage_fits_a_screen() -> None:
    lines = cli.usage().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
