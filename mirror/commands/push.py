"""`mirror push`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from mirror import console
from mirror.bundle.reader import BundleReader
from mirror.commands import options
from mirror.commands.shared import Target, show
from mirror.errors import InputError, InvalidReferenceError
from mirror.oci import Repository
from mirror.operations import Member, push, push_to_all
from mirror.progress import progress
from mirror.publication_text import quorum_summary


@click.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="[BUNDLE_DIR] REGISTRY")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="An archive to push, beside or instead of BUNDLE_DIR; repeatable.",
)
@click.option(
    "--verify-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) of who must have signed the bundle; nothing is pushed otherwise.",
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    metavar="REGISTRY",
    help="Another registry to bring to the same state at the same time; repeatable.",
)
@click.option(
    "--quorum",
    type=click.IntRange(min=1),
    help="How many of REGISTRY and the replicas must hold the whole release in the end, checked; "
    "all by default.",
)
@options.replica_login
@options.tmp_dir
@options.registry
@options.running
def push_command(
    *,
    paths: Sequence[str],
    files: Sequence[Path],
    verify_key: Path | None,
    replicas: Sequence[str],
    quorum: int | None,
    replica_login: str | None,
    replica_password: str | None,
    tmp_dir: str | None,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Load the bundle in BUNDLE_DIR into REGISTRY (host[:port]/path).

    Only what the registry lacks is sent; an interrupted push is completed by running it again.
    Release channels turn last, when all images they lead to are there. What the registry holds
    then is published in it as a new generation, which `mirror rollback` can take back.
    """
    del tmp_dir
    *folders, registry = paths
    if len(folders) > 1:
        raise InputError(
            "push takes one BUNDLE_DIR and one REGISTRY; name further archives with --file"
        )
    root = _last_argument(registry, [*folders, *files])
    if not folders and not files:
        raise InputError("name the bundle to push: mirror push BUNDLE_DIR REGISTRY, or use --file")
    target = Target.of(root, **access)
    others = _replicas(root, replicas, quorum, access, replica_login, replica_password)
    started = time.monotonic()
    if others:
        with (
            progress(quiet=as_json) as on_event,
            BundleReader([*map(Path, folders), *files]) as reader,
            ExitStack() as clients,
        ):
            members = [
                Member(clients.enter_context(one.client(on_event)), one.tree)
                for one in (target, *others)
            ]
            key = verify_key.read_bytes() if verify_key is not None else None
            result = push_to_all(
                reader, members, quorum=quorum, key=key, jobs=jobs, on_event=on_event
            )
        show(as_json, result.to_document(), quorum_summary, result, started)
        return
    with (
        progress(quiet=as_json) as on_event,
        BundleReader([*map(Path, folders), *files]) as reader,
        target.client(on_event) as client,
    ):
        key = verify_key.read_bytes() if verify_key is not None else None
        report = push(reader, client, target.tree, key=key, jobs=jobs, on_event=on_event)
    show(as_json, report.to_document(), console.push_summary, report, started)


def _replicas(
    root: Repository,
    replicas: Sequence[str],
    quorum: int | None,
    access: Mapping[str, Any],
    login: str | None,
    password: str | None,
) -> list[Target]:
    """The replicas, and how to reach them: as REGISTRY, but for the login, which is for one host.

    Raises:
        InputError: one is named twice, or the quorum is larger than the number of registries.
    """
    roots = [root, *map(Repository.parse, replicas)]
    twice = next((one for number, one in enumerate(roots) if one in roots[:number]), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice; every replica is another registry")
    if quorum is not None and quorum > len(roots):
        raise InputError(
            f"--quorum {quorum} cannot be reached with {len(roots)} registries; name more "
            "with --replica"
        )
    own = {"login": login, "password": password}
    return [
        Target.of(one, **{**access, **({} if one.host == root.host and login is None else own)})
        for one in roots[1:]
    ]


def _last_argument(registry: str, sources: Sequence[str | Path]) -> Repository:
    """The registry that `registry` names; another error if it rather is what should precede it."""
    here = Path(registry)
    misplaced = InputError(
        f"{registry} is {'a folder' if here.is_dir() else 'a file'} here, and the registry comes "
        "last: mirror push BUNDLE_DIR REGISTRY"
    )
    try:
        root = Repository.parse(registry)
    except InvalidReferenceError:
        if here.exists():
            raise misplaced from None
        raise
    # What looks like a registry may have a folder of that name: then it is for the rest to tell.
    if here.exists() and not any(Path(source).exists() for source in sources):
        raise misplaced
    return root
