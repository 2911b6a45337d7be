"""The command line: the tree of commands, each imported when it is used.

A command loads only what it needs: `mirror push` needs an HTTP client, `mirror inspect` does not.
"""

from __future__ import annotations

import logging
import os
from collections import UserDict
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import click

from mirror.commands.process import Group

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMMANDS = {
    "pull": ("pull.pull_command", "Pack a release tree into a bundle."),
    "push": ("sync.push_command", "Load a bundle into one or several registries."),
    "sync": ("sync.sync_command", "Bring replicas to what a leader holds."),
    "fleet": ("registries.fleet_group", "The registries that follow one hub."),
    "status": ("registries.status_command", "Show how complete registries are."),
    "diff": ("registries.diff_command", "Show what two inventories hold differently."),
    "prune": ("registries.prune_command", "Remove everything except what you keep."),
    "history": ("registries.history_command", "List the generations of a registry."),
    "rollback": ("registries.rollback_command", "Put tags back to an earlier generation."),
    "verify": ("registries.verify_command", "Prove that a bundle or a registry is whole."),
    "repair": ("registries.repair_command", "Bring back what is damaged in a bundle."),
    "inspect": ("bundles.inspect_command", "Show what is in a bundle."),
    "inventory": ("bundles.inventory_command", "Write down what a registry holds."),
    "merge": ("bundles.merge_command", "Make a complete bundle of a base and its deltas."),
    "clean": ("pull.clean_command", "Remove what pulls that were given up have left."),
    "serve": ("bundles.serve_command", "Serve a bundle, or a folder, as a registry."),
    "controller": ("cluster.controller_command", "Lead a cluster to the mode that is wanted."),
    "mode": ("mode.mode_group", "The modes of a cluster's registry."),
    "completion": ("program.completion_command", "Let a shell complete what is typed."),
    "config": ("program.config_group", "Settings files and their JSON Schemas."),
    "version": ("program.version_command", "Show which release this is, and its libraries."),
}
"""Command → its place below `mirror.commands`, and its line in the list of commands."""


def _name_in_environment(command: click.Command, words: tuple[str, ...]) -> None:
    """Let each option that has no variable be given by one: `MIRROR_MODE_PLAN_TO`."""
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            name = max(option.opts, key=len).lstrip("-")
            option.envvar = "_".join((*words, name)).replace("-", "_").upper()
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            _name_in_environment(one, (*words, name))


class _OnDemand(UserDict[str, click.Command]):
    """Commands by name, each imported when it is first asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            module, _, attribute = _COMMANDS[name][0].partition(".")
            command = getattr(import_module(f"mirror.commands.{module}"), attribute)
            _name_in_environment(command, ("MIRROR", name))
            self.data[name] = command
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in _COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Main(Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in sorted(_COMMANDS)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands without importing them."""
        from click.shell_completion import CompletionItem

        names = [name for name in sorted(_COMMANDS) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=_COMMANDS[name][1]) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Main,
    commands=_OnDemand(),
    context_settings={
        "help_option_names": ["-h", "--help"],
        # As in d8, --dry_run is --dry-run.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    envvar="MIRROR_CONFIG",
    show_envvar=True,
    help="YAML file with profiles.  [default: mirror/mirror.yaml in XDG_CONFIG_HOME or ~/.config]",
)
@click.option(
    "--profile",
    envvar="MIRROR_PROFILE",
    show_envvar=True,
    help="The profile in it: its settings hold where the command line says nothing.",
)
@click.version_option(package_name="deckhouse-mirror", message="mirror %(version)s")
def main(config: str | None, profile: str | None) -> None:
    """Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived.

    Exit codes: 0 done, 1 failed, 2 usage, 3 replicas differ, 4 corrupt or incomplete,
    5 unreachable, 6 denied, 130 interrupted.
    """
    file = config or os.path.join(  # noqa: PTH118 -- pathlib takes its time to load
        os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"),  # noqa: PTH111
        "mirror/mirror.yaml",
    )
    if config or profile or os.path.exists(file):  # noqa: PTH110
        from mirror.commands.program import use_profile

        use_profile(click.get_current_context(), file, profile)
    if os.environ.get("MIRROR_DEBUG_LOG", "") in ("3", "4"):
        from mirror.commands.options import logging_to_stderr

        click.get_current_context().with_resource(logging_to_stderr(logging.DEBUG))
