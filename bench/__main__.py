"""`./run bench`: measure, print tables, and write them as text, JSON and HTML."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from bench import machine, report
from bench.growth import growth
from bench.peers import CACHE, PEERS, Mirror, Peer
from bench.scenarios import LINES, OPERATIONS, SHAPES, Measurement, measure, say, scenario

_NAMES = [f"{shape}-{line}" if line else shape for line in LINES for shape in SHAPES]
_SLOW_LINE = (
    "ip link set lo up && "
    "tc qdisc add dev lo root netem delay 20ms rate 200mbit limit 100000 && exec"
)


@click.command()
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(_NAMES),
    help="What to carry, and over which line. Repeatable; by default all.",
)
@click.option(
    "--operation",
    "operations",
    multiple=True,
    type=click.Choice(list(OPERATIONS)),
    help="What to do with it. Repeatable; by default everything.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice([*PEERS, "none"]),
    help="Tools to compare with. Repeatable; by default all.",
)
@click.option("--pairs", default=3, show_default=True, help="Rounds of all tools in turn.")
@click.option("--quick", is_flag=True, help="Tiny inputs: shows that it works, measures nothing.")
@click.option("--only", "only_scenarios", is_flag=True, help="Leave limits, start-up, growth out.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=CACHE / "work",
    show_default=True,
    help="For scratch: up to 8 GiB.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=CACHE / "results",
    show_default=True,
    help="Where results are written to: bench.md, bench.json, bench.html.",
)
def main(
    names: tuple[str, ...],
    operations: tuple[str, ...],
    peers: tuple[str, ...],
    pairs: int,
    quick: bool,
    only_scenarios: bool,
    folder: Path,
    output: Path,
) -> None:
    """Measure `mirror` and its peers against a real docker-registry, in turn, on this machine."""
    folder = folder.absolute()
    rounds = 1 if quick else pairs
    tools: list[Peer] = [Mirror()]
    tools += [PEERS[name]() for name in peers or PEERS if name != "none"]
    document: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} processors",
        "pairs": rounds,
        "limits": {},
        "startUp": {},
        "scenarios": [],
        "growth": [],
    }
    if not only_scenarios:
        say("limits of this machine, start-up, growth")
        document["limits"] = machine.limits(folder)
        document["startUp"] = machine.start_up(1 if quick else 5, folder)
        document["growth"] = growth([10] if quick else [1_000, 10_000], folder)
        shutil.rmtree(folder, ignore_errors=True)
    for name in names or _NAMES:
        if name.endswith("-slow") and "BENCH_SLOW" not in os.environ:
            document["scenarios"] += _over_a_slow_line(name, operations, peers, rounds, quick)
            continue
        wanted = scenario(name, quick=quick)
        found = measure(wanted, tools, operations or list(OPERATIONS), rounds, folder)
        document["scenarios"].append(_scenario_document(found))
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / "bench.md").write_text(report.text(document))
    (output / "bench.html").write_text(report.page(document))
    click.echo(report.text(document))
    say(f"written to {output}/: bench.md, bench.json, bench.html")


def _scenario_document(found: Measurement) -> dict[str, Any]:
    return {
        "name": found.scenario.name,
        "title": found.scenario.title,
        "size": found.size,
        "operations": {
            operation: {
                tool: [one.to_document() for one in samples] for tool, samples in by_tool.items()
            }
            for operation, by_tool in found.samples.items()
        },
    }


def _over_a_slow_line(
    name: str, operations: tuple[str, ...], peers: tuple[str, ...], rounds: int, quick: bool
) -> list[dict[str, Any]]:
    """Measure in a network of its own, whose loopback is slow; nothing where that is forbidden."""
    output = (CACHE / "slow").absolute()
    words = [sys.executable, "-m", "bench", "--only", "--scenario", name, "--pairs", str(rounds)]
    words += [word for one in operations for word in ("--operation", one)]
    words += [word for one in peers for word in ("--peer", one)]
    words += [*(["--quick"] if quick else []), "--output", str(output)]
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", "--net", *mapped, "sh", "-c", f'{_SLOW_LINE} "$@"', "sh", *words],
        check=False,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "BENCH_SLOW": "1"},
    )
    if done.returncode:
        say(f"{name}: left out, as this machine allows no network namespace with a slow line")
        return []
    found: list[dict[str, Any]] = json.loads((output / "bench.json").read_text())["scenarios"]
    return found


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
