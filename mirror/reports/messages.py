"""What messages look like, in colours or as JSON, and results, as wide as a screen."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TextIO


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
