"""The page of every command and option, made of the tree of commands that the program has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from mirror.cli import main

_HEAD = """\
# Every command and option

This page is made of the program itself, so it says what `mirror COMMAND --help` says.
[The command line](cli.md) explains how the commands work together, what they print, where they
find credentials, and what the exit codes mean.
"""


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that lead to it."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_command(path, command) for path, command in commands())])


def _command(path: tuple[str, ...], command: click.Command) -> str:
    name = " ".join(("mirror", *path))
    context = click.Context(command, info_name=name, **main.context_settings)
    usage = " ".join((name, *command.collect_usage_pieces(context)))
    lines = [f"## {name}", "", "```text", usage, "```", "", _help(command.help or ""), ""]
    if command.epilog:  # which is an example
        example = command.epilog.splitlines()[-1].strip()
        lines += ["```console", f"$ {example}", "```", ""]
    records = [one.get_help_record(context) for one in command.get_params(context)]
    rows = [f"| `{names}` | {_cell(text)} |" for names, text in filter(None, records) if text]
    return "\n".join([*lines, "| Option | Meaning |", "|---|---|", *rows, ""])


def _help(text: str) -> str:
    """A command's help as Markdown; click marks what keeps its lines with `\\b`."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\n {1,4}", "\n", text).split("\f")[0].strip())
    return "\n\n".join(
        "```text\n" + one.removeprefix("\b\n") + "\n```" if one.startswith("\b") else _text(one)
        for one in paragraphs
    )


def _text(text: str) -> str:
    """Text that says what it says, also where Markdown would find markup in it."""
    return re.sub(r"([*_<>\[\]|])", r"\\\1", text)


def _cell(text: str) -> str:
    return _text(" ".join(text.split()))
