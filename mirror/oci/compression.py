"""A layer's stream, unpacked.

Layers are gzip, zstd or plain, as their first bytes show. Media types do not count: registries hold
layers that declare another compression than they have, and container runtimes go by the first bytes
too. Output comes in pieces of `PIECE` bytes, so whoever counts them can stop a decompression bomb.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

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


class Unpacked(NamedTuple):
    """An unpacked stream. A `self_checking` format reveals by itself that its end is missing."""

    chunks: Iterator[bytes]
    self_checking: bool


def decompressed(
    chunks: Iterator[bytes], where: str, check: Callable[[], None] = lambda: None
) -> Unpacked:
    """Unpack a layer, in the compression that its first bytes show.

    It reads all members of a gzip stream and all frames of a zstd stream, to the end of `chunks`.
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
        return Unpacked(_gunzip(whole, where), self_checking=True)
    if head.startswith(_ZSTD_MAGIC) or head[:4] in _ZSTD_SKIPPABLE_MAGICS:
        return Unpacked(_unzstd(whole, where, check), self_checking=True)
    for magic, name in _OTHER_MAGICS.items():
        if head.startswith(magic):
            raise UnreadableImageError(
                f"{where} is compressed with {name}; layers are gzip, zstd or plain tar"
            )
    return Unpacked(whole, self_checking=False)


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
    """Feeds the decompressor, and follows the boundaries of frames and blocks.

    python-zstandard ends a stream that is cut off as if it were whole. This class reads only the
    headers that say where frames and blocks end; the decompressor judges the data.
    """

    def __init__(self, chunks: Iterator[bytes], check: Callable[[], None]) -> None:
        self._chunks, self._check = chunks, check
        self._left = b""
        self._between_frames = True
        self._holds_lock = False
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
        if self._holds_lock:
            self._holds_lock = False
            _LARGE_WINDOW.release()

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
        while True:
            self._between_frames = True
            magic = yield 4
            self._between_frames = False
            if magic in _ZSTD_SKIPPABLE_MAGICS:
                self._skip = int.from_bytes((yield 4), "little")
                continue
            descriptor = (yield 1)[0]
            single_segment = descriptor >> 5 & 1
            window = 0 if single_segment else 1
            dictionary = (0, 1, 2, 4)[descriptor & 3]
            content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
            header = yield window + dictionary + content_size
            history = int.from_bytes(header[-content_size:], "little")  # all of a single segment
            if window:
                history = (8 + (header[0] & 7)) << (7 + (header[0] >> 3))
            if history > _USUAL_WINDOW and not self._holds_lock:
                # Whoever holds it reads on from the network, or gives up there.
                while not _LARGE_WINDOW.acquire(timeout=_LOOK_S):
                    self._check()
                self._holds_lock = True
            last = False
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = bool(block & 1)
                run_length = (block >> 1 & 3) == 1  # one byte stands for the whole block
                self._skip = 1 if run_length else block >> 3
            if descriptor >> 2 & 1:
                self._skip += 4  # checksum of the content
