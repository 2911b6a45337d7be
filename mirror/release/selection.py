"""What was asked for, and what of it goes into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.oci import Digest, Platform
from mirror.release.filters import Filter
from mirror.release.platform import PlatformWishes
from mirror.release.plugins import PluginChoice


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of a release tree; the defaults take all that can be selected.

    None leaves a part out. `plugins` takes those that it names besides those that the selected
    modules need. `vex` is for attestations, `signatures` for cosign's other tags and for OCI
    referrers. `platforms` thins multi-arch indexes that tags name; empty keeps them whole.
    `probing` is for sources that cannot list tags: versions are found by trying them.
    """

    platform: PlatformWishes | None = field(default_factory=PlatformWishes)
    installer_tag: str | None = "latest"
    security: bool = True
    modules: Filter | None = field(default_factory=Filter)
    packages: Filter | None = field(default_factory=Filter)
    plugins: Filter | None = field(default_factory=lambda: Filter.including((), "--include-plugin"))
    only_extra_images: bool = False
    vex: bool = True
    signatures: bool = True
    platforms: tuple[Platform, ...] = ()
    probing: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """One image for the bundle: `reference` (tag or digest) at the source, `tag` in the bundle.

    `needed_by` says what leads to it, for the error if it is not there. An `optional` image that is
    not there is left out; the user is told so of a `notable` one.
    """

    archive: str
    repository: str
    tag: str
    reference: str | Digest = field(compare=False)
    needed_by: str = field(compare=False)
    optional: bool = field(default=False, compare=False)
    notable: bool = field(default=False, compare=False)

    @classmethod
    def by_digest(cls, archive: str, repository: str, digest: Digest, needed_by: str) -> Wanted:
        """An image that is referenced by digest only: its bare hex is its tag in the bundle."""
        return cls(archive, repository, digest.encoded, digest, needed_by)


@dataclass(frozen=True, slots=True)
class Selection:
    """All images for a bundle, in canonical order, and what a person would call them.

    `channels` are the platform's channels that travel. Versions are tags, oldest first. `files`
    lie beside the archives.
    """

    images: tuple[Wanted, ...]
    platform_versions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plugins: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """What was selected by name, as JSON values."""
        return {
            "platform": {"versions": list(self.platform_versions), "channels": list(self.channels)},
            "modules": {name: list(versions) for name, versions in self.modules.items()},
            "packages": {name: list(versions) for name, versions in self.packages.items()},
            "plugins": {
                name: {choice.tag: [str(edge) for edge in choice.edges] for choice in choices}
                for name, choices in self.plugins.items()
            },
        }
