"""A compressed archive read once from front to back, its frames decompressed ahead in threads.

For a verification: it hashes the compressed bytes as they pass, and hands out what they hold in
the order in which it lies there.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from mirror.bundle.parts import PartedReader
from mirror.bundle.seekable import MAX_FRAME, SeekableFile
from mirror.errors import MirrorError
from mirror.oci import Digest

_AHEAD, _AHEAD_BYTES = 16, MAX_FRAME


class Forward:
    """`file` for one reader, who asks for stretches in their order; what was passed is gone.

    Offers what `files.Readable` has. A damaged frame raises whenever something of it is asked for,
    and does not keep those behind it from being read. Use it as a context manager.
    """

    def __init__(self, file: SeekableFile, threads: int = 2) -> None:
        self._file, self._threads = file, threads
        self.path, self.size = file.path, file.size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decompress")
        self._ahead: deque[tuple[int, Future[bytes]]] = deque()
        self._next = 0  # the first frame that was not read
        self._now: tuple[int, bytes | MirrorError] = (-1, b"")
        self._hashes = _FileHashes(file)

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Nothing: the file is its opener's."""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""
        return b"".join(self.chunks(offset, size))

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`, in pieces of at most `seekable.MAX_FRAME` bytes.

        Raises:
            DamagedBundleError: a frame of them is damaged, or they lie behind the end.
            FileSystemError: they cannot be read.
        """
        if offset + size > self.size:
            yield from self._file.chunks(offset, size)  # which says what is wrong with that
        end = offset + size
        while offset < end:
            number = self._file.number_at(offset)
            data = self._frame(number)
            start = offset - self._file.starts(number)
            piece = data[start : start + end - offset]
            yield piece
            offset += len(piece)

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
        """Go to the next frame."""
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
        try:
            frame = self._file.packed_frame(number)
        except MirrorError as err:
            self._hashes.skip(err)
            failed: Future[bytes] = Future()
            failed.set_exception(err)
            return failed
        self._hashes.update(frame)
        return self._pool.submit(self._file.unpacked, number, frame)

    def finish(self) -> Mapping[str, Digest | MirrorError]:
        """Read what is left, which nobody asked for, and tell the digest of the compressed file, or
        of each of its parts; or why there is none."""
        packed, at = self._file.packed, self._file.places(self._next)
        try:
            for chunk in packed.chunks(at, packed.size - at):
                self._hashes.update(chunk)
        except MirrorError as err:
            self._hashes.skip(err)
        return self._hashes.digests()


class _FileHashes:
    """SHA-256 of each file that a compressed archive consists of, from front to back."""

    def __init__(self, file: SeekableFile) -> None:
        packed = file.packed
        paths: list[Path] = [packed.path]
        ends = [packed.size]
        if isinstance(packed, PartedReader):
            paths, ends = list(packed.parts), list(packed.ends)
        self._names = [path.name for path in paths]
        self._ends = ends
        self._hashes = [hashlib.sha256() for _ in paths]
        self._failure: MirrorError | None = None
        self._position = 0

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            number = bisect_right(self._ends, self._position)
            step = min(len(view), self._ends[number] - self._position)
            self._hashes[number].update(view[:step])
            self._position += step
            view = view[step:]

    def skip(self, failure: MirrorError) -> None:
        """Something could not be read: there will be no digests."""
        self._failure = self._failure or failure

    def digests(self) -> dict[str, Digest | MirrorError]:
        if self._failure is not None:
            return dict.fromkeys(self._names, self._failure)
        return {
            name: Digest("sha256", one.hexdigest())
            for name, one in zip(self._names, self._hashes, strict=True)
        }
