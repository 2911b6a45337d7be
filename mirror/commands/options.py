"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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


def combined(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON and no progress."
)
running = combined(
    click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=DEFAULT_JOBS,
        show_default=True,
        help="Items worked on at a time.",
    ),
    as_json,
)
source_login = combined(
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
replica_login = combined(
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
registry = combined(
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
    return combined(
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
