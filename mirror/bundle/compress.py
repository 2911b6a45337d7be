"""Compressing an archive while it is written: frames by several threads, in the file in order.

Where a compressed byte goes is known only when all before it are compressed, and blobs arrive in
any order. So an archive is written at its final offsets first, as ever, and the follower that would
hash it hands it, chunk by chunk from its beginning, to a `Compressor`.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

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
        self._pool.shutdown()

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
            make = partial(zstandard.ZstdCompressor, write_checksum=True, write_content_size=True)
            self._local.usual, self._local.fastest = make(level=LEVEL), make(level=_FASTEST)
        compressor: zstandard.ZstdCompressor = self._local.usual
        # Layers are compressed already; a sample from the middle shows that cheaply.
        start = max(0, len(data) // 2 - _SAMPLE // 2)
        sample = data[start : start + _SAMPLE]
        if len(data) > _SAMPLE and len(compressor.compress(sample)) > _WORTH * len(sample):
            compressor = self._local.fastest
        return compressor.compress(data)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A compressed file that is whole: its name under way, its size in bytes, and its digests."""

    name: str
    size: int
    digests: Mapping[str, str]


class PackedOutput(Protocol):
    """A compressed file that is written from front to back, under the name of its `path`."""

    path: Path

    def write(self, offset: int, *pieces: bytes) -> None: ...
    def sync(self) -> int: ...
    def close(self) -> None: ...


class PackedFiles(ABC):
    """Where the compressed files of an archive go.

    `known` are those that an interrupted run made, all or none.
    """

    known: Sequence[PackedFile] = ()

    @abstractmethod
    def create(self, name: str) -> PackedOutput:
        """Begin a file, whose final name is this."""

    def send(self) -> None:  # noqa: B027 nothing takes time in a folder
        """Do what takes time of what was written. Any thread calls it, and it raises nothing."""

    def keep(self, files: Sequence[PackedFile]) -> None:  # noqa: B027 compressed anew in a folder
        """Note that all of them are written."""


class FolderFiles(PackedFiles):
    """The compressed files of an archive in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def create(self, name: str) -> WriteAt:
        return WriteAt(self._folder, name + PARTIAL_SUFFIX)


@dataclass(slots=True)
class _Open:
    """A file under way. `hashes` follow what is written."""

    file: PackedOutput
    hashes: Mapping[str, Hash]
    size: int = 0


class Compressor:
    """Makes `X.tar.zst`, or its parts, of the bytes of an archive. Its `update` and `hexdigest` are
    those of a hash, which is what a `follow.Follower` feeds.

    `archive` is its name, such as `platform.tar`. `part_size` cuts the compressed file; 0 does
    not. The same bytes give the same file, with the same release of zstd.
    """

    def __init__(
        self,
        compression: Compression,
        output: PackedFiles,
        archive: str,
        part_size: int,
        hashes: Mapping[str, MakeHash],
    ) -> None:
        self._compression, self._output, self._archive = compression, output, archive
        self._part_size, self._hashes = part_size, hashes
        self.files: list[PackedFile] = [*output.known]
        self._is_known = bool(self.files)
        self._open: list[_Open] = []
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
        if self._is_known:
            return
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
        if self._is_known:
            return ""
        if self._pending:
            self._submit(bytes(self._pending))
            self._pending.clear()
        with self._changed:
            self._changed.wait_for(lambda: self._written == self._submitted)
        self._raise()
        self._append(table(self._frames))
        for one in self._open:
            one.file.sync()
            one.file.close()
            digests = {name: each.hexdigest() for name, each in one.hashes.items()}
            self.files.append(PackedFile(one.file.path.name, one.size, digests))
        self._output.keep(self.files)
        return ""

    def close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._written == self._submitted)
        for one in self._open:
            one.file.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _submit(self, data: bytes) -> None:
        number, size = self._submitted, len(data)
        self._submitted += 1
        self._compression.submit(data, lambda outcome: self._done(number, size, outcome))

    def _done(self, number: int, size: int, outcome: bytes | BaseException) -> int:
        """Write this if it is next; return how many frames have left the memory."""
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
            count = self._written - before
        self._output.send()
        return count

    def _append(self, data: bytes) -> None:
        while data:
            if not self._open or (self._part_size and self._open[-1].size == self._part_size):
                name = self._archive + ZSTD_SUFFIX
                if self._part_size:
                    name = part_name(name, len(self._open))
                hashes = {key: make() for key, make in self._hashes.items()}
                self._open.append(_Open(self._output.create(name), hashes))
            file = self._open[-1]
            room = self._part_size - file.size if self._part_size else len(data)
            piece, data = data[:room], data[room:]
            file.file.write(file.size, piece)
            for one in file.hashes.values():
                one.update(piece)
            file.size += len(piece)
