"""The configuration of the token server, in the form of `docker_auth`.

Users are known by bcrypt hashes; the first line of the access list that matches decides, and what
no line allows is denied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.modes.render import values
from mirror.modes.render.layout import Node, Places
from mirror.modes.render.service_secrets import HashedAccount
from mirror.modes.settings import Mode
from mirror.modes.sites import User

ISSUER = "Registry server"
SERVICE = "Deckhouse registry"
REALM_PATH = "/auth"
LIFETIME_S = 900
"""How long a token is good for; clients renew it."""


def users_of(mode: Mode) -> tuple[User, ...]:
    """Which of the module's users a replica knows in a mode."""
    return tuple(User) if mode is Mode.LOCAL else (User.RO,)


def replica_auth(
    node: Node,
    places: Places,
    mode: Mode,
    users: Mapping[User, HashedAccount],
    *,
    own_port: bool,
) -> dict[str, Any]:
    """The token server beside a replica.

    With `own_port` clients come to it directly, so it listens on the node's address; else only the
    registry on this node speaks with it.
    """
    if mode is Mode.LOCAL:
        access = [
            _allow(User.RO, ["pull"]),
            _allow(User.RW, ["*"]),
            _allow(User.MIRROR_PUSHER, ["*"]),
            _allow(User.MIRROR_PULLER, ["*"], type="registry", name="catalog"),
            _allow(User.MIRROR_PULLER, ["pull"]),
        ]
    else:
        access = [_allow(User.RO, ["pull"])]
    listen = node.token if own_port else values.host_port("127.0.0.1", node.ports.token)
    known = {user: users[user] for user in users_of(mode)}
    return _document(
        listen,
        {
            "certificate": places.pki("auth.crt"),
            "key": places.pki("auth.key"),
        },
        {
            "certificate": places.pki("token.crt"),
            "key": places.pki("token.key"),
        },
        {one.account.name: one.password_hash for one in known.values()},
        access,
    )


def in_cluster_auth(places: Places, user: HashedAccount | None, port: int) -> dict[str, Any]:
    """The token server of Direct mode's proxy: clients log in with the upstream's own account.

    An upstream without a login is open to everybody inside the cluster too.
    """
    name = "" if user is None else user.account.name
    hashes = {} if user is None else {name: user.password_hash}
    document = _document(
        f":{port}",
        {
            "certificate": places.config("in-cluster", "auth.crt"),
            "key": places.config("in-cluster", "auth.key"),
        },
        {
            "certificate": places.config("in-cluster", "token.crt"),
            "key": places.config("in-cluster", "token.key"),
        },
        hashes,
        [{"match": {"account": name}, "actions": ["pull"]}],
    )
    if user is None:
        document["users"] = {"": {}}  # docker_auth: the anonymous user needs no password
    return document


def _allow(user: User, actions: list[str], **match: str) -> dict[str, Any]:
    return {"match": {"account": user.value, **match}, "actions": actions}


def _document(
    listen: str,
    tls: dict[str, str],
    signing: dict[str, str],
    hashes: Mapping[str, str],
    access: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "server": {"addr": listen, "real_ip_header": "X-Forwarded-For", **tls},
        "token": {"issuer": ISSUER, "expiration": LIFETIME_S, **signing},
        "users": {name: {"password": value} for name, value in hashes.items()},
        "acl": access,
    }
