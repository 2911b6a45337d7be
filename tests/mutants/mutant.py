"""The list of mutants: which line becomes what, and which tests must fail then."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.toml")


@dataclass(frozen=True)
class Mutant:
    """One line of `file`, without its indentation, that becomes another.

    It is the first such line behind the first one that begins with `after`; without `after` it is
    the only one in the file. `tests` are what pytest is called with.
    """

    file: str
    line: str
    becomes: str
    tests: tuple[str, ...]
    after: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.line} → {self.becomes}"

    def applied(self, text: str) -> str:
        """The file's text with the line changed.

        Raises:
            ValueError: the line is not there, or not unambiguous.
        """
        lines = text.split("\n")
        begin = 0
        if self.after:
            starts = [n for n, one in enumerate(lines) if one.strip().startswith(self.after)]
            if not starts:
                raise ValueError(f"{self.file} has no line that begins with {self.after!r}")
            begin = starts[0] + 1
        found = [n for n in range(begin, len(lines)) if lines[n].strip() == self.line]
        if not found or (len(found) > 1 and not self.after):
            raise ValueError(f"{self.file} has {len(found)} lines {self.line!r}")
        number = found[0]
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        lines[number] = indent + self.becomes
        return "\n".join(lines)


@cache
def mutants() -> tuple[Mutant, ...]:
    """All of them, in the order of the list."""
    document = tomllib.loads(LIST.read_text("utf-8"))
    return tuple(
        Mutant(
            room["file"],
            one["line"],
            one["becomes"],
            tuple(one.get("tests", room["tests"]).split()),
            one.get("after", ""),
        )
        for room in document["room"]
        for one in room["mutants"]
    )
