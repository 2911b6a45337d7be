"""The program itself: its release, its settings files, and how a shell completes what is typed."""

from __future__ import annotations

import os
import platform
import re
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from mirror.bundle.seal import PARTIAL_SCHEMA_VERSION, SCHEMA_VERSION
from mirror.commands import options
from mirror.commands.options import Work, argument, command, flag
from mirror.commands.process import PROFILE, Profile, print_json, show, tell
from mirror.documents import read_mapping
from mirror.errors import FileSystemError, InputError, InvalidReferenceError, MirrorError
from mirror.layout import CHANNELS, MODULES, PACKAGES
from mirror.oci import Repository

DISTRIBUTION = "deckhouse-mirror"
"""What the package is called in an index; the import package and the command are `mirror`."""


def executable() -> Path | None:
    """The one file that this program runs from (`shipping/launcher`); None: it was installed."""
    found = sys._xoptions.get("mirror_executable")
    return Path(found) if isinstance(found, str) else None


@command("version", "mirror version --json")
def version_command(work: Work = options.as_json) -> None:
    """Print the version of this release, of Python, of its libraries, and of the bundles that it
    reads."""
    found: dict[str, Any] = {
        "version": metadata.version(DISTRIBUTION),
        "bundleFormats": [SCHEMA_VERSION, PARTIAL_SCHEMA_VERSION],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "platform": f"{sys.platform} {platform.machine()}",
        "executable": str(file) if (file := executable()) else None,
        "libraries": dict(sorted(_libraries().items())),
    }
    lines = [
        f"mirror {found['version']}",
        f"bundles: format {' and '.join(map(str, found['bundleFormats']))}",
        f"Python {found['python']}, {found['openssl']}, {found['platform']}",
        *([f"one file: {found['executable']}"] if found["executable"] else []),
        *(f"{name} {version}" for name, version in found["libraries"].items()),
    ]
    work.say(found, lines)


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
    **dict.fromkeys(("include_module", "exclude_module"), items_below(MODULES)),
    **dict.fromkeys(("include_package", "exclude_package"), items_below(PACKAGES)),
    "platform": offering(["linux/amd64", "linux/arm64"]),
    "images_bundle_chunk_size": offering(["cd", "dvd", "dvd-dl", "bd", "fat32", "700MB", "4GiB"]),
}
"""Settings of a pull → what to offer for them."""


def folder(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Leaves it to the shell to offer files and folders."""
    return [CompletionItem(typed, type="file")]


def _for_d8(**_given: object) -> None:
    """Take what `d8 mirror` is given to do with space and time, and warn that it is not needed."""
    if os.environ.get("D8_MIRROR_TIMEOUT"):
        options.warn_at_start(
            "timeout",
            "D8_MIRROR_TIMEOUT has no effect: a transfer may take any time as long as bytes move, "
            "and a registry that stops answering is noticed without it",
        )


for_d8 = options.grouped(
    _for_d8, tmp_dir=options.option("Accepted for compatibility; none is needed.", hidden=True)
)

# -- the scripts -----------------------------------------------------------------------------------

_SHELLS = {
    "bash": (
        *("XDG_DATA_HOME", ".local/share", "bash-completion/completions/mirror"),
        "new shells have it, if the package bash-completion is installed",
    ),
    "zsh": (
        *("XDG_DATA_HOME", ".local/share", "zsh/site-functions/_mirror"),
        "new shells have it, if .zshrc has this before compinit:\n  fpath=({folder} $fpath)",
    ),
    "fish": (*("XDG_CONFIG_HOME", ".config", "fish/completions/mirror.fish"), "new shells have it"),
}
"""Shell → the variable that names the base folder, its default, the file below it, and a hint."""


@command("completion", "mirror completion bash --install")
def completion_command(
    shell: str | None = argument(type=click.Choice([*_SHELLS]), required=False),
    install: bool = flag("Write the script to where this user's shell looks for it."),
) -> None:
    """Print the script by which a shell completes commands, options and values of `mirror`.

    The shell then offers files, choices, release channels, and the modules and packages of the
    bundle that the command line names.
    """
    if shell is None:
        raise click.UsageError(f"Name the shell: {', '.join(_SHELLS)}.")
    found = get_completion_class(shell)
    assert found is not None  # one of click's own
    script = found(click.Command("mirror"), {}, "mirror", "_MIRROR_COMPLETE").source().strip()
    if not install:
        show(script)
        return
    variable, default, name, hint = _SHELLS[shell]
    file = Path(os.environ.get(variable) or Path.home() / default, name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{script}\n", encoding="utf-8")
    except OSError as err:
        raise FileSystemError(
            f"{file} cannot be written: {err.strerror}; print the script without --install, and "
            "put it where the shell looks for it"
        ) from err
    tell(f"{file} is written; {hint.format(folder=file.parent)}")


# -- mirror config ---------------------------------------------------------------------------------

SCHEMAS = {
    "pull": "config.PullConfig",
    "watch": "watch.settings.WatchSettings",
    "fleet": "watch.fleet.Fleet",
    "sites": "nodeconfig.cluster.AccessFile",
    "facts": "modes.outcomes.ClusterFacts",
    "progress": "reports.progress.event_schema",
    "profiles": "commands.program.profiles_schema",
}
"""What has a schema → the type that it is made of, or what makes it, imported when asked for."""


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one of `SCHEMAS`, with the name that others may refer to it by."""
    from pydantic import TypeAdapter

    module, _, name = SCHEMAS[kind].rpartition(".")
    found = getattr(import_module(f"mirror.{module}"), name)
    made = TypeAdapter(found).json_schema(by_alias=True) if isinstance(found, type) else found()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deckhouse:mirror:schema:{kind}",
        **made,
    }


