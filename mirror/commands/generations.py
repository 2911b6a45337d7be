"""`mirror history`, `rollback` and `prune`: the states that a registry has published."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mirror.commands import options
from mirror.commands.access import TreeAccess, open_trees
from mirror.commands.errors import show
from mirror.commands.login import AccessOptions
from mirror.errors import InputError
from mirror.oci import Repository
from mirror.operations.compare import history
from mirror.operations.prune import prune
from mirror.operations.rollback import rollback
from mirror.reports.progress import progress
from mirror.reports.registries import history_summary, prune_summary, rollback_summary
from mirror.run import Run
from mirror.sync.statement import MAX_GENERATION


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
    target = TreeAccess.of(Repository.parse(registry), AccessOptions(**access))
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, target.open(on_event) as tree:
        report = history(tree, last=last, run=Run(on_event=on_event))
    show(as_json, report.to_document(), history_summary, report, started)


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
    target = TreeAccess.of(Repository.parse(registry), AccessOptions(**access))
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, target.open(on_event) as tree:
        report = rollback(tree, to=to, dry_run=dry_run, run=Run(jobs, on_event))
    show(as_json, report.to_document(), rollback_summary, report, started)


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
        open_trees([registry], AccessOptions(**access), on_event) as opened,
    ):
        report = prune(opened[0], kept, dry_run=dry_run, run=Run(jobs, on_event))
    show(as_json, report.to_document(), prune_summary, report, started)
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
