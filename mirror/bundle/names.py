"""Names inside a bundle: archives, layouts, short tags (docs/bundle-format.md).

The path of a layout inside its archive is the path of the repository relative to the target.
"""

from __future__ import annotations

from mirror.errors import InvalidDigestError
from mirror.oci import Digest

SHORT_TAG = "io.deckhouse.image.short_tag"
"""Annotation of a layout's descriptor: the tag that a push gives the image."""

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of a layout's descriptor: the full reference at the source (image-spec)."""

INDEX = "index.json"
"""Of a layout: which tags name which manifests (image-spec)."""

SEAL = "inventory.json"
SIGNATURE = "inventory.json.sig"
PARTIAL_SUFFIX = ".partial"
"""An archive under way; it takes its final name when all of it is there."""

ZSTD_SUFFIX = ".zst"
"""Behind the name of an archive that is compressed."""


def source_reference(origin: str, tag: str, digest: Digest) -> str:
    """What an image was called at its source, from the tag that it has in the bundle.

    Images that are referenced by digest only carry its bare hex as their tag.
    """
    return f"{origin}@{digest}" if tag == digest.encoded else f"{origin}:{tag}"


def blob_path(layout: str, digest: Digest) -> str:
    """Where a layout keeps a blob or manifest (image-spec, image-layout.md)."""
    return inside(layout, f"blobs/{digest.algorithm}/{digest.encoded}")


def blob_at(path: str) -> tuple[str, Digest | None]:
    """(layout, digest) of the path of a layout's blob in an archive; no digest for other paths."""
    *layout, kind, algorithm, encoded = ("", "", "", *path.split("/"))
    if kind != "blobs":
        return "", None
    try:
        digest = Digest.parse(f"{algorithm}:{encoded}")
    except InvalidDigestError:
        return "", None
    return "/".join(part for part in layout if part), digest


def inside(layout: str, name: str) -> str:
    """The archive path of `name` inside a layout; the empty layout is the archive's root."""
    return f"{layout}/{name}" if layout else name
