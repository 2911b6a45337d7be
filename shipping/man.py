"""Manual pages, from what `--help` says: `python -m shipping.man FOLDER` writes one per command."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from mirror.cli import main as program
from mirror.errors import EXIT_CODES

_PARAGRAPH_AS_IT_IS = "\b"
_OWN_VARIABLES = {
    "MIRROR_SIGN_PASSWORD": "the passphrase of the key that --sign-key names",
    "DOCKER_CONFIG, REGISTRY_AUTH_FILE": "where stored logins are",
    "HTTP_PROXY, HTTPS_PROXY, NO_PROXY": "proxies, as everywhere",
    "NO_COLOR": "no colours, if it is set",
}


def pages() -> dict[str, str]:
    """Every page by the name of its file: `mirror-mode-plan.1`."""
    return {f"{'-'.join(words)}.1": page(words, command) for words, command in commands()}


def commands(
    command: click.Command = program, words: tuple[str, ...] = ("mirror",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The program, its groups and its commands, each with the words that lead to it."""
    yield words, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], (*words, name))


def page(words: tuple[str, ...], command: click.Command) -> str:
    """The page of one command, in man(7)'s macros."""
    context = click.Context(command, info_name=" ".join(words), **program.context_settings)
    name, help_text = "-".join(words), inspect.cleandoc(command.help or "")
    first, *others = re.split(r"\n{2,}", help_text)
    summary = " ".join(first.split()).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "mirror" "mirror"',
        *(".SH NAME", _text(f"{name} - {summary[0].lower()}{summary[1:]}")),
        ".SH SYNOPSIS",
        f".B {_text(' '.join(words))}",
        _text(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *(line for text in (first, *others) for line in _paragraph(text)),
    ]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for sub, one in sorted(command.commands.items()):
            lines += [
                ".TP",
                f".BR {_text(f'{name}-{sub}')} (1)",
                _text(one.get_short_help_str(200)),
            ]
    lines.append(".SH OPTIONS")
    for option in command.get_params(context):
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            lines += [".TP", f".B {_text(record[0])}", _text(record[1])]
    if command.epilog:
        *_, example = command.epilog.splitlines()
        lines += [".SH EXAMPLES", ".nf", _text(example.strip()), ".fi"]
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_CODES.items():
        lines += [".TP", f".B {code}", _text(meaning)]
    lines += [*_entries("ENVIRONMENT", _OWN_VARIABLES), ".SH SEE ALSO"]
    related = {words[:-1], *(() if len(words) == 1 else [("mirror",)])} - {()}
    lines.append(", ".join(f"\\fB{_text('-'.join(one))}\\fR(1)" for one in sorted(related)))
    if not related:
        lines.append("https://deckhouse.io")
    return "\n".join(lines) + "\n"


def _entries(title: str, texts: Mapping[str, str]) -> Iterator[str]:
    yield f".SH {title}"
    for name, text in texts.items():
        yield from (".TP", f".B {_text(name)}", _text(text))


def _paragraph(text: str) -> Iterator[str]:
    """A paragraph of a docstring; one that begins with \\b keeps its lines."""
    first, *lines = text.splitlines()
    if first.strip() == _PARAGRAPH_AS_IT_IS:
        yield from (".PP", ".nf", *map(_text, lines), ".fi")
    else:
        yield from (".PP", _text(" ".join(text.split())))


def _text(text: str) -> str:
    """`text` as roff takes it: no escape and no request begins in it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped


def main() -> None:
    """Write every page into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{folder} has {len(pages())} pages; read one: man -l {folder}/mirror.1")


if __name__ == "__main__":
    main()