@command("schema", "mirror config schema pull")
def config_schema(kind: str = argument(type=click.Choice([*SCHEMAS]), default="pull")) -> None:
    """Print the JSON Schema of a file: of `pull --config` unless another is named.

    \b
      pull      the settings of pull --config
      watch     the settings of sync --watch --config
      fleet     the registries that follow one hub, and their rings
      sites     what is known of a cluster: --sites
      facts     what somebody has looked at: mode plan --facts
      profiles  settings for all commands: mirror --config
      progress  a line of --progress json
    """
    print_json(schema(kind))


config_group = click.Group(
    "config", commands=[config_schema], help="Settings files and their JSON Schemas."
)

# -- profiles --------------------------------------------------------------------------------------
#
# A key is an option without its dashes, and holds for each command that has it; below the name of a
# command it holds for that one alone. `registry` is also the REGISTRY that commands ask for.

_SECRET = ("password", "license")
_REGISTRIES = frozenset({"registry", "registries"})
_NAMING = _REGISTRIES | {"source", "from", "to", "replica", "against"}


def use_profile(ctx: click.Context, file: str, profile: str | None) -> None:
    """Take the settings of `profile`, or of the one that the file names, as defaults.

    Raises:
        InputError: the file, the profile or a key of it is not what it must be.
    """
    document = read_mapping(Path(file))
    chosen = profile or document.get("profile")
    if chosen is None:
        return
    profiles = document.get("profiles")
    if not isinstance(profiles, Mapping) or not isinstance(profiles.get(chosen), Mapping):
        known = ", ".join(map(str, profiles)) if isinstance(profiles, Mapping) else "none"
        raise InputError(f"{file} has no profile {chosen}; its profiles: {known}")
    program, name = ctx.command, ctx.invoked_subcommand or ""
    assert isinstance(program, click.Group)  # it calls this
    where = f"{file}: profiles.{chosen}"
    _check_keys(program, profiles[chosen], where)
    if name in program.commands:
        # A section of a command is not the option of the same name, such as `sync --prune`.
        sections = dict(_commands(program)).keys()
        everywhere = {k: v for k, v in profiles[chosen].items() if k not in sections}
        own = {k: v for k, v in profiles[chosen].items() if k in sections}
        found = _defaults(program.commands[name], name, everywhere, own, where)
        ctx.default_map = {name: found}
    hosts = frozenset(_hosts(profiles[chosen]))
    ctx.meta[PROFILE] = Profile(where, profiles[chosen].get("registry"), hosts)


