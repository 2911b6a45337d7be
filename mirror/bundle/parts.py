"""The parts of an archive, `X.tar.0000.chunk` and so on: their names, and their sizes.

Parts joined in the order of their numbers are the archive, byte for byte (docs/bundle-format.md).
Ours have exactly the size that was asked for, except for the last one. People say that size in GB,
with a unit, or by the medium that is to take one part each.
"""

from __future__ import annotations

import re
from decimal import ROUND_FLOOR, Decimal, localcontext
from pathlib import Path

from mirror.bundle.format import PARTIAL_SUFFIX
from mirror.errors import InputError

_PART = re.compile(
    r"(?P<archive>.+\.tar(?:\.zst)?)\.(?P<number>[0-9]{4,9})\.chunk", re.ASCII | re.DOTALL
)

# -- names and sizes -----------------------------------------------------------------------------


def part_name(archive: str, number: int) -> str:
    """The file name of part `number`, from 0, of `archive`: four digits, more past 9999."""
    return f"{archive}.{number:04}.chunk"


def parse_part_name(name: str) -> tuple[str, int] | None:
    """(archive, number) of a file name; None if it is no part's."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    archive, number = match["archive"], int(match["number"])
    # One spelling per number, so that no two files claim the same place.
    return (archive, number) if part_name(archive, number) == name else None


def part_sizes(total: int, part_size: int) -> tuple[int, ...]:
    """The sizes of the parts of `total` bytes: each exactly `part_size`, the last what is left.

    No part is empty, so there are none of an empty whole.

    Raises:
        ValueError: `part_size` is not positive, or `total` negative.
    """
    if part_size < 1 or total < 0:
        raise ValueError(f"{total} bytes cannot be cut into parts of {part_size}")
    whole, rest = divmod(total, part_size)
    return (part_size,) * whole + ((rest,) if rest else ())


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """The files of the `count` parts of the archive at `path`, which may end in `.partial`."""
    archive = path.name.removesuffix(PARTIAL_SUFFIX)
    suffix = path.name[len(archive) :]
    return tuple(path.with_name(part_name(archive, number) + suffix) for number in range(count))


# -- what people write -----------------------------------------------------------------------------

MIN_PART_SIZE = 10**6
"""Bytes. Smaller parts are a slip of the unit, and would be files by the million."""

_UNITS = {
    "": 10**9,  # as `--images-bundle-chunk-size` of d8 counts
    "KB": 10**3,
    "KIB": 1 << 10,
    "MB": 10**6,
    "MIB": 1 << 20,
    "GB": 10**9,
    "GIB": 1 << 30,
    "TB": 10**12,
    "TIB": 1 << 40,
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
    """The bytes of one part; 0 means that archives stay whole.

    A plain number counts GB of 10⁹ bytes and may have a fraction; units are kB, MB, GB, TB and KiB,
    MiB, GiB, TiB in any case; `PRESETS` go by their names. What is no whole byte is rounded down.

    Raises:
        InputError: it is none of these, or less than 1 MB.
    """
    wish = text.strip()
    if wish.lower() in PRESETS:
        return PRESETS[wish.lower()]
    match = _SIZE.fullmatch(wish)
    if match is None:
        raise InputError(
            f"{text[:100]!r} is no size of a part; write GB as a plain number (4, 0.7), a number "
            f"with a unit (700MB, 4GiB, 1.5TB), a medium ({', '.join(PRESETS)}), "
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
    """Bytes as a person reads them: `1.5 GiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_SHOWN_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_SHOWN_UNITS[unit]}"
