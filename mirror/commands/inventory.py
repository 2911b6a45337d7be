"""`mirror inventory`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mirror.bundle.reader import read_inventory
from mirror.commands import options
from mirror.commands.access import TreeAccess
from mirror.commands.errors import show
from mirror.commands.login import AccessOptions
from mirror.durable import write_durably
from mirror.errors import InputError
from mirror.oci import Repository
from mirror.operations.trees import registry_inventory
from mirror.reports.bundles import inventory_summary
from mirror.reports.progress import progress
from mirror.run import Run

_STANDARD_OUTPUT = "-"


@click.command("inventory")
@click.argument("registry")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Where to write the inventory; - for standard output.",
)
@click.option(
    "--known",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A bundle or an inventory whose repositories to look at too, where the registry does not "
    "list all that it has. Repeatable.",
)
@options.registry
@options.running
def inventory_command(
    *,
    registry: str,
    output: str,
    known: Sequence[Path],
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Write down what REGISTRY (host[:port]/path) holds, to be the base of the next delta.

    Every tag is followed to its manifests, and every blob that they need is asked for; only what
    is there is listed. What cannot be read is told of, left out, and makes the exit code another
    than 0. Carry the file to where bundles are made: mirror pull --base FILE.
    """
    if output == _STANDARD_OUTPUT and as_json:
        raise InputError("--json and -o - both want standard output; write the inventory to a file")
    file = Path(output)
    if output != _STANDARD_OUTPUT and (file.is_dir() or not file.absolute().parent.is_dir()):
        # Before the registry is asked: that takes its time.
        raise InputError(f"{output} is no file in a folder that exists; name another one")
    target = TreeAccess.of(Repository.parse(registry), AccessOptions(**access))
    paths = {path for one in known for path in read_inventory(one).repositories}
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, target.open(on_event) as tree:
        found = registry_inventory(tree, known=paths, run=Run(jobs, on_event))
    data = found.inventory.to_json()
    if output == _STANDARD_OUTPUT:
        click.echo(data.decode(), nl=False)
    else:
        write_durably(file, data)
        document = {**found.to_document(), "output": output, "bytes": len(data)}
        show(as_json, document, inventory_summary, (found, output, len(data)), started)
    if found.exit_code:
        click.get_current_context().exit(found.exit_code)
