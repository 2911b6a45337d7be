"""`mirror pull`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mirror import console
from mirror.bundle import gost
from mirror.bundle.folder import check_folder
from mirror.bundle.reader import read_base
from mirror.commands import options
from mirror.commands.login import credentials_for, license_credentials, signer
from mirror.commands.shared import show
from mirror.config import PullConfig
from mirror.errors import InputError
from mirror.events import Warned
from mirror.operations import plan_pull
from mirror.progress import progress
from mirror.registry import ConnectionOptions, Credentials, RegistryClient


@click.command("pull")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with any of the settings below; flags override it.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be pulled, and pull nothing.")
@click.option(
    "--base",
    type=click.Path(exists=True, path_type=Path),
    help="With --dry-run: a bundle, or its inventory.json; tell what a delta against it saves.",
)
@click.option("--force", is_flag=True, help="Replace the bundle that is in BUNDLE_DIR.")
@click.option(
    "--no-pull-resume", is_flag=True, help="Begin anew, whatever an interrupted pull has left."
)
@click.option(
    "--verbose-summary", is_flag=True, help="List the versions of every module and package."
)
@click.option(
    "--sign-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key (PEM, also cosign's) to sign the bundle with; its passphrase is asked for, "
    "or taken from MIRROR_SIGN_PASSWORD.",
)
@options.source_login
@options.tmp_dir
@options.config_options(
    short={"include_module": "-i", "exclude_module": "-e", "images_bundle_chunk_size": "-c"}
)
@options.as_json
def pull_command(
    *,
    bundle_dir: Path,
    config_file: Path | None,
    dry_run: bool,
    base: Path | None,
    force: bool,
    no_pull_resume: bool,
    verbose_summary: bool,
    sign_key: Path | None,
    login: str | None,
    password: str | None,
    license_key: str | None,
    tmp_dir: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Pack a release tree into a bundle in BUNDLE_DIR.

    By default: the platform's releases between the rock-solid and the alpha channel with all their
    components, the standalone installer, security databases, and all modules and packages at the
    versions that their release channels lead to, with the plugins that they need.

    \b
    Versions, behind @ or for --include-platform:
      =TAG[+channel]   exactly this tag, published to the channel (default: to all)
      '>=1.2 <1.5'     a constraint (also ~1.2.3, ^1.2, ||); quote it for the shell
      1.2.0            this and all later versions of its major version
    """
    del tmp_dir
    if base is not None and not dry_run:
        raise InputError("--base goes with --dry-run; delta bundles cannot be written yet")
    flags = {name: value for name, value in settings.items() if value not in (None, ())}
    config = PullConfig.load(config_file, flags)
    tree = config.tree()
    wishes, warnings = config.wishes()
    part_size = config.part_size()
    if config.gost_digest:
        gost.require()
    sign = signer(sign_key) if sign_key is not None and not dry_run else None
    connection = ConnectionOptions(
        plain_http=config.insecure, verify=not config.tls_skip_verify, ca_file=config.ca
    )
    if license_key and not login:
        credentials: Credentials | None = license_credentials(license_key)
    else:
        credentials = credentials_for(tree.root.host, login, password)
    held = read_base(base) if base is not None else None
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        RegistryClient(
            tree.root.host, options=connection, credentials=credentials, on_event=on_event
        ) as client,
    ):
        for warning in warnings:
            on_event(Warned(warning))
        check_folder(bundle_dir, force=force)
        planned = plan_pull(
            client,
            tree,
            wishes,
            selection=config.selection_document(),
            jobs=config.jobs,
            on_event=on_event,
        )
        if not dry_run:
            report = planned.carry_out(
                bundle_dir,
                force=force,
                resume=not no_pull_resume,
                part_size=part_size,
                gost_digest=config.gost_digest,
                sign=sign,
                compress=config.compress == "zstd",
                on_event=on_event,
            )
    if dry_run:
        document = planned.to_document(held)
        show(as_json, document, console.plan_summary, (planned, held), started)
    else:
        summary = console.verbose_pull_summary if verbose_summary else console.pull_summary
        show(as_json, report.to_document(), summary, report, started)
