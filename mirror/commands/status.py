"""`mirror status`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from mirror import replicas_text
from mirror.commands import options
from mirror.commands.replicas import open_trees
from mirror.commands.shared import show
from mirror.operations.compare import status
from mirror.progress import progress
from mirror.run import Run


@click.command("status")
@click.argument("registries", nargs=-1, required=True, metavar="REGISTRY...")
@click.option("--blobs", is_flag=True, help="Ask about every blob, too, in every repository.")
@options.registry
@options.running
def status_command(
    *, registries: Sequence[str], blobs: bool, jobs: int, as_json: bool, **access: Any
) -> None:
    """Show how complete each REGISTRY (host[:port]/path) is, and how far behind the others.

    Each is held against the inventory that it states. The exit code is 4 if one is not complete,
    else 3 if they state different things.
    """
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        open_trees(registries, on_event, **access) as opened,
    ):
        report = status(opened, thorough=blobs, run=Run(jobs, on_event))
    show(as_json, report.to_document(), replicas_text.status_summary, report, started)
    if report.exit_code:
        click.get_current_context().exit(report.exit_code)
