"""A tar archive, read strictly as a stream.

`tarfile.TarInfo` decodes headers. The walk from header to header is our own, because that of
`tarfile` takes an invalid header in the middle for the end of the archive, reads extended headers
of any size into memory, recurses once per extended header and remembers every member.
"""

from __future__ import annotations

import enum
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from mirror.errors import UnreadableImageError
from mirror.oci.compression import PIECE

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_USTAR = b"ustar\0"
_MAX_EXTENDED_BYTES = 1 << 20
"""The most extended header data before one entry; names need far less."""
_MAX_NAME = 4096
"""Linux has no longer names, and work on a name must not cost its length squared."""
_PAX_RECORD = re.compile(rb"([0-9]{1,10}) ([^=\n]+)=")


class EntryKind(enum.Enum):
    """What an entry creates. `OTHER` stands for devices, pipes and unknown types."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    OTHER = "special file"


_ENTRY_KINDS = {
    tarfile.REGTYPE: EntryKind.FILE,
    tarfile.AREGTYPE: EntryKind.FILE,
    tarfile.CONTTYPE: EntryKind.FILE,
    tarfile.GNUTYPE_SPARSE: EntryKind.FILE,
    tarfile.DIRTYPE: EntryKind.DIRECTORY,
    tarfile.SYMTYPE: EntryKind.SYMLINK,
    tarfile.LNKTYPE: EntryKind.HARDLINK,
}
_WITHOUT_DATA = frozenset(
    {
        *(tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
        *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
    }
)
_EXTENDED = frozenset(
    {
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
    }
)


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry. Its name is as stored, `size` counts bytes of data, and links have a `target`.

    The archive holds a `sparse` file without its holes.
    """

    name: str
    kind: EntryKind
    target: str
    size: int
    sparse: bool
    mode: int = 0o644


