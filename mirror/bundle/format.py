"""The bundle format in words and numbers: names of files, paths in a layout, parts, limits.

docs/bundle-format.md describes all of it. The path of a layout inside its archive is the path of
the repository relative to the target. Parts of an archive, `X.tar.0000.chunk` and so on, joined in
the order of their numbers are the archive, byte for byte; ours have exactly the size that was asked
for, except for the last one. Several machines divide a work on a bundle among them by its plan
alone, without talking.

Archives come on disks from elsewhere, so a reader takes in no more than these limits, and refuses
a bundle that was made to exhaust it with less than 200 MB in use; of one with archives of 256 MiB
and more it takes in more. Whoever makes a bundle checks the same limits before the first byte is
fetched (`mirror.bundle.seal.check_limits`).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from itertools import accumulate
from pathlib import Path

from mirror.errors import DamagedBundleError, InputError, InvalidDigestError, printable
from mirror.oci import Digest

_PART = re.compile(
    r"(?P<archive>.+\.tar(?:\.zst)?)\.(?P<number>[0-9]{4,9})\.chunk", re.ASCII | re.DOTALL
)

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

SHARDS = "shards" + PARTIAL_SUFFIX
VERIFIED = re.compile(r"verified-([1-9][0-9]{0,3})-of-([1-9][0-9]{0,3})\.json")
"""What a shard of a verification has found (`mirror.operations.verify_shard`)."""
SHARD_MARK = re.compile(rf"(shards|shard-.+){re.escape(PARTIAL_SUFFIX)}|{VERIFIED.pattern}")
"""What several machines write down that make a bundle (`mirror.bundle.shards`) or verify one."""

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


# -- parts -----------------------------------------------------------------------------------------


def part_name(archive: str, number: int) -> str:
    """Return the file name of part `number`, from 0, of `archive`: four digits, more past 9999."""
    return f"{archive}.{number:04}.chunk"


def parse_part_name(name: str) -> tuple[str, int] | None:
    """Return the (archive, number) that the file name of a part spells; None for other names."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    archive, number = match["archive"], int(match["number"])
    # One spelling per number, so that no two files claim the same place.
    return (archive, number) if part_name(archive, number) == name else None


def whole_name(name: str) -> str:
    """Return the file that a part is a part of; other names are their own."""
    part = parse_part_name(name)
    return part[0] if part else name


def archive_named(name: str) -> str:
    """Return the archive that a file of this name would hold, or a part of, compressed or not."""
    return whole_name(name).removesuffix(ZSTD_SUFFIX)


