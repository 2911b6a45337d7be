"""The journal of upload sessions, by which a later process goes on where a dead one stopped.

It is an aid and never trusted: the registry is asked what a session holds before a byte is sent. A
journal that is lost or wrong costs bytes and nothing else, so no line is forced to the disk. A
session's address may carry the registry's signature, hence only the owner may read the file; it
never holds a credential of ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from mirror.documents import parse_json
from mirror.durable import PRIVATE_FOLDER, Folder
from mirror.errors import FileSystemError, InvalidDigestError
from mirror.events import OnEvent, Warned
from mirror.oci import Digest

_log = logging.getLogger(__name__)

# Registries keep unfinished uploads for so long, at most (CNCF distribution: `uploadpurging`).
_OLDEST_S = 7 * 24 * 3600.0
_PRIVATE = 0o600
_MAX_BYTES = 64 << 20  # some 100,000 lines; what lies behind them is forgotten
_NOT_OURS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class KeptUpload:
    """A session as an earlier run left it. `offset`: bytes that the registry had confirmed."""

    location: str = field(repr=False)
    offset: int
    at: float


class UploadJournal:
    """The unfinished uploads to one registry (`host[:port]`), kept in `folder`. Thread-safe.

    A context manager: the journal is opened and read when the block begins. While another process
    holds the journal of the same registry, this one stays empty and writes nothing, so that two
    processes never feed one session. Once every upload is finished the file is removed.

    Raises:
        FileSystemError: at the beginning of the block, if the folder cannot be used.
    """

    def __init__(self, folder: Path, host: str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / f"{hashlib.sha256(host.encode()).hexdigest()[:32]}.jsonl"
        self._clock = clock
        self._folder: Folder
        self._lock = threading.Lock()  # guards the next two
        self._file: BinaryIO | None = None
        self._kept: dict[tuple[str, Digest], KeptUpload] = {}

    def __enter__(self) -> Self:
        try:
            with ExitStack() as undo:
                self._folder = undo.enter_context(Folder.made(self.path.parent, PRIVATE_FOLDER))
                self._file = _locked(self._folder, self.path.name)
                if self._file is None:
                    _log.debug("%s is in use; uploads are not written down", self.path)
                    return self
                self._read(self._file)
                undo.pop_all()
        except OSError as err:
            raise FileSystemError(
                f"{self.path}: {err.strerror or err}; uploads under way cannot be written down "
                "there, name another folder with --state-dir"
            ) from err
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave what is unfinished to the next run; remove the file if nothing is."""
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            with file, self._folder, suppress(OSError):  # an aid: it fails quietly
                if self._kept:
                    self._rewrite()
                else:
                    self._folder.unlink(self.path.name)

    def find(self, repository: str, digest: Digest) -> KeptUpload | None:
        """The unfinished upload of that blob into that repository, if one is known."""
        with self._lock:
            return self._kept.get((repository, digest))

    def note(self, repository: str, digest: Digest, location: str, offset: int) -> None:
        """The registry has `offset` bytes in the session at `location`."""
        upload = KeptUpload(location, offset, self._clock())
        with self._lock:
            if self._file is not None:
                self._kept[repository, digest] = upload
                self._write(_line(repository, digest, upload))

    def forget(self, repository: str, digest: Digest) -> None:
        """The upload of that blob is over, whichever way."""
        with self._lock:
            if self._kept.pop((repository, digest), None) is not None:
                self._write(_line(repository, digest, None))

    # -- the file ------------------------------------------------------------------------------

    def _read(self, file: BinaryIO) -> None:
        oldest = self._clock() - _OLDEST_S
        text = file.read(_MAX_BYTES)
        for line in text.splitlines():
            with suppress(InvalidDigestError, *_NOT_OURS):  # or torn
                entry = parse_json(line)
                key = (str(entry["repository"]), Digest.parse(entry["digest"]))
                self._kept.pop(key, None)
                if entry.get("location") and float(entry["at"]) > oldest:
                    self._kept[key] = KeptUpload(
                        str(entry["location"]), int(entry["offset"]), float(entry["at"])
                    )
        if text and not text.endswith(b"\n"):
            file.write(b"\n")

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line)
        except OSError as err:  # a full disk, say: the push itself needs no room
            _log.debug("%s: %s; uploads are no longer written down", self.path, err)
            self._file.close()
            self._file = None
            self._folder.close()

    def _rewrite(self) -> None:
        """Only what is unfinished, in a file that takes the place of the grown one."""
        fresh = self.path.with_suffix(".new").name
        self._folder.unlink(fresh)
        with os.fdopen(self._folder.create(fresh, _PRIVATE), "wb") as out:
            for (repository, digest), upload in self._kept.items():
                out.write(_line(repository, digest, upload))
        self._folder.rename(fresh, self.path.name)


def _locked(folder: Folder, name: str) -> BinaryIO | None:
    """The file of that name, open for this process alone; None while another one has it."""
    while True:
        with suppress(FileExistsError):
            os.close(folder.create(name, _PRIVATE))
        try:
            fd = folder.open(name, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            continue  # whoever had it has just removed it
        file = os.fdopen(fd, "r+b", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        found = folder.status(name)
        if found is not None and os.fstat(fd).st_ino == found.st_ino:
            return file
        file.close()  # whoever had it put another in its place, or removed it


def _line(repository: str, digest: Digest, upload: KeptUpload | None) -> bytes:
    entry: dict[str, object] = {"repository": repository, "digest": str(digest)}
    if upload is not None:
        entry |= {"location": upload.location, "offset": upload.offset, "at": upload.at}
    return json.dumps(entry).encode() + b"\n"


@contextmanager
def upload_journal(
    state_dir: Path | None, host: str, on_event: OnEvent
) -> Iterator[UploadJournal | None]:
    """The journal of uploads to `host`; None where the default folder cannot be written to.

    Raises:
        FileSystemError: `state_dir`, which somebody asked for, cannot be used.
    """
    with ExitStack() as opened:
        journal: UploadJournal | None = None
        try:
            folder = state_dir or _default_state_dir()
            journal = opened.enter_context(UploadJournal(folder / "uploads", host))
        except FileSystemError as err:
            if state_dir is not None:
                raise
            on_event(Warned(str(err)))
        yield journal


def _default_state_dir() -> Path:
    """Where the XDG base directory specification puts what is to survive a restart."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The specification has relative paths ignored.
    with suppress(RuntimeError):  # there is no home
        base = base if base.is_absolute() else Path.home() / ".local/state"
    if not base.is_absolute():
        raise FileSystemError(
            "this user has no home directory; uploads under way are not written down, name a "
            "folder with --state-dir"
        )
    return base / "mirror"
