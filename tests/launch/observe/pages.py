"""Reads a page as a browser does; refuses what is not well-formed or comes from elsewhere."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

_VOID = {"meta", "wbr", "br"}
_SELF_CLOSED = {"path", "rect", "circle", "line", "polyline"}


class Page(HTMLParser):
    """A parsed page.

    Args:
        text: Its HTML.

    Attributes:
        headings: Level and text of the headings, in order.
        rows: Texts of the cells of every row of every table.
        labels: What the charts are labelled with.
        texts: All text, outside of styles.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[tuple[int, str]] = []
        self.rows: list[list[str]] = []
        self.labels: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        assert "url(" not in text and "@import" not in text and "<script" not in text
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        assert len(set(self.ids)) == len(self.ids) and {link.removeprefix("#") for link in self.links} <= set(self.ids)
        levels = [level for level, _ in self.headings]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), self.headings

    @property
    def text(self) -> str:
        """All text, with single blanks."""
        return " ".join(" ".join(self.texts).split())

    def row(self, name: str) -> list[str]:
        """The cells after the first of the row that begins with it."""
        return next(row[1:] for row in self.rows if row and row[0] == name)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        given = dict(attrs)
        assert not given.keys() & {"src", "srcset", "data", "action", "onclick", "xlink:href"}, (tag, attrs)
        assert tag not in ("link", "script", "iframe", "img", "object", "embed")
        if "href" in given:
            self.links.append(str(given["href"]))
            assert self.links[-1].startswith("#"), "a link to elsewhere"
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "svg" and given.get("role") == "img":
            self.labels.append(str(given["aria-label"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        assert tag in _SELF_CLOSED, tag
        assert all("nan" not in str(value) and "inf" not in str(value) for _, value in attrs), attrs

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if "style" in self._open:
            return
        self.texts.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self._open and re.fullmatch(r"h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
