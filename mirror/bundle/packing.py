"""How a bundle is written, whatever is in it, and which files that makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mirror.bundle.archive import Archive
from mirror.bundle.format import (
    GOST_SUFFIX,
    SEAL,
    SIGNATURE,
    ZSTD_SUFFIX,
    compressed_bound,
    file_names,
    parse_part_name,
    part_sizes,
)
from mirror.bundle.seal import Seal


@dataclass(frozen=True, slots=True)
class Packing:
    """How a bundle is written, whatever is in it.

    `part_size` in bytes cuts archives into parts; 0 leaves them whole. `gost_digest` writes a
    GOST R 34.11-2012 digest beside each file. `sign` makes a signature over the seal
    (`mirror.signing.sign`). Without `resume` nothing of an interrupted run is used, and
    nothing is kept for the next one. `compress` writes archives in zstd frames, which `part_size`
    then cuts; until they have their names, the disk holds both forms.
    """

    part_size: int = 0
    gost_digest: bool = False
    sign: Callable[[bytes], bytes] | None = None
    resume: bool = True
    compress: bool = False


AS_USUAL = Packing()


def possible_names(packing: Packing, archive: Archive) -> Iterator[str]:
    """Name the files of an archive; of a compressed one, as many as there may be."""
    name, size = archive.name, archive.size
    if packing.compress:
        name, size = name + ZSTD_SUFFIX, compressed_bound(size)
    yield from file_names(name, size, packing.part_size)


def stored_as(packing: Packing, seal: Seal, files: Mapping[str, int]) -> dict[str, int] | None:
    """Archive → bytes on the disk, if `files` (name → size) are exactly those that a bundle of this
    packing has, `SHA256SUMS` aside; else None."""
    names = {*seal.files, SEAL}
    if packing.sign is not None:
        names.add(SIGNATURE)
    stored: dict[str, int] = {}
    for archive in seal.archives.values():
        name, size = archive.name, archive.size
        if packing.compress:
            name += ZSTD_SUFFIX
            size = sum(n for one, n in files.items() if name in (one, _whole(one)))
        if not size:
            return None
        own = file_names(name, size, packing.part_size)
        sizes = part_sizes(size, packing.part_size or size)
        if any(files.get(one) != n for one, n in zip(own, sizes, strict=True)):
            return None
        names.update(own)
        if packing.gost_digest:
            names.update(one + GOST_SUFFIX for one in own)
        stored[archive.name] = size
    return stored if names == files.keys() else None


def _whole(name: str) -> str | None:
    part = parse_part_name(name)
    return part[0] if part else None
