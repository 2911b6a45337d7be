"""What every bundle may have beside releases: the standalone installer, security databases."""

from __future__ import annotations

from mirror.layout import INSTALLER, SECURITY_DATABASES, archive_of
from mirror.release.selection import Wanted
from mirror.release.source import ReleaseSource


def installer_image(tag: str) -> Wanted:
    """The standalone installer, if the source has it."""
    return Wanted(
        archive_of(INSTALLER),
        INSTALLER,
        tag,
        tag,
        "--installer-tag",
        optional=True,
        notable=True,
    )


def security_images(source: ReleaseSource) -> list[Wanted]:
    """The security databases; none where the edition has none, which the first one tells."""
    first = next(iter(SECURITY_DATABASES))
    if source.manifest(first, SECURITY_DATABASES[first]) is None:
        source.warn(f"{source.tree.root} offers no security databases; they are left out")
        return []
    return [
        Wanted(
            archive_of(path), path, tag, tag, "the security databases", optional=True, notable=True
        )
        for path, tag in SECURITY_DATABASES.items()
    ]