def part_sizes(total: int, part_size: int) -> tuple[int, ...]:
    """Return the sizes of the parts of `total` bytes: each exactly `part_size`, the last the rest.

    No part is empty, so an empty whole has no parts.

    Raises:
        ValueError: `part_size` is not positive, or `total` negative.
    """
    if part_size < 1 or total < 0:
        raise ValueError(f"{total} bytes cannot be cut into parts of {part_size}")
    whole, rest = divmod(total, part_size)
    return (part_size,) * whole + ((rest,) if rest else ())


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Return the files of `count` parts of the archive at `path`, which may end in `.partial`."""
    archive = path.name.removesuffix(PARTIAL_SUFFIX)
    suffix = path.name[len(archive) :]
    return tuple(path.with_name(part_name(archive, number) + suffix) for number in range(count))


def file_names(archive: str, size: int, part_size: int) -> tuple[str, ...]:
    """Return the names of the files of an archive: its own, or those of parts (0: it is whole)."""
    if not part_size:
        return (archive,)
    return tuple(part_name(archive, number) for number in range(-(-size // part_size)))


# -- shares ----------------------------------------------------------------------------------------

_SHARD = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` machines that share a work; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read `3/8`. `auto` is what the pod of an Indexed Job of Kubernetes is told by
        JOB_COMPLETION_INDEX, which counts from 0, and JOB_COMPLETIONS.

        Raises:
            InputError: it is something else.
        """
        given = text
        if text == "auto":
            index, count = (environment.get(f"JOB_COMPLETION{end}", "") for end in ("_INDEX", "S"))
            if not index.isdecimal():
                raise InputError(
                    "--shard auto takes its number from JOB_COMPLETION_INDEX, which only pods of "
                    "an Indexed Job have; write it as --shard 3/8"
                )
            text = f"{int(index) + 1}/{count}"
            given = f"JOB_COMPLETION_INDEX={index} with JOB_COMPLETIONS={count}"
        found = _SHARD.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise InputError(
                f"{printable(given)} is not one of several shards; write its number and how many "
                "there are, as 3/8: from 1/8 to 8/8"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def owner(start: int, size: int, total: int, count: int) -> int:
    """The number of the shard, of `count`, that has a piece of `size` bytes at `start`: the one in
    whose part of all `total` bytes its middle lies. So each piece has one owner, neighbours mostly
    the same, and no shard has more than the mean and half a piece at either end."""
    middle = (2 * start + size) * count // (2 * total) if total else 0
    return min(middle, count - 1) + 1


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """The owner of each of these pieces, which lie one behind the other."""
    starts, total = accumulate(sizes, initial=0), sum(sizes)
    return [owner(start, size, total, count) for start, size in zip(starts, sizes, strict=False)]


def share(sizes: Sequence[int], shard: Shard) -> range:
    """Which of these pieces are a shard's. No share is above the mean by more than the largest."""
    found = owners(sizes, shard.count)
    return range(bisect_left(found, shard.number), bisect_right(found, shard.number))


# -- compressed archives ---------------------------------------------------------------------------

FRAME = 1 << 20
"""Bytes of an archive in each of our zstd frames, the last one excepted."""


def compressed_bound(size: int) -> int:
    """Return the most that `size` bytes take when they are compressed, with the table of frames."""
    frames = -(-size // FRAME)
    return size + frames * (FRAME // 256 + 64 + 12) + 17


# -- what people write -----------------------------------------------------------------------------

MIN_PART_SIZE = 10**6
"""Bytes. Smaller parts are a slip of the unit, and would be files by the million."""

_UNITS = {"": 10**9} | {  # a plain number as `--images-bundle-chunk-size` of d8 counts
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("IB", 1024))
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMGT]i?B)?", re.IGNORECASE | re.ASCII)

_SECTOR = 2048
_DISC_RESERVE = 16 << 20
"""Bytes of a disc that are left to its file system and to the small files beside the part."""


def _disc(capacity: int) -> int:
    return (capacity - _DISC_RESERVE) // _SECTOR * _SECTOR


PRESETS = {
    "cd": _disc(700 << 20),
    "dvd": _disc(4_700_000_000),
    "dvd-dl": _disc(8_500_000_000),
    "bd": _disc(24_220_008_448),  # 25 GB less the spare area that most writers format
    "fat32": (4 << 30) - 1,
}
"""Part sizes in bytes, by the medium that is to take one part each.

Discs: the nominal capacity, less 16 MiB, in whole sectors. Parts for `dvd` and above are longer
than 4 GiB, which a disc holds with UDF, or with ISO 9660 from level 3 on.
"""


def parse_part_size(text: str) -> int:
    """Read the size of one part in bytes; 0 means that archives stay whole.

    A plain number counts GB of 10⁹ bytes and may have a fraction; units are kB, MB, GB, TB and KiB,
    MiB, GiB, TiB in any case; `PRESETS` go by their names. Fractions of a byte are dropped.

    Raises:
        InputError: it is something else, or less than 1 MB.
    """
    wish = text.strip()
    if wish.lower() in PRESETS:
        return PRESETS[wish.lower()]
    match = _SIZE.fullmatch(wish)
    if match is None:
        raise InputError(
            f"{text[:100]!r} is not a size for a part; write GB as a plain number (4, 0.7), a "
            f"number with a unit (700MB, 4GiB, 1.5TB), a medium ({', '.join(PRESETS)}), "
            "or 0 for archives in one piece"
        )
    with localcontext(prec=60):  # enough digits for every product to be exact
        exact = Decimal(match[1]) * _UNITS[(match[2] or "").upper()]
        size = int(exact.to_integral_value(ROUND_FLOOR))
    if exact and size < MIN_PART_SIZE:
        raise InputError(
            f"parts of {text.strip()} are {size} bytes each; the least is 1MB, "
            "and a plain number counts GB"
        )
    return size


_SHOWN_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(count: int) -> str:
    """Write a number of bytes as a person reads it: `1.5 GiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_SHOWN_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_SHOWN_UNITS[unit]}"


# -- limits ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """How much a reader takes in of one bundle.

    Attributes:
        seal_bytes: bytes of its seal, which has some 500 per image, and 100 per blob.
        seal_values: `value_count` of its seal.
        members: files of one archive.
        files: files of all its archives together.
        names: tags, and descriptors in its manifests, each as often as it is mentioned.
        index_bytes: bytes of one layout's index, which has some 400 per tag.
        index_values: `value_count` of that.
    """

    seal_bytes: int
    seal_values: int
    members: int
    files: int
    names: int
    index_bytes: int
    index_values: int


ORDINARY = BundleLimits(32 << 20, 2_500_000, 100_000, 150_000, 120_000, 8 << 20, 1_000_000)
"""Room for 12,000 images of 9 layers, in less than 200 MB of memory. The platform so far has some
20,000 files in its largest archive."""
LARGE = BundleLimits(256 << 20, 10_000_000, 1_000_000, 1_200_000, 1_500_000, 64 << 20, 3_000_000)
"""Room for 100,000 images of 10 layers, all of them in one repository if need be. Some 5 KB of
memory per image are in use then."""
LARGE_FROM = 256 << 20
"""Bytes of archives from which on the large limits count: who wants to exhaust a reader must bring
that much, and who has that many images has far more. A compressed archive does not count, since a
few bytes may claim to be any number of them."""


def limits_for(size: int) -> BundleLimits:
    """Return the limits of a bundle whose archives have `size` bytes, compressed ones aside."""
    return LARGE if size >= LARGE_FROM else ORDINARY


MAX_MEDIA_TYPE = 255
"""Characters: RFC 6838, 4.2, allows 127 on either side of the slash."""
MAX_FINDINGS = 5_000
"""Findings about one layout; the rest is counted."""
MAX_SUMS_BYTES = 4 << 20
MAX_SIGNATURE_BYTES = 64 << 10
MAX_COMPANION_BYTES = 256 << 20
"""A file beside the archives. The program is the largest."""


class Budget:
    """How many names and files a bundle may still have. Names are tags and what manifests refer to.

    Each takes some hundreds of bytes for as long as the bundle is open.
    """

    def __init__(self, limits: BundleLimits) -> None:
        self.limits = limits
        self._names, self._files = limits.names, limits.files

    def take_names(self, count: int) -> None:
        """Raise DamagedBundleError if `count` more are too many."""
        self._names -= count
        if self._names < 0:
            raise DamagedBundleError(
                f"the bundle has more than {self.limits.names} tags and references in all",
                advice="split it",
            )

    def take_files(self, paths: Collection[str]) -> None:
        """Raise DamagedBundleError if these are too many; each 128 characters count for a file."""
        self._files -= max(len(paths), sum(map(len, paths)) // 128)
        if self._files < 0:
            raise DamagedBundleError(
                f"the bundle has more than {self.limits.files} files in all", advice="split it"
            )
