"""What the importers of published sets share: tables whose errors name file and line, and names that are unique."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def rows(path: Path, columns: Sequence[str], *, header: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number, from 1, and the values of `columns` of each row of a CSV file in UTF-8.

    Args:
        path: The file.
        columns: Names of the columns wanted, which the first row names in any order, among others.
        header: Whether the first row must name the columns. False: without it the file has just `columns`.

    Raises:
        OSError: The file cannot be read.
        ValueError: A column is missing, a row is longer or shorter than the first, quotes are not closed, or the text
            is not UTF-8; says in which line.
    """
    line = 1
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        places, width = list(range(len(columns))), len(columns)
        try:
            for row in reader:
                if line == 1 and (header or row == list(columns)):
                    places, width = _places(path, row, columns), len(row)
                elif row:
                    if len(row) != width:
                        raise ValueError(f"{path}, line {line}: {len(row)} fields instead of {width}")
                    yield line, [row[place] for place in places]
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {error}; is a quote stray or not closed?") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text in UTF-8, after line {reader.line_num}: {error.reason}") from error
    if header and line == 1:
        _places(path, [], columns)


def unique_names(names: Mapping[str, str]) -> list[str]:
    """Names by their identifier, in order; one that occurs twice gets its identifier: "crane (n02012849)"."""
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} ({identifier})" for identifier, name in names.items()]


def _places(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    for name in columns:
        if name not in header:
            found = ", ".join(header) or "none"
            raise ValueError(
                f"{path}, line 1: column {name} is missing; it has {found}, and needs {', '.join(columns)}"
            )
    return [header.index(name) for name in columns]
