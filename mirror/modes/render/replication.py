"""The configuration of the replication container: `mirror sync --watch`, in the mirrorer's keys.

The keys are those of the container whose place it takes: `ca`, `users`, `local`, `remote`, `sleep`
(seconds), and `parallelizm`, which is spelled so. Beside them stands one of the daemon's own,
`listen`: where it answers probes and hears of pushes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mirror.modes.render import values
from mirror.modes.render.layout import Node, Places
from mirror.modes.sites import Account, User

NOTIFICATION_PATH = "/notify"
"""Where the daemon hears of pushes (distribution's `notifications`)."""

SLEEP_S = 10
PARALLEL = 3


def replication_config(
    node: Node, peers: Sequence[Node], places: Places, accounts: Mapping[User, Account]
) -> dict[str, Any]:
    """What the daemon on `node` is told. `peers` is not empty: without any there is no daemon.

    Pace and parallelism are written, though they are the defaults: what runs can then be read.
    """
    if not peers:
        raise ValueError("replication needs at least one peer")
    return {
        "ca": places.pki("ca.crt"),
        "users": {
            "puller": _user(accounts[User.MIRROR_PULLER]),
            "pusher": _user(accounts[User.MIRROR_PUSHER]),
        },
        "local": node.registry,
        "remote": [peer.registry for peer in peers],
        "sleep": SLEEP_S,
        "parallelizm": PARALLEL,
        "listen": values.host_port("127.0.0.1", node.ports.replication),
    }


def _user(account: Account) -> dict[str, str]:
    return {"name": account.name, "password": account.password.get_secret_value()}
