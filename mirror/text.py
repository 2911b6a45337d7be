"""Text of others made fit for people: on a terminal, in a log, on a page.

Names and answers come from registries, bundles and settings of others. What is not printable in
them could move a terminal's cursor, turn the direction of a line, or forge a line of our own. Every
place that renders text for people cleans it here. JSON keeps the true values, escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NOT_ASCII_PRINTABLE = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """`text` on one line; characters that do not print are written as Python's escapes (`\\x1b`).

    Those are control and format characters, separators other than the space, halves of surrogate
    pairs (bytes of a path that are no text), and what Unicode has not assigned.
    """
    return text if text.isprintable() else _NOT_ASCII_PRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else ascii(found[0])[1:-1]


def paragraph(text: str, indent: str = "  ") -> str:
    """The message `text`, whose further lines are indented, so that none looks like a new message.

    Each line is `printable`; one that begins with `indent` already stays as it is.
    """
    first, *others = text.split("\n")
    further = (line if line.startswith(indent) else indent + line for line in others)
    return "\n".join(map(printable, (first, *further)))


def lines_of(lines: Iterable[str]) -> str:
    """The text of these lines, each `printable`: what is in a line makes no line of its own."""
    return "\n".join(map(printable, lines))


def json_escaped(text: str) -> str:
    """JSON with the same meaning, in which every character but the end of a line is printable."""
    return _NOT_ASCII_PRINTABLE.sub(_escaped_in_json, text)


def _escaped_in_json(found: re.Match[str]) -> str:
    if found[0] == "\n" or found[0].isprintable():
        return found[0]
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
