"""`mirror history`, `rollback` and `prune`: the states that a registry has published."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from mirror.commands import options
from mirror.commands.access import AccessOptions, open_trees, publishing_keys, registry_options
from mirror.commands.options import Work, flag
from mirror.commands.program import folder
from mirror.errors import InputError
from mirror.operations.compare import history
from mirror.operations.prune import prune
from mirror.operations.rollback import rollback
from mirror.reports.registries import history_summary, prune_summary, rollback_summary
from mirror.sync.statement import MAX_GENERATION, StatementKeys


@click.command("history", epilog=options.example("mirror history registry.example.com/dkp"))
@click.argument("registry")
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many of the newest generations to show.",
)
@registry_options
@options.as_json
def history_command(*, registry: str, last: int, access: AccessOptions, work: Work) -> None:
    """List the generations of REGISTRY (host[:port]/path): every state that a push published.

    Each line shows the digest of its inventory and what it changed. `mirror rollback` puts a
    generation back.
    """
    tree = work.enter_context(access.to(registry).open(work.on_event))
    work.show(history(tree, last=last, run=work.run), history_summary)


@click.command(
    "rollback", epilog=options.example("mirror rollback registry.example.com/dkp --to 3 --dry-run")
)
@click.argument("registry")
@click.option(
    "--to",
    type=click.IntRange(min=0),
    metavar="GENERATION",
    help="The generation to go back to; 0 is the state before the first.  [default: the one "
    "before the current, or before an interrupted push]",
)
@flag("--dry-run", text="Check, and list the tags; change nothing.")
@options.yes
@publishing_keys
@registry_options
@options.running
def rollback_command(
    *,
    registry: str,
    to: int | None,
    dry_run: bool,
    yes: bool,
    access: AccessOptions,
    keys: StatementKeys,
    work: Work,
) -> None:
    """Put the tags of REGISTRY (host[:port]/path) back to an earlier generation.

    This takes seconds, because a push deletes nothing. The rollback first asks for everything that
    the tags will lead to; if something is missing, no tag changes. The result is a new generation,
    so replicas follow it.
    """
    tree = work.enter_context(access.to(registry).open(work.on_event))
    tree = replace(tree, keys=keys)
    if not dry_run and work.asks(yes):
        work.look(lambda run: rollback(tree, to=to, dry_run=True, run=run), rollback_summary)
        work.confirm(f"Turn the tags of {tree.root} back?")
    work.show(rollback(tree, to=to, dry_run=dry_run, run=work.run), rollback_summary)


@click.command(
    "prune", epilog=options.example("mirror prune registry.example.com/dkp --keep bundle --dry-run")
)
@click.argument("registry")
@click.option(
    "--keep",
    multiple=True,
    required=True,
    metavar="WHAT",
    shell_complete=folder,
    help="What to keep: a bundle's folder, a file with an inventory, or a generation by its number "
    "in `mirror history` (not how many to keep). Repeatable: all else goes.",
)
@flag("--dry-run", text="Print what would be removed; remove nothing.")
@options.yes
@publishing_keys
@registry_options
@options.running
def prune_command(
    *,
    registry: str,
    keep: Sequence[str],
    dry_run: bool,
    yes: bool,
    access: AccessOptions,
    keys: StatementKeys,
    work: Work,
) -> None:
    """Remove from REGISTRY (host[:port]/path) everything that is not in what you keep.

    It removes tags and manifests, and only in the repositories that the registry's statements or
    the kept inventories name. Afterwards the registry's own garbage collector frees the space.
    """
    kept = [_kept(one) for one in keep]
    (tree,) = work.enter_context(open_trees([registry], access, work.on_event, keys=keys))
    if not dry_run and work.asks(yes):
        plan = work.look(lambda run: prune(tree, kept, dry_run=True, run=run), prune_summary)
        if plan.removal:
            work.confirm(f"Remove this from {tree.root} for good?")
    report = prune(tree, kept, dry_run=dry_run, run=work.run)
    work.show(report, prune_summary, code=report.exit_code)


def _kept(text: str) -> Path | int:
    """A generation's number, or a path."""
    path = Path(text)
    with suppress(OSError):  # a text that is too long for a path is not one
        if path.exists():
            return path
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_GENERATION)):
        return int(text)
    raise InputError(f"--keep {text}: no such file or folder, and no number of a generation")
