"""`mirror push`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mirror.bundle.reader import BundleReader
from mirror.bundle.share import Shard
from mirror.commands import options
from mirror.commands.access import (
    AccessOptions,
    TreeAccess,
    login_options,
    pushing_keys,
    registry_access,
)
from mirror.commands.cluster_files import ClusterFiles, cluster_files
from mirror.commands.options import (
    FILE,
    Work,
    argument,
    command,
    flag,
    located,
    option,
    running,
    tmp_dir_option,
)
from mirror.commands.process import PROFILE, Profile
from mirror.commands.program import folder
from mirror.errors import InputError, InvalidReferenceError
from mirror.events import Warned
from mirror.layout import MODULES
from mirror.oci import Repository
from mirror.operations.push import plan_push, push, push_to_all
from mirror.release.discovery import component_names
from mirror.reports.bundles import push_plan_summary, push_summary
from mirror.reports.registries import push_shard_summary, quorum_summary
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
    files: Sequence[Path] = option(
        "An archive to push, in addition to or instead of BUNDLE_DIR. Repeatable.",
        "--file",
        multiple=True,
        type=options.PathHere(exists=True),
    ),
    verify_key: Path | None = option(
        "Refuse a bundle that was not signed with the key of this public key (PEM).", type=FILE
    ),
    dry_run: bool = flag("Print what would be sent, by repository; write nothing."),
    check: str = option(
        "What to ask the registry for: tags and manifests, or also the blobs of the manifests "
        "there, which finds those that it lost.",
        type=click.Choice(["manifests", "blobs"]),
        default="manifests",
    ),
    verification: str = option(
        "What to ask the registry for when it has accepted everything: what was put, with some of "
        "the blobs, and the tags; or everything, as always with --replica.",
        "--verify",
        type=click.Choice([one.value for one in Verification]),
        default=Verification.TAGS.value,
    ),
    state_dir: Path | None = option(
        "Where to keep the state of uploads, so that a killed push continues within a blob.  "
        "[default: mirror in XDG_STATE_HOME or ~/.local/state]",
        type=options.PathHere(file_okay=False),
        envvar="MIRROR_STATE_DIR",
        show_envvar=True,
    ),
    no_access_check: bool = flag(
        "Do not check the right to write before the first byte is sent.",
        envvar="MIRROR_BYPASS_ACCESS_CHECKS",
        show_envvar=True,
    ),
    accept_flattened: bool = flag(
        "Take a bundle in which multi-arch images were reduced to one platform, as d8 packs them. "
        "Clusters that ask for one by its digest will not find it."
    ),
    replicas: Sequence[str] = option(
        "Another registry to push to at the same time. Repeatable.",
        "--replica",
        multiple=True,
        metavar="REGISTRY",
    ),
    quorum: int | None = option(
        "How many of REGISTRY and the replicas must verifiably hold the whole release.  [default: "
        "all]",
        type=click.IntRange(min=1),
    ),
    shard: str | None = option(
        "Send one of COUNT shares of the bundle, as 3/8, which as many machines push together; the "
        "last to come sets the tags. `auto`: the share of a pod of a Kubernetes Indexed Job.",
        metavar="N/COUNT",
    ),
    replica_login: str | None = _REPLICA["login"],
    replica_password: str | None = _REPLICA["password"],
    tmp_dir: str | None = tmp_dir_option,
    keys: StatementKeys = pushing_keys,
    access: AccessOptions = registry_access,
    cluster: ClusterFiles = cluster_files,
    work: Work = running,
) -> None:
    """Load the bundle in BUNDLE_DIR, or at an address, into REGISTRY (host[:port]/path).

    With --module-config, REGISTRY may be left out, or be a logical address
    (registry.d8-system.svc:5001/system/deckhouse).

    The push sends only what is missing; to complete an interrupted push, run it again. It changes
    release channels last, when all images that they lead to are there. Then it publishes what the
    registry holds, as a new generation, which `mirror rollback` can take back.
    """
    del tmp_dir
    options.tell_ignored_variables(work.on_event)
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
    others = _replicas(target, replicas, quorum, access, replica_login, replica_password)
    if others and dry_run:
        raise InputError("--dry-run is for one registry at a time; leave --replica out")
    if others and shard is not None:
        raise InputError(
            "--shard is for one registry at a time; leave --replica out, and run the shards for "
            "each registry, or let `mirror sync` fill the others"
        )
    part = None if shard is None else Shard.parse(shard)
    key = verify_key.read_bytes() if verify_key is not None else None
    bundles = [one if options.is_address(one) else Path(one) for one in folders]
    paths_given = [*(located(one, access.connection(), work) for one in bundles), *files]
    reader = work.enter_context(BundleReader(paths_given, flattened=accept_flattened))
    blobs = check == "blobs"
    if dry_run:
        tree = replace(work.enter_context(target.open(work.on_event)), keys=keys)
        if part is not None:
            from mirror.operations.shards import plan_push_shard  # few need it

            plan = plan_push_shard(reader, tree, part, key=key, check_blobs=blobs, run=work.run)
        else:
            plan = plan_push(reader, tree, key=key, check_blobs=blobs, run=work.run)
        names = component_names(reader, reader.carried())
        work.show(replace(plan, names=names), push_plan_summary)
        return
    trees = [
        replace(work.enter_context(one.open_for_uploads(work.on_event, state_dir)), keys=keys)
        for one in (target, *others)
    ]
    writable = not no_access_check
    if others:
        result = push_to_all(
            reader, trees, quorum=quorum, key=key, check_access=writable, run=work.run
        )
        work.show(result, quorum_summary)
        return
    how: dict[str, Any] = {
        "key": key,
        "check_access": writable,
        "check_blobs": blobs,
        "verification": Verification(verification),
        "run": work.run,
    }
    if part is not None:
        from mirror.operations.shards import push_shard

        work.show(push_shard(reader, trees[0], part, **how), push_shard_summary)
    else:
        work.show(push(reader, trees[0], **how), push_summary)


def _replicas(
    target: TreeAccess,
    replicas: Sequence[str],
    quorum: int | None,
    asked: AccessOptions,
    login: str | None,
    password: str | None,
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
    own = replace(asked, login=login, password=password, cert=None, cert_key=None, whose="replica")
    return [
        (asked if one.host == root.host and login is None else own).to(one) for one in roots[1:]
    ]


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
