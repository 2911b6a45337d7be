"""The page of settings files, made of the schemas that the program checks them by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from mirror.cli import main
from mirror.commands.program import SCHEMAS, schema

_HEAD = """\
# Settings files

This page is made of the schemas that the program checks these files by;
`mirror config schema KIND` prints them. One file may also hold
[the options of every command](cli.md#settings-for-every-command), in profiles. Other files are
described where they are used: [the replication daemon's](replication.md#settings),
[a cluster's settings](modes.md#settings),
[what a cluster knows beside them](cli.md#a-clusters-registry).

A flag overrides the file. Where a key takes a list, one text stands for a list of one. Secrets have
no keys in the settings of a pull: give them by environment variable.
"""
_TABLE = "| Key | Takes | Default | Meaning |\n|---|---|---|---|"


def described() -> dict[str, dict[str, Any]]:
    """The schemas that say of each of their keys what it means, by the kind of file."""
    with click.Context(main):  # that of profiles has all options of the program
        schemas = {kind: schema(kind) for kind in SCHEMAS}
    return {
        kind: one
        for kind, one in schemas.items()
        if one.get("properties") and all("description" in key for key in one["properties"].values())
    }


def page() -> str:
    """The whole page."""
    lines = [_HEAD]
    for kind, one in described().items():
        lines += [f"## {kind}", "", one.get("description", ""), "", _TABLE, *_rows(one), ""]
    return "\n".join(lines)


def _rows(schema: dict[str, Any]) -> Iterator[str]:
    for name, one in schema["properties"].items():
        default = one.get("default")
        shown = f"`{json.dumps(default)}`" if default not in (None, [], "") else ""
        about = one["description"].replace("|", "\\|")
        yield f"| `{name}` | {' or '.join(_kinds(one, schema))} | {shown} | {about} |"


def _kinds(one: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    if "$ref" in one:
        one = schema["$defs"][one["$ref"].rpartition("/")[2]]
    if "anyOf" in one:
        kinds = [kind for branch in one["anyOf"] for kind in _kinds(branch, schema)]
        return list(dict.fromkeys(kinds))
    if "enum" in one or "const" in one:
        return [f"`{value}`" for value in one.get("enum", [one.get("const")])]
    if one.get("type") == "array":
        return ["list"]
    return [_WORDS[one["type"]]] if one.get("type") in _WORDS else []


_WORDS = {"string": "text", "integer": "number", "number": "number", "boolean": "true, false"}
