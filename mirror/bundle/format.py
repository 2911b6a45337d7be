"""The bundle format in words and numbers: names of files, paths in a layout, limits.

docs/bundle-format.md describes all of it. The path of a layout inside its archive is the path of
the repository relative to the target.

Archives come on disks from elsewhere, so a reader takes in no more than these limits, and refuses
a bundle that was made to exhaust it with less than 200 MB in use. Whoever makes a bundle checks
the same limits before the first byte is fetched (`mirror.bundle.seal.excess`).
"""

from __future__ import annotations

from collections.abc import Collection

from mirror.errors import DamagedBundleError, InvalidDigestError
from mirror.oci import Digest

# -- names -----------------------------------------------------------------------------------------

SHORT_TAG = "io.deckhouse.image.short_tag"
"""Annotation of a layout's descriptor: the tag that a push gives the image."""

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of a layout's descriptor: the full reference at the source (image-spec)."""

INDEX = "index.json"
"""The file of a layout that says which tags name which manifests (image-spec)."""

SEAL = "inventory.json"
SIGNATURE = "inventory.json.sig"
SUMS = "SHA256SUMS"
"""The name that other projects give this file beside their downloads."""

GOST_SUFFIX = ".gostsum"
"""Added to the name of an archive or part; the file holds its GOST R 34.11-2012 digest."""

PARTIAL_SUFFIX = ".partial"
"""Added to the name of a file that is not complete yet."""

PARTIAL_SEAL = SEAL + PARTIAL_SUFFIX
"""The seal of the bundle that is being made; a folder that has it is not a bundle yet."""

ZSTD_SUFFIX = ".zst"
"""Added to the name of an archive that is compressed."""


def source_reference(origin: str, tag: str, digest: Digest) -> str:
    """Return what an image was called at its source, from the tag that it has in the bundle.

    An image that is referenced by digest only carries the bare hex of that as its tag.
    """
    return f"{origin}@{digest}" if tag == digest.encoded else f"{origin}:{tag}"


def blob_path(layout: str, digest: Digest) -> str:
    """Return where a layout keeps a blob or manifest (image-spec, image-layout.md)."""
    return inside(layout, f"blobs/{digest.algorithm}/{digest.encoded}")


def blob_at(path: str) -> tuple[str, Digest | None]:
    """Return the (layout, digest) that an archive path of a blob spells; no digest for others."""
    *layout, kind, algorithm, encoded = ("", "", "", *path.split("/"))
    if kind != "blobs":
        return "", None
    try:
        digest = Digest.parse(f"{algorithm}:{encoded}")
    except InvalidDigestError:
        return "", None
    return "/".join(part for part in layout if part), digest


def inside(layout: str, name: str) -> str:
    """Return the archive path of `name` inside a layout; the empty layout is the archive's root."""
    return f"{layout}/{name}" if layout else name


# -- limits ----------------------------------------------------------------------------------------

MAX_SEAL_BYTES = 32 << 20
"""A seal has some 500 bytes per image: room for 60,000 of them."""
MAX_SEAL_MARKS = 2_500_000
MAX_MEMBERS = 100_000
"""Files of one archive. The largest of the platform's so far have some 20,000."""
MAX_FILES = 150_000
"""Files of all archives of a bundle together."""
MAX_NAMES = 120_000
"""Tags of a bundle, and descriptors in its manifests: room for 12,000 images of 9 layers."""
MAX_INDEX_BYTES = 8 << 20
"""A layout's index has some 400 bytes per tag: room for 20,000 tags in one repository."""
MAX_INDEX_MARKS = 1_000_000
MAX_MANIFEST_MARKS = 250_000
MAX_MEDIA_TYPE = 255
"""Characters: RFC 6838, 4.2, allows 127 on either side of the slash."""
MAX_FINDINGS = 5_000
"""Findings about one layout; the rest is counted."""
MAX_SUMS_BYTES = 4 << 20


def marks(data: bytes) -> int:
    """Count the marks that JSON text has between its values.

    A parser makes some 50 bytes of each, which may be 30 times the text. The count tells how much
    memory it will take before it parses anything.
    """
    return sum(map(data.count, (b",", b":", b"[", b"{")))


class Budget:
    """How many names and files a bundle may still have. Names are tags and what manifests refer to.

    Each takes some hundreds of bytes for as long as the bundle is open.
    """

    def __init__(self) -> None:
        self._names, self._files = MAX_NAMES, MAX_FILES

    def take_names(self, count: int) -> None:
        """Raise DamagedBundleError if `count` more are too many."""
        self._names -= count
        if self._names < 0:
            raise DamagedBundleError(
                f"the bundle has more than {MAX_NAMES} tags and references in all",
                advice="split it",
            )

    def take_files(self, paths: Collection[str]) -> None:
        """Raise DamagedBundleError if these are too many; each 128 characters count for a file."""
        self._files -= max(len(paths), sum(map(len, paths)) // 128)
        if self._files < 0:
            raise DamagedBundleError(
                f"the bundle has more than {MAX_FILES} files in all", advice="split it"
            )
