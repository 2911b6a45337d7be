"""Where an image is asked for, under given settings: names, routes, and what may be done there.

The table in `routes` decides by the settings and by who asks. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mirror.errors import ForbiddenByModeError, InvalidReferenceError, RouteError
from mirror.modes import (
    LOGICAL_BASE,
    LOGICAL_HOST,
    LOGICAL_PATH,
    NAMESPACE,
    REGISTRY_PORT,
    ROLE_HOSTS,
    SECRET_USER_PREFIX,
    Plane,
    PlaneRow,
    RegistryUser,
    Role,
)
from mirror.modes.settings import NO_ACCESS, Account, ClusterAccess, RegistrySettings, Upstream
from mirror.oci import Digest, Reference, Repository
from mirror.oci.reference import check_repository, check_tag
from mirror.registry import ClientCertificate

LOGICAL_ROOT = Repository(LOGICAL_HOST, LOGICAL_PATH)
"""The logical address of everything."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route to an image: where to ask, for what, whom to trust, which login to use.

    `reference` is None where a repository was asked for. `ca` is PEM; None stands for the system's
    roots. `credential` None is anonymous. `certificate` is what to show there. `writes`: this plane
    may push here, as `writer`.
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
    certificate: ClientCertificate | None = None

    @property
    def url(self) -> str:
        """The address of the manifest; of a repository without a reference, that of its tags."""
        what = "tags/list" if self.reference is None else f"manifests/{self.reference}"
        return f"{self.scheme}://{self.host}/v2/{self.repository}/{what}"

    @property
    def scope(self) -> str:
        """The scope of a token for reading."""
        return f"repository:{self.repository}:pull"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A reference, taken apart. `below` is what follows the logical path, None for real names."""

    repository: Repository
    what: str | Digest | None
    below: str | None


def routes_for(
    reference: Reference | Repository | str,
    settings: RegistrySettings,
    plane: Plane,
    access: ClusterAccess = NO_ACCESS,
) -> tuple[Route, ...]:
    """The routes to an image or a repository, in the order in which to try them.

    The first is that of the table in docs/modes.md; single replicas that `access` names follow.
    With both tag and digest, the digest decides.

    Raises:
        RouteError: the reference is not one of the cluster's in this mode, or the settings or
            `access` do not tell what the route needs.
        InvalidReferenceError, InvalidDigestError: the reference cannot be read.
    """
    asked = _asked(reference)
    if asked.below is None:
        return (_real_route(asked, settings),)
    row = settings.kind.row
    upstream, path = None, ""
    if not row.holds_own_images:  # what is inside asks the upstream, and must be able to
        upstream = _known_upstream(settings)
        path = upstream_repository(asked.below, upstream)
    return tuple(_routes(asked, row.planes[plane], access, upstream, path))


def _routes(
    asked: _Asked, row: PlaneRow, access: ClusterAccess, upstream: Upstream | None, path: str
) -> Iterator[Route]:
    if row.roles == (Role.MASTER,) and not access.masters:
        raise RouteError(
            f"{asked.repository}: in mode Local replicas ask each other, and the addresses "
            "of the masters are not known here; give them with the sites (--sites FILE, masters)"
        )
    common: dict[str, Any] = {
        "reference": asked.what,
        "credential": _login(access, row.reader, upstream),
        "writes": row.writes,
        "writer": _login(access, row.writer, upstream) if row.writes else None,
    }
    for role in row.roles:
        if role is Role.UPSTREAM and upstream is not None:
            yield Route(role, upstream.scheme, upstream.host, path, ca=upstream.ca, **common)
            continue
        ca = access.ca
        if row.reader is None and upstream is not None:
            # A proxy that only passes requests on also passes on the upstream's challenge, so
            # clients ask the upstream's own token server and must trust both.
            ca = access.ca or upstream.ca
            if access.ca is not None and upstream.ca is not None:
                ca = f"{access.ca.rstrip()}\n{upstream.ca}"
        for end, host, authority in _inside(asked, role, access, ca):
            shown = access.public_cert_file if end is Role.PUBLIC else None
            certificate = ClientCertificate(shown, access.public_key_file) if shown else None
            place = asked.repository.path
            yield Route(end, "https", host, place, ca=authority, certificate=certificate, **common)


def _inside(
    asked: _Asked, role: Role, access: ClusterAccess, ca: str | None
) -> Iterator[tuple[Role, str, str | None]]:
    """The ends of a role inside the cluster: role, host, authority to trust."""
    match role:
        case Role.BALANCER | Role.SERVICE:
            yield role, ROLE_HOSTS[role], ca
        case Role.PUBLIC if access.public_host:
            yield role, access.public_host, access.public_ca
        case Role.PUBLIC if not access.masters:
            raise RouteError(
                f"{asked.repository}: in mode Local images are pushed to "
                "registry.<PUBLIC_DOMAIN>, which is not known here; give the cluster's public "
                "domain, or the addresses of its masters, with the sites (--sites FILE, publicHost "
                "or masters)"
            )
        case _:
            for address in access.masters:
                yield Role.MASTER, master_host(address), ca


def master_host(address: str) -> str:
    """`host:port` of the replica on the master at `address`, which may be an IPv6 address."""
    bare = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"{bare}:{REGISTRY_PORT}"


def _login(
    access: ClusterAccess, user: RegistryUser | None, upstream: Upstream | None
) -> Account | None:
    if user is None:
        return None if upstream is None else upstream.account
    account = access.account(user)
    if account is None:
        raise RouteError(
            f"the password of the registry's user {user} is not known here; take it from the "
            f"Secret {SECRET_USER_PREFIX}{user} in {NAMESPACE} and give it "
            "with the sites (--sites FILE, users)"
        )
    return account


def _real_route(asked: _Asked, settings: RegistrySettings) -> Route:
    """The route to an image by its real name: itself, where images go by real names."""
    repository, upstream = asked.repository, settings.upstream
    place = None
    if upstream is not None and repository.host == upstream.host:
        place = below(repository.path, upstream.path)
    if settings.managed:
        hint = "" if place is None else f", here {LOGICAL_ROOT.join(place)}"
        raise RouteError(
            f"{repository}: in mode {settings.mode} the cluster's images go by their logical "
            f"names, which begin with {LOGICAL_BASE}{hint}"
        )
    if upstream is None or repository.host != upstream.host:
        return Route(Role.FOREIGN, "https", repository.host, repository.path, asked.what)
    # As for containerd, a login belongs to the whole host. Only pushes must go below the path.
    account, writes = upstream.account, place is not None
    return Route(
        *(Role.UPSTREAM, upstream.scheme, upstream.host, repository.path, asked.what),
        *(upstream.ca, account, writes, account if writes else None),
    )


def logical(reference: Reference, settings: RegistrySettings) -> Reference:
    """The logical name of an image that is named by its place at the upstream, or by that name."""
    if _asked(reference).below is not None:
        return reference
    upstream = _known_upstream(settings)
    path = reference.repository.path
    place = below(path, upstream.path) if reference.repository.host == upstream.host else None
    if place is None:
        raise RouteError(
            f"{reference} does not lie below {upstream.base}, so it has no name in the cluster"
        )
    return Reference(LOGICAL_ROOT.join(place), reference.tag, reference.digest)


def upstream_repository(relative: str, upstream: Upstream) -> str:
    """The repository at the upstream of what lies at `relative` under the logical path."""
    path = "/".join(part for part in (upstream.path, relative) if part)
    if not path:
        raise RouteError(
            f"imagesRepo {upstream.base!r} has no path behind the host, and images that lie "
            f"directly at {LOGICAL_BASE} would have no repository there; name a path, "
            f"such as {upstream.host}/deckhouse/ee"
        )
    try:
        check_repository(path)
    except InvalidReferenceError as err:
        raise RouteError(f"imagesRepo {upstream.base!r} leads nowhere: {err}") from err
    return path


def _known_upstream(settings: RegistrySettings) -> Upstream:
    if settings.upstream is not None:
        return settings.upstream
    message = f"in mode {settings.mode} these settings name no registry outside of the cluster"
    if not settings.managed:
        message += (
            "; give the section unmanaged with imagesRepo, or what the cluster was installed with "
            "(InitConfiguration)"
        )
    raise RouteError(message)


def _asked(reference: Reference | Repository | str) -> _Asked:
    parsed = reference
    if isinstance(parsed, str):
        last = parsed.rpartition("/")[2]
        named = "@" in parsed or (":" in last and "/" in parsed)
        parsed = Reference.parse(parsed) if named else Repository.parse(parsed)
    what: str | Digest | None = None
    if isinstance(parsed, Reference):
        repository, what = parsed.repository, parsed.digest or parsed.tag
    else:
        repository = parsed
    place = None
    if repository.host == LOGICAL_HOST:
        place = below(repository.path, LOGICAL_PATH)
        if place is None:
            raise RouteError(
                f"{repository}: all of the cluster's images lie at {LOGICAL_BASE} or "
                f"below it ({LOGICAL_BASE}/…), and this is neither"
            )
    return _Asked(repository, what, place)


def below(path: str, base: str) -> str | None:
    """What of `path` follows `base`, without a slash; None if it lies elsewhere."""
    if not base or path == base:
        return "" if base else path
    return path.removeprefix(f"{base}/") if path.startswith(f"{base}/") else None


# -- names of repositories -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterRepository:
    """A repository, relative to the cluster's root; `external`: named by the upstream's address."""

    path: str
    external: bool = False


class RepositoryNames:
    """Reads the names of repositories: logical, real, or relative to the root. Pure."""

    def __init__(self, settings: RegistrySettings, access: ClusterAccess) -> None:
        upstream = settings.upstream
        self._managed = settings.managed
        self._cluster = [LOGICAL_HOST]
        if access.public_host:
            self._cluster.append(access.public_host)
        self._upstream = upstream.host if upstream else None
        self._upstream_path = upstream.path.strip("/") if upstream else ""

    def read(self, repository: str) -> ClusterRepository:
        """The repository that `install`, `system/deckhouse/install` or a whole address names."""
        first, _, rest = repository.partition("/")
        if first in self._cluster:
            return ClusterRepository(self._below(LOGICAL_PATH, rest, repository))
        if first == self._upstream:
            path = self._below(self._upstream_path, rest, repository)
            return ClusterRepository(path, external=True)
        if ":" in first or "." in first or first == "localhost":
            raise self._elsewhere(repository)
        if repository:
            check_repository(repository)
        place = below(repository, LOGICAL_PATH)
        return ClusterRepository(repository if place is None else place)

    def read_image(
        self, name: str, reference: str | Digest | None
    ) -> tuple[ClusterRepository, str | Digest]:
        """A repository and a tag or digest there; without `reference`, `name` has it at its end."""
        if reference is not None:
            return self.read(name), reference
        repository, at, digest = name.partition("@")
        if at:
            found: str | Digest = Digest.parse(digest)
        head, colon, tag = repository.rpartition(":")
        if colon and "/" not in tag:
            check_tag(tag)
            repository = head
            found = found if at else tag
        elif not at:
            raise InvalidReferenceError(f"{name!r} names no image; add :tag or @sha256:digest")
        return self.read(repository), found

    def describe(self, repository: ClusterRepository) -> str:
        """Its name for messages: that of references in this mode's manifests."""
        return str(self.address(repository, Plane.CRI))

    def address(self, repository: ClusterRepository, plane: Plane) -> Repository:
        """The address by which to look for it; an operator may mean it by its real one."""
        is_real = repository.external and plane is not Plane.OPERATOR and self._managed
        if is_real and self._upstream:
            return Repository(self._upstream, self._upstream_path).join(repository.path)
        return LOGICAL_ROOT.join(repository.path)

    def _below(self, root: str, path: str, text: str) -> str:
        place = below(path, root)
        if place is None:
            raise self._elsewhere(text)
        if place:
            check_repository(place, text)
        return place

    def _elsewhere(self, text: str) -> RouteError:
        roots = [f"{host}/{LOGICAL_PATH}" for host in self._cluster]
        if self._upstream:
            roots.append(f"{self._upstream}/{self._upstream_path}".rstrip("/"))
        return RouteError(
            f"{text} is not in this cluster's registry; name a repository below "
            f"{' or '.join(roots)}"
        )


