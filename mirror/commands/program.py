"""The program itself: which release it is, and how a shell completes what is typed."""

from __future__ import annotations

import os
import platform
import re
import ssl
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from mirror.bundle.seal import PARTIAL_SCHEMA_VERSION, SCHEMA_VERSION
from mirror.commands.options import Work, argument, as_json, command, flag
from mirror.commands.process import show, tell
from mirror.errors import FileSystemError, MirrorError
from mirror.layout import CHANNELS, MODULES, PACKAGES

DISTRIBUTION = "deckhouse-mirror"
"""What the package is called in an index; the import package and the command are `mirror`."""


def executable() -> Path | None:
    """The one file that this program runs from (`shipping/launcher`); None: it was installed."""
    found = sys._xoptions.get("mirror_executable")
    return Path(found) if isinstance(found, str) else None


@command("version", "mirror version --json")
def version_command(
    work: Work = as_json,
) -> None:
    """Print the version of this release, of Python, of its libraries, and of the bundles that it
    reads."""
    found = _about()
    lines = [
        f"mirror {found['version']}",
        f"bundles: format {' and '.join(map(str, found['bundleFormats']))}",
        f"Python {found['python']}, {found['openssl']}, {found['platform']}",
        *([f"one file: {found['executable']}"] if found["executable"] else []),
        *(f"{name} {version}" for name, version in found["libraries"].items()),
    ]
    work.say(found, lines)


def _about() -> dict[str, Any]:
    file = executable()
    return {
        "version": metadata.version(DISTRIBUTION),
        "bundleFormats": [SCHEMA_VERSION, PARTIAL_SCHEMA_VERSION],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "platform": f"{sys.platform} {platform.machine()}",
        "executable": None if file is None else str(file),
        "libraries": dict(sorted(_libraries().items())),
    }


def _libraries() -> dict[str, str]:
    """Name → version of what the installation was made to depend on, and of extras that it has."""
    wanted = [one for one in metadata.requires(DISTRIBUTION) or [] if '"test"' not in one]
    found = {}
    for one in wanted:
        name = re.split(r"[^\w.-]", one)[0]
        with suppress(*[metadata.PackageNotFoundError] if "extra ==" in one else []):
            found[name] = metadata.version(name)
    return found


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
                file = Path(place or "")
                if not file.is_file() and not file.is_dir():
                    continue  # at a pipe or a terminal the shell would wait
                names |= {
                    path.removeprefix(f"{root}/").partition("/")[0]
                    for path in read_inventory(file).repositories
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


@command("completion", "mirror completion bash --install")
def completion_command(
    shell: str | None = argument(type=click.Choice([*_PLACES]), required=False),
    install: bool = flag("Write the script to where this user's shell looks for it."),
) -> None:
    """Print the script by which a shell completes commands, options and values of `mirror`.

    The shell then offers files, choices, release channels, and the modules and packages of the
    bundle that the command line names.
    """
    if shell is None:
        raise click.UsageError(f"Name the shell: {', '.join(_PLACES)}.")
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
