"""What was asked for, and what of it goes into a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mirror.oci import Digest


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of a release tree; the defaults take all that a pull can select.

    `modules` None means every module. The fields are the flags of `mirror pull`.
    """

    platform: bool = True
    ignore_suspend: bool = False
    installer: bool = True
    installer_tag: str = "latest"
    security: bool = True
    modules: tuple[str, ...] | None = None
    no_modules: bool = False

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for the bundle's seal."""
        return {
            "platform": self.platform,
            "ignoreSuspend": self.ignore_suspend,
            "installer": self.installer_tag if self.installer else None,
            "security": self.security,
            "modules": []
            if self.no_modules
            else (sorted(self.modules) if self.modules is not None else None),
        }


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """One image for the bundle: `reference` (tag or digest) at the source, `tag` in the bundle.

    `needed_by` says who asks for it, for the error if it is not there. An `optional` image that is
    not there is left out.
    """

    archive: str
    repository: str
    tag: str
    reference: str | Digest = field(compare=False)
    needed_by: str = field(compare=False)
    optional: bool = field(default=False, compare=False)

    @classmethod
    def by_digest(cls, archive: str, repository: str, digest: Digest, needed_by: str) -> Wanted:
        """An image that is referenced by digest only: its bare hex is its tag in the bundle."""
        return cls(archive, repository, digest.encoded, digest, needed_by)


@dataclass(frozen=True, slots=True)
class Selection:
    """All images for a bundle, and what a person would call them."""

    images: tuple[Wanted, ...]
    platform_versions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    modules: dict[str, tuple[str, ...]] = field(default_factory=dict)