class TarStream:
    """An archive that can be iterated once; `read` returns the data of the current entry.

    The iteration reads the stream to its very end, also behind the archive's end. `end_marker` says
    whether the archive must end with a block of zeros: some tools leave it out, and a compressed
    stream proves by itself that it is whole. Iterating and `read` raise UnreadableImageError if the
    archive is not whole and valid; `where` names it in messages.
    """

    def __init__(self, chunks: Iterator[bytes], where: str, *, end_marker: bool) -> None:
        self._chunks = chunks
        self._source = io.BufferedReader(_Chunks(chunks), PIECE)
        self._position = 0
        self._where, self._end_marker = where, end_marker
        self._data = 0  # bytes of the entry's data not read yet
        self._padding = 0

    def __iter__(self) -> Iterator[TarEntry]:
        while entry := self._next():
            yield entry
        for _ in self._chunks:  # to the stream's very end
            pass

    def read(self) -> bytes:
        """Return the whole data of the current entry; callers look at its `size` first."""
        data = self._exactly(self._data)
        self._data = 0
        return data

    def pieces(self) -> Iterator[bytes]:
        """The data of the current entry piece by piece, to be read before the next entry is."""
        while self._data:
            piece = self._take(min(self._data, PIECE))
            if not piece:
                self._fail("cut off inside a file")
            self._data -= len(piece)
            yield piece

    def _next(self) -> TarEntry | None:
        """Read to the next entry; None at the end of the archive."""
        pax: dict[str, str] = {}
        long_name = long_target = None
        budget = _MAX_EXTENDED_BYTES
        while header := self._header(extended=budget < _MAX_EXTENDED_BYTES):
            if header.type not in _EXTENDED:
                return self._entry(header, pax, long_name, long_target)
            budget -= _BLOCK + header.size
            if budget < 0:
                self._fail(f"more than {_MAX_EXTENDED_BYTES} bytes of extended headers in a row")
            payload = self.read()
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(payload)
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                long_target = _text(payload)
            elif header.type != tarfile.XGLTYPE:  # global ones say nothing of use to runtimes
                pax = self._pax_records(payload)
        return None

    def _entry(
        self,
        header: tarfile.TarInfo,
        pax: dict[str, str],
        long_name: str | None,
        long_target: str | None,
    ) -> TarEntry:
        if "size" in pax and header.type not in _WITHOUT_DATA:
            if not re.fullmatch("[0-9]{1,19}", pax["size"]):
                self._fail(f"an invalid size, {pax['size'][:40]!r}")
            self._expect(int(pax["size"]))
        name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or header.name
        kind = _ENTRY_KINDS.get(header.type, EntryKind.OTHER)
        if header.type == tarfile.AREGTYPE and name.endswith("/"):
            kind = EntryKind.DIRECTORY  # as archives were before there was a type for it
        target = pax.get("linkpath") or long_target or header.linkname
        if max(len(name), len(target)) > _MAX_NAME:
            self._fail(f"a name of more than {_MAX_NAME} characters, {name[:40]!r}…")
        return TarEntry(
            name=name,
            kind=kind,
            target=target,
            size=self._data,
            sparse=header.type == tarfile.GNUTYPE_SPARSE
            or any(key.startswith("GNU.sparse.") for key in pax),
            mode=header.mode & 0o7777,
        )

    def _header(self, *, extended: bool) -> tarfile.TarInfo | None:
        """Skip the rest of the last entry and read the next header block, if there is one."""
        left = self._data + self._padding
        self._data = self._padding = 0
        while left:
            skipped = len(self._take(min(left, PIECE)))
            if not skipped:
                self._fail("cut off inside a file")
            left -= skipped
        at = self._position
        block = self._take(_BLOCK)
        if block == _ZEROS:
            following = self._take(_BLOCK)
            if extended or following not in (_ZEROS, b""):
                self._fail(f"a block of zeros in the middle, at byte {at}")
            return None
        if not block and not extended and not self._end_marker:
            return None
        if len(block) != _BLOCK:
            self._fail("cut off at a header")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as err:
            what = "it starts with no header" if at == 0 else f"a damaged header at byte {at}"
            raise UnreadableImageError(
                f"{self._where}: its tar archive is broken: {what} ({err})"
            ) from err
        if block[257:263] != _USTAR:
            # Only POSIX keeps the front of a long name in this field; GNU tar keeps times there.
            header.name = _text(block[:100])
        if header.size < 0:
            self._fail(f"a negative size at byte {at}")
        self._expect(0 if header.type in _WITHOUT_DATA else header.size)
        if header.type == tarfile.GNUTYPE_SPARSE:
            more = block[482]
            while more:  # maps of holes that did not fit into the header
                more = self._exactly(_BLOCK, padded=False)[504]
        return header

    def _take(self, size: int) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        data = self._source.read(size)
        self._position += len(data)
        return data

    def _expect(self, size: int) -> None:
        self._data, self._padding = size, -size % _BLOCK

    def _exactly(self, size: int, *, padded: bool = True) -> bytes:
        data = self._take(size)
        if len(data) != size:
            self._fail("cut off inside a file" if padded else "cut off at a header")
        return data

    def _pax_records(self, payload: bytes) -> dict[str, str]:
        """Split an extended header (POSIX pax, "pax Extended Header"): `length key=value\\n`."""
        records: dict[str, str] = {}
        at = 0
        while at < len(payload) and payload[at]:
            match = _PAX_RECORD.match(payload, at)
            end = at + int(match[1]) if match else at
            if not match or not match.end() < end <= len(payload) or payload[end - 1] != 0x0A:
                self._fail("a damaged extended header")
            records[match[2].decode("utf-8", "surrogateescape")] = payload[
                match.end() : end - 1
            ].decode("utf-8", "surrogateescape")
            at = end
        return records

    def _fail(self, what: str) -> NoReturn:
        raise UnreadableImageError(f"{self._where}: its tar archive is broken: {what}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


class _Chunks(io.RawIOBase):
    """Chunks of any length, as a file that is read forwards."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._held = memoryview(chunk)
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size
