"""YAML with comments reads back as the same document."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downpour.launch.kubernetes.text import plain, render

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
SCALARS = st.none() | st.booleans() | st.integers() | TEXT
KEYS = TEXT.filter(lambda text: not text.startswith("#"))


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(KEYS, children | st.lists(SCALARS | st.dictionaries(KEYS, children, max_size=3), max_size=3))


DOCUMENTS = st.dictionaries(KEYS, st.recursive(SCALARS, containers, max_leaves=12), min_size=1)


@settings(max_examples=25)
@example({".0": None})
@given(DOCUMENTS)
def test_what_is_written_is_read(document: dict[str, Any]) -> None:
    assert yaml.safe_load(render([document], "a head")) == document


@pytest.mark.parametrize(
    "text",
    ["no", "on", "1", "1.5", "0x10", "1e3", "null", "~", "", " a", "a ", "- a", "a: b", "a #b", "2020-01-01", "1:30",
     "=", ".5", "-.5", ".5e+3", "-.inf", ".5/a", "100m", "32Mi", "a\n", "a\n\n", "\na", " a\nb", "a\tb\n", "a\n \n",
     "\u2028", "---", "...", "a:"],
)  # fmt: skip
def test_strings_stay_strings(text: str) -> None:
    assert yaml.safe_load(render([{"key": text, "list": [text, {"in": text}]}])) == {
        "key": text,
        "list": [text, {"in": text}],
    }


def test_comments_stand_above_what_they_are_about() -> None:
    document = {"#a": "why a", "a": [{"#b": "why\nb", "b": 1, "c": "2"}], "d": {}, "e": "x: y"}
    assert render([document], "head\n\nsecond\n    kubectl apply") == (
        '# head\n# second\n#     kubectl apply\n# why a\na:\n# why b\n- b: 1\n  c: "2"\nd: {}\ne: "x: y"\n'
    )
    assert plain(document) == {"a": [{"b": 1, "c": "2"}], "d": {}, "e": "x: y"}


def test_a_recipe_is_a_block() -> None:
    assert render([{"data": {"r.py": '"""Doc."""\n\nx = 1\n'}}]) == 'data:\n  r.py: |\n    """Doc."""\n\n    x = 1\n'
