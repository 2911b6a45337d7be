"""The command line: options in, one library call each, results printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import click

from mirror import cli_options, console
from mirror.bundle import gost, report_html
from mirror.bundle.folder import check_folder, write_durably
from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.reader import BundleReader, read_base
from mirror.bundle.report_text import insight_text
from mirror.bundle.verify import BundleReport
from mirror.cli_errors import Group, print_json
from mirror.cli_login import credentials_for, license_credentials, signer
from mirror.config import PullConfig
from mirror.errors import InputError, IntegrityError, InvalidReferenceError
from mirror.events import OnEvent, Warned
from mirror.oci import Repository
from mirror.operations import RegistryReport, plan_pull, push, verify, verify_registry
from mirror.progress import progress
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.release.tree import TargetTree, normalised_suffix

Report = TypeVar("Report")


@dataclass(frozen=True, slots=True)
class _Target:
    """The registry that a push or a verification is about, and how to reach it."""

    tree: TargetTree
    options: ConnectionOptions
    credentials: Credentials | None

    @classmethod
    def of(
        cls,
        root: Repository,
        *,
        login: str | None,
        password: str | None,
        modules_path_suffix: str,
        insecure: bool,
        tls_skip_verify: bool,
        ca: Path | None,
    ) -> Self:
        """What `cli_options.registry` says about `root`."""
        return cls(
            TargetTree(root, normalised_suffix(modules_path_suffix)),
            ConnectionOptions(plain_http=insecure, verify=not tls_skip_verify, ca_file=ca),
            credentials_for(root.host, login, password),
        )

    def client(self, on_event: OnEvent) -> RegistryClient:
        """Its client."""
        return RegistryClient(
            self.tree.root.host,
            options=self.options,
            credentials=self.credentials,
            on_event=on_event,
        )


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mirror", message="mirror %(version)s")
def main() -> None:
    """Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived.

    Exit codes: 0 done, 1 failed, 2 usage, 3 replicas differ, 4 corrupt or incomplete,
    5 unreachable, 6 denied, 130 interrupted.
    """


@main.command("pull")
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
@cli_options.source_login
@cli_options.tmp_dir
@cli_options.config_options(
    short={"include_module": "-i", "exclude_module": "-e", "images_bundle_chunk_size": "-c"}
)
@cli_options.as_json
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
    options = ConnectionOptions(
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
            tree.root.host, options=options, credentials=credentials, on_event=on_event
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
                on_event=on_event,
            )
    if dry_run:
        document = planned.to_document(held)
        _show(as_json, document, console.plan_summary, (planned, held), started)
    else:
        summary = console.verbose_pull_summary if verbose_summary else console.pull_summary
        _show(as_json, report.to_document(), summary, report, started)


@main.group("config")
def config_group() -> None:
    """Settings files for `mirror pull --config`."""


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    print_json(PullConfig.model_json_schema(by_alias=True))


@main.command("push")
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
@cli_options.tmp_dir
@cli_options.registry
@cli_options.running
def push_command(
    *,
    paths: Sequence[str],
    files: Sequence[Path],
    verify_key: Path | None,
    tmp_dir: str | None,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Load the bundle in BUNDLE_DIR into REGISTRY (host[:port]/path).

    Only what the registry lacks is sent; an interrupted push is completed by running it again.
    Release channels turn last, when all images they lead to are there.
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
    target = _Target.of(root, **access)
    started = time.monotonic()
    with (
        progress(quiet=as_json) as on_event,
        BundleReader([*map(Path, folders), *files]) as reader,
        target.client(on_event) as client,
    ):
        key = verify_key.read_bytes() if verify_key is not None else None
        report = push(reader, client, target.tree, key=key, jobs=jobs, on_event=on_event)
    _show(as_json, report.to_document(), console.push_summary, report, started)


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


@main.command("verify")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="REGISTRY",
    help="Check that this registry holds all that the bundle holds.",
)
@click.option("--deep", is_flag=True, help="With --against: read every byte back and hash it.")
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) of who must have signed the bundle.",
)
@cli_options.registry
@cli_options.running
def verify_command(
    *,
    bundle_dir: Path,
    against: str | None,
    deep: bool,
    key_file: Path | None,
    jobs: int,
    as_json: bool,
    **access: Any,
) -> None:
    """Prove that the bundle in BUNDLE_DIR is whole, or that a registry holds all of it.

    Every byte of the bundle is read and checked, and every tag followed to all that it needs.
    What is wrong is listed by archive, repository, tag and digest; the exit code is then 4.
    """
    if deep and against is None:
        raise InputError("--deep goes with --against REGISTRY; a bundle is always read whole")
    if key_file is not None and against is not None:
        raise InputError(
            "--key is about a bundle and --against about a registry; use one at a time"
        )
    key = key_file.read_bytes() if key_file is not None else None
    target = None if against is None else _Target.of(Repository.parse(against), **access)
    started = time.monotonic()
    report: BundleReport | RegistryReport
    with progress(quiet=as_json) as on_event, BundleReader([bundle_dir]) as reader:
        if target is None:
            report = verify(reader, key=key, jobs=jobs, on_event=on_event)
        else:
            with target.client(on_event) as client:
                report = verify_registry(
                    reader, client, target.tree, deep=deep, jobs=jobs, on_event=on_event
                )
    if isinstance(report, BundleReport):
        _show(as_json, report.to_document(), console.bundle_summary, report, started)
    else:
        _show(as_json, report.to_document(), console.registry_summary, report, started)
    if report.findings:
        click.get_current_context().exit(IntegrityError.exit_code)


@main.command("inspect")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a report with a map of sizes to this file: one page, to be opened offline.",
)
@cli_options.as_json
def inspect_command(*, bundle_dir: Path, html_file: Path | None, as_json: bool) -> None:
    """Show what is in the bundle in BUNDLE_DIR: versions, channels, counts, sizes.

    Indexes and manifests are read; whether all bytes are right is for `mirror verify`.
    """
    started = time.monotonic()
    with BundleReader([bundle_dir]) as reader:
        found = inspect_bundle(reader)
    if html_file is not None:
        write_durably(html_file, report_html.html(found).encode())
    _show(as_json, found.to_document(), lambda shown, _: insight_text(shown), found, started)


def _show(
    as_json: bool,
    document: Mapping[str, Any],
    summary: Callable[[Report, float], str],
    report: Report,
    started: float,
) -> None:
    """Print a result, for a program or for a person."""
    elapsed = time.monotonic() - started
    if as_json:
        print_json({**document, "elapsedSeconds": round(elapsed, 3)})
    else:
        click.echo(summary(report, elapsed))
