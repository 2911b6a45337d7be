"""What registries and bundles hold, and the states that a registry has published.

`mirror status`, `diff`, `verify`, `repair`; `history`, `rollback` and `prune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from mirror.bundle.format import Shard
from mirror.bundle.location import Location
from mirror.bundle.reader import BundleReader
from mirror.commands import options
from mirror.commands.access import (
    AccessOptions,
    ClusterFiles,
    cluster_files,
    keyed_registry_access,
    open_trees,
    publishing_keys,
    registries_access,
    registry_access,
)
from mirror.commands.options import Work, argument, command, file_option, flag, option, repeatable
from mirror.commands.process import tell
from mirror.commands.program import folder
from mirror.errors import InputError, IntegrityError, InvalidReferenceError
from mirror.oci import Repository
from mirror.operations.compare import diff, history, status, verify
from mirror.operations.prune import prune
from mirror.operations.rollback import rollback
from mirror.release.discovery import component_names
from mirror.reports.bundles import bundle_summary, registry_summary, repair_summary
from mirror.reports.registries import (
    diff_html,
    diff_summary,
    fleet_summary,
    history_summary,
    prune_summary,
    rollback_summary,
    status_summary,
    verify_shard_summary,
)
from mirror.sync.observation import Finding
from mirror.sync.statement import MAX_GENERATION, StatementKeys
from mirror.sync.tree import RegistrySource

_KEY = file_option(
    "Check the bundle's signature with this public key (PEM).", "--key", read=Path.read_bytes
)
_DIFFER = 3
_REPAIRED = (
    "a bundle is repaired in a folder: copy it into one, repair that and put it back, or make it "
    "anew: mirror pull --force"
)


@command("status", "mirror status registry-1.example.com/dkp registry-2.example.com/dkp")
def status_command(
    registries: Sequence[str] = argument(nargs=-1, required=True, metavar="REGISTRY..."),
    blobs: bool = flag("Also check every blob in every repository."),
    access: AccessOptions = registries_access,
    work: Work = options.running,
) -> None:
    """Show how complete each REGISTRY (host[:port]/path) is, and how far behind the others.

    The command compares each registry with the inventory that it states. The exit code is 4 if one
    is incomplete, otherwise 3 if they state different things.
    """
    trees = work.enter_context(open_trees(registries, access, work.on_event))
    report = status(trees, thorough=blobs, run=work.run)
    work.show(report, status_summary, code=report.exit_code)


@command("diff", "mirror diff bundle registry.example.com/dkp")
def diff_command(
    a: str = argument(shell_complete=folder),
    b: str = argument(shell_complete=folder),
    html_file: Path | None = options.html_option,
    access: AccessOptions = registries_access,
    work: Work = options.running,
) -> None:
    """Show the differences between A and B, by repository and tag, with sizes.

    Each is a bundle's folder, here or at an address (https://host/path), a file with an
    inventory, or a registry (host[:port]/path). A name that exists on this machine is a file. The
    exit code is 3 if A and B differ.
    """
    places = [_place(one, access, work) for one in (a, b)]
    registries = [one for one in places if isinstance(one, str)]
    opened = iter(work.enter_context(open_trees(registries, access, work.on_event)))
    one, other = (next(opened) if isinstance(place, str) else place for place in places)
    report = diff(one, other, run=work.run)
    code = _DIFFER if report.difference else 0
    if report.failures:
        code = report.failures[0].error.exit_code
    if html_file is not None:
        work.write_page(html_file, diff_html(report))
    work.show(report, diff_summary, code=code)


def _place(text: str, access: AccessOptions, work: Work) -> Location | str:
    """A path of this machine, a bundle at an address, or the registry that the text names."""
    if (place := options.bundle_at(text, access, work)) is not None:
        return place
    try:
        Repository.parse(text)
    except InvalidReferenceError as err:
        raise InputError(f"{text} is neither a file or folder here nor a registry: {err}") from err
    return text


@command("verify", "mirror verify bundle --against registry.example.com/dkp")
def verify_command(
    bundle_dir: Path | str = argument(type=options.BUNDLE),
    against: str | None = option(
        "Check that this registry holds the whole bundle. With --module-config, optional, or a "
        "logical address.",
        "--against REGISTRY",
    ),
    quick: bool = flag("Check structure and sizes only, not the bytes of layers."),
    deep: bool = flag("With --against: also read back and hash every byte."),
    key: bytes | None = _KEY,
    shard: Shard | None = option(
        "Check one of COUNT shares of the bundle, as 3/8, which as many machines verify together. "
        "`auto`: the share of a pod of a Kubernetes Indexed Job.",
        "--shard N/COUNT",
        read=Shard.parse,
    ),
    place: Path | str | None = option(
        "With --shard: where the shards gather what they find, a folder that all share or "
        "s3://bucket/prefix, new for each verification. The last to come tells the whole result.",
        "--findings PLACE",
        type=options.BUNDLE,
    ),
    html_file: Path | None = options.html_option,
    access: AccessOptions = keyed_registry_access,
    cluster: ClusterFiles = cluster_files,
    work: Work = options.running,
) -> None:
    """Prove that the bundle in BUNDLE_DIR, or at an address, is whole, or that a registry has it.

    It reads and checks every byte of the bundle, and follows every tag to everything that it needs.
    With --quick it checks only headers, indexes and manifests, and the size and place of the rest.
    It lists damage by archive, repository, tag and digest; the exit code is then 4.
    With --html it also writes a page that says the same, with what the bundle holds.
    """
    registry = against is not None or bool(cluster)
    if deep and not registry:
        raise InputError("--deep goes with --against REGISTRY; a bundle is always read whole")
    if quick and registry:
        raise InputError(
            "--quick is about a bundle and --against about a registry, where nothing is read back "
            "without --deep; drop one of them"
        )
    if key is not None and registry:
        raise InputError(
            "--key is about a bundle and --against about a registry; use one at a time"
        )
    if shard is not None and (registry or html_file is not None):
        raise InputError("--shard is for the bytes of a bundle: leave --against and --html out")
    if place is not None and shard is None:
        raise InputError("--findings goes with --shard N/COUNT; one machine gathers nothing")
    target = cluster.reach(against, access, writes=False) if registry else None
    reader = work.enter_context(BundleReader([options.located(bundle_dir, access, work)]))
    if shard is not None:
        from mirror.commands.pull import made_at  # few need these
        from mirror.operations.shards import verify_shard

        where = None if place is None else made_at(place, access, work, "a place of findings")
        done = verify_shard(reader, shard, where, key=key, quick=quick, run=work.run)
        code = IntegrityError.exit_code if done.report.findings else 0
        work.show(done, verify_shard_summary, code=code)
    elif target is None:
        whole = verify(reader, key=key, quick=quick, run=work.run)
        told = bundle_summary(whole, 0).partition("\n")[0]
        _write_page(work, html_file, reader, whole.findings, told)
        work.show(whole, bundle_summary, code=IntegrityError.exit_code if whole.findings else 0)
    else:
        tree = work.enter_context(target.open(work.on_event))
        held = verify(reader, against=tree, deep=deep, run=work.run)
        told = registry_summary(held, 0).partition("\n")[0]
        _write_page(work, html_file, reader, held.findings, told)
        work.show(held, registry_summary, code=IntegrityError.exit_code if held.findings else 0)


def _write_page(
    work: Work, file: Path | None, reader: BundleReader, findings: Sequence[Finding], told: str
) -> None:
    """Write the page about a bundle, if one is asked for, with the lines that were `told`."""
    if file is None:
        return
    from mirror.bundle.inspect import inspect_bundle  # these are loaded for a page alone
    from mirror.reports.page import html

    said = "; ".join(map(str.strip, told.splitlines()))
    names = component_names(reader, reader.carried())
    work.write_page(
        file, html(inspect_bundle(reader, as_sealed=True), names, findings, [("Result", said)])
    )


@command("repair", "mirror repair bundle --from /mnt/copy --from registry/dkp")
def repair_command(
    bundle_dir: Path = argument(type=options.PathHere(instead=_REPAIRED), shell_complete=folder),
    others: Sequence[str] = repeatable(
        "A folder with a copy, some of its files, or a patch, here or at an address; or a "
        "registry. Repeatable.",
        "--from OTHER",
    ),
    request: Path | None = option(
        "Write what nobody has into this file, for `mirror pull --only` on the other side.",
        type=options.RESULT_FILE,
    ),
    key: bytes | None = _KEY,
    html_file: Path | None = options.html_option,
    access: AccessOptions = keyed_registry_access,
    work: Work = options.running,
) -> None:
    """Bring back, in place, what is damaged or missing in the bundle in BUNDLE_DIR; verify it.

    Only what is damaged is taken, proved by its digest, and written. The bundle is the same as
    before the damage, byte for byte. The exit code is 4 if something could not be repaired.
    """
    from mirror.operations.repair import repair  # loaded by this command alone
    from mirror.release.source import SourceTree

    places = [_place(one, access, work) for one in others]
    if any(isinstance(one, Path) and not one.is_dir() for one in places):
        raise InputError("--from names a file; name the folder that it lies in")
    registries = [one for one in places if isinstance(one, str)]
    sources: list[RegistrySource] = []
    for tree in work.enter_context(open_trees(registries, access, work.on_event)):
        tree = tree.within(work.run)
        beside = SourceTree(tree.root, tree.modules_suffix).locate  # as vendors lay it out
        sources += (tree.source(), RegistrySource(tree.client, beside))
    report = repair(
        bundle_dir,
        [one for one in places if not isinstance(one, str)],
        sources,
        key=key,
        run=work.run,
    )
    lacking = report.lacking.repositories
    if request is not None and lacking and not work.write(request, report.lacking.to_json()):
        request = None
    code = IntegrityError.exit_code if report.verified.findings else 0
    if request is not None and code and not lacking:
        told = f"{request} was not written: what is damaged comes whole from a copy, since it is a"
        tell(f"{told} compressed archive or a file beside the archives", "warning")
    summary = partial(repair_summary, request=request)
    if html_file is not None:
        with BundleReader([bundle_dir]) as reader:
            told = summary(report, 0).partition("\n\n")[0]
            _write_page(work, html_file, reader, report.verified.findings, told)
    work.show(report, summary, code=code)


# -- generations -----------------------------------------------------------------------------------


@command("history", "mirror history registry.example.com/dkp")
def history_command(
    registry: str = argument(),
    last: int = option(
        "How many of the newest generations to show.", type=click.IntRange(min=1), default=10
    ),
    access: AccessOptions = registry_access,
    work: Work = options.as_json,
) -> None:
    """List the generations of REGISTRY (host[:port]/path): every state that a push published.

    Each line shows the digest of its inventory and what it changed. `mirror rollback` puts a
    generation back.
    """
    tree = work.enter_context(access.to(registry).open(work.on_event))
    work.show(history(tree, last=last, run=work.run), history_summary)


@command("rollback", "mirror rollback registry.example.com/dkp --to 3 --dry-run")
def rollback_command(
    registry: str = argument(),
    to: int | None = option(
        "The generation to go back to; 0 is the state before the first.  [default: the one before "
        "the current, or before an interrupted push]",
        "--to GENERATION",
        type=click.IntRange(min=0),
    ),
    dry_run: bool = flag("Check, and list the tags; change nothing."),
    yes: bool = options.yes_option,
    keys: StatementKeys = publishing_keys,
    access: AccessOptions = registry_access,
    work: Work = options.running,
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


@command("prune", "mirror prune registry.example.com/dkp --keep bundle --dry-run")
def prune_command(
    registry: str = argument(),
    keep: Sequence[str] = repeatable(
        "What to keep: a bundle's folder, a file with an inventory, or a generation by its number "
        "in `mirror history` (not how many to keep). Repeatable: all else goes.",
        "--keep WHAT",
        required=True,
        shell_complete=folder,
    ),
    dry_run: bool = flag("Print what would be removed; remove nothing."),
    yes: bool = options.yes_option,
    keys: StatementKeys = publishing_keys,
    access: AccessOptions = registry_access,
    work: Work = options.running,
) -> None:
    """Remove from REGISTRY (host[:port]/path) everything that is not in what you keep.

    It removes tags and manifests, and only in the repositories that the registry's statements or
    the kept inventories name. Afterwards the registry's own garbage collector frees the space.
    """
    kept = [_kept(one) for one in keep]
    (tree,) = work.enter_context(open_trees([registry], access, work.on_event))
    tree = replace(tree, keys=keys)
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


# -- mirror fleet ----------------------------------------------------------------------------------


@command("status", "mirror fleet status fleet.yaml")
def fleet_status_command(
    file: Path = argument(type=options.FILE),
    prometheus: Path | None = option(
        "Also write it to this file, for the textfile collector of Prometheus' node exporter.",
        type=options.PathHere(dir_okay=False),
    ),
    html_file: Path | None = option(
        "Also write it to this file, as a page for a browser.",
        "--html",
        type=options.PathHere(dir_okay=False),
    ),
    work: Work = options.as_json,
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
