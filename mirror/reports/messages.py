"""What messages look like, in colours or as JSON, and results: pages, tables, lines that fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from mirror.errors import paragraph, printable


class Messages:
    """How messages look: as JSON or text, and whether text may have colours."""

    as_json = False
    coloured = True


_COLOURS = {"error": "\x1b[1;31m", "warning": "\x1b[33m"}
_NO_COLOUR = "\x1b[0m"


def message(text: str, level: str = "info", stream: TextIO | None = None) -> str:
    """`text` as a message of this level (info, warning, error), coloured where `stream` shows it.

    With `Messages.as_json` it is one line of JSON.
    """
    if Messages.as_json:
        return json_line({"level": level, "message": text})
    if level not in _COLOURS:
        return text
    if stream is None or not _shows_colours(stream):
        return f"{level}: {text}"
    return f"{_COLOURS[level]}{level}:{_NO_COLOUR} {text}"


def json_line(values: Mapping[str, Any]) -> str:
    """`values` and the time as one line of JSON, in letters that every stream takes."""
    import json
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, **values}, default=str)


def _shows_colours(stream: TextIO) -> bool:
    """Whether a person sees colours there, and has not asked for none (no-color.org)."""
    wanted = Messages.coloured and not os.environ.get("NO_COLOR")
    return wanted and os.environ.get("TERM") != "dumb" and stream.isatty()


# -- results -------------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """A span of time as a person reads it: `3m12s`, and tenths below a minute."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m{rest:02}s" if hours else f"{minutes}m{rest:02}s"


def page(
    title: str, rows: Sequence[tuple[str, str]], *sections: Sequence[str], foot: Sequence[str]
) -> str:
    """A title and a table, then sections and a foot, with an empty line before each."""
    lines = [title, *table(rows)]
    for section in (*sections, [f"  {line}" for line in foot]):
        lines += ["", *section] if section else []
    return lines_of(lines)


def lines_of(lines: Iterable[str]) -> str:
    """The text of these lines: what is in a line makes no line of its own."""
    return "\n".join(map(printable, lines))


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows of a title and a text, the texts aligned; those without a text are left out."""
    shown = [(printable(title), text) for title, text in rows if text]
    width = max((len(title) for title, _ in shown), default=0)
    gap = " " * (width + 4)
    return [
        line
        for title, text in shown
        for line in paragraph(f"  {title:<{width}}  {text}", gap).split("\n")
    ]


def few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


_WIDTH, _LEAST = 80, 24
"""Columns of a table, and of its last column at least."""


def columns(titles: Sequence[str], rows: Iterable[Sequence[str | int]]) -> Iterator[str]:
    """Columns under their titles. Those of numbers, which have a title with `#` at its end, are
    aligned on the right, and sizes are in bytes; a last column of words is wrapped."""
    import textwrap

    from mirror.bundle.format import size_text  # the program starts without it

    def shown(title: str, cell: str | int) -> str:
        if isinstance(cell, str):
            return printable(cell)
        return size_text(cell) if title == "Size#" else str(cell)

    right = {column for column, title in enumerate(titles) if title.endswith("#")}
    plain = [title.removesuffix("#") for title in titles]
    lines = [plain, *([shown(*one) for one in zip(titles, row, strict=True)] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    before = sum(widths[:-1]) + 2 * len(widths)
    for *cells, last in lines:
        others: list[str] = []
        if len(cells) not in right:
            room = max(_WIDTH - before, _LEAST)
            last, *others = textwrap.wrap(last, room, break_on_hyphens=False) or [""]
        aligned = (
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip((*cells, last), widths, strict=True))
        )
        yield ("  " + "  ".join(aligned)).rstrip()
        yield from (" " * before + other for other in others)


_DIGEST = re.compile(r"(?<![0-9a-f/])([0-9a-f]{12})(?:[0-9a-f]{116}|[0-9a-f]{52})(?![0-9a-f])")
_TITLE = re.compile(r"( *)(\S.{,24}?  +)?")
_NARROW = 40


def fitted(text: str, columns: int | None) -> str:
    """`text` with digests of 12 digits, and lines that go on below where they are too long.

    None is any width: no line is broken. A path keeps what looks like a digest in it.
    """
    lines = _DIGEST.sub(r"\1", text).split("\n")
    if columns is None:
        return "\n".join(lines)
    import textwrap

    width = max(columns, _NARROW)
    broken: list[str] = []
    for line in lines:
        title = _TITLE.match(line)
        assert title is not None  # it matches everything
        behind = title.end() if title[2] and title.end() < width / 2 else title.end(1) + 4
        broken += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * behind,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(broken)
