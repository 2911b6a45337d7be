"""The table of `docs/registries.md`, out of what a run of the journeys reported.

`python -m tests.registries.table RESULTS` reads pytest's JUnit XML and writes the table.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from tests.support.registries import FRONTS, KINDS, Kind

PAGE = Path(__file__).parents[2] / "docs/registries.md"
NOT_RUN = "not run"
BEGIN, END = "<!-- matrix -->", "<!-- end of the matrix -->"

LIMITS = {"1m": "bodies ≤ 1 MiB", "16m": "bodies ≤ 16 MiB"}
"""Limits of a proxy, as `test_body_limit` names them, and their columns."""

Cells = Mapping[tuple[str, str], str]


def cells(results: Path) -> Cells:
    """(registry, front) → what came out, of each journey that was made."""
    found: dict[tuple[str, str], str] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        named = re.fullmatch(r".*\[(.+) (\S+)\]", case.get("name", ""))
        if not named or not case.get("classname", "").endswith(("test_journey", "test_body_limit")):
            continue
        said = {one.get("name"): one.get("value") for one in case.iter("property")}
        cell = (named[1], named[2])
        if case.find("failure") is not None or case.find("error") is not None:
            found[cell] = "failed"
        elif "hashed" in said and found.get(cell) != "failed":
            found[cell] = f"0 of {said['hashed']} wrong"
        elif "bytes" in said:
            found[cell] = f"{int(said['bytes'] or 0) >> 20} MiB whole"
    return found


def table(found: Cells) -> str:
    """One row for each registry, one column for each front."""
    lines = [
        f"| registry | how it runs | {' | '.join([*FRONTS, *LIMITS.values()])} |",
        "|---" * (len(FRONTS) + len(LIMITS) + 2) + "|",
    ]
    for kind in KINDS:
        row = [_cell(kind, front, found) for front in (*FRONTS, *LIMITS)]
        lines.append(f"| {kind.name} {kind.version} | {kind.how} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(kind: Kind, front: str, found: Cells) -> str:
    if front == "tokens" and kind.with_tokens is None:
        return "–"
    return found.get((kind.name, front), NOT_RUN)


def main() -> None:
    """Print the table, and replace that of the page if every journey was made."""
    new = table(cells(Path(sys.argv[1])))
    print(new)
    if NOT_RUN not in new:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        PAGE.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}")


if __name__ == "__main__":
    main()
