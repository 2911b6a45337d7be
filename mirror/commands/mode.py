"""`mirror mode`: the modes of a cluster's registry."""

from __future__ import annotations

import click

from mirror.commands.mode_addresses import resolve_command, show_command
from mirror.commands.mode_check import check_command
from mirror.commands.mode_plan import plan_command
from mirror.commands.mode_render import render_command


@click.group("mode")
def mode_group() -> None:
    """The modes of a cluster's registry: Direct, Proxy, Local, Unmanaged."""


for command in (show_command, resolve_command, plan_command, check_command, render_command):
    mode_group.add_command(command)
