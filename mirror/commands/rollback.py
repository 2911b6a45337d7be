"""`mirror rollback`."""

from __future__ import annotations

import time
from typing import Any

import click

from mirror.commands import options
from mirror.commands.shared import TreeAccess, show
from mirror.oci import Repository
from mirror.operations.rollback import rollback
from mirror.progress import progress
from mirror.publication_text import rollback_summary
from mirror.run import Run


@click.command("rollback")
@click.argument("registry")
@click.option(
    "--to",
    type=click.IntRange(min=0),
    metavar="GENERATION",
    help="The generation to put back; the one before the current by default, or the one that an "
    "interrupted push began to replace. 0: what was there before the first.",
)
@click.option("--dry-run", is_flag=True, help="Check, and list the tags, but change nothing.")
@options.registry
@options.running
def rollback_command(
    *, registry: str, to: int | None, dry_run: bool, jobs: int, as_json: bool, **access: Any
) -> None:
    """Put the tags of REGISTRY (host[:port]/path) back to an earlier generation.

    It takes seconds, as a push deletes nothing. First everything that the tags will lead to is
    asked for; if something is not there any more, no tag changes. The state that comes of it is a
    new generation, so that replicas follow.
    """
    target = TreeAccess.of(Repository.parse(registry), **access)
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, target.open(on_event) as tree:
        report = rollback(tree, to=to, dry_run=dry_run, run=Run(jobs, on_event))
    show(as_json, report.to_document(), rollback_summary, report, started)
