"""`mirror push` and `mirror sync`: content brought into registries, once or all the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mirror.bundle.format import Shard
from mirror.bundle.reader import BundleReader
from mirror.commands import options
from mirror.commands.access import (
    AccessOptions,
    ClusterFiles,
    TreeAccess,
    cluster_files,
    following_keys,
    login_options,
    open_trees,
    pushing_keys,
    registries_access,
    registry_access,
)
from mirror.commands.options import Work, argument, command, file_option, flag, option, repeatable
from mirror.commands.process import PROFILE, Profile, handling
from mirror.commands.program import folder, for_d8
from mirror.errors import InputError, InvalidReferenceError
from mirror.events import Warned
from mirror.layout import MODULES
from mirror.oci import Repository
from mirror.operations.push import plan_push, push, push_to_all
from mirror.operations.sync import sync_replicas
from mirror.registry.upload_journal import upload_journal
from mirror.release.discovery import component_names
from mirror.reports.bundles import push_plan_summary, push_summary
from mirror.reports.registries import push_shard_summary, quorum_summary, sync_summary
from mirror.sync.content import ContentRules, ForeignLayers, SparseIndexes
from mirror.sync.observe import Verification
from mirror.sync.statement import StatementKeys

_REPLICA = login_options(
    "replica",
    "User of all replicas; without one, the credentials that docker or oras stored. The login of "
    "REGISTRY is not used for other hosts.",
)


@command("push", "mirror push bundle registry.example.com/dkp -u admin")
def push_command(
    paths: Sequence[str] = argument(
        nargs=-1, metavar="[BUNDLE_DIR] REGISTRY", shell_complete=folder
    ),
    files: Sequence[Path] = repeatable(
        "An archive to push, in addition to or instead of BUNDLE_DIR. Repeatable.",
        "--file",
        type=options.PathHere(exists=True),
    ),
    verify_key: bytes | None = file_option(
        "Refuse a bundle that was not signed with the key of this public key (PEM).",
        read=Path.read_bytes,
    ),
    dry_run: bool = flag("Print what would be sent, by repository; write nothing."),
    check: str = option(
        "What to ask the registry for: tags and manifests, or also the blobs of the manifests "
        "there, which finds those that it lost.",
        type=click.Choice(["manifests", "blobs"]),
        default="manifests",
    ),
    verification: Verification = option(
        "What to ask the registry for when it has accepted everything: what was put, with some of "
        "the blobs, and the tags; or everything, as always with --replica.",
        "--verify",
        type=click.Choice([one.value for one in Verification]),
        default=Verification.TAGS.value,
        read=Verification,
    ),
    state_dir: Path | None = option(
        "Where to keep the state of uploads, so that a killed push continues within a blob.  "
        "[default: mirror in XDG_STATE_HOME or ~/.local/state]",
        type=options.PathHere(file_okay=False),
        envvar="MIRROR_STATE_DIR",
    ),
    no_access_check: bool = flag(
        "Do not check the right to write before the first byte is sent.",
        envvar="MIRROR_BYPASS_ACCESS_CHECKS",
    ),
    accept_flattened: bool = flag(
        "Take a bundle in which multi-arch images were reduced to one platform, as d8 packs them. "
        "Clusters that ask for one by its digest will not find it."
    ),
    replicas: Sequence[str] = repeatable(
        "Another registry to push to at the same time. Repeatable.", "--replica REGISTRY"
    ),
    quorum: int | None = option(
        "How many of REGISTRY and the replicas must verifiably hold the whole release.  [default: "
        "all]",
        type=click.IntRange(min=1),
    ),
    shard: Shard | None = option(
        "Send one of COUNT shares of the bundle, as 3/8, which as many machines push together; the "
        "last to come sets the tags. `auto`: the share of a pod of a Kubernetes Indexed Job.",
        "--shard N/COUNT",
        read=Shard.parse,
    ),
    replica_login: str | None = _REPLICA["login"],
    replica_password: str | None = _REPLICA["password"],
    _d8: None = for_d8,
    keys: StatementKeys = pushing_keys,
    access: AccessOptions = registry_access,
    cluster: ClusterFiles = cluster_files,
    work: Work = options.running,
) -> None:
    """Load the bundle in BUNDLE_DIR, or at an address, into REGISTRY (host[:port]/path).

    With --module-config, REGISTRY may be left out, or be a logical address
    (registry.d8-system.svc:5001/system/deckhouse).

    The push sends only what is missing; to complete an interrupted push, run it again. It changes
    release channels last, when all images that they lead to are there. Then it publishes what the
    registry holds, as a new generation, which `mirror rollback` can take back.
    """
    profile: Profile | None = click.get_current_context().meta.get(PROFILE)
    given = profile.registry if profile and not cluster else None
    optional = cluster.module_config is not None or given is not None
    folders, registry = _arguments(paths, files, optional=optional)
    registry = registry or given
    if len(folders) > 1:
        raise InputError(
            "push takes one BUNDLE_DIR and one REGISTRY; name further archives with --file"
        )
    if registry is not None:
        _check_last(registry, [*folders, *files])
    if not folders and not files:
        raise InputError("name the bundle to push: mirror push BUNDLE_DIR REGISTRY, or use --file")
    target = cluster.reach(registry, access, writes=True)
    if target.modules_suffix != MODULES:
        where = "/".join(filter(None, (str(target.root), target.modules_suffix)))
        work.on_event(Warned(f"modules go to {where}, not to {target.root}/{MODULES}"))
    theirs = replace(
        access.without_login(), login=replica_login, password=replica_password, whose="replica"
    )
    others = _replicas(target, replicas, quorum, access, theirs)
    if others and dry_run:
        raise InputError("--dry-run is for one registry at a time; leave --replica out")
    if others and shard is not None:
        raise InputError(
            "--shard is for one registry at a time; leave --replica out, and run the shards for "
            "each registry, or let `mirror sync` fill the others"
        )
    bundles = [one if options.is_address(one) else Path(one) for one in folders]
    paths_given = [*(options.located(one, access, work) for one in bundles), *files]
    reader = work.enter_context(BundleReader(paths_given, flattened=accept_flattened))
    blobs = check == "blobs"
    if dry_run:
        tree = replace(work.enter_context(target.open(work.on_event)), keys=keys)
        if shard is not None:
            from mirror.operations.shards import plan_push_shard  # few need it

            plan = plan_push_shard(
                reader, tree, shard, key=verify_key, check_blobs=blobs, run=work.run
            )
        else:
            plan = plan_push(reader, tree, key=verify_key, check_blobs=blobs, run=work.run)
        names = component_names(reader, reader.carried())
        work.show(replace(plan, names=names), push_plan_summary)
        return
    trees = []
    for one in (target, *others):
        tree = work.enter_context(one.open(work.on_event))
        journal = work.enter_context(upload_journal(state_dir, one.root.host, work.on_event))
        trees.append(replace(tree, keys=keys, journal=journal))
    writable = not no_access_check
    if others:
        result = push_to_all(
            reader, trees, quorum=quorum, key=verify_key, check_access=writable, run=work.run
        )
        work.show(result, quorum_summary)
        return
    how: dict[str, Any] = {
        "key": verify_key,
        "check_access": writable,
        "check_blobs": blobs,
        "verification": verification,
        "run": work.run,
    }
    if shard is not None:
        from mirror.operations.shards import push_shard

        work.show(push_shard(reader, trees[0], shard, **how), push_shard_summary)
    else:
        work.show(push(reader, trees[0], **how), push_summary)


def _replicas(
    target: TreeAccess,
    replicas: Sequence[str],
    quorum: int | None,
    asked: AccessOptions,
    theirs: AccessOptions,
) -> list[TreeAccess]:
    """The replicas, reached as REGISTRY is, but for the login, which is for one host."""
    root = target.root
    roots = [root, *map(asked.root, replicas)]
    twice = next((one for number, one in enumerate(roots) if one in roots[:number]), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice; every replica is another registry")
    if quorum is not None and quorum > len(roots):
        raise InputError(
            f"--quorum {quorum} cannot be reached with {len(roots)} registries; name more "
            "with --replica"
        )
    shared = asked if theirs.login is None else theirs
    return [(shared if one.host == root.host else theirs).to(one) for one in roots[1:]]


def _arguments(
    paths: Sequence[str], files: Sequence[Path], *, optional: bool
) -> tuple[Sequence[str], str | None]:
    """Folders and registry. With `optional` the registry may be missing: then one argument that
    is here, or without which there would be nothing to push, is the folder."""
    if not paths and not (optional and files):
        raise click.UsageError("Missing arguments: BUNDLE_DIR and REGISTRY.")
    if optional and len(paths) <= 1 and (not files or not paths or Path(paths[0]).exists()):
        return paths, None
    *folders, registry = paths
    return folders, registry


def _check_last(registry: str, sources: Sequence[str | Path]) -> None:
    """See that `registry` names one; another error if it rather is what should precede it."""
    here = Path(registry)
    misplaced = InputError(
        f"{registry} is {'a folder' if here.is_dir() else 'a file'} here, and the registry comes "
        "last: mirror push BUNDLE_DIR REGISTRY"
    )
    try:
        Repository.parse(registry)
    except InvalidReferenceError:
        if here.exists():
            raise misplaced from None
        raise
    # What looks like a registry may have a folder of that name: then it is for the rest to tell.
    if here.exists() and not any(
        options.is_address(source) or Path(source).exists() for source in sources
    ):
        raise misplaced


# -- sync ------------------------------------------------------------------------------------------

_AUTO = "auto"
_log = logging.getLogger(__name__)


@command("sync", "mirror sync --from one.example.com/dkp --to other.example.com/dkp")
def sync_command(
    leader: str | None = option(
        "The registry to copy from; 'auto' (default with --module-config): the one of --to that "
        "states the highest generation.",
        "--from LEADER",
    ),
    replicas: Sequence[str] = repeatable(
        "A registry to copy to. Repeatable; with --module-config by default all masters of the "
        "cluster.",
        "--to REPLICA",
    ),
    audit: bool = flag("Compare every tag and manifest by digest; trust no statement."),
    deep: bool = flag("Also read back and hash every byte; replace what is damaged or lost."),
    prune: bool = flag(
        "Remove tags and manifests that the leader does not state. Try with --dry-run."
    ),
    dry_run: bool = flag("Print what would be done; change nothing."),
    yes: bool = options.yes_option,
    foreign_layers: ForeignLayers = option(
        "Non-distributable layers (layers with `urls`) that the leader holds.",
        type=click.Choice([*map(str, ForeignLayers)]),
        default=str(ForeignLayers.CARRY),
        read=ForeignLayers,
    ),
    sparse_indexes: SparseIndexes = option(
        "Multi-arch indexes that lack some images at a leader without a statement.",
        type=click.Choice([*map(str, SparseIndexes)]),
        default=str(SparseIndexes.REFUSE),
        read=SparseIndexes,
    ),
    storage: Sequence[str] = repeatable(
        "With --deep: the data folder of that registry, in which damaged files may be removed to "
        "replace them. Repeatable.",
        "--storage REPLICA=DIR",
    ),
    deadline: float | None = option(
        "Stop whatever is not finished by then.",
        "--deadline SECONDS",
        type=click.FloatRange(min=0, min_open=True),
    ),
    watching: bool = flag(
        "Run as a daemon, as --config says, with health, readiness and metrics.", "--watch"
    ),
    config: Path | None = file_option(
        "With --watch: its settings (YAML, or those of Deckhouse's mirrorer)."
    ),
    keys: StatementKeys = following_keys,
    access: AccessOptions = registries_access,
    cluster: ClusterFiles = cluster_files,
    work: Work = options.running,
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
    folders = _storage(storage, names, masters)
    opened = work.enter_context(
        open_trees(
            names,
            access,
            work.on_event,
            connections=max(work.run.jobs, work.run.widest) * (len(names) + 1) + 8,
            masters=masters,
        )
    )
    rules = ContentRules(foreign_layers, sparse_indexes)
    opened = [
        replace(tree, rules=rules, keys=keys, storage=folders.get(name))
        for tree, name in zip(opened, names, strict=True)
    ]
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
        if options.is_address(folder):
            raise InputError(
                f"--storage {folder}: a repair removes damaged files from a folder of this "
                "machine, and nothing from object storage; leave --storage out: the sync names the "
                "damaged object, delete it there and sync again"
            )
        folders[_full_name(name, masters)] = Path(folder)
    if unknown := sorted(folders.keys() - set(names)):
        raise InputError(f"--storage {unknown[0]}=…: that registry is not among those to work on")
    return folders


def _full_name(name: str, masters: Mapping[str, TreeAccess]) -> str:
    """`name`, or the name of the master that it is a shorter form of: an address, `host:port`."""
    from mirror.modes import REGISTRY_PORT

    for known, target in masters.items():
        host = target.root.host
        if name in (host, host.removesuffix(f":{REGISTRY_PORT}").strip("[]")):
            return known
    return name


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
    leader = _full_name(leader or _AUTO, masters)
    named = [_full_name(name, masters) for name in replicas]
    named = named or [name for name in masters if name != leader]
    if not named or (leader == _AUTO and len(named) < 2):
        raise InputError(
            f"there is one replica alone, {', '.join(masters)}, and nothing to bring it into line "
            "with; name another registry with --from"
        )
    return leader, named


def _watch(watching: bool, config: Path | None) -> None:
    """Keep replicas equal until SIGTERM or Ctrl-C; then end with exit code 0.

    What happens is logged to stderr, one line each.
    """
    if not watching or config is None:
        raise InputError("--watch and --config FILE go together")
    for param in click.get_current_context().command.params:
        apart = param.name in ("watching", "config", "log_format", "no_color", "verbose")
        if not apart and options.given_by(ParameterSource.COMMANDLINE, param.name):
            raise InputError(
                f"{param.opts[0]} has no effect beside --watch: the file that --config names says "
                "it all"
            )
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
