"""Archives as independent zstd frames with a table of them at the end, `X.tar.zst`.

The format is zstd's own "seekable format" (zstd, contrib/seekable_format): `zstd -d` reads it as it
reads any other file, and who knows the table decompresses only what is asked for. Frames of other
writers may have up to `MAX_FRAME` bytes, so memory is bounded whatever a table or frame claims.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import zstandard

from mirror.bundle.format import ZSTD_SUFFIX
from mirror.bundle.location import Location, Readable, ended_early, windows
from mirror.errors import DamagedBundleError, MirrorError
from mirror.oci import Digest

MAX_FRAME = 4 << 20
"""Bytes that a frame of another writer may decompress to."""
_MAX_FRAMES = 2_000_000
_MAX_WINDOW = 8 << 20
_ENTRIES = 1 << 16  # of a table, read at a time
_CACHED = 8
"""Frames that are kept: neighbours in an archive lie in the same one."""

_TABLE_MAGIC = 0x184D2A5E  # a skippable frame (RFC 8878, 3.1.2), which others pass over
_SEEKABLE_MAGIC = 0x8F92EAB1
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_HAS_CHECKSUMS, _RESERVED = 0x80, 0x7C


def table(frames: array[int]) -> bytes:
    """The table of `frames`: for each its compressed size, its size, and its checksum.

    The checksum is that of the frame's content, XXH64, its lower four bytes, which the frame ends
    with too.

    Raises:
        ValueError: there are more frames than such a table has room for.
    """
    count = len(frames) // 3
    if count > _MAX_FRAMES:
        raise ValueError(f"{count} frames are more than {_MAX_FRAMES}")
    words = array("I", frames)
    if sys.byteorder == "big":
        words.byteswap()
    entries = words.tobytes()
    footer = _FOOTER.pack(count, _HAS_CHECKSUMS, _SEEKABLE_MAGIC)
    return _HEADER.pack(_TABLE_MAGIC, len(entries) + len(footer)) + entries + footer


class SeekableFile(Readable):
    """A compressed archive read as the archive it is, at offsets and by any number of threads.

    `path` is the archive's, where no file lies. `packed` is the compressed file, or its parts, and
    is closed with this.

    Raises:
        DamagedBundleError: it is not of this format, or is cut short.
    """

    def __init__(self, packed: Readable) -> None:
        self.packed, self.parts = packed, packed.parts
        self.path: Location = packed.path.with_name(packed.path.name.removesuffix(ZSTD_SUFFIX))
        self.starts = array("Q", [0])  # of frame n in the archive; behind the last, its size
        self.places = array("Q", [0])  # of frame n in the compressed file
        self._checksums = array("I")
        self._read_table()
        self.size = self.starts[-1]
        self._local = threading.local()
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, bytes] = OrderedDict()  # under the lock

    def _read_table(self) -> None:
        packed = self.packed
        if packed.size < _HEADER.size + _FOOTER.size:
            raise self._foreign()
        footer = packed.read(packed.size - _FOOTER.size, _FOOTER.size)
        count, descriptor, magic = _FOOTER.unpack(footer)
        if magic != _SEEKABLE_MAGIC:
            raise self._foreign()
        width = 3 if descriptor & _HAS_CHECKSUMS else 2
        length = 4 * width * count + _FOOTER.size
        start = packed.size - length - _HEADER.size
        if descriptor & _RESERVED or count > _MAX_FRAMES or start < 0:
            raise self._damaged(f"a table of {count} frames")
        if packed.read(start, _HEADER.size) != _HEADER.pack(_TABLE_MAGIC, length):
            raise self._damaged("a table of frames without its header")
        at = start + _HEADER.size
        for number in range(0, count, _ENTRIES):
            step = min(_ENTRIES, count - number)
            raw = packed.read(at, 4 * width * step)
            at += len(raw)
            for entry in struct.iter_unpack(f"<{width}I", raw):
                if not entry[0] or not entry[1]:
                    raise self._damaged("an empty frame in its table")
                if entry[1] > MAX_FRAME or entry[0] > 2 * MAX_FRAME:
                    raise DamagedBundleError(
                        f"it has frames of {entry[1]} bytes, and at most {MAX_FRAME} are read",
                        where=packed.path.name,
                        advice=f"unpack it with `zstd -d --rm {packed.path.name}`",
                    )
                self.places.append(self.places[-1] + entry[0])
                self.starts.append(self.starts[-1] + entry[1])
                if width == 3:
                    self._checksums.append(entry[2])
        if self.places[-1] != start:
            raise self._damaged(
                f"frames of {self.places[-1]} bytes in all, and a table of them at byte {start}"
            )

    @property
    def frames(self) -> int:
        return len(self.starts) - 1

    def length(self, number: int) -> int:
        return self.starts[number + 1] - self.starts[number]

    def packed_frame(self, number: int, packed: Readable | None = None) -> bytes:
        """The compressed bytes of a frame, out of `packed` if somebody reads that in order."""
        start = self.places[number]
        return (packed or self.packed).read(start, self.places[number + 1] - start)

    def unpacked(self, number: int, frame: bytes) -> bytes:
        """Decompress a frame.

        Raises:
            DamagedBundleError: it is damaged, or not what the table says of it.
        """
        size = self.length(number)
        try:
            stated = zstandard.get_frame_parameters(frame)
            # Nothing is allocated for what a frame claims before that is what the table says.
            if stated.content_size not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise self._damaged(f"frame {number} of {stated.content_size} bytes, not {size}")
            if self._checksums and stated.has_checksum:
                (checksum,) = struct.unpack("<I", frame[-4:])
                if checksum != self._checksums[number]:
                    raise self._damaged(f"another checksum of frame {number} in the table")
            if not hasattr(self._local, "decompressor"):
                self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            data: bytes = self._local.decompressor.decompress(
                frame, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as err:
            raise self._damaged(f"frame {number}, which cannot be decompressed ({err})") from err
        if len(data) != size:
            raise self._damaged(f"frame {number} of {len(data)} bytes, not {size}")
        return data

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`, in pieces of at most `MAX_FRAME` bytes.

        Raises:
            DamagedBundleError: the archive ends before `offset` plus `size`, or is damaged.
        """
        if offset + size > self.size:
            raise ended_early(self.path, self.size, offset + size - self.size)
        if size:
            first, last = (bisect_right(self.starts, at) - 1 for at in (offset, offset + size - 1))
            frames = self.places[first], self.places[last + 1]
            with self.packed.in_order([frames]) as packed:
                yield from self.pieces(offset, size, lambda number: self._frame(number, packed))

    def pieces(
        self, offset: int, size: int, frame: Callable[[int], bytes]
    ) -> Generator[bytes, None, None]:
        """A stretch, which lies inside, out of the frames that `frame` gives, in their order."""
        for number, start, length in windows(self.starts, offset, size):
            yield frame(number)[start : start + length]

    def _frame(self, number: int, packed: Readable) -> bytes:
        with self._lock:
            data = self._cache.get(number)
            if data is not None:
                self._cache.move_to_end(number)
                return data
        data = self.unpacked(number, self.packed_frame(number, packed))
        with self._lock:
            self._cache[number] = data
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return data

    def close(self) -> None:
        self.packed.close()

    def _foreign(self) -> DamagedBundleError:
        name = self.packed.path.name
        return DamagedBundleError(
            "there is no table of frames at its end: it was compressed in another way than a "
            "bundle's archives are, or it is cut short",
            where=name,
            advice=f"unpack it with `zstd -d --rm {name}`, or if that fails copy it again from its "
            "origin",
        )

    def _damaged(self, found: str) -> DamagedBundleError:
        return DamagedBundleError(
            f"it has {found}",
            where=self.packed.path.name,
            advice="it is damaged, copy it again from its origin",
        )


