"""`mirror config`."""

from __future__ import annotations

import click

from mirror.commands.errors import print_json
from mirror.config import PullConfig


@click.group("config")
def config_group() -> None:
    """Settings files for `mirror pull --config`."""


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    print_json(PullConfig.model_json_schema(by_alias=True))
