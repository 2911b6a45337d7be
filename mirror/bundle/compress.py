"""Compressing an archive while it is written: frames by several threads, in the file in order.

Where a compressed byte goes is known only when all before it are compressed, and blobs arrive in
any order. So an archive is written at its final offsets first, as ever, and the follower that would
hash it hands it, chunk by chunk from its beginning, to a `Compressor`.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import zstandard

from mirror.bundle.files import WriteAt
from mirror.bundle.follow import Hash, MakeHash
from mirror.bundle.format import FRAME, PARTIAL_SUFFIX, ZSTD_SUFFIX, part_name
from mirror.bundle.seekable import table
from mirror.durable import Folder

LEVEL = 3
_FASTEST = -50
"""The level for data that does not shrink: it is stored at the speed of a copy."""
_SAMPLE = 32 << 10
_WORTH = 0.97


class Compression:
    """The threads that compress the archives of one bundle, and how much they may hold in memory.

    Use it as a context manager: no thread outlives the block.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or max(1, min(8, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="compress")
        self._slots = threading.BoundedSemaphore(2 * self.threads)
        self._local = threading.local()

    def __enter__(self) -> Compression:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(wait=True)

    def submit(self, data: bytes, done: Callable[[bytes | BaseException], int]) -> None:
        """Compress `data` in one of the threads, which hands the frame, or the error, to `done`.

        `done` returns how many frames that made it write. This call waits while the most frames are
        under way that may be. Where the system has no thread left, it compresses the frame itself.
        """
        self._slots.acquire()
        waiting = [data]  # the pool keeps what it found no thread for, but not the frame

        def run() -> None:
            try:
                frame = waiting.pop()
            except IndexError:
                return  # another thread was faster
            outcome: bytes | BaseException
            try:
                outcome = self._frame(frame)
            except BaseException as error:  # noqa: BLE001 - it is raised where frames are awaited
                outcome = error
            for _ in range(done(outcome)):
                self._slots.release()

        try:
            self._pool.submit(run)
        except RuntimeError:
            run()  # unless a thread that runs already has come to it

    def _frame(self, data: bytes) -> bytes:
        if not hasattr(self._local, "usual"):
            self._local.usual, self._local.fastest = map(_compressor, (LEVEL, _FASTEST))
        compressor: zstandard.ZstdCompressor = self._local.usual
        # Layers are compressed already; a sample from the middle shows that cheaply.
        start = max(0, len(data) // 2 - _SAMPLE // 2)
        sample = data[start : start + _SAMPLE]
        if len(data) > _SAMPLE and len(compressor.compress(sample)) > _WORTH * len(sample):
            compressor = self._local.fastest
        return compressor.compress(data)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)


@dataclass(slots=True)
class PackedFile:
    """A file that is written from front to back. `hashes` follow what is written."""

    file: WriteAt
    hashes: Mapping[str, Hash]
    size: int = 0

    def digests(self) -> dict[str, str]:
        return {name: one.hexdigest() for name, one in self.hashes.items()}


class Compressor:
    """Makes `X.tar.zst.partial`, or its parts, of the bytes of an archive. Its `update` and
    `hexdigest` are those of a hash, which is what a `follow.Follower` feeds.

    `archive` is its name, such as `platform.tar`. `part_size` cuts the compressed file; 0 does
    not. The same bytes give the same file, with the same release of zstd.
    """

    def __init__(
        self,
        compression: Compression,
        folder: Folder,
        archive: str,
        *,
        part_size: int = 0,
        hashes: Mapping[str, MakeHash],
    ) -> None:
        self._compression, self._folder, self._archive = compression, folder, archive
        self._part_size, self._hashes = part_size, hashes
        self.files: list[PackedFile] = []
        self._pending = bytearray()
        self._submitted = 0
        self._changed = threading.Condition()
        self._frames = array("I")  # under the condition, like all below
        self._waiting: dict[int, tuple[int, bytes]] = {}
        self._written = 0
        self._error: BaseException | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def update(self, data: bytes | memoryview, /) -> None:
        self._raise()
        if not self._pending and len(data) == FRAME:
            self._submit(bytes(data))  # as a follower hands them on: no copy of bytes
            return
        self._pending += data
        while len(self._pending) >= FRAME:
            self._submit(bytes(self._pending[:FRAME]))
            del self._pending[:FRAME]

    def hexdigest(self) -> str:
        """Wait for all frames, write their table, and make it durable; return an empty text.

        The digests are those of `files`.

        Raises:
            FileSystemError, NoSpaceError: a frame could not be written.
        """
        if self._pending:
            self._submit(bytes(self._pending))
            self._pending.clear()
        with self._changed:
            self._changed.wait_for(lambda: self._written == self._submitted)
        self._raise()
        self._append(table(self._frames))
        for file in self.files:
            file.file.sync()
            file.file.close()
        return ""

    def close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._written == self._submitted)
        for file in self.files:
            file.file.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _submit(self, data: bytes) -> None:
        number, size = self._submitted, len(data)
        self._submitted += 1
        self._compression.submit(data, lambda outcome: self._done(number, size, outcome))

    def _done(self, number: int, size: int, outcome: bytes | BaseException) -> int:
        """Write what is next, if that is this; return how many frames have left the memory."""
        with self._changed:
            if isinstance(outcome, BaseException):
                self._error = self._error or outcome
                outcome = b""
            self._waiting[number] = size, outcome
            before = self._written
            while (next_one := self._waiting.pop(self._written, None)) is not None:
                length, frame = next_one
                if self._error is None:
                    try:
                        self._append(frame)
                    except BaseException as error:  # noqa: BLE001 - `update` raises it
                        self._error = error
                    checksum = int.from_bytes(frame[-4:], "little")
                    self._frames.extend((len(frame), length, checksum))
                self._written += 1
            self._changed.notify_all()
            return self._written - before

    def _append(self, data: bytes) -> None:
        while data:
            if not self.files or (self._part_size and self.files[-1].size == self._part_size):
                self.files.append(self._next_file())
            file = self.files[-1]
            room = self._part_size - file.size if self._part_size else len(data)
            piece, data = data[:room], data[room:]
            file.file.write(file.size, piece)
            for one in file.hashes.values():
                one.update(piece)
            file.size += len(piece)

    def _next_file(self) -> PackedFile:
        name = self._archive + ZSTD_SUFFIX
        if self._part_size:
            name = part_name(name, len(self.files))
        file = WriteAt(self._folder, name + PARTIAL_SUFFIX)
        return PackedFile(file, {key: make() for key, make in self._hashes.items()})
