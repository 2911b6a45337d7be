"""A layer's stream: unpacked, and read strictly as a tar archive.

Layers are gzip, zstd or plain, as their first bytes show. Media types do not count: registries hold
layers that declare another compression than they have, and container runtimes go by the first bytes
too. Output comes in pieces of `PIECE` bytes, so whoever counts them can stop a decompression bomb.

`tarfile.TarInfo` decodes headers. The walk from header to header is our own, because that of
`tarfile` takes an invalid header in the middle for the end of the archive, reads extended headers
of any size into memory, recurses once per extended header and remembers every member.
"""

from __future__ import annotations

import contextlib
import enum
import io
import itertools
import re
import tarfile
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import zstandard

from mirror.errors import UnreadableImageError

PIECE = 256 << 10
_ZSTD_WINDOW = 128 << 20
"""Bytes of history that a zstd stream may ask for: the reference tool's limit, `--long=27`."""
_USUAL_WINDOW = 8 << 20
"""What encoders ask for by default. Of streams that ask for more, one is unpacked at a time."""
_LARGE_WINDOW = threading.Lock()
_LOOK_S = 0.2
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGICS = frozenset(bytes([0x50 + low]) + b"\x2a\x4d\x18" for low in range(16))
_OTHER_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
_LONGEST_MAGIC = 6


def decompressed(
    chunks: Iterator[bytes], where: str, check: Callable[[], None] = lambda: None
) -> tuple[Iterator[bytes], bool]:
    """Unpack a layer, in the compression that its first bytes show: all members of a gzip stream,
    all frames of a zstd stream. The second value says whether it was compressed, so that the stream
    itself reveals that its end is missing.

    `where` names the layer in messages. `check` is called while another stream with a large window
    is unpacked; it raises what is to end that wait.

    Raises:
        UnreadableImageError: at once, or while the result is read: the data is damaged or cut off,
            a zstd window is above 128 MiB, or layers cannot have this compression (image-spec,
            layer.md).
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _LONGEST_MAGIC:
            break
    whole = itertools.chain([head] if head else [], chunks)
    if head.startswith(_GZIP_MAGIC):
        return _gunzip(whole, where), True
    if head.startswith(_ZSTD_MAGIC) or head[:4] in _ZSTD_SKIPPABLE_MAGICS:
        return _unzstd(whole, where, check), True
    for magic, name in _OTHER_MAGICS.items():
        if head.startswith(magic):
            raise UnreadableImageError(
                f"{where} is compressed with {name}; layers are gzip, zstd or plain tar"
            )
    return whole, False


# -- gzip ----------------------------------------------------------------------------------------


def _sliced(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut into pieces of at most 64 KiB: a member that ends in a piece copies the rest of it."""
    for chunk in chunks:
        for at in range(0, len(chunk), 64 << 10):
            yield chunk[at : at + (64 << 10)]


