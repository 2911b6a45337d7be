"""`mirror status` and `diff`: how registries, bundles and inventories compare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mirror.commands import options
from mirror.commands.access import open_trees
from mirror.commands.errors import show
from mirror.commands.login import AccessOptions
from mirror.errors import InputError, InvalidReferenceError
from mirror.oci import Repository
from mirror.operations.compare import diff, status
from mirror.reports.progress import progress
from mirror.reports.registries import diff_summary, status_summary
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
        open_trees(registries, AccessOptions(**access), on_event) as opened,
    ):
        report = status(opened, thorough=blobs, run=Run(jobs, on_event))
    show(as_json, report.to_document(), status_summary, report, started)
    if report.exit_code:
        click.get_current_context().exit(report.exit_code)


_DIFFER = 3


@click.command("diff")
@click.argument("a")
@click.argument("b")
@options.registry
@options.running
def diff_command(*, a: str, b: str, jobs: int, as_json: bool, **access: Any) -> None:
    """Show what A and B hold differently, by repository and tag, with sizes.

    Each is a bundle's folder, a file with an inventory, or a registry (host[:port]/path); what
    exists on this machine is taken for a file. The exit code is 3 if they differ.
    """
    places = [_place(one) for one in (a, b)]
    registries = [one for one in places if isinstance(one, str)]
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        open_trees(registries, AccessOptions(**access), on_event) as opened,
    ):
        waiting = iter(opened)
        one, other = (next(waiting) if isinstance(place, str) else place for place in places)
        report = diff(one, other, run=Run(jobs, on_event))
    show(as_json, report.to_document(), diff_summary, report, started)
    if report.failures:
        click.get_current_context().exit(report.failures[0].error.exit_code)
    if report.difference:
        click.get_current_context().exit(_DIFFER)


def _place(text: str) -> Path | str:
    """A path of this machine, or the registry that the text names."""
    path = Path(text)
    if path.exists():
        return path
    try:
        Repository.parse(text)
    except InvalidReferenceError as err:
        raise InputError(f"{text} is no file or folder here, and no registry: {err}") from err
    return text
