"""`mirror mode check`: whether the registry of a mode holds what the cluster needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mirror.bundle.reader import read_inventory
from mirror.commands import options
from mirror.commands.cluster import Cluster
from mirror.commands.shared import show
from mirror.errors import InputError, IntegrityError, MirrorError
from mirror.modes.check import CheckReport, ItemState, check_images, connect_with, targets_for
from mirror.modes.required import (
    RequiredSet,
    critical_modules,
    deployment_of,
    from_digest_list,
    from_inventory,
    from_values,
    read_digest_list,
    relaxed,
)
from mirror.modes.settings import CheckMode
from mirror.nodeconfig.cluster import read_document
from mirror.progress import progress
from mirror.registry import ConnectionOptions
from mirror.run import Run

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("check")
@options.cluster_required
@click.option(
    "--digests",
    "digests_file",
    type=_FILE,
    help="Required is what this lists: a release's images_digests.json, or a digest a line.",
)
@click.option(
    "--inventory",
    "inventory_path",
    type=click.Path(exists=True, path_type=Path),
    help="Required is what this bundle, or its inventory.json, holds.",
)
@click.option(
    "--values",
    "values_file",
    type=_FILE,
    help="Required is what the cluster's values name (YAML or JSON with "
    "global.modulesImages.digests), of critical modules.",
)
@click.option(
    "--modules",
    "modules_file",
    type=_FILE,
    help="With --values: the cluster's Module objects as a list (kubectl get modules -o yaml), "
    "which say what is critical.",
)
@click.option(
    "--deckhouse-image",
    help="The image of the platform's own container, required too; alone, by its tag, where the "
    "settings say checkMode Relax.",
)
@click.option("--tls-skip-verify", is_flag=True, help="Accept any certificate of the registry.")
@options.running
def check_command(
    *,
    module_config: Path,
    sites_file: Path | None,
    digests_file: Path | None,
    inventory_path: Path | None,
    values_file: Path | None,
    modules_file: Path | None,
    deckhouse_image: str | None,
    tls_skip_verify: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Check that the registry of these settings holds every image that the cluster needs.

    That is the registry outside of the cluster, or in mode Local every master's replica. The exit
    code is 4 where images are missing.
    """
    cluster = Cluster.load(module_config, sites_file)
    required = _required(
        cluster.settings.check_mode,
        digests_file,
        inventory_path,
        values_file,
        modules_file,
        deckhouse_image,
    )
    targets = targets_for(cluster.settings, cluster.access)
    connection = ConnectionOptions(verify=not tls_skip_verify)
    started = time.monotonic()
    with progress(quiet=as_json) as on_event:
        report = check_images(
            required,
            targets,
            connect_with(connection, on_event),
            workers=jobs,
            run=Run(on_event=on_event),
        )
    show(as_json, report.to_document(), _summary, report, started)
    if not report.ready:
        click.get_current_context().exit(_exit_code(report))


def _required(
    mode: CheckMode,
    digests_file: Path | None,
    inventory_path: Path | None,
    values_file: Path | None,
    modules_file: Path | None,
    deckhouse_image: str | None,
) -> RequiredSet:
    deployment = None if deckhouse_image is None else deployment_of(deckhouse_image)
    given = [path for path in (digests_file, inventory_path, values_file) if path is not None]
    if len(given) > 1:
        raise InputError("--digests, --inventory and --values exclude each other; keep one")
    if (modules_file is None) is not (values_file is None):
        raise InputError("--values and --modules go together; give both")
    if mode is CheckMode.RELAX:
        return relaxed(deployment)
    if digests_file is not None:
        return from_digest_list(read_digest_list(digests_file), str(digests_file), deployment)
    if inventory_path is not None:
        return from_inventory(read_inventory(inventory_path), deployment)
    if values_file is not None and modules_file is not None:
        modules = read_document(modules_file).get("items")
        if not isinstance(modules, list):
            raise InputError(f"{modules_file}: no list of Module objects (items)")
        critical = critical_modules(one for one in modules if isinstance(one, dict))
        return from_values(read_document(values_file), critical, deployment)
    raise InputError(
        "say what is required: --digests FILE, --inventory BUNDLE_DIR, or --values FILE with "
        "--modules FILE"
    )


def _summary(report: CheckReport, _elapsed_s: float) -> str:
    return report.message


def _exit_code(report: CheckReport) -> int:
    """4 where something is missing; else what kept the registries from answering."""
    items: list[Any] = [item for one in report.registries for item in one.items]
    if any(item.state is ItemState.MISSING for item in items):
        return IntegrityError.exit_code
    codes = {item.error.exit_code for item in items if item.error is not None}
    return codes.pop() if len(codes) == 1 else MirrorError.exit_code
