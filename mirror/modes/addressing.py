"""Where an image is to be asked for: the table of modes and planes, as a pure function.

All images have one logical name, below `registry.d8-system.svc:5001/system/deckhouse`. What is
behind it, whom to trust there and with which login follow from the settings, from the plane on
which the asker works, and from the places of this cluster. Only here is a mode looked at for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from mirror.errors import InvalidReferenceError, RouteError
from mirror.modes import constants
from mirror.modes.settings import Mode, RegistrySettings, Upstream
from mirror.modes.sites import NO_SITES, Account, Sites, User
from mirror.oci import Digest, Reference, Repository
from mirror.oci.reference import check_repository


class Plane(StrEnum):
    """Who asks, since that decides the way."""

    CRI = "cri"
    """Containerd on a node."""
    API = "api"
    """A pod that speaks the registry protocol, as the controller does."""
    OPERATOR = "operator"
    """Whoever brings images in."""
    REPLICA = "replica"
    """A replica or a proxy of the module itself, which asks what is behind it."""


class Role(StrEnum):
    """What stands at the end of a route."""

    UPSTREAM = "upstream"
    """The registry outside of the cluster."""
    BALANCER = "balancer"
    """The node's own balancer, which passes on to any replica."""
    SERVICE = "service"
    """The Service in the cluster: the in-cluster proxy, or any replica."""
    MASTER = "master"
    """One replica."""
    PUBLIC = "public"
    """The public address for pushing, which leads to one replica."""
    FOREIGN = "foreign"
    """A registry that the settings say nothing of."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to an image: where to ask, for what, whom to trust, and who to be.

    `repository` is the path at `host`; `reference` is None where a repository was asked for. `ca`
    is PEM and None means the system's roots. `credential` None means anonymous. `writes` says
    whether the mode lets this plane push here; `writer` is the login for that.
    """

    role: Role
    scheme: Literal["http", "https"]
    host: str
    repository: str
    reference: str | Digest | None = None
    ca: str | None = None
    credential: Account | None = None
    writes: bool = False
    writer: Account | None = None

    @property
    def url(self) -> str:
        """The address at which the manifest is asked for; of a repository, its tags."""
        what = "tags/list" if self.reference is None else f"manifests/{self.reference}"
        return f"{self.scheme}://{self.host}/v2/{self.repository}/{what}"

    @property
    def scope(self) -> str:
        """What a token for reading must be for."""
        return f"repository:{self.repository}:pull"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A reference, taken apart. `below` is what follows the logical path, None for real names."""

    repository: Repository
    what: str | Digest | None
    below: str | None

    def __str__(self) -> str:
        return str(self.repository)


def routes_for(
    reference: Reference | Repository | str,
    settings: RegistrySettings,
    plane: Plane,
    sites: Sites = NO_SITES,
) -> tuple[Route, ...]:
    """The ways to an image or a repository, in the order in which they are to be tried.

    The first is that of the table in docs/modes.md. Where `sites` knows single replicas, they
    follow, since behind one address a client cannot choose another replica than it is given.
    With both tag and digest, the digest decides.

    Raises:
        RouteError: the reference is none of the cluster's in this mode, or the settings or sites
            lack what the way needs.
        InvalidReferenceError, InvalidDigestError: the reference is none.
    """
    asked = _asked(reference)
    if asked.below is None:
        return (_real(asked, settings),)
    match settings.mode, plane:
        case (Mode.UNMANAGED, _) | (Mode.DIRECT, Plane.CRI | Plane.OPERATOR | Plane.REPLICA):
            return (_upstream(asked, settings, plane),)
        case Mode.PROXY, Plane.OPERATOR | Plane.REPLICA:
            return (_upstream(asked, settings, plane),)
        case Mode.DIRECT, Plane.API:
            upstream = _upstream(asked, settings, plane)  # the proxy rewrites, and must be able to
            route = _inside(asked, sites, Role.SERVICE, upstream.credential)
            return (replace(route, ca=_joined(sites.ca, upstream.ca)),)
        case Mode.LOCAL, Plane.OPERATOR:
            return _push(asked, sites)
        case Mode.LOCAL, Plane.REPLICA:
            return _peers(asked, sites)
    if settings.mode is Mode.PROXY:
        _upstream(asked, settings, plane)  # the replica must be able to ask it
    reader = _login(sites, User.RO)
    first = Role.BALANCER if plane is Plane.CRI else Role.SERVICE
    return (
        _inside(asked, sites, first, reader),
        *(_inside(asked, sites, Role.MASTER, reader, address) for address in sites.masters),
    )


def logical(reference: Reference, settings: RegistrySettings) -> Reference:
    """The logical name of an image that is named by its place at the upstream.

    One that has its logical name already stays.

    Raises:
        RouteError: the upstream is not known, or the image does not lie there.
    """
    if _asked(reference).below is not None:
        return reference
    upstream = _known_upstream(settings)
    path = reference.repository.path
    below = _below(path, upstream.path) if reference.repository.host == upstream.host else None
    if below is None:
        raise RouteError(
            f"{reference} does not lie below {upstream.base}, so it has no name in the cluster"
        )
    base = Repository(constants.LOGICAL_HOST, constants.LOGICAL_PATH)
    return Reference(base.join(below), reference.tag, reference.digest)


def upstream_repository(below: str, upstream: Upstream) -> str:
    """The repository at the upstream of what lies at `below` under the logical path.

    Raises:
        RouteError: the upstream has no path, and so no repository for what lies at the very top.
    """
    path = "/".join(part for part in (upstream.path, below) if part)
    if not path:
        raise RouteError(
            f"imagesRepo {upstream.base!r} has no path behind the host, and images that lie "
            f"directly at {constants.LOGICAL_BASE} would have no repository there; name a path, "
            f"such as {upstream.host}/deckhouse/ee"
        )
    try:
        check_repository(path)
    except InvalidReferenceError as err:
        raise RouteError(f"imagesRepo {upstream.base!r} leads nowhere: {err}") from err
    return path


# -- the ways of the table -------------------------------------------------------------------------


def _upstream(asked: _Asked, settings: RegistrySettings, plane: Plane) -> Route:
    upstream = _known_upstream(settings)
    path = upstream_repository(asked.below or "", upstream)
    return _outside(Role.UPSTREAM, upstream, path, asked.what, writes=plane is Plane.OPERATOR)


def _outside(
    role: Role, upstream: Upstream, path: str, what: str | Digest | None, *, writes: bool
) -> Route:
    return Route(
        role,
        upstream.scheme,
        upstream.host,
        path,
        what,
        upstream.ca,
        upstream.account,
        writes,
        upstream.account if writes else None,
    )


def _real(asked: _Asked, settings: RegistrySettings) -> Route:
    """The way to an image by its real name: itself, where images go by real names."""
    repository, upstream = asked.repository, settings.upstream
    if settings.managed:
        hint = ""
        inside = upstream is not None and repository.host == upstream.host
        below = _below(repository.path, upstream.path) if inside and upstream else None
        if below is not None:
            base = Repository(constants.LOGICAL_HOST, constants.LOGICAL_PATH)
            hint = f", here {base.join(below)}"
        raise RouteError(
            f"{repository}: in mode {settings.mode} the cluster's images go by their logical "
            f"names, which begin with {constants.LOGICAL_BASE}{hint}"
        )
    if upstream is not None and repository.host == upstream.host:
        # A login belongs to the host, as containerd sees it. Only what we push has to lie below.
        ours = _below(repository.path, upstream.path) is not None
        return _outside(Role.UPSTREAM, upstream, repository.path, asked.what, writes=ours)
    return Route(Role.FOREIGN, "https", repository.host, repository.path, asked.what)


def _joined(module: str | None, upstream: str | None) -> str | None:
    """Whom to trust on the way through the cluster to the upstream.

    A proxy that only passes requests on passes the upstream's challenge on too, so that clients
    ask the upstream's own token server. That holds too where the module's authority is not known
    here, as whoever connects may have been given it by other means.
    """
    if module is None or upstream is None:
        return module or upstream
    return f"{module.rstrip()}\n{upstream}"


def _inside(
    asked: _Asked,
    sites: Sites,
    role: Role,
    login: Account | None,
    address: str = "",
    *,
    writer: Account | None = None,
) -> Route:
    hosts = {Role.BALANCER: constants.BALANCER, Role.SERVICE: constants.LOGICAL_HOST}
    host = hosts[role] if role in hosts else master_host(address)
    path = asked.repository.path
    writes = writer is not None
    return Route(role, "https", host, path, asked.what, sites.ca, login, writes, writer)


def master_host(address: str) -> str:
    """`host:port` of the replica on the master at `address`, which may be an IPv6 address."""
    bare = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"{bare}:{constants.REGISTRY_PORT}"


def _push(asked: _Asked, sites: Sites) -> tuple[Route, ...]:
    """The public address; in a cluster without a public domain, a replica."""
    login = _login(sites, User.RW)
    if sites.public_host:
        path = asked.repository.path
        host, ca = sites.public_host, sites.public_ca
        return (Route(Role.PUBLIC, "https", host, path, asked.what, ca, login, True, login),)
    if not sites.masters:
        raise RouteError(
            f"{asked}: in mode Local images are pushed to registry.<PUBLIC_DOMAIN>, which is not "
            "known here; give the cluster's public domain, or the addresses of its masters, with "
            "the sites (--sites FILE, publicHost or masters)"
        )
    return tuple(
        _inside(asked, sites, Role.MASTER, login, address, writer=login)
        for address in sites.masters
    )


def _peers(asked: _Asked, sites: Sites) -> tuple[Route, ...]:
    """The replicas: read as the puller, and a replica's own store written as the pusher."""
    if not sites.masters:
        raise RouteError(
            f"{asked}: in mode Local replicas ask each other, and the addresses of the masters "
            "are not known here; give them with the sites (--sites FILE, masters)"
        )
    reader, writer = _login(sites, User.MIRROR_PULLER), _login(sites, User.MIRROR_PUSHER)
    return tuple(
        _inside(asked, sites, Role.MASTER, reader, address, writer=writer)
        for address in sites.masters
    )


