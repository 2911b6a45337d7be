"""Every command that the documents print is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from mirror.cli import main
from mirror.config import PullConfig
from tests.support.program import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def printed(page: Path) -> list[str]:
    """The lines in a page's blocks of commands that call the program, without their comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?mirror ", line)]


COMMANDS = [(page.name, line) for page in PAGES for line in printed(page)]


def parsed(line: str) -> click.Context:
    """The command of a line with its options, as the program reads them; files need not exist."""
    without_placeholders = re.sub(r"[][…]", "", line)
    alone = re.split(r" [|<>] ", without_placeholders)[0]  # of a pipeline, what calls the program
    words = shlex.split(alone, comments=True)[1:]
    context = click.Context(main, **main.context_settings)
    command: click.Command = main
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    context = command.context_class(command, parent=context, info_name=command.name)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert rest == []
    context.params = values
    return context


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_printed_command_is_understood(page: str, line: str) -> None:
    context = parsed(line)
    if context.command.name == "pull":
        given = {key: value for key, value in context.params.items() if value is not None}
        PullConfig.load(
            None, {key: value for key, value in given.items() if key in PullConfig.model_fields}
        ).selection()


def test_the_documents_print_commands() -> None:
    assert len(COMMANDS) > 20
    assert {"README.md", "cli.md", "moving-from-d8-mirror.md"} <= {page for page, _ in COMMANDS}
