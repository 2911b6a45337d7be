"""`mirror sync`: replicas brought to what a leader holds, once or all the time (`--watch`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from mirror.commands import options
from mirror.commands.access import (
    AccessOptions,
    TreeAccess,
    following_keys,
    open_trees,
    registries_access,
)
from mirror.commands.cluster_files import ClusterFiles, cluster_files, full_name
from mirror.commands.options import (
    FILE,
    PathHere,
    Work,
    argument,
    as_json,
    command,
    flag,
    grouped,
    is_address,
    option,
    running,
    yes_option,
)
from mirror.commands.process import handling
from mirror.errors import InputError
from mirror.operations.sync import sync_replicas
from mirror.reports.registries import fleet_summary, sync_summary
from mirror.sync.content import ContentRules, ForeignLayers, SparseIndexes
from mirror.sync.statement import StatementKeys

_AUTO = "auto"
_log = logging.getLogger(__name__)


def _rules(foreign_layers: str, sparse_indexes: str) -> ContentRules:
    return ContentRules(ForeignLayers(foreign_layers), SparseIndexes(sparse_indexes))


@command("sync", "mirror sync --from one.example.com/dkp --to other.example.com/dkp")
def sync_command(
    leader: str | None = option(
        "The registry to copy from; 'auto' (default with --module-config): the one of --to that "
        "states the highest generation.",
        "--from",
        metavar="LEADER",
    ),
    replicas: Sequence[str] = option(
        "A registry to copy to. Repeatable; with --module-config by default all masters of the "
        "cluster.",
        "--to",
        multiple=True,
        metavar="REPLICA",
    ),
    audit: bool = flag("Compare every tag and manifest by digest; trust no statement."),
    deep: bool = flag("Also read back and hash every byte; replace what is damaged or lost."),
    prune: bool = flag(
        "Remove tags and manifests that the leader does not state. Try with --dry-run."
    ),
    dry_run: bool = flag("Print what would be done; change nothing."),
    yes: bool = yes_option,
    rules: ContentRules = grouped(
        _rules,
        foreign_layers=option(
            "Non-distributable layers (layers with `urls`) that the leader holds.",
            type=click.Choice([*map(str, ForeignLayers)]),
            default=str(ForeignLayers.CARRY),
        ),
        sparse_indexes=option(
            "Multi-arch indexes that lack some images at a leader without a statement.",
            type=click.Choice([*map(str, SparseIndexes)]),
            default=str(SparseIndexes.REFUSE),
        ),
    ),
    storage: Sequence[str] = option(
        "With --deep: the data folder of that registry, in which damaged files may be removed to "
        "replace them. Repeatable.",
        multiple=True,
        metavar="REPLICA=DIR",
    ),
    deadline: float | None = option(
        "Stop whatever is not finished by then.",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
    ),
    watching: bool = flag(
        "Run as a daemon, as --config says, with health, readiness and metrics.", "--watch"
    ),
    config: Path | None = option(
        "With --watch: its settings (YAML, or those of Deckhouse's mirrorer).", type=FILE
    ),
    keys: StatementKeys = following_keys,
    access: AccessOptions = registries_access,
    cluster: ClusterFiles = cluster_files,
    work: Work = running,
) -> None:
    """Bring replicas (host[:port]/path) to what the leader holds, straight from there.

    With --module-config it brings the masters of a cluster in mode Local to one state.

    If the inventories are equal, the work ends at once. Otherwise the sync carries what differs:
    blobs, manifests, then tags, release channels last. It lists failures by replica, and the exit
    code shows them; replicas do not wait for each other.
    """
    if watching or config is not None:
        _watch(watching, config)
        return
    described = cluster.load()
    masters = described.replicas(access) if described else {}
    leader, replicas = _who(leader, replicas, masters)
    if storage and not deep:
        raise InputError("--storage goes with --deep, which finds what is damaged there")
    names = list(replicas) if leader == _AUTO else [leader, *replicas]
    if prune and not dry_run and work.asks(yes):
        followers = ", ".join(name for name in names if name != leader)
        work.confirm(f"Remove from {followers} for good what the leader does not state?")
    opened = work.enter_context(
        open_trees(
            names,
            access,
            work.on_event,
            storage=_storage(storage, names, masters),
            keys=keys,
            connections=max(work.run.jobs, work.run.widest) * (len(names) + 1) + 8,
            masters=masters,
        )
    )
    opened = [replace(tree, rules=rules) for tree in opened]
    head = None if leader == _AUTO else opened.pop(0)
    report = sync_replicas(
        head,
        opened,
        audit=audit,
        deep=deep,
        prune=prune,
        dry_run=dry_run,
        deadline_s=deadline,
        run=work.run,
    )
    work.show(report, sync_summary, code=report.exit_code)


def _storage(
    values: Sequence[str], names: Sequence[str], masters: Mapping[str, TreeAccess]
) -> dict[str, Path]:
    """`--storage REGISTRY=DIR`, by the full names of registries."""
    folders = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not (separator and name and folder):
            raise InputError(f"--storage {value}: write REGISTRY=DIR")
        if is_address(folder):
            raise InputError(
                f"--storage {folder}: a repair removes damaged files from a folder of this "
                "machine, and nothing from object storage; leave --storage out: the sync names the "
                "damaged object, delete it there and sync again"
            )
        folders[full_name(name, masters)] = Path(folder)
    if unknown := sorted(folders.keys() - set(names)):
        raise InputError(f"--storage {unknown[0]}=…: that registry is not among those to work on")
    return folders


def _who(
    leader: str | None, replicas: Sequence[str], masters: Mapping[str, TreeAccess]
) -> tuple[str, list[str]]:
    """Leader and replicas, the `masters` of a cluster by their full names."""
    if not masters:
        if leader is None or not replicas:
            raise InputError(
                "name the registries: mirror sync --from LEADER --to REPLICA; or a cluster in "
                "Local mode: mirror sync --module-config FILE --sites FILE"
            )
        return leader, list(replicas)
    leader = full_name(leader or _AUTO, masters)
    named = [full_name(name, masters) for name in replicas]
    named = named or [name for name in masters if name != leader]
    if not named or (leader == _AUTO and len(named) < 2):
        raise InputError(
            f"there is one replica alone, {', '.join(masters)}, and nothing to bring it into line "
            "with; name another registry with --from"
        )
    return leader, named


def _watch(watching: bool, config: Path | None) -> None:
    """Run the daemon, if the flags make sense together."""
    if not watching or config is None:
        raise InputError("--watch and --config FILE go together")
    others = [
        param.opts[0]
        for param in click.get_current_context().command.params
        if param.name not in ("watching", "config", "log_format", "no_color", "verbose")
        and options.given_by(ParameterSource.COMMANDLINE, param.name)
    ]
    if others:
        raise InputError(
            f"{others[0]} has no effect beside --watch: the file that --config names says it all"
        )
    watch(config)


def watch(config: Path) -> None:
    """Keep replicas equal until SIGTERM or Ctrl-C; then end with exit code 0.

    What happens is logged to stderr, one line each.
    """
    from mirror.watch.daemon import running
    from mirror.watch.settings import WatchSettings

    settings = WatchSettings.load(config)
    stopped: list[int] = []
    with options.logging_to_stderr(logging.INFO):
        with handling(lambda: stopped.append(1), once=True), running(settings) as (daemon, url):
            _log.info("following %s", ", ".join(daemon.followers))
            if url is not None:
                _log.info("health, readiness and metrics at %s", url)
            while not stopped:  # a wait without an end may miss a signal that comes as it begins
                time.sleep(0.1)
        _log.info("stopped")


# -- mirror fleet ----------------------------------------------------------------------------------


@command("status", "mirror fleet status fleet.yaml")
def fleet_status_command(
    file: Path = argument(type=FILE),
    prometheus: Path | None = option(
        "Also write it to this file, for the textfile collector of Prometheus' node exporter.",
        type=PathHere(dir_okay=False),
    ),
    html_file: Path | None = option(
        "Also write it to this file, as a page for a browser.",
        "--html",
        type=PathHere(dir_okay=False),
    ),
    work: Work = as_json,
) -> None:
    """Show who of the fleet in FILE holds what the hub states, and how far behind the others are.

    Each registry is asked once, and each daemon with `pages` in FILE for its /readyz. The exit code
    is 3 if a member that answers is late, and 5 if all who are late do not answer.
    """
    from mirror.durable import write_durably
    from mirror.reports.page import fleet_html
    from mirror.watch.fleet import Fleet
    from mirror.watch.monitoring import fleet_status

    found = fleet_status(Fleet.load(file), run=work.run)
    if prometheus is not None:
        write_durably(prometheus, found.metrics())
    if html_file is not None:
        write_durably(html_file, fleet_html(found).encode())
    work.show(found, fleet_summary, code=found.exit_code)


fleet_group = click.Group(
    "fleet",
    commands=[fleet_status_command],
    help="The registries that follow one hub, as one file describes them (docs/replication.md).",
)
