"""The images of static pods: what is given, what a pod needs, and what nothing runs from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mirror.errors import RenderingError
from mirror.modes.render import values

_SERVICES = ("distribution", "auth", "mirror")


@dataclass(frozen=True, slots=True)
class Images:
    """The images of the containers, each of which may be left out; a pod without images is none.

    `distribution`, `auth` and `mirror` (this program's, for replication) are of the masters' pod;
    `nginx` is of every node's balancer and relay.
    """

    distribution: str | None = None
    auth: str | None = None
    mirror: str | None = None
    nginx: str | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            values.image(self.one(name), f"{name} image")

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that are there."""
        return tuple(name for name in self.__slots__ if getattr(self, name) is not None)

    def one(self, name: str) -> str:
        """The image of that name, which must be given."""
        found = getattr(self, name)
        if not isinstance(found, str):
            raise ValueError(f"no image {name} was given")
        return found

    def serve(self, *, replication: bool) -> bool:
        """Whether the masters' pod is wanted: False if none of its images is given.

        Raises:
            RenderingError: it is wanted, and an image that it needs is missing.
        """
        given = [name for name in self.given if name in _SERVICES]
        if not given:
            return False
        needed = services_needed(replication=replication)
        missing = [name for name in needed if name not in given]
        if missing:
            raise RenderingError(
                f"images: expected {', '.join(needed)} for the static pod of the masters, found "
                f"{', '.join(given)}; give {' and '.join(missing)} too, or none of them"
            )
        return True

    def unused(self, used: Collection[str]) -> tuple[str, ...]:
        """The names of those that are given and not `used`."""
        return tuple(name for name in self.given if name not in used)


def services_needed(*, replication: bool) -> tuple[str, ...]:
    """The names of the images of the masters' pod."""
    return _SERVICES if replication else _SERVICES[:2]
