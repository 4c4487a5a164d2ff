"""Which synset of ImageNet lies in which, from WordNet 3.0's nouns or from a list of pairs.

A synset is named as ImageNet does: `n` and eight digits, its position in `data.noun` (wndb(5WN)), a file of Debian's
package `wordnet-base`, in /usr/share/wordnet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

SYNSET = re.compile(r"n\d{8}")
_HYPERNYMS = ("@", "@i")  # is a kind of; is an instance of


def ancestors(path: Path, synsets: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The parents of synsets and of all their ancestors, and the first word of each, if the file has it.

    Args:
        path: WordNet 3.0's `data.noun`, or a file such as ImageNet's `wordnet.is_a.txt`, a line `PARENT CHILD` each.
        synsets: Where to begin.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is of neither format (says in which line), or it is another version of WordNet.
    """
    if path.name == "data.noun":
        with open(path, "rb") as file:
            return _climb(file, path, synsets)
    return _reached(_pairs(path), synsets), {}


def _climb(file: BinaryIO, path: Path, synsets: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    parents: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    waiting = list(dict.fromkeys(synsets))
    for synset in waiting:  # which grows
        if synset in parents:
            continue
        file.seek(int(synset[1:]))
        fields = file.readline().partition(b" | ")[0].decode(errors="replace").split()
        try:
            if fields[0] != synset[1:] or fields[2] != "n":
                raise ValueError
            num_words = int(fields[3], 16)
            pointers = fields[5 + 2 * num_words :]
            parents[synset] = [
                f"n{pointers[at + 1]}" for at in range(0, len(pointers), 4) if pointers[at] in _HYPERNYMS
            ]
        except (IndexError, ValueError):
            raise ValueError(f"{path}: no synset at byte {synset[1:]}, where {synset} is in WordNet 3.0") from None
        words[synset] = fields[4].replace("_", " ")
        waiting += parents[synset]
    return parents, words


def _pairs(path: Path) -> dict[str, list[str]]:
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 2 or not all(SYNSET.fullmatch(field) for field in fields):
            raise ValueError(f"{path}, line {number}: {line[:80]!r}; give a parent and a child: n00001740 n00001930")
        parents.setdefault(fields[1], []).append(fields[0])
    return parents


def _reached(parents: dict[str, list[str]], synsets: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    waiting = list(synsets)
    for synset in waiting:  # which grows
        if synset not in found:
            found[synset] = parents.get(synset, [])
            waiting += found[synset]
    return found
