"""The command line: options in, one library call each, results printed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from mirror import console
from mirror.bundle.folder import check_folder
from mirror.bundle.reader import BundleReader, read_base
from mirror.bundle.verify import BundleReport
from mirror.config import PullConfig
from mirror.errors import InputError, IntegrityError, MirrorError
from mirror.events import Warned
from mirror.oci import Repository
from mirror.operations import RegistryReport, plan_pull, push, verify, verify_registry
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
from mirror.release.tree import TargetTree, normalised_suffix
from mirror.sync.workers import DEFAULT_JOBS

_LICENSE_LOGIN = "license-token"
_INTERRUPTED = 130
_PATIENCE_S = 3.0

Command = TypeVar("Command", bound=Callable[..., Any])
Report = TypeVar("Report")


class _Group(click.Group):
    """Turns what commands raise into a message and an exit code; nothing else in mirror does."""

    def invoke(self, ctx: click.Context) -> Any:
        with _stopping(ctx):
            try:
                return super().invoke(ctx)
            except MirrorError as error:
                _tell(ctx, str(error), error.exit_code, type(error).__name__)
                ctx.exit(error.exit_code)
            except KeyboardInterrupt:
                _tell_interrupted(ctx)
                ctx.exit(_INTERRUPTED)


@contextmanager
def _stopping(ctx: click.Context) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work; `_PATIENCE_S` later, or the second time, the process too.

    The work waits for its threads, and one of those may wait for a registry that has fallen silent.
    Nothing is lost without them: every command can be stopped anywhere and run again.
    """

    def give_up() -> None:
        _tell_interrupted(ctx)
        os._exit(_INTERRUPTED)

    timer = threading.Timer(_PATIENCE_S, give_up)
    timer.daemon = True

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if timer.ident is not None:
            give_up()
        timer.start()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` and shells have it for background jobs
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        # The timer goes on: threads that were left behind would hold up the end of the process.
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_interrupted(ctx: click.Context) -> None:
    if not ctx.meta.setdefault(_TOLD, False):
        ctx.meta[_TOLD] = True
        _tell(ctx, "interrupted; run the same command again", _INTERRUPTED, "Interrupted")


def _tell(ctx: click.Context, message: str, code: int, kind: str) -> None:
    """Say what went wrong, to a person and, if it listens, to a program."""
    click.echo(f"error: {message}", err=True)
    if ctx.meta.get(_JSON):
        _print_json({"error": {"type": kind, "message": message, "exitCode": code}})


_JSON = "mirror.json"
_TOLD = "mirror.told"


def _remember_json(ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def _print_json(document: Mapping[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_connection = _options(
    click.option("--insecure", is_flag=True, help="Speak plain HTTP to the registry."),
    click.option("--tls-skip-verify", is_flag=True, help="Accept any certificate of the registry."),
    click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="PEM file of certificate authorities to trust besides the system's.",
    ),
)
_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_remember_json,
    help="Print the result as JSON and no progress.",
)
_running = _options(
    click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=DEFAULT_JOBS,
        show_default=True,
        help="Items worked on at a time.",
    ),
    _as_json,
)
_modules_suffix = click.option(
    "--modules-path-suffix",
    default="/modules",
    show_default=True,
    help="Path of the modules below the registry's root.",
)
_registry_login = _options(
    click.option(
        "-u",
        "--registry-login",
        envvar="D8_MIRROR_REGISTRY_LOGIN",
        show_envvar=True,
        help="User of the registry; without one, the credentials that docker or oras stored.",
    ),
    click.option(
        "-p",
        "--registry-password",
        envvar="D8_MIRROR_REGISTRY_PASSWORD",
        show_envvar=True,
        help="Its password; '-' reads it from standard input, which keeps it out of process lists.",
    ),
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mirror", message="mirror %(version)s")
def main() -> None:
    """Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived.

    Exit codes: 0 done, 1 failed, 2 usage, 3 replicas differ, 4 corrupt or incomplete,
    5 unreachable, 6 denied, 130 interrupted.
    """


def _config_options(*, short: Mapping[str, str]) -> Callable[[Command], Command]:
    """One option for every setting of `PullConfig`, absent unless it is given."""
    options = []
    for name, setting in PullConfig.model_fields.items():
        names = [f"--{name.replace('_', '-')}", *([short[name]] if name in short else [])]
        default, help_text = setting.get_default(), setting.description
        if isinstance(default, bool):
            options.append(click.option(*names, is_flag=True, default=None, help=help_text))
        elif isinstance(default, tuple):
            repeatable = f"{help_text} Repeatable."
            options.append(click.option(*names, multiple=True, default=None, help=repeatable))
        else:
            shown = f"{help_text}  [default: {default}]" if default is not None else help_text
            kind = int if isinstance(default, int) else str
            options.append(click.option(*names, type=kind, default=None, help=shown))
    return _options(*options)


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
    "--source-login",
    envvar="D8_MIRROR_SOURCE_LOGIN",
    show_envvar=True,
    help="User of the source; without one, the credentials that docker or oras stored.",
)
@click.option(
    "--source-password",
    envvar="D8_MIRROR_SOURCE_PASSWORD",
    show_envvar=True,
    help="Its password; '-' reads it from standard input, which keeps it out of process lists.",
)
@click.option(
    "-l",
    "--license",
    "license_key",
    envvar="D8_MIRROR_LICENSE_TOKEN",
    show_envvar=True,
    help="Deckhouse licence key, in place of user and password; '-' reads standard input.",
)
@click.option("--tmp-dir", hidden=True, help="Accepted for compatibility; none is needed.")
@_config_options(short={"include_module": "-i", "exclude_module": "-e"})
@_as_json
def pull_command(
    *,
    bundle_dir: Path,
    config_file: Path | None,
    dry_run: bool,
    base: Path | None,
    force: bool,
    no_pull_resume: bool,
    source_login: str | None,
    source_password: str | None,
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
    if license_key and not source_login:
        source_login, source_password = _LICENSE_LOGIN, license_key
    options = ConnectionOptions(
        plain_http=config.insecure, verify=not config.tls_skip_verify, ca_file=config.ca
    )
    credentials = _credentials(tree.root.host, source_login, source_password)
    held = read_base(base) if base is not None else None
    started = time.monotonic()
    with (
        console.progress(quiet=as_json) as on_event,
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
                bundle_dir, force=force, resume=not no_pull_resume, on_event=on_event
            )
    if dry_run:
        document = planned.to_document(held)
        _show(as_json, document, console.plan_summary, (planned, held), started)
    else:
        _show(as_json, report.to_document(), console.pull_summary, report, started)


@main.group("config")
def config_group() -> None:
    """Settings files for `mirror pull --config`."""


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    _print_json(PullConfig.model_json_schema(by_alias=True))


@main.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="[BUNDLE_DIR] REGISTRY")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="An archive to push, beside or instead of BUNDLE_DIR; repeatable.",
)
@click.option("--tmp-dir", hidden=True, help="Accepted for compatibility; none is needed.")
@_registry_login
@_modules_suffix
@_connection
@_running
def push_command(
    *,
    paths: Sequence[str],
    files: Sequence[Path],
    tmp_dir: str | None,
    registry_login: str | None,
    registry_password: str | None,
    modules_path_suffix: str,
    insecure: bool,
    tls_skip_verify: bool,
    ca: Path | None,
    jobs: int,
    as_json: bool,
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
    if not folders and not files:
        raise InputError("name the bundle to push: mirror push BUNDLE_DIR REGISTRY, or use --file")
    root = Repository.parse(registry)
    tree = TargetTree(root, normalised_suffix(modules_path_suffix))
    options = ConnectionOptions(plain_http=insecure, verify=not tls_skip_verify, ca_file=ca)
    credentials = _credentials(root.host, registry_login, registry_password)
    started = time.monotonic()
    with (
        console.progress(quiet=as_json) as on_event,
        BundleReader([*map(Path, folders), *files]) as reader,
        RegistryClient(
            root.host, options=options, credentials=credentials, on_event=on_event
        ) as client,
    ):
        report = push(reader, client, tree, jobs=jobs, on_event=on_event)
    _show(as_json, report.to_document(), console.push_summary, report, started)


@main.command("verify")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="REGISTRY",
    help="Check that this registry holds all that the bundle holds.",
)
@click.option("--deep", is_flag=True, help="With --against: read every byte back and hash it.")
@_registry_login
@_modules_suffix
@_connection
@_running
def verify_command(
    *,
    bundle_dir: Path,
    against: str | None,
    deep: bool,
    registry_login: str | None,
    registry_password: str | None,
    modules_path_suffix: str,
    insecure: bool,
    tls_skip_verify: bool,
    ca: Path | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Prove that the bundle in BUNDLE_DIR is whole, or that a registry holds all of it.

    Every byte of the bundle is read and checked, and every tag followed to all that it needs.
    What is wrong is listed by archive, repository, tag and digest; the exit code is then 4.
    """
    if deep and against is None:
        raise InputError("--deep goes with --against REGISTRY; a bundle is always read whole")
    started = time.monotonic()
    report: BundleReport | RegistryReport
    with console.progress(quiet=as_json) as on_event, BundleReader([bundle_dir]) as reader:
        if against is None:
            report = verify(reader, jobs=jobs, on_event=on_event)
        else:
            root = Repository.parse(against)
            tree = TargetTree(root, normalised_suffix(modules_path_suffix))
            options = ConnectionOptions(plain_http=insecure, verify=not tls_skip_verify, ca_file=ca)
            credentials = _credentials(root.host, registry_login, registry_password)
            with RegistryClient(
                root.host, options=options, credentials=credentials, on_event=on_event
            ) as client:
                report = verify_registry(
                    reader, client, tree, deep=deep, jobs=jobs, on_event=on_event
                )
    if isinstance(report, BundleReport):
        _show(as_json, report.to_document(), console.bundle_summary, report, started)
    else:
        _show(as_json, report.to_document(), console.registry_summary, report, started)
    if report.findings:
        click.get_current_context().exit(IntegrityError.exit_code)


def _credentials(host: str, login: str | None, password: str | None) -> Credentials | None:
    """What the user gave, or what docker or oras stored for `host`; None means anonymous."""
    if password == "-":  # noqa: S105 - stands for standard input
        password = sys.stdin.readline().rstrip("\n")
    if login:
        if not password:
            raise InputError(f"a password for {login} is missing; a login goes with a password")
        return Credentials(login, password)
    if password:
        raise InputError("a password was given without a login; name the user too")
    return find_credentials(host)


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
        _print_json({**document, "elapsedSeconds": round(elapsed, 3)})
    else:
        click.echo(summary(report, elapsed))
