"""`mirror sync`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from mirror import replicas_text
from mirror.commands import options
from mirror.commands.replicas import parse_storage, sites
from mirror.commands.shared import show
from mirror.errors import InputError
from mirror.operations import sync_replicas
from mirror.progress import progress

_AUTO = "auto"


@click.command("sync")
@click.option(
    "--from",
    "leader",
    required=True,
    metavar="LEADER",
    help="The registry that decides; 'auto': the one of --to that states the highest generation.",
)
@click.option(
    "--to",
    "replicas",
    multiple=True,
    required=True,
    metavar="REPLICA",
    help="A registry to bring to what the leader has; repeatable.",
)
@click.option(
    "--audit",
    is_flag=True,
    help="Compare every tag and manifest by digest, whatever the replicas state.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Read every byte back and hash it as well; what is damaged or lost is replaced.",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Remove tags and manifests that the leader's inventory does not have; see --dry-run.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--storage",
    multiple=True,
    metavar="REPLICA=DIR",
    help="With --deep: the data root of that registry, where damaged files are removed, after "
    "proof, so that they can be replaced; repeatable.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop replicas that are not finished by then.",
)
@options.registry
@options.running
def sync_command(
    *,
    leader: str,
    replicas: Sequence[str],
    audit: bool,
    deep: bool,
    prune: bool,
    dry_run: bool,
    storage: Sequence[str],
    deadline: float | None,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Bring replicas (host[:port]/path) to what the leader holds, straight from there.

    Equal inventories end the work at once. Else what differs is carried: blobs, manifests, then
    tags, release channels last. What could not be done is listed by replica, and the exit code says
    so; replicas do not wait for each other.
    """
    if storage and not deep:
        raise InputError("--storage goes with --deep, which finds what is damaged there")
    names = list(replicas) if leader == _AUTO else [leader, *replicas]
    connections = jobs * (len(names) + 1) + 8
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        sites(
            names,
            on_event,
            storage=parse_storage(storage),
            connections=connections,
            **access,
        ) as opened,
    ):
        head = None if leader == _AUTO else opened.pop(0)
        report = sync_replicas(
            head,
            opened,
            audit=audit,
            deep=deep,
            prune=prune,
            dry_run=dry_run,
            deadline_s=deadline,
            jobs=jobs,
            on_event=on_event,
        )
    show(as_json, report.to_document(), replicas_text.sync_summary, report, started)
    if report.exit_code:
        click.get_current_context().exit(report.exit_code)
