"""Sizes as people read them, and as they say how large the parts of an archive are to be."""

from __future__ import annotations

import re
from decimal import ROUND_FLOOR, Decimal, localcontext

from mirror.errors import InputError

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
