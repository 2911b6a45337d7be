"""`./run bench`: measure, print tables, and write them as text, JSON and HTML."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import click

from bench import machine, report
from bench.growth import growth
from bench.peers import CACHE, PEERS, Mirror, Peer
from bench.scenarios import LINES, OPERATIONS, SHAPES, Measurement, measure, say, scenario

_NAMES = [f"{shape}-{line}" if line else shape for line in LINES for shape in SHAPES]

_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


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
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown file whose figures are to be replaced: docs/performance.md.",
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
    page: Path | None,
) -> None:
    """Measure `mirror` and its peers against a real docker-registry, in turn, on this machine."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # registries end with us, too
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
        wanted = scenario(name, quick=quick)
        found = measure(wanted, tools, operations or list(OPERATIONS), rounds, folder)
        document["scenarios"].append(_scenario_document(found))
        _write(output, document)  # each time, for whoever stops it early
    click.echo(report.text(document))
    if page is not None:
        _replace_figures(page, document)
    say(f"written to {output}/: bench.md, bench.json, bench.html")


def _write(output: Path, document: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / "bench.md").write_text(report.text(document))
    (output / "bench.html").write_text(report.page(document))


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


def _replace_figures(page: Path, document: dict[str, Any]) -> None:
    """Put the tables between the two marks of a page."""
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise click.UsageError(f"{page} has no lines {_BEGIN} and {_END}")
    taken = f"Taken {document['date']} at {document['commit']}, {document['pairs']} rounds."
    middle = f"\n{taken}\n\n{report.summary(document)}"
    page.write_text(f"{before}{begin}{middle}{end}{after}")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