def _login(sites: Sites, user: User) -> Account:
    account = sites.account(user)
    if account is None:
        raise RouteError(
            f"the password of the registry's user {user} is not known here; take it from the "
            f"Secret {constants.SECRET_USER_PREFIX}{user} in {constants.NAMESPACE} and give it "
            "with the sites (--sites FILE, users)"
        )
    return account


def _known_upstream(settings: RegistrySettings) -> Upstream:
    upstream = settings.upstream
    if upstream is None:
        raise RouteError(
            f"in mode {settings.mode} these settings name no registry outside of the cluster"
            + (
                "; give the section unmanaged with imagesRepo, or what the cluster was installed "
                "with (InitConfiguration)"
                if settings.mode is Mode.UNMANAGED
                else ""
            )
        )
    return upstream


# -- names -----------------------------------------------------------------------------------------


def _asked(reference: Reference | Repository | str) -> _Asked:
    parsed = _parsed(reference)
    repository = parsed.repository if isinstance(parsed, Reference) else parsed
    what = (parsed.digest or parsed.tag) if isinstance(parsed, Reference) else None
    below = None
    if repository.host == constants.LOGICAL_HOST:
        below = _below(repository.path, constants.LOGICAL_PATH)
        if below is None:
            raise RouteError(
                f"{repository}: all of the cluster's images lie at {constants.LOGICAL_BASE} or "
                f"below it ({constants.LOGICAL_BASE}/…), and this is neither"
            )
    return _Asked(repository, what, below)


def _parsed(reference: Reference | Repository | str) -> Reference | Repository:
    if not isinstance(reference, str):
        return reference
    last = reference.rpartition("/")[2]
    if "@" in reference or (":" in last and "/" in reference):
        return Reference.parse(reference)
    return Repository.parse(reference)


def _below(path: str, base: str) -> str | None:
    """What of `path` follows `base`, without a slash; None if it lies elsewhere."""
    if not base or path == base:
        return path if not base else ""
    return path.removeprefix(f"{base}/") if path.startswith(f"{base}/") else None
