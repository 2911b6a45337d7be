"""`./run fuzz`: every target for as long as it is told, in all processors, and what was found."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.engine import Report, fuzz
from tests.fuzz.targets import TARGETS


def work(job: tuple[str, int, float, int | None]) -> tuple[str, Report]:
    """One target in one process."""
    name, seed, seconds, executions = job
    until = time.monotonic() + seconds
    kept = corpus.read(name)
    report = fuzz(name, TARGETS[name], seed, until=until, executions=executions, corpus=kept)
    return name, report


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--executions", type=int, help="at most so many of each target and process")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="for the same run again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--keep", action="store_true", help="add what is new to the kept corpus")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where findings go")
    chosen = parser.parse_args()
    names = chosen.target or list(TARGETS)
    seconds = chosen.minutes * 60 / len(names)
    print(f"seed {chosen.seed}, {len(names)} targets, {chosen.jobs} processes")
    jobs = [
        (name, chosen.seed + number, seconds, chosen.executions)
        for name in names
        for number in range(chosen.jobs)
    ]
    reports: dict[str, list[Report]] = {name: [] for name in names}
    with multiprocessing.get_context("fork").Pool(chosen.jobs) as pool:
        for name, report in pool.imap_unordered(work, jobs):
            reports[name].append(report)
            if len(reports[name]) == chosen.jobs:
                _tell(name, reports[name])
                if chosen.keep:
                    corpus.keep(name, [data for one in reports[name] for data in one.corpus])
    findings = [finding for found in reports.values() for one in found for finding in one.findings]
    for number, finding in enumerate(findings):
        chosen.found.mkdir(exist_ok=True)
        path = chosen.found / f"{finding.target.replace(' ', '-')}-{number}"
        path.write_bytes(finding.data)
        print(f"\n{finding.target}: {path}: {finding.data!r:.300}\n{finding.what}")
    total = sum(one.executions for found in reports.values() for one in found)
    print(f"\n{total:,} executions of {len(names)} targets, {len(findings)} findings")
    sys.exit(bool(findings))


def _tell(name: str, reports: list[Report]) -> None:
    count = sum(one.executions for one in reports)
    rate = count / max(1e-9, sum(one.seconds for one in reports))
    found = sum(len(one.findings) for one in reports)
    told = f"{name:20} {count:>11,} executions, {rate:>8,.0f} a second and processor"
    print(told + (f", {found} FINDINGS" if found else ""), flush=True)


if __name__ == "__main__":
    main()
