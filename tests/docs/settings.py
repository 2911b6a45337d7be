"""The page of settings files, made of the schemas that the program checks them by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mirror.config import PullConfig

_HEAD = """\
# Settings files

This page is made of the schema that the program checks the file by; `mirror config schema` prints
it. Other files are described where they are used:
[the replication daemon's](replication.md#settings), [a cluster's settings](modes.md#settings),
[what a cluster knows beside them](cli.md#a-clusters-registry).

## A pull

`mirror pull --config FILE`. A flag overrides the file. Where a key takes a list, one text stands
for a list of one. Secrets have no keys: give them by environment variable.

| Key | Takes | Default | Meaning |
|---|---|---|---|"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_rows(PullConfig.model_json_schema(by_alias=True)), ""])


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