class Unreadable(Readable):
    """An archive that cannot be opened, in place of one that can: it has no bytes."""

    size = 0

    def __init__(self, path: Location) -> None:
        self.path = path

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Raise DamagedBundleError, unless nothing is asked for."""
        if offset + size:
            raise DamagedBundleError("cannot be read; see what is said of it", where=self.path.name)
        yield from ()


# -- from front to back ----------------------------------------------------------------------------

_AHEAD, _AHEAD_BYTES = 16, MAX_FRAME


class Forward(Readable):
    """`file` read once from front to back, its frames decompressed ahead in threads.

    It is for one reader, who asks for stretches in their order; what was passed is gone. The
    compressed bytes are hashed as they pass. It offers what `files.Readable` has. Reading from a
    damaged frame raises each time; the frames behind it are still read. Use it as a
    context manager.
    """

    def __init__(self, file: SeekableFile) -> None:
        self._file = file
        self._closing = ExitStack()
        self._packed = file.packed
        self.path, self.size = file.path, file.size
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="decompress")
        self._ahead: deque[tuple[int, Future[bytes]]] = deque()
        self._next = 0  # the first frame that was not read
        self._now: tuple[int, bytes | MirrorError] = (-1, b"")
        self._hashes = _FileHashes(file)

    def __enter__(self) -> Forward:
        whole = self._packed.in_order([(0, self._packed.size)])
        self._packed = self._closing.enter_context(whole)
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`, in pieces of at most `seekable.MAX_FRAME` bytes.

        Raises:
            DamagedBundleError: a frame of them is damaged, or they lie behind the end.
            FileSystemError: they cannot be read.
        """
        if offset + size > self.size:
            yield from self._file.chunks(offset, size)  # which says what is wrong with that
        yield from self._file.pieces(offset, size, self._frame)

    def _frame(self, number: int) -> bytes:
        while self._now[0] < number:
            self._advance()
        at, data = self._now
        if at != number:
            raise ValueError(f"frame {number} of {self.path.name} was passed already")
        if isinstance(data, MirrorError):
            raise data
        return data

    def _advance(self) -> None:
        self._now = (self._now[0], b"")  # before the next one is waited for
        ahead = sum(self._file.length(number) for number, _ in self._ahead)
        while self._next < self._file.frames and (
            not self._ahead or (ahead < _AHEAD_BYTES and len(self._ahead) < _AHEAD)
        ):
            number = self._next
            self._next += 1
            self._ahead.append((number, self._begun(number)))
            ahead += self._file.length(number)
        number, future = self._ahead.popleft()
        try:
            self._now = (number, future.result())
        except MirrorError as err:
            self._now = (number, err)

    def _begun(self, number: int) -> Future[bytes]:
        done: Future[bytes] = Future()
        try:
            frame = self._file.packed_frame(number, self._packed)
        except MirrorError as err:
            self._hashes.skip(err)
            done.set_exception(err)
            return done
        self._hashes.update(frame)
        waiting = [frame]  # the pool keeps what it found no thread for, but not the frame
        try:
            return self._pool.submit(lambda: self._file.unpacked(number, waiting.pop()))
        except RuntimeError:  # no thread is left, so this one does it
            waiting.clear()
            try:
                done.set_result(self._file.unpacked(number, frame))
            except MirrorError as err:
                done.set_exception(err)
            return done

    def finish(self) -> Mapping[str, Digest | MirrorError]:
        """Read the rest; return the digest of the compressed file, or of each part, by name.

        In place of a digest there may be the error that kept the file from being read."""
        packed, at = self._packed, self._file.places[self._next]
        try:
            for chunk in packed.chunks(at, packed.size - at):
                self._hashes.update(chunk)
        except MirrorError as err:
            self._hashes.skip(err)
        return self._hashes.digests()


class _FileHashes:
    """SHA-256 of each file that a compressed archive consists of, from front to back."""

    def __init__(self, file: SeekableFile) -> None:
        self._names = [path.name for path in file.packed.parts]
        self._starts = (0, *file.packed.ends)
        self._hashes = [hashlib.sha256() for _ in self._names]
        self._failure: MirrorError | None = None
        self._position = 0

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        for number, _, step in windows(self._starts, self._position, len(data)):
            self._hashes[number].update(view[:step])
            view = view[step:]
        self._position += len(data)

    def skip(self, failure: MirrorError) -> None:
        """Note that something could not be read, so that there are no digests."""
        self._failure = self._failure or failure

    def digests(self) -> dict[str, Digest | MirrorError]:
        if self._failure is not None:
            return dict.fromkeys(self._names, self._failure)
        return {
            name: Digest("sha256", one.hexdigest())
            for name, one in zip(self._names, self._hashes, strict=True)
        }
