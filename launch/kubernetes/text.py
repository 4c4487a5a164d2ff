"""Renders documents as readable YAML with comments. Pure.

A document is made of dicts, lists, strings, numbers, booleans and None. In a dict a key that begins with "#" is a
comment: it is written above the key that follows it, or above the list entry that begins with it. Comments are wrapped;
an empty line begins a paragraph, and an indented line is kept as it is.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_WIDTH = 116

# Strings that need no quotes in YAML 1.1 and 1.2: no numbers, no booleans, no indicators.
_PLAIN = re.compile(r"(--?)?[A-Za-z/.$]([A-Za-z0-9_./,:=@$()+-]*[A-Za-z0-9_./)-])?|[0-9]+(m|Ki|Mi|Gi|Ti)")
_NOT_TEXT = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|~|-?\.(inf|nan|[0-9_].*))")
_UNPRINTABLE = re.compile("[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def plain(value: Any) -> Any:
    """Returns the document without comments."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items() if not key.startswith("#")}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def render(documents: Sequence[Mapping[str, Any]], head: str = "") -> str:
    """Renders documents as the text of one file, with a comment at its head."""
    parts = ["\n".join(_dict(document, "")) + "\n" for document in documents]
    return "".join(f"{line}\n" for line in _comment(head, "")) + "---\n".join(parts)


def _lines(value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        return list(_dict(value, indent))
    return list(_list(value, indent))


def _dict(document: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in document.items():
        if key.startswith("#"):
            yield from _comment(value, indent)
        elif isinstance(value, Mapping | list | tuple) and plain(value):
            yield f"{indent}{_scalar(key)}:"
            yield from _lines(value, indent if isinstance(value, list | tuple) else indent + "  ")
        elif isinstance(value, str) and "\n" in value and not _UNPRINTABLE.search(value):
            yield from _block(_scalar(key), value, indent)
        else:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}"


def _list(entries: Sequence[Any], indent: str) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, Mapping) and plain(entry):
            rest = dict(entry)
            while next(iter(rest)).startswith("#"):
                yield from _comment(rest.pop(next(iter(rest))), indent)
            first, *others = _dict(rest, indent + "  ")
            yield f"{indent}- {first.strip()}"
            yield from others
        else:
            assert not isinstance(entry, list | tuple), "a list in a list"
            yield f"{indent}- {_scalar(entry)}"


def _comment(text: str, indent: str) -> Iterator[str]:
    width = _WIDTH - len(indent)
    for paragraph in text.split("\n\n"):
        for own, words in _own_lines(paragraph):
            lines = [words] if own else textwrap.wrap(words, width, break_on_hyphens=False, break_long_words=False)
            yield from (f"{indent}# {line}" for line in lines)


def _own_lines(paragraph: str) -> Iterator[tuple[bool, str]]:
    """Yields indented lines one by one (True), the others joined (False)."""
    for indented, lines in itertools.groupby(paragraph.splitlines(), key=lambda line: line.startswith(" ")):
        if indented:
            yield from ((True, line) for line in lines)
        else:
            yield False, " ".join(lines)


def _block(key: str, text: str, indent: str) -> Iterator[str]:
    """A literal block, whose indicator gives the number of final line breaks."""
    kept = "" if re.search(r"[^\n]\n\Z", text) else "+" if text.endswith("\n") else "-"
    indentation = "2" if text[0] in " \n" else ""  # else the first line sets the block's indentation
    yield f"{indent}{key}: |{indentation}{kept}"
    for line in text.removesuffix("\n").split("\n"):
        yield f"{indent}  {line}" if line else ""


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return value
    # JSON is YAML, except for pairs of escapes for one character.
    return _UNPRINTABLE.sub(lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))
