"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from mirror.config import PullConfig
from mirror.documents import parse_rate
from mirror.run import DEFAULT_JOBS

Command = TypeVar("Command", bound=Callable[..., Any])

_UNSEEN_HELP = (
    "Its password; '-' asks for it, or reads it from a pipe: process lists never show it then."
)


def _rate(_ctx: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_rate(value)
    except ValueError as err:
        raise click.BadParameter(str(err)) from None


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON and no progress."
)
running = _options(
    click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=DEFAULT_JOBS,
        show_default=True,
        help="Items worked on at a time.",
    ),
    as_json,
)
source_login = _options(
    click.option(
        "--source-login",
        "login",
        envvar="D8_MIRROR_SOURCE_LOGIN",
        show_envvar=True,
        help="User of the source; without one, the credentials that docker or oras stored.",
    ),
    click.option(
        "--source-password",
        "password",
        envvar="D8_MIRROR_SOURCE_PASSWORD",
        show_envvar=True,
        help=_UNSEEN_HELP,
    ),
    click.option(
        "-l",
        "--license",
        "license_key",
        envvar="D8_MIRROR_LICENSE_TOKEN",
        show_envvar=True,
        help="Deckhouse licence key, in place of user and password; '-' as there.",
    ),
)
replica_login = _options(
    click.option(
        "--replica-login",
        envvar="D8_MIRROR_REPLICA_LOGIN",
        show_envvar=True,
        help="User of all replicas; without one, the credentials that docker or oras stored. The "
        "registry's own login goes to no other host.",
    ),
    click.option(
        "--replica-password",
        envvar="D8_MIRROR_REPLICA_PASSWORD",
        show_envvar=True,
        help=_UNSEEN_HELP,
    ),
)
sign_key = click.option(
    "--sign-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key (PEM, also cosign's) to sign the bundle with; its passphrase is asked for, "
    "or taken from MIRROR_SIGN_PASSWORD.",
)
tmp_dir = click.option("--tmp-dir", hidden=True, help="Accepted for compatibility; none is needed.")
registry = _options(
    click.option(
        "-u",
        "--registry-login",
        "login",
        envvar="D8_MIRROR_REGISTRY_LOGIN",
        show_envvar=True,
        help="User of the registry; without one, the credentials that docker or oras stored.",
    ),
    click.option(
        "-p",
        "--registry-password",
        "password",
        envvar="D8_MIRROR_REGISTRY_PASSWORD",
        show_envvar=True,
        help=_UNSEEN_HELP,
    ),
    click.option(
        "--modules-path-suffix",
        default="/modules",
        show_default=True,
        help="Path of the modules below the registry's root.",
    ),
    click.option("--insecure", is_flag=True, help="Speak plain HTTP to the registry."),
    click.option("--tls-skip-verify", is_flag=True, help="Accept any certificate of the registry."),
    click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="PEM file of certificate authorities to trust besides the system's.",
    ),
    click.option(
        "--limit-rate",
        callback=_rate,
        help="Move at most so many bytes a second to and from each registry: 20MB/s, 512KiB/s.",
    ),
)
"""How to reach the registry that a command works on."""


def _cluster(*, required: bool) -> Callable[[Command], Command]:
    return _options(
        click.option(
            "--module-config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            required=required,
            help="YAML file with ModuleConfig deckhouse: the mode, address, login and authority "
            "of the cluster's registry.",
        ),
        click.option(
            "--sites",
            "sites_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="With --module-config: YAML file with the cluster's masters, users, authority "
            "and public domain.",
        ),
    )


cluster = _cluster(required=False)
"""How to find the registry of a cluster by its own settings."""

cluster_required = _cluster(required=True)


def config_options(*, short: Mapping[str, str]) -> Callable[[Command], Command]:
    """One option for every setting of `PullConfig`, absent unless it is given.

    A switch has an opposite, for what a file switches on: `--no-modules/--modules`.
    """
    options = []
    for name, setting in PullConfig.model_fields.items():
        long = name.replace("_", "-")
        names = [f"--{long}", *([short[name]] if name in short else [])]
        default, help_text = setting.get_default(), setting.description
        if isinstance(default, bool):
            names[0] += f"/--{_opposite(long)}"
            options.append(click.option(*names, is_flag=True, default=None, help=help_text))
        elif isinstance(default, tuple):
            repeatable = f"{help_text} Repeatable."
            options.append(click.option(*names, multiple=True, default=None, help=repeatable))
        else:
            shown = f"{help_text}  [default: {default}]" if default is not None else help_text
            kind: Any = int if isinstance(default, int) else str
            if get_origin(setting.annotation) is Literal:
                kind = click.Choice(get_args(setting.annotation))
            options.append(click.option(*names, type=kind, default=None, help=shown))
    return _options(*options)


def _opposite(name: str) -> str:
    """The flag that takes back what `name` says."""
    if not name.startswith("no-"):
        return f"no-{name}"
    bare = name.removeprefix("no-")
    # --platform is a setting of its own: what to thin multi-arch images to.
    return f"with-{bare}" if bare.replace("-", "_") in PullConfig.model_fields else bare
