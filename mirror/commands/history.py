"""`mirror history`."""

from __future__ import annotations

import time
from typing import Any

import click

from mirror.commands import options
from mirror.commands.shared import TreeAccess, show
from mirror.oci import Repository
from mirror.operations.history import history
from mirror.progress import progress
from mirror.publication_text import history_summary
from mirror.run import Run


@click.command("history")
@click.argument("registry")
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many generations to show, the newest first.",
)
@options.registry
@options.as_json
def history_command(*, registry: str, last: int, as_json: bool, **access: Any) -> None:
    """List the generations of REGISTRY (host[:port]/path): every state that a push published.

    Each with its inventory's digest and what it changed. `mirror rollback` puts one back.
    """
    target = TreeAccess.of(Repository.parse(registry), **access)
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, target.open(on_event) as tree:
        report = history(tree, last=last, run=Run(on_event=on_event))
    show(as_json, report.to_document(), history_summary, report, started)