# -- what a mode allows ----------------------------------------------------------------------------


def push_address(settings: RegistrySettings, access: ClusterAccess) -> str:
    """Where this mode takes pushes, in words that a person can act on."""
    if settings.kind.row.holds_own_images:
        host = access.public_host or "registry.<PUBLIC_DOMAIN>"
        return f"the cluster's push address {host}/{LOGICAL_PATH}, as user {RegistryUser.RW}"
    upstream = settings.upstream
    if upstream is None:
        return "the external registry itself, which these settings do not name"
    path = upstream.path.strip("/")
    return f"the external registry itself, {upstream.host}{'/' if path else ''}{path}"


def check_write(
    settings: RegistrySettings, plane: Plane, access: ClusterAccess, *, external: bool, action: str
) -> None:
    """Refuse `action` where the mode or plane forbids it; `external`: the upstream was named."""
    row = settings.kind.row.planes[plane]
    if not row.refusal or (external and row.writes):
        return
    preposition = "to" if action == "push" else "at"
    raise ForbiddenByModeError(
        f"cannot {action} in mode {settings.mode}: {row.refusal}; "
        f"{action} {preposition} {push_address(settings, access)}, instead",
        mode=settings.mode,
        plane=plane,
    )


def check_catalogue(settings: RegistrySettings, plane: Plane, access: ClusterAccess) -> None:
    """Refuse to list all repositories where the accounts of that plane may not."""
    row = settings.kind.row
    reason = row.planes[plane].no_catalogue
    if not reason:
        return
    use = "use" if row.holds_own_images else "ask"
    raise ForbiddenByModeError(
        f"cannot list the repositories in mode {settings.mode}: {reason}; list the tags of a "
        f"repository that you know, or {use} {push_address(settings, access)}",
        mode=settings.mode,
        plane=plane,
    )
