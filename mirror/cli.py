"""The command line: its commands, gathered."""

from __future__ import annotations

import click

from mirror.commands.config import config_group
from mirror.commands.diff import diff_command
from mirror.commands.errors import Group
from mirror.commands.history import history_command
from mirror.commands.inspect import inspect_command
from mirror.commands.inventory import inventory_command
from mirror.commands.merge import merge_command
from mirror.commands.mode import mode_group
from mirror.commands.prune import prune_command
from mirror.commands.pull import pull_command
from mirror.commands.push import push_command
from mirror.commands.rollback import rollback_command
from mirror.commands.status import status_command
from mirror.commands.sync import sync_command
from mirror.commands.verify import verify_command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mirror", message="mirror %(version)s")
def main() -> None:
    """Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived.

    Exit codes: 0 done, 1 failed, 2 usage, 3 replicas differ, 4 corrupt or incomplete,
    5 unreachable, 6 denied, 130 interrupted.
    """


for command in (
    pull_command,
    push_command,
    sync_command,
    status_command,
    diff_command,
    prune_command,
    history_command,
    rollback_command,
    verify_command,
    inspect_command,
    inventory_command,
    merge_command,
    mode_group,
    config_group,
):
    main.add_command(command)
