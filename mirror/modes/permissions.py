"""What a mode allows on which plane, and where to go instead. Pure."""

from __future__ import annotations

from mirror.errors import ForbiddenByModeError
from mirror.modes.addressing import Plane
from mirror.modes.constants import LOGICAL_PATH
from mirror.modes.settings import Mode, RegistrySettings
from mirror.modes.sites import Sites, User

_OF_CLUSTER = {Plane.CRI: "the nodes' pulls", Plane.API: "components of the cluster"}


def push_address(settings: RegistrySettings, sites: Sites) -> str:
    """Where images are pushed to in this mode, in words that a person can act on."""
    if settings.mode is Mode.LOCAL:
        host = sites.public_host or "registry.<PUBLIC_DOMAIN>"
        return f"the cluster's push address {host}/{LOGICAL_PATH}, as user {User.RW}"
    upstream = settings.upstream
    if upstream is None:
        return "the external registry itself, which these settings do not name"
    path = upstream.path.strip("/")
    return f"the external registry itself, {upstream.host}{'/' if path else ''}{path}"


def check_write(
    settings: RegistrySettings, plane: Plane, sites: Sites, *, external: bool, action: str
) -> None:
    """Refuse `action`, a writing one, where the mode or the plane does not take it.

    `external` says that the external registry itself was named, and not the cluster's address.

    Raises:
        ForbiddenByModeError: with the place where it is allowed.
    """
    mode = settings.mode
    if plane is Plane.OPERATOR and (external or mode is not Mode.PROXY):
        return
    if plane is not Plane.OPERATOR and mode is Mode.DIRECT:
        reason = "the way through the cluster only passes reads on to the external registry"
        if plane is Plane.CRI:
            reason = "containerd only reads"
    elif mode is Mode.PROXY:
        reason = "the cluster's registry is a read-only cache"
    else:
        served = _OF_CLUSTER.get(plane, "replication")
        reason = f"this address serves {served} and takes nothing in"
    preposition = "to" if action == "push" else "at"
    raise ForbiddenByModeError(
        f"cannot {action} in mode {mode}: {reason}; "
        f"{action} {preposition} {push_address(settings, sites)}, instead",
        mode=mode,
        plane=plane,
    )


def check_catalogue(settings: RegistrySettings, plane: Plane, sites: Sites) -> None:
    """Refuse to list all repositories where the accounts of that plane may not.

    Raises:
        ForbiddenByModeError: with what works instead.
    """
    mode = settings.mode
    if plane in (Plane.OPERATOR, Plane.REPLICA) or mode is Mode.UNMANAGED:
        return
    if mode is Mode.DIRECT:
        if plane is Plane.CRI:
            return
        reason = "the in-cluster pass-through grants pulls only"
    else:
        reason = f"user {User.RO} may pull and nothing else"
    instead = "list the tags of a repository that you know"
    if mode is Mode.LOCAL:
        instead += f", or use {push_address(settings, sites)}"
    else:
        instead += f", or ask {push_address(settings, sites)}"
    raise ForbiddenByModeError(
        f"cannot list the repositories in mode {mode}: {reason}; {instead}", mode=mode, plane=plane
    )
