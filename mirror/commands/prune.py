"""`mirror prune`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mirror import replicas_text
from mirror.commands import options
from mirror.commands.replicas import open_trees
from mirror.commands.shared import show
from mirror.errors import InputError
from mirror.operations.prune import prune
from mirror.progress import progress
from mirror.run import Run
from mirror.sync.statement import MAX_GENERATION


@click.command("prune")
@click.argument("registry")
@click.option(
    "--keep",
    multiple=True,
    required=True,
    metavar="WHAT",
    help="What is to stay: a bundle's folder, a file with an inventory, or the number of a "
    "generation that the registry published; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@options.registry
@options.running
def prune_command(
    *,
    registry: str,
    keep: Sequence[str],
    dry_run: bool,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Remove from REGISTRY (host[:port]/path) what none of the kept inventories names.

    Tags and manifests go, in the repositories that the registry's statements or the kept
    inventories name, and nothing beside them. Space is freed by the registry's own garbage
    collector afterwards.
    """
    kept = [_kept(one) for one in keep]
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        open_trees([registry], on_event, **access) as opened,
    ):
        report = prune(opened[0], kept, dry_run=dry_run, run=Run(jobs, on_event))
    show(as_json, report.to_document(), replicas_text.prune_summary, report, started)
    if report.exit_code:
        click.get_current_context().exit(report.exit_code)


def _kept(text: str) -> Path | int:
    """A generation's number, or a path."""
    path = Path(text)
    with suppress(OSError):  # a text that is too long for a path is not one
        if path.exists():
            return path
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_GENERATION)):
        return int(text)
    raise InputError(f"--keep {text}: no such file or folder, and no number of a generation")
