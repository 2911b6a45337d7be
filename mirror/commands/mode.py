"""`mirror mode`: the modes of a cluster's registry; `show` and `resolve` say what lies where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import click
from pydantic import SecretStr

from mirror.commands.cluster import Cluster, apply_command
from mirror.commands.cluster_files import required_cluster
from mirror.commands.mode_render import render_command
from mirror.commands.mode_switch import check_command, plan_command
from mirror.commands.options import Work, argument, as_json, command, option
from mirror.documents import document
from mirror.errors import RouteError
from mirror.modes.addressing import RepositoryNames, Route, push_address, routes_for
from mirror.modes.routes import LOGICAL_BASE, MODULE_ROLES, Plane, RegistryUser
from mirror.modes.settings import Account, ClusterAccess, Upstream
from mirror.oci import Digest, Reference, Repository

_PLANES = {
    Plane.CRI: "nodes pull",
    Plane.API: "components read",
    Plane.OPERATOR: "images are pushed",
    Plane.REPLICA: "replicas ask",
}
"""Plane → what is done there."""


@command("show", "mirror mode show --module-config deckhouse.yaml")
def show_command(
    cluster: Cluster = required_cluster,
    work: Work = as_json,
) -> None:
    """Show what the settings mean: the mode, the registry, and the routes of each plane.

    The output contains no secrets and, without --sites, nothing that only the cluster knows.
    """
    found = _settings_document(cluster)
    found["planes"] = {
        plane.value: _routes(cluster, Repository.parse(LOGICAL_BASE), plane) for plane in Plane
    }
    work.say(found, [*_settings_lines(found), "", *_plane_lines(found["planes"])])


@command("resolve", "mirror mode resolve install:v1.70.0 --module-config deckhouse.yaml")
def resolve_command(
    reference: str = argument(metavar="REF"),
    cluster: Cluster = required_cluster,
    plane: str | None = option(
        "Who asks: containerd on a node (cri), a pod (api), whoever pushes (operator), or a "
        "replica.  [default: all]",
        type=click.Choice([plane.value for plane in Plane]),
    ),
    work: Work = as_json,
) -> None:
    """Show where REF is requested: the routes in order, the login and the trusted authority.

    REF is an image or a repository: by its logical address
    (registry.d8-system.svc:5001/system/deckhouse/install:v1.70.0), or relative to that root
    (install:v1.70.0). This only reads files and contacts no registry.
    """
    asked = _asked(reference, cluster)
    asking = [Plane(plane)] if plane else list(Plane)
    planes = {one.value: _routes(cluster, asked, one) for one in asking}
    if all("error" in way for way in planes.values()):
        raise RouteError(next(iter(planes.values()))["error"])
    found = {"reference": str(asked), "mode": cluster.settings.mode.value, "planes": planes}
    work.say(found, [str(asked), *_plane_lines(planes)])


def _asked(text: str, cluster: Cluster) -> Reference | Repository:
    """The image or repository that `text` means, by its logical or its real address."""
    names = RepositoryNames(cluster.settings, cluster.access)
    if "@" not in text and ":" not in text.rpartition("/")[2]:
        return names.address(names.read(text), Plane.OPERATOR)
    place, what = names.read_image(text, None)
    repository = names.address(place, Plane.OPERATOR)
    if isinstance(what, Digest):
        return Reference(repository, digest=what)
    return Reference(repository, tag=what)


# -- documents -------------------------------------------------------------------------------------


def _settings_document(cluster: Cluster) -> dict[str, Any]:
    settings, upstream = cluster.settings, cluster.settings.upstream
    return {
        **document(settings, "mode", "kind", "check_mode"),
        "push": push_address(settings, cluster.access),
        "upstream": upstream
        and {
            **document(upstream, "address=base", "scheme", "user=username"),
            "trust": _trust(upstream.scheme, upstream.ca),
        },
        "images": LOGICAL_BASE if settings.managed else upstream and upstream.base,
        **({"ttlSeconds": settings.proxy.ttl_s} if settings.proxy is not None else {}),
    }


def _routes(cluster: Cluster, asked: Reference | Repository, plane: Plane) -> dict[str, Any]:
    """The routes of one plane, or why there are none."""
    try:
        routes = routes_for(asked, cluster.settings, plane, _with_names(cluster.access))
    except RouteError as err:
        return {"error": str(err)}
    return {"routes": [_route_document(route, cluster.settings.upstream) for route in routes]}


def _with_names(access: ClusterAccess) -> ClusterAccess:
    """`access` with all users: who asks is known even where the password is not."""
    accounts = {user: Account(user.value, SecretStr("")) for user in RegistryUser}
    return replace(access, accounts={**accounts, **access.accounts})


def _route_document(route: Route, upstream: Upstream | None) -> dict[str, Any]:
    inside = route.role in MODULE_ROLES
    given = route.ca
    if inside:
        # Whoever is only passed on is trusted as at the upstream itself.
        theirs = upstream.ca if upstream is not None else None
        given = theirs if theirs and theirs in (route.ca or "") else None
    # Where the manifest is asked for; of a repository, where it lies.
    place = f"{route.scheme}://{route.host}/{route.repository}"
    return {
        **document(route, "role", "host", "repository"),
        "address": place if route.reference is None else route.url,
        "user": None if route.credential is None else route.credential.name,
        "trust": _trust(route.scheme, given, inside=inside),
    }


def _trust(scheme: str, ca: str | None, *, inside: bool = False) -> str:
    """Whom one trusts, in a few words. `ca` is the authority that the settings or sites give."""
    if scheme == "http":
        return "none (plain HTTP)"
    module = "the module's authority" if inside else ""
    given = f"the given {'one' if inside else 'authority'}" if ca is not None else ""
    whom = ", ".join(filter(None, (module, given)))
    return f"{whom} and the system's roots" if whom else "the system's roots"


# -- text ------------------------------------------------------------------------------------------


def _settings_lines(found: Mapping[str, Any]) -> list[str]:
    images = found["images"] or "the registry of the installation, which is not named here"
    rows = [("mode", found["kind"]), ("images go by", images)]
    upstream = found["upstream"]
    if upstream is not None:
        rows += [
            ("registry", f"{upstream['scheme']}://{upstream['address']}"),
            ("login", upstream["user"] or "anonymous"),
            ("trust", upstream["trust"]),
        ]
    if found.get("ttlSeconds"):
        rows.append(("cached for", _duration(found["ttlSeconds"])))
    rows += [("required images", found["checkMode"]), ("push to", found["push"])]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _duration(seconds: int) -> str:
    """`72 h`, or `5 min 30 s`: hours, minutes and seconds, without those that are zero."""
    (hours, rest), units = divmod(seconds, 3600), ("h", "min", "s")
    parts = zip((hours, *divmod(rest, 60)), units, strict=True)
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def _plane_lines(planes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, ways in planes.items():
        yield f"{name}: how {_PLANES[Plane(name)]}"
        if "error" in ways:
            yield f"  not known: {ways['error']}"
        for route in ways.get("routes", ()):
            who = f"as {route['user']}" if route["user"] else "anonymously"
            yield f"  {route['address']}  ({route['role']}, {who}; trusts {route['trust']})"


mode_group = click.Group(
    "mode",
    commands=[
        show_command,
        resolve_command,
        plan_command,
        check_command,
        render_command,
        apply_command,
    ],
    help="The modes of a cluster's registry: Direct, Proxy, Local, Unmanaged.",
)
