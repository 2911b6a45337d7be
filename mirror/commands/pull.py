"""`mirror pull`, and `mirror config` for its settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from mirror.bundle import gost
from mirror.bundle.folder import check_folder
from mirror.bundle.reader import read_inventory
from mirror.bundle.writer import Packing
from mirror.commands import options
from mirror.commands.access import cluster_of
from mirror.commands.errors import print_json, show
from mirror.commands.login import (
    AccessOptions,
    Reached,
    credentials_for,
    license_credentials,
    signer,
)
from mirror.config import PullConfig
from mirror.errors import InputError, InvalidReferenceError
from mirror.events import Warned
from mirror.layout import normalised_suffix
from mirror.oci import Repository
from mirror.operations.pull import plan_pull
from mirror.operations.trees import registry_inventory
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.release.source import SourceTree
from mirror.reports.bundles import plan_summary, pull_summary, verbose_pull_summary
from mirror.reports.progress import progress
from mirror.run import Run
from mirror.sync.tree import RegistryTree

if TYPE_CHECKING:
    from mirror.commands.cluster import Cluster
    from mirror.sync import Inventory


def _config_options(*, short: Mapping[str, str]) -> Callable[[options.Command], options.Command]:
    """One option for every setting of `PullConfig`, absent unless it is given.

    A switch has an opposite, for what a file switches on: `--no-modules/--modules`.
    """
    found = []
    for name, setting in PullConfig.model_fields.items():
        long = name.replace("_", "-")
        names = [f"--{long}", *([short[name]] if name in short else [])]
        default, help_text = setting.get_default(), setting.description
        if isinstance(default, bool):
            names[0] += f"/--{_opposite(long)}"
            found.append(click.option(*names, is_flag=True, default=None, help=help_text))
        elif isinstance(default, tuple):
            repeatable = f"{help_text} Repeatable."
            found.append(click.option(*names, multiple=True, default=None, help=repeatable))
        else:
            shown = f"{help_text}  [default: {default}]" if default is not None else help_text
            kind: Any = int if isinstance(default, int) else str
            if get_origin(setting.annotation) is Literal:
                kind = click.Choice(get_args(setting.annotation))
            found.append(click.option(*names, type=kind, default=None, help=shown))
    return options.combined(*found)


def _opposite(name: str) -> str:
    """The flag that takes back what `name` says."""
    if not name.startswith("no-"):
        return f"no-{name}"
    bare = name.removeprefix("no-")
    # --platform is a setting of its own: what to thin multi-arch images to.
    return f"with-{bare}" if bare.replace("-", "_") in PullConfig.model_fields else bare


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
    help="Make a delta: leave out what this holds; a bundle, an inventory, or a registry (the "
    "source's connection settings count, and the login that docker or oras stored).",
)
@click.option("--force", is_flag=True, help="Replace the bundle that is in BUNDLE_DIR.")
@click.option(
    "--no-pull-resume", is_flag=True, help="Begin anew, whatever an interrupted pull has left."
)
@click.option(
    "--verbose-summary", is_flag=True, help="List the versions of every module and package."
)
@options.sign_key
@options.source_login
@options.cluster
@options.tmp_dir
@_config_options(
    short={"include_module": "-i", "exclude_module": "-e", "images_bundle_chunk_size": "-c"}
)
@options.as_json
def pull_command(
    *,
    bundle_dir: Path,
    config_file: Path | None,
    dry_run: bool,
    base: str | None,
    force: bool,
    no_pull_resume: bool,
    verbose_summary: bool,
    sign_key: Path | None,
    login: str | None,
    password: str | None,
    license_key: str | None,
    module_config: Path | None,
    sites_file: Path | None,
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
    flags = {name: value for name, value in settings.items() if value not in (None, ())}
    config = PullConfig.load(config_file, flags)
    source = _source(config, login, password, license_key, cluster_of(module_config, sites_file))
    tree = SourceTree(source.root, config.tree().modules_suffix)
    selection, warnings = config.selection()
    part_size = config.part_size()
    if config.gost_digest:
        gost.require()
    sign = signer(sign_key) if sign_key is not None and not dry_run else None
    previous = None if base is None else _Base.parse(base)
    held = read_inventory(previous.path) if previous is not None and previous.path else None
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        RegistryClient(
            source.root.host,
            options=source.options,
            credentials=source.credentials,
            on_event=on_event,
        ) as client,
    ):
        run = Run(config.jobs, on_event)
        for warning in warnings:
            on_event(Warned(warning))
        check_folder(bundle_dir, force=force)
        if previous is not None and previous.root is not None:
            modules_suffix = normalised_suffix(config.modules_path_suffix)
            held = previous.observed(
                source.options,
                source.credentials if previous.root.host == source.root.host else None,
                modules_suffix,
                run,
            )
        planned = plan_pull(
            client,
            tree,
            selection,
            selection=config.selection_document(),
            base=held,
            dedupe=config.dedupe,
            run=run,
        )
        if not dry_run:
            report = planned.carry_out(
                bundle_dir,
                force=force,
                packing=Packing(
                    part_size=part_size,
                    gost_digest=config.gost_digest,
                    sign=sign,
                    resume=not no_pull_resume,
                    compress=config.compress == "zstd",
                ),
                run=run,
            )
    if dry_run:
        show(as_json, planned.to_document(), plan_summary, planned, started)
    else:
        summary = verbose_pull_summary if verbose_summary else pull_summary
        show(as_json, report.to_document(), summary, report, started)


def _source(
    config: PullConfig,
    login: str | None,
    password: str | None,
    license_key: str | None,
    cluster: Cluster | None,
) -> Reached:
    """Where to pull from: the registry of the settings, or by default that of the cluster."""
    credentials: Credentials | None = None
    if license_key and not login:
        credentials = license_credentials(license_key)
    asked = AccessOptions(
        login,
        password,
        insecure=config.insecure,
        tls_skip_verify=config.tls_skip_verify,
        ca=config.ca,
        limit_rate=config.bytes_per_s(),
    )
    if cluster is not None:
        source = config.source if "source" in config.model_fields_set else None
        reached = cluster.reach(source, asked, writes=False)
        return reached if credentials is None else replace(reached, credentials=credentials)
    root = config.tree().root
    return Reached(root, asked.connection(), credentials or asked.credentials(str(root)))


@dataclass(frozen=True, slots=True)
class _Base:
    """What `--base` names: something on the disk, or a registry's root."""

    path: Path | None = None
    root: Repository | None = None

    @classmethod
    def parse(cls, text: str) -> _Base:
        if Path(text).exists():
            return cls(path=Path(text))
        try:
            return cls(root=Repository.parse(text))
        except InvalidReferenceError as err:
            raise InputError(
                f"--base {text}: no file or folder of that name is here, and it is no registry "
                f"(host[:port]/path) either: {err}"
            ) from err

    def observed(
        self,
        connection: ConnectionOptions,
        credentials: Credentials | None,
        modules_suffix: str,
        run: Run,
    ) -> Inventory:
        """What the registry holds."""
        assert self.root is not None
        host = self.root.host
        login = credentials or credentials_for(host, None, None)
        with RegistryClient(
            host, options=connection, credentials=login, on_event=run.on_event
        ) as client:
            return registry_inventory(
                RegistryTree(client, self.root, modules_suffix), run=run
            ).inventory


@click.group("config")
def config_group() -> None:
    """Settings files for `mirror pull --config`."""


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    print_json(PullConfig.model_json_schema(by_alias=True))
