"""Which repository a caller means: by logical address, by the real one, or relative to the root."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.errors import InvalidReferenceError, RouteError
from mirror.modes.addressing import Plane
from mirror.modes.constants import LOGICAL_HOST, LOGICAL_PATH
from mirror.modes.settings import RegistrySettings
from mirror.modes.sites import Sites
from mirror.oci import Digest, Repository
from mirror.oci.reference import check_repository, check_tag


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of the cluster's registry: `path` is relative to its root, "" the root itself.

    `external`: it was named by the address of the external registry.
    """

    path: str
    external: bool = False

    @property
    def logical(self) -> Repository:
        """Its logical address."""
        return Repository(LOGICAL_HOST, LOGICAL_PATH).join(self.path)


class Places:
    """Understands the names of repositories under given settings. Pure."""

    def __init__(self, settings: RegistrySettings, sites: Sites) -> None:
        upstream = settings.upstream
        self._managed = settings.managed
        self._cluster = {LOGICAL_HOST}
        if sites.public_host:
            self._cluster.add(sites.public_host)
        self._upstream = upstream.host if upstream else None
        self._upstream_path = upstream.path.strip("/") if upstream else ""

    def of(self, repository: str) -> Place:
        """The place that `repository` names.

        That is `registry.d8-system.svc:5001/system/deckhouse/install`, or the same by the host
        that the mode has it at, or `system/deckhouse/install`, or `install`.

        Raises:
            RouteError: it lies elsewhere.
            InvalidReferenceError: it cannot be a repository.
        """
        first, _, rest = repository.partition("/")
        if first in self._cluster:
            return Place(self._below(LOGICAL_PATH, rest, repository))
        if first == self._upstream:
            return Place(self._below(self._upstream_path, rest, repository), external=True)
        if ":" in first or "." in first or first == "localhost":
            raise RouteError(
                f"{repository} is not in this cluster's registry; name a repository below "
                f"{' or '.join(self._roots())}"
            )
        if repository:
            check_repository(repository)
        under = _under(LOGICAL_PATH, repository)
        return Place(repository if under is None else under)

    def _below(self, root: str, path: str, text: str) -> str:
        under = _under(root, path)
        if under is None:
            raise RouteError(
                f"{text} is not in this cluster's registry; name a repository below "
                f"{' or '.join(self._roots())}"
            )
        if under:
            check_repository(under, text)
        return under

    def _roots(self) -> list[str]:
        roots = [f"{host}/{LOGICAL_PATH}" for host in sorted(self._cluster, key=self._rank)]
        if self._upstream:
            roots.append(f"{self._upstream}/{self._upstream_path}".rstrip("/"))
        return roots

    def name(self, place: Place) -> str:
        """What to call `place` in messages: as references in this mode's manifests do."""
        return str(self.address(place, Plane.CRI))

    def address(self, place: Place, plane: Plane) -> Repository:
        """The address by which `place` is to be looked for.

        Who brings images in may say where they really are, and means the same.
        """
        if place.external and plane is not Plane.OPERATOR and self._managed and self._upstream:
            return Repository(self._upstream, self._upstream_path).join(place.path)
        return place.logical

    @staticmethod
    def _rank(host: str) -> bool:
        return host != LOGICAL_HOST

    def named(self, name: str, reference: str | Digest | None) -> tuple[Place, str | Digest]:
        """A place and a tag or digest there; without `reference`, `name` has it at its end.

        Raises:
            InvalidReferenceError, InvalidDigestError: no tag or digest, or not one.
        """
        if reference is not None:
            return self.of(name), reference
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
        return self.of(repository), found


def _under(root: str, path: str) -> str | None:
    """`path` relative to `root`; None if it does not lie there. A part is never half of a name."""
    if not root or path == root:
        return path if not root else ""
    return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None
