"""Finding the files of a tar archive: one pass over its headers, data skipped (POSIX, GNU tar).

Archives come on disks from elsewhere, so nothing in a header is believed before it is checked:
names stay inside, only regular files count, sizes fit the file, and no length that a header states
is allocated unseen.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator
from dataclasses import dataclass

from mirror.bundle.archive import BLOCK
from mirror.bundle.files import Readable
from mirror.errors import DamagedBundleError

_MAX_EXTENDED_HEADER = 64 << 10
"""Bytes of a long name or pax header; real ones have a few hundred."""

_MAX_NAME = 512
"""Bytes of a name as Python keeps it. A repository's path has 255 at most, and a digest 128."""

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX, _PAX_GLOBAL = tarfile.XHDTYPE, tarfile.XGLTYPE
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: `size` bytes at `offset`. `header_offset` is its header's."""

    path: str
    header_offset: int
    offset: int
    size: int


def members(file: Readable) -> Generator[Member, None, int]:
    """Every regular file of an archive, in order; returns where its end marker begins.

    Folders are passed over.

    Raises:
        DamagedBundleError: a header does not check out, the archive is cut short, or it holds
            something that has no business in a bundle (links, devices, names that lead outside).
    """
    offset = 0
    path: str | None = None
    pax_size: int | None = None
    start: int | None = None
    while True:
        if offset + BLOCK > file.size:
            raise _damaged(file, offset, "the archive ends without its end marker")
        block = file.read(offset, BLOCK)
        if not any(block):
            return offset
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as err:
            raise _damaged(file, offset, f"a header that is none ({err})") from err
        start = offset if start is None else start
        offset += BLOCK
        size = info.size if pax_size is None or info.type in (_PAX, _LONG_NAME) else pax_size
        if size < 0 or offset + size > file.size:
            raise _damaged(
                file,
                offset - BLOCK,
                f"{_shown(path or info.name)} of {size} bytes, which end behind the archive's end",
            )
        end = offset + size + (-size % BLOCK)
        if info.type in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > _MAX_EXTENDED_HEADER:
                raise _damaged(file, offset - BLOCK, f"an extended header of {size} bytes")
            data = file.read(offset, size)
            if info.type == _LONG_NAME:
                path = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == _PAX_GLOBAL:
                # Comments, as version control writes them; what speaks of all files does not occur.
                if _pax_records(file, offset, data).keys() - {"comment"}:
                    raise _damaged(file, offset, "a pax header for all files, which bundles lack")
            elif info.type == _PAX:
                records = _pax_records(file, offset, data)
                path = records.get("path", path)
                if "size" in records:
                    pax_size = _pax_size(file, offset, records["size"])
                if any(key.startswith("GNU.sparse") for key in records):
                    raise _damaged(file, offset, "a sparse file, which bundles do not have")
            offset = end
            continue
        name = path if path is not None else info.name
        if info.type in _REGULAR:
            if not name.endswith("/"):  # a folder, as the oldest archives have them
                yield Member(_inside(file, start, name), start, offset, size)
        elif info.type != tarfile.DIRTYPE:
            raise _damaged(
                file, start, f"{_shown(name)}, which is no regular file; bundles have no others"
            )
        offset, path, pax_size, start = end, None, None, None


def _inside(file: Readable, offset: int, name: str) -> str:
    """`name` without `./` parts, if it stays inside the archive."""
    if len(name) * (1 if name.isascii() else 4) > _MAX_NAME:
        raise _damaged(file, offset, f"a name of {len(name)} characters, {_shown(name)}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    printable = name.isprintable() and "\\" not in name
    if name.startswith("/") or ".." in parts or not parts or not printable:
        raise _damaged(file, offset, f"the name {_shown(name)}, which leads outside or is none")
    return "/".join(parts)


def _pax_records(file: Readable, offset: int, data: bytes) -> dict[str, str]:
    """The `length key=value` records of a pax header (POSIX pax, "Extended Header")."""
    records: dict[str, str] = {}
    while data:
        length_text, space, _ = data.partition(b" ")
        if not space or not length_text.isdigit() or len(length_text) > 6:
            raise _damaged(file, offset, "a pax header that is none")
        length = int(length_text)
        record, data = data[len(length_text) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged(file, offset, "a pax header that is none")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return records


def _pax_size(file: Readable, offset: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _damaged(file, offset, f"a pax size {_shown(text)}")
    return int(text)


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 200 else name[:200] + "…")


def _damaged(file: Readable, offset: int, found: str) -> DamagedBundleError:
    return DamagedBundleError(
        f"{file.path.name}: at byte {offset}: {found}; "
        "the archive is damaged or not part of a bundle, copy it again from its origin"
    )
