"""Where every byte of an archive goes, decided before any byte is fetched.

Manifests come first, so every blob's size is known, so the offset of every entry inside the tar is
known. An archive is a pure function of the inventory it holds and the names its repositories had
at the source: no clock, no order of arrival. Hence workers may write at final offsets in any
order, equal selections give equal bytes, and a verifier knows each byte that is not a blob's.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mirror.bundle.delta import NOTHING, minus
from mirror.bundle.format import INDEX, REF_NAME, SHORT_TAG, blob_path, inside, source_reference
from mirror.oci import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.sync import Inventory, RepositoryContent

BLOCK = 512
TRAILER_SIZE = 2 * BLOCK
"""End of archive: two blocks of zeros (POSIX ustar); no padding to a record of 20."""

OCI_LAYOUT = b'{\n    "imageLayoutVersion": "1.0.0"\n}'


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive: a header at `offset`, `size` bytes at `data_offset`, then zeros.

    `digest` is what its bytes hash to; `content` the bytes themselves where they are not carried
    from elsewhere. `repository` is the layout it belongs to.
    """

    path: str
    offset: int
    data_offset: int
    size: int
    digest: Digest
    repository: str
    content: bytes | None = field(default=None, repr=False)

    @property
    def header(self) -> bytes:
        """The tar header: 512 bytes, or a multiple of that for long names."""
        return tar_header(self.path, self.size)

    @property
    def padding(self) -> int:
        """How many zero bytes follow its own."""
        return -self.size % BLOCK

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.data_offset + self.size + self.padding


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive of a bundle, laid out: entries in order and without gaps. Sizes in bytes.

    `left_out` is the part of its `inventory` that lies elsewhere (`mirror.bundle.delta`).
    """

    name: str
    inventory: Inventory
    origins: Mapping[str, str]
    entries: tuple[Entry, ...] = field(repr=False)
    size: int
    left_out: Inventory = field(default=NOTHING, repr=False)

    @property
    def carried(self) -> Inventory:
        """The part of its inventory that has a place in it, with all tags."""
        return minus(self.inventory, self.left_out)

    @property
    def trailer_offset(self) -> int:
        """Where the end-of-archive blocks begin."""
        return self.size - TRAILER_SIZE


def lay_out(
    name: str, inventory: Inventory, origins: Mapping[str, str], left_out: Inventory = NOTHING
) -> Archive:
    """Give every file of archive `name` its place.

    `origins` maps each repository path to what it was called at the source, `host/path`. Indexes
    name all tags; what these reach has a place, except for `left_out`.
    """
    files: list[tuple[tuple[str, ...], str, int, Digest, str, bytes | None]] = []

    def add(path: str, size: int, digest: Digest, layout: str, content: bytes | None) -> None:
        files.append((tuple(path.split("/")), path, size, digest, layout, content))

    carried = minus(inventory, left_out)
    for layout, spoken_of in inventory.repositories.items():
        for file_name, content in (
            (INDEX, index_json(spoken_of, origins[layout])),
            ("oci-layout", OCI_LAYOUT),
        ):
            path = inside(layout, file_name)
            add(path, len(content), Digest.of(content), layout, content)
        held = carried.repository(layout)
        for digest, node in held.manifests.items():
            add(blob_path(layout, digest), node.descriptor.size, digest, layout, None)
        for digest, size in held.blobs.items():
            if digest not in held.manifests:
                add(blob_path(layout, digest), size, digest, layout, None)

    # The order of a directory walk, in which each folder's names are sorted.
    files.sort(key=lambda file: file[0])
    entries: list[Entry] = []
    offset = 0
    for _, path, size, digest, layout, own in files:
        data_offset = offset + len(tar_header(path, size))
        entry = Entry(path, offset, data_offset, size, digest, layout, own)
        entries.append(entry)
        offset = entry.end
    size = offset + TRAILER_SIZE
    return Archive(name, inventory, dict(origins), tuple(entries), size, left_out)


def tar_header(path: str, size: int) -> bytes:
    """Return the header of a regular file: GNU format, mode 0777, owner 0, time 0."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, 0o777, 0
    return info.tobuf(tarfile.GNU_FORMAT, encoding="utf-8", errors="strict")


def index_json(content: RepositoryContent, origin: str) -> bytes:
    """Render a layout's index: one descriptor per tag, sorted by source reference."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": list(_tag_descriptors(content, origin)),
        },
        indent=2,
        ensure_ascii=False,
    ).encode()


def _tag_descriptors(content: RepositoryContent, origin: str) -> Iterator[dict[str, object]]:
    named = sorted(
        (source_reference(origin, tag, digest), tag, digest) for tag, digest in content.tags.items()
    )
    for reference, tag, digest in named:
        node = content.manifests[digest]
        descriptor: dict[str, object] = {
            "mediaType": node.descriptor.media_type,
            "size": node.descriptor.size,
            "digest": str(digest),
            "annotations": {SHORT_TAG: tag, REF_NAME: reference},
        }
        if node.artifact_type is not None:
            descriptor["artifactType"] = node.artifact_type
        yield descriptor
