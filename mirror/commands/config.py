"""`mirror config`: the settings files, as JSON Schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from mirror.commands import options
from mirror.commands.errors import print_json


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


SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "pull": _pull,
    "watch": _watch,
    "sites": _sites,
    "facts": _facts,
    "progress": _progress,
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
      progress  a line of --progress json
    """
    print_json(schema(kind))