def _gunzip(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Unpack the members of a gzip stream (RFC 1952); zlib checks each one's CRC and length."""
    member = zlib.decompressobj(wbits=31)
    padding = False  # zeros after the last member, as tape tools write them
    try:
        for data in _sliced(chunks):
            while data:
                if member.eof or padding:
                    rest = data.lstrip(b"\0")
                    padding = padding or len(rest) < len(data)
                    if padding and rest:
                        raise UnreadableImageError(f"{where}: there is other data after its gzip")
                    if not rest:
                        break
                    member = zlib.decompressobj(wbits=31)
                piece = member.decompress(data, PIECE)
                data = member.unused_data if member.eof else member.unconsumed_tail
                if piece:
                    yield piece
            # zlib may still have output for which it needs no more input.
            while not member.eof and (piece := member.decompress(b"", PIECE)):
                yield piece
    except zlib.error as err:
        raise UnreadableImageError(f"{where}: its gzip data is damaged ({err})") from err
    if not member.eof:
        raise UnreadableImageError(f"{where}: its gzip data is cut off before the end")


# -- zstd ----------------------------------------------------------------------------------------


def _unzstd(chunks: Iterator[bytes], where: str, check: Callable[[], None]) -> Iterator[bytes]:
    """Unpack the frames of a zstd stream (RFC 8878); checksums are checked where there are any."""
    source = _ZstdSource(chunks, check)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    # Not `decompressobj`: its output per call has no bound, 64 KiB of input can make 2 GiB.
    reader = decompressor.stream_reader(
        source,  # type: ignore[arg-type]  # needs no more of a file than `read`
        read_size=64 << 10,
        read_across_frames=True,
    )
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as err:
        raise UnreadableImageError(f"{where}: its zstd data is damaged ({err})") from err
    finally:
        source.close()
    if not source.ended_with_a_frame():
        raise UnreadableImageError(f"{where}: its zstd data is cut off before the end")


class _ZstdSource:
    """Feeds the decompressor, and follows the headers that say where frames and blocks end:
    python-zstandard ends a stream that is cut off as if it were whole."""

    def __init__(self, chunks: Iterator[bytes], check: Callable[[], None]) -> None:
        self._chunks, self._check = chunks, check
        self._left = b""
        self._between_frames = True
        self._skip = 0  # bytes to pass over, then `_needed` bytes to collect in `_header`
        self._header = b""
        self._walk = self._frames()
        self._needed = next(self._walk)

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; none at the end."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = chunk
        data, self._left = self._left[:size], self._left[size:]
        self._follow(data)
        return data

    def close(self) -> None:
        """Let the next stream with a large window begin."""
        self._walk.close()

    def ended_with_a_frame(self) -> bool:
        """Whether the bytes so far are whole frames."""
        return self._between_frames and not self._header and not self._skip

    def _follow(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(self._needed - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == self._needed:
                    header, self._header = self._header, b""
                    self._needed = self._walk.send(header)
            at += step

    def _frames(self) -> Generator[int, bytes, None]:
        """Walk frame after frame (RFC 8878, 3.1): yield how many bytes to send."""
        with contextlib.ExitStack() as ended:
            is_large = False
            while True:
                self._between_frames = True
                header = yield 4
                self._between_frames = False
                if header in _ZSTD_SKIPPABLE_MAGICS:
                    self._skip = int.from_bytes((yield 4), "little")
                    continue
                header += yield 1
                header += yield zstandard.frame_header_size(header) - len(header)
                frame = zstandard.get_frame_parameters(header)
                if frame.window_size > _USUAL_WINDOW and not is_large:
                    # Whoever holds it reads on from the network, or gives up there.
                    while not _LARGE_WINDOW.acquire(timeout=_LOOK_S):
                        self._check()
                    ended.callback(_LARGE_WINDOW.release)
                    is_large = True
                last = False
                while not last:
                    block = int.from_bytes((yield 3), "little")
                    last = bool(block & 1)
                    run_length = (block >> 1 & 3) == 1  # one byte stands for the whole block
                    self._skip = 1 if run_length else block >> 3
                if frame.has_checksum:
                    self._skip += 4


# -- tar ------------------------------------------------------------------------------------------

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_USTAR = b"ustar\0"
_NAMES = ("utf-8", "surrogateescape")
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
_WITHOUT_DATA = (
    *(tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX, tarfile.XGLTYPE)


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
        long_name = long_target = ""
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
            elif header.type in _PAX:  # global ones say nothing of use to runtimes
                pax = self._pax_records(payload)
        return None

    def _entry(
        self, header: tarfile.TarInfo, pax: dict[str, str], long_name: str, long_target: str
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
            header = tarfile.TarInfo.frombuf(block, *_NAMES)
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
            key, value = match[2], payload[match.end() : end - 1]
            records[key.decode(*_NAMES)] = value.decode(*_NAMES)
            at = end
        return records

    def _fail(self, what: str) -> NoReturn:
        raise UnreadableImageError(f"{self._where}: its tar archive is broken: {what}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(*_NAMES)


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