def _hosts(settings: Mapping[str, Any]) -> Iterator[str]:
    """The hosts of the registries that a profile, or a command's section in it, names."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _hosts(value)
        elif key in _NAMING:
            for place in value if isinstance(value, list) else [value]:
                with suppress(InvalidReferenceError):
                    yield Repository.parse(str(place)).host


def _defaults(
    command: click.Command,
    name: str,
    everywhere: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    where: str,
) -> dict[str, Any]:
    """What click takes for the parameters of a command, or for the commands of a group."""
    if isinstance(command, click.Group):
        return {
            sub: _defaults(one, f"{name} {sub}", everywhere, sections, where)
            for sub, one in command.commands.items()
        }
    params = dict(_keys(command))
    return {
        str(params[key].name): _value(params[key], key, value, where)
        for key, value in {**everywhere, **sections.get(name, {})}.items()
        # What a served registry asks of its clients is not the login at another.
        if key in params and not (name == "serve" and key in everywhere and "registry-" in key)
    }


def _keys(command: click.Command) -> Iterator[tuple[str, click.Parameter]]:
    """The parameters of a command by their keys."""
    for param in command.params:
        if isinstance(param, click.Option):
            yield from ((name[2:], param) for name in param.opts if name.startswith("--"))
        elif param.name in _REGISTRIES:
            yield "registry", param


def _value(param: click.Parameter, key: str, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _referred(value, f"{where}.{key}")
    if any(word in key for word in _SECRET):
        raise InputError(
            f"{where}.{key}: no secret is read from this file; write where it is, as "
            "{file: /run/secrets/password} or {env: NAME}"
        )
    if isinstance(value, float) and isinstance(param.type, type(click.STRING)):
        raise InputError(f"{where}.{key}: YAML reads it as the number {value}; write it in quotes")
    repeatable = (isinstance(param, click.Option) and param.multiple) or param.nargs == -1
    return [value] if repeatable and not isinstance(value, list) else value


def _referred(reference: Mapping[str, Any], where: str) -> str | None:
    """The secret in the file or variable that is named; None where the variable is not set."""
    match dict(reference):
        case {"env": str(name), **others} if not others:
            return os.environ.get(name)
        case {"file": str(name), **others} if not others:
            try:
                return Path(name).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as err:
                raise InputError(f"{where}: {name} cannot be read: {err}") from err
    raise InputError(f"{where}: write {{file: PATH}} or {{env: NAME}}")


def _check_keys(program: click.Group, settings: Mapping[str, Any], where: str) -> None:
    """Refuse keys that no command has, and below a command's name those that it has not."""
    commands = dict(_commands(program))
    everywhere = {key for command in commands.values() for key, _ in _keys(command)}
    _refuse_unknown(settings, everywhere | commands.keys(), where)
    for key, value in settings.items():
        if key in commands:
            if not isinstance(value, Mapping):
                raise InputError(f"{where}.{key}: expected keys and values")
            own = {name for name, _ in _keys(commands[key])}
            _refuse_unknown(value, own, f"{where}.{key}")


def _refuse_unknown(keys: Iterable[str], known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{where}: unknown setting {key!r}{hint}")


def _commands(group: click.Group, words: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from _commands(one, f"{words}{name} ")
        else:
            yield f"{words}{name}", one


def profiles_schema() -> dict[str, Any]:
    """The JSON Schema of a file with profiles; settings of a pull may stand beside them."""
    program = click.get_current_context().find_root().command
    assert isinstance(program, click.Group)
    definitions: dict[str, Any] = {}
    sections = {}
    for name, one in _commands(program):
        for key, param in _keys(one):
            definitions.setdefault(key, _definition(key, param))
        keys = {key: {"$ref": f"#/$defs/{key}"} for key, _ in _keys(one)}
        sections[name] = _closed(keys) | {"description": f"For `mirror {name}` alone."}
    everywhere = {key: {"$ref": f"#/$defs/{key}"} for key in definitions}
    return {
        "title": "Profiles",
        "type": "object",
        "properties": {
            "profile": {"type": "string", "description": "The profile to use."},
            "profiles": {"type": "object", "additionalProperties": _closed(everywhere | sections)},
        },
        "$defs": definitions,
    }


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _definition(key: str, param: click.Parameter) -> dict[str, Any]:
    """The schema of one setting."""
    one: dict[str, Any] = {"type": ["string", "integer"]}
    if any(word in key for word in _SECRET):
        one = {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("file", "env")},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
    elif isinstance(param.type, click.Choice):
        one = {"enum": [*param.type.choices]}
    elif isinstance(param, click.Option) and param.is_flag:
        one = {"type": "boolean"}
    if param.multiple or param.nargs == -1:
        one = {"anyOf": [one, {"type": "array", "items": one}]}
    text = getattr(param, "help", None) or "Where the command's REGISTRY is not given."
    return {"description": " ".join(text.split()), **one}
