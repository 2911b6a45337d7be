"""`./run faults`: all cases, their table, and every one that went wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from tests.faults.matrix import VERDICTS, Outcome
from tests.faults.shares import KINDS, Share, at_once


def table(found: list[Outcome]) -> str:
    """Cases by registry and command, as a table in Markdown."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for one in found:
        rows.setdefault((one.case.kind, one.case.scene), Counter())[one.verdict] += 1
    lines = ["| Registry | Command | Cases | Survived | Failed cleanly | Misled | Wrong |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for (kind, scene), count in rows.items():
        numbers = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        lines.append(f"| {kind} | {scene} | {count.total()} | {numbers} |")
    whole = Counter(one.verdict for one in found)
    numbers = " | ".join(str(whole[verdict]) for verdict in VERDICTS)
    lines.append(f"| | all | {len(found)} | {numbers} |")
    return "\n".join(lines)


MARKS = ("<!-- ./run faults writes this table -->", "<!-- the end of that table -->")


def put(page: Path, text: str) -> None:
    """Put the table into a page, in place of the former one."""
    before, begin, rest = page.read_text("utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        sys.exit(f"{page} does not have the marks {' and '.join(MARKS)}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run faults", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="registries; default: all")
    parser.add_argument("--scene", action="append", help="commands whose name begins like this")
    parser.add_argument("--fault", default="", help="faults that have this in their name")
    parser.add_argument(
        "--step",
        type=int,
        action="append",
        help="run each STEP-th case only; given twice, the second is for docker-registry",
    )
    parser.add_argument("--kills", type=int, default=0, help="kill each command so often instead")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--page", type=Path, help="put the table between the marks of this page")
    parser.add_argument("--json", type=Path, help="write every outcome there")
    parser.add_argument("--verbose", action="store_true", help="tell of each case")
    chosen = parser.parse_args()
    begun = time.monotonic()
    found: list[Outcome] = []
    kinds = chosen.kind or list(KINDS)
    steps = chosen.step or [1]
    shares = [
        Share(
            kind,
            tuple(chosen.scene or [""]),
            step=step,
            only=chosen.fault,
            kills=chosen.kills,
        )
        for kind, step in zip(kinds, [*steps, steps[-1]], strict=False)
    ]
    for one in (outcome for share in shares for outcome in at_once(share, chosen.jobs)):
        found.append(one)
        if one.wrong or chosen.verbose:
            print(f"{one.verdict}: {one.case} → {one.code} in {one.seconds} s: {one.error}")
            for line in one.wrong:
                print("    " + line.replace("\n", "\n    "))
        if len(found) % 500 == 0:
            print(f"… {len(found)} cases in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if chosen.json:
        chosen.json.write_text(json.dumps([one.document() for one in found], indent=1) + "\n")
    if chosen.page:
        put(chosen.page, table(found))
    print(table(found))
    missed = sum(not one.struck for one in found)
    print(f"\n{missed} faults had nothing to strike. {time.monotonic() - begun:.0f} s.")
    sys.exit(any(one.wrong for one in found))


if __name__ == "__main__":
    main()
