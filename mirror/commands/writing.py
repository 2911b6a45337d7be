"""What helps people to write settings and command lines: JSON Schemas, and completion by shells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from mirror.commands import options
from mirror.commands.errors import print_json
from mirror.commands.process import show, tell
from mirror.errors import FileSystemError, MirrorError
from mirror.layout import CHANNELS, MODULES, PACKAGES

# -- mirror config ---------------------------------------------------------------------------------


def _pull() -> dict[str, Any]:
    from mirror.config import PullConfig

    return PullConfig.model_json_schema(by_alias=True)


def _watch() -> dict[str, Any]:
    from mirror.watch.settings import WatchSettings

    return WatchSettings.model_json_schema(by_alias=True)


def _sites() -> dict[str, Any]:
    from mirror.nodeconfig.cluster import AccessFile

    return AccessFile.model_json_schema(by_alias=True)


def _facts() -> dict[str, Any]:
    from pydantic import TypeAdapter

    from mirror.modes.outcomes import ClusterFacts

    return TypeAdapter(ClusterFacts).json_schema(by_alias=True)


def _progress() -> dict[str, Any]:
    from mirror.reports.progress import event_schema

    return event_schema()


def _profiles() -> dict[str, Any]:
    from mirror.commands.profiles import profiles_schema

    program = click.get_current_context().find_root().command
    assert isinstance(program, click.Group)
    return profiles_schema(program)


SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "pull": _pull,
    "watch": _watch,
    "sites": _sites,
    "facts": _facts,
    "progress": _progress,
    "profiles": _profiles,
}
"""What has a schema → what makes it. Their rooms are imported when they are asked for."""


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one of `SCHEMAS`, with the name that others may refer to it by."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deckhouse:mirror:schema:{kind}",
        **SCHEMAS[kind](),
    }


@click.group("config")
def config_group() -> None:
    """Settings files and their JSON Schemas."""


@config_group.command("schema", epilog=options.example("mirror config schema pull"))
@click.argument("kind", type=click.Choice([*SCHEMAS]), default="pull")
def config_schema(kind: str) -> None:
    """Print the JSON Schema of a file: of `pull --config` unless another is named.

    \b
      pull      the settings of pull --config
      watch     the settings of sync --watch --config
      sites     what is known of a cluster: --sites
      facts     what somebody has looked at: mode plan --facts
      profiles  settings for all commands: mirror --config
      progress  a line of --progress json
    """
    print_json(schema(kind))


# -- what a shell offers for what is being typed ---------------------------------------------------
#
# Nothing here asks a registry: a shell waits for the answer.

Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offering(values: Iterable[str]) -> Offer:
    """Offers these values."""
    known = tuple(values)

    def offer(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
        return [CompletionItem(value) for value in known if value.startswith(typed)]

    return offer


def items_below(root: str) -> Offer:
    """Offers the names (`modules/NAME`) of the bundle that the command line names."""

    def offer(ctx: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        from mirror.bundle.reader import read_inventory

        names: set[str] = set()
        # Before an option without its value, click leaves arguments where they were.
        for place in (ctx.params.get("base"), ctx.params.get("bundle_dir"), *ctx.args):
            with suppress(MirrorError, OSError):  # no bundle is there, or not yet
                paths = read_inventory(Path(place or "")).repositories
                names |= {
                    path.removeprefix(f"{root}/").partition("/")[0]
                    for path in paths
                    if path.startswith(f"{root}/")
                }
        return offering(sorted(names))(ctx, option, typed)

    return offer


PULL = {
    "deckhouse_tag": offering(CHANNELS),
    "include_module": items_below(MODULES),
    "exclude_module": items_below(MODULES),
    "include_package": items_below(PACKAGES),
    "exclude_package": items_below(PACKAGES),
    "platform": offering(["linux/amd64", "linux/arm64"]),
    "images_bundle_chunk_size": offering(["cd", "dvd", "dvd-dl", "bd", "fat32", "700MB", "4GiB"]),
}
"""Settings of a pull → what to offer for them."""


def folder(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Leaves it to the shell to offer files and folders."""
    return [CompletionItem(typed, type="file")]


# -- the scripts -----------------------------------------------------------------------------------

_PLACES = {
    "bash": ("XDG_DATA_HOME", ".local/share", "bash-completion/completions/mirror"),
    "zsh": ("XDG_DATA_HOME", ".local/share", "zsh/site-functions/_mirror"),
    "fish": ("XDG_CONFIG_HOME", ".config", "fish/completions/mirror.fish"),
}
"""Shell → the variable that names the base folder, its default, and the file below it."""

_HINTS = {
    "bash": "new shells have it, if the package bash-completion is installed",
    "zsh": "new shells have it, if .zshrc has this before compinit:\n  fpath=({folder} $fpath)",
    "fish": "new shells have it",
}


@click.command("completion", epilog=options.example("mirror completion bash --install"))
@click.argument("shell", type=click.Choice([*_PLACES]))
@click.option(
    "--install", is_flag=True, help="Write the script to where this user's shell looks for it."
)
def completion_command(*, shell: str, install: bool) -> None:
    """Print the script by which a shell completes commands, options and values of `mirror`.

    Offered are files, choices, release channels, and modules and packages of the bundle that the
    command line names.
    """
    found = get_completion_class(shell)
    assert found is not None  # one of click's own
    script = found(click.Command("mirror"), {}, "mirror", "_MIRROR_COMPLETE").source().strip()
    if not install:
        show(script)
        return
    variable, default, name = _PLACES[shell]
    base = Path(os.environ.get(variable) or Path.home() / default)
    file = base / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{script}\n", encoding="utf-8")
    except OSError as err:
        raise FileSystemError(
            f"{file} cannot be written: {err.strerror}; print the script without --install, and "
            "put it where the shell looks for it"
        ) from err
    tell(f"{file} is written; {_HINTS[shell].format(folder=file.parent)}")
