"""`mirror verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import BundleReport
from mirror.commands import options
from mirror.commands.access import TreeAccess
from mirror.commands.errors import show
from mirror.commands.login import AccessOptions
from mirror.errors import InputError, IntegrityError
from mirror.operations.compare import RegistryReport, verify
from mirror.reports.bundles import bundle_summary, registry_summary
from mirror.reports.progress import progress
from mirror.run import Run


@click.command("verify")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="REGISTRY",
    help="Check that this registry holds all that the bundle holds; with --module-config it may "
    "be left out, or be a logical address.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Check structure and sizes only; the bytes of layers stay unread and unproved.",
)
@click.option("--deep", is_flag=True, help="With --against: read every byte back and hash it.")
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) of who must have signed the bundle.",
)
@options.registry
@options.cluster
@options.running
def verify_command(
    *,
    bundle_dir: Path,
    against: str | None,
    quick: bool,
    deep: bool,
    key_file: Path | None,
    module_config: Path | None,
    sites_file: Path | None,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Prove that the bundle in BUNDLE_DIR is whole, or that a registry holds all of it.

    Every byte of the bundle is read and checked, and every tag followed to all that it needs.
    With --quick it is headers, indexes and manifests that are, and the size and place of the rest.
    What is wrong is listed by archive, repository, tag and digest; the exit code is then 4.
    """
    cluster = module_config is not None or sites_file is not None
    registry = against is not None or cluster
    if deep and not registry:
        raise InputError("--deep goes with --against REGISTRY; a bundle is always read whole")
    if quick and registry:
        raise InputError(
            "--quick is about a bundle and --against about a registry, where nothing is read back "
            "without --deep; drop one of them"
        )
    if key_file is not None and registry:
        raise InputError(
            "--key is about a bundle and --against about a registry; use one at a time"
        )
    key = key_file.read_bytes() if key_file is not None else None
    target = None
    if registry:
        target = TreeAccess.named(
            against,
            AccessOptions(**access),
            module_config=module_config,
            sites_file=sites_file,
            writes=False,
        )
    started = time.monotonic()
    report: BundleReport | RegistryReport
    with progress(quiet=as_json) as on_event, BundleReader([bundle_dir]) as reader:
        if target is None:
            report = verify(reader, key=key, quick=quick, run=Run(jobs, on_event))
        else:
            with target.open(on_event) as tree:
                report = verify(reader, against=tree, deep=deep, run=Run(jobs, on_event))
    if isinstance(report, BundleReport):
        show(as_json, report.to_document(), bundle_summary, report, started)
    else:
        show(as_json, report.to_document(), registry_summary, report, started)
    if report.findings:
        click.get_current_context().exit(IntegrityError.exit_code)
