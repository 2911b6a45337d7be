"""What an upload is made of: its session, its bytes on their way out, and the journal of sessions.

Distribution-spec, "Pushing blobs": POST opens a session, GET asks how far it got, DELETE ends it.

The journal lets a later process go on where a dead one stopped. It is an aid and never trusted: the
registry is asked what a session holds before a byte is sent. A journal that is lost or wrong costs
bytes and nothing else, so no line is forced to the disk. A session's address may carry the
registry's signature, hence only the owner may read the file; it never holds a credential of ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias
from urllib.parse import quote

from mirror.documents import parse_json
from mirror.durable import PRIVATE_FOLDER, Folder
from mirror.errors import (
    FileSystemError,
    InvalidDigestError,
    MirrorError,
    RegistryError,
    SizeMismatchError,
)
from mirror.oci import Digest
from mirror.oci.reference import check_repository
from mirror.registry import statuses
from mirror.registry.auth import PULL, PUSH, Scopes, merge_scopes
from mirror.registry.failures import TransientFailure
from mirror.registry.http1 import Body
from mirror.registry.transport import Answer, Transport
from mirror.run import Run

_log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 << 10
_CANCEL_S, _STOPPED_CANCEL_S = 10.0, 1.0
_RANGE = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")


def attempt(
    transport: Transport, method: str, url: str, *, accept: tuple[int, ...], wanted: Scopes
) -> Answer:
    """One small request of an upload's life, without retries of its own (TransientFailure)."""
    where = transport.where(method, url)
    body = Body(0, lambda: ()) if method != "GET" else None
    with transport.open(method, url, scopes=wanted, body=body) as response:
        return transport.whole(response, accept=accept, limit=MAX_ANSWER_BYTES, where=where)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload session that a registry has opened and that nothing was sent into yet."""

    location: str = field(repr=False)  # it may be signed


def open_upload(transport: Transport, repository: str) -> OpenUpload:
    """See `RegistryClient.open_upload`."""
    url = transport.at(repository, "blobs/uploads/")
    answer = transport.call(
        "POST", url, accept=statuses.OPEN, limit=MAX_ANSWER_BYTES, scopes=(PUSH.format(repository),)
    )
    return OpenUpload(location_of(transport, answer))


def mount_or_open(
    transport: Transport, repository: str, digest: Digest, from_repository: str
) -> bool | OpenUpload:
    """See `RegistryClient.mount_or_open`."""
    check_repository(from_repository)
    query = f"mount={quote(str(digest), safe='')}&from={quote(from_repository, safe='')}"
    url = transport.at(repository, f"blobs/uploads/?{query}")
    wanted = merge_scopes((PUSH.format(repository),), (PULL.format(from_repository),))
    try:
        answer = transport.call(
            "POST", url, accept=statuses.MOUNT, limit=MAX_ANSWER_BYTES, scopes=wanted
        )
    except RegistryError as err:
        # Mounting only spares an upload: where it is refused, the upload tells the real reason.
        if err.status is None or not 400 <= err.status < 500 or err.status in (408, 429):
            raise
        _log.debug("mount of %s refused: %s", digest, err)
        return False
    if answer.status == 201:
        return True
    if answer.headers.get("location"):
        return OpenUpload(location_of(transport, answer))
    return False


def cancel(transport: Transport, location: str, wanted: Scopes) -> bool:
    """DELETE a session, and say whether the registry answered.

    It takes a few seconds at most and raises nothing: registries forget old sessions anyway. It is
    done for a run that was stopped, too, so it does not listen to that.
    """
    patience_s = _STOPPED_CANCEL_S if transport.run.stopped else _CANCEL_S
    try:
        aside = transport.within(Run().with_deadline(patience_s))
        attempt(aside, "DELETE", location, accept=statuses.CANCEL, wanted=wanted)
    except (MirrorError, TransientFailure) as err:
        _log.debug("an upload session could not be cancelled: %s", err)
        error = err.error if isinstance(err, TransientFailure) else err
        return isinstance(error, RegistryError) and error.status is not None
    return True


def location_of(transport: Transport, answer: Answer, default: str | None = None) -> str:
    """Where an upload continues.

    Raises:
        RegistryError: the registry does not say it.
    """
    location = answer.headers.get("location") or default
    if location is None:
        raise RegistryError(
            f"{transport.host} opened an upload without saying where; check that it is a registry",
            where=transport.where("POST", answer.url),
            status=answer.status,
        )
    return transport.resolved(location, answer.url)


def with_digest(location: str, digest: Digest) -> str:
    """`location` with the digest added and its own query untouched, as it may be signed."""
    bare = location.partition("#")[0]
    return f"{bare}{'&' if '?' in bare else '?'}digest={quote(str(digest), safe='')}"


def offset_told(answer: Answer) -> int | None:
    """How many bytes a session has; its `Range` names the last one, inclusive.

    `0-0` is what registries send for none as well as for one. It is taken for none: if that was
    wrong, the registry refuses the upload in the end, and a new session starts.
    """
    match = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0


Content: TypeAlias = Callable[[int], Generator[bytes, None, None]]
"""Opens the blob's bytes, from a given offset (bytes) to the end."""


class SourceFailedError(Exception):
    """What feeds an upload failed with `error`, which says nothing about the upload's session."""

    def __init__(self, error: MirrorError) -> None:
        super().__init__(str(error))
        self.error = error


class Outgoing:
    """The content of one upload, `size` bytes in all. Used by one thread.

    A request that begins where the one before ended goes on reading: a source far away is not
    asked anew for each chunk. Whatever breaks in between, the content is opened where it is needed.
    `check` is called between chunks and raises once the work is to stop; `what` is the blob, for
    messages.
    """

    def __init__(self, content: Content, size: int, check: Callable[[], None], what: str) -> None:
        self._content, self._size, self._check, self._what = content, size, check, what
        self._stream: Generator[bytes, None, None] | None = None
        self._at = 0  # where the stream goes on, the rest included
        self._rest = b""

    def close(self) -> None:
        """Let go of the source."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def pieces(self, start: int, count: int) -> Iterator[bytes]:
        """Exactly `count` bytes from `start` on; the source runs to its end where that is theirs.

        A source that verifies tells its verdict with its last bytes, so the last are never handed
        out before it has been heard.

        Raises:
            SourceFailedError: the content could not be read on.
            SizeMismatchError: the content is longer or shorter than its size.
            CancelledError: as `check` has it.
        """
        if self._stream is None or self._at != start:
            self.close()
            self._at, self._rest = start, b""
            self._stream = self._content(start)
        end = start + count
        for chunk in self._chunks(self._stream, until_the_end=end == self._size, end=end):
            left = end - self._at
            if len(chunk) > left:
                if end == self._size:
                    raise self._wrong_size(self._at + len(chunk))
                chunk, self._rest = chunk[:left], chunk[left:]
            self._at += len(chunk)
            if chunk:
                yield chunk
        if self._at < end:
            raise self._wrong_size(self._at)

    def _chunks(
        self, stream: Generator[bytes, None, None], *, until_the_end: bool, end: int
    ) -> Iterator[bytes]:
        while until_the_end or self._at < end:
            self._check()
            chunk: bytes | None = self._rest
            self._rest = b""
            if not chunk:
                try:
                    chunk = next(stream, None)
                except MirrorError as err:
                    raise SourceFailedError(err) from err
            if chunk is None:
                return
            yield chunk

    def _wrong_size(self, actual: int) -> SizeMismatchError:
        return SizeMismatchError(
            where=f"the content for {self._what}", expected=self._size, actual=actual
        )


_OLDEST_S = 7 * 24 * 3600.0
"""What registries keep unfinished uploads for, at most (CNCF distribution: `uploadpurging`)."""
_PRIVATE = 0o600
_MAX_BYTES = 64 << 20  # some 100,000 lines; what lies behind them is forgotten


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
        with _errors(self.path), ExitStack() as undo:
            self._folder = undo.enter_context(Folder.made(self.path.parent, PRIVATE_FOLDER))
            self._file = _locked(self._folder, self.path.name)
            if self._file is None:
                _log.debug("%s is in use; uploads are not written down", self.path)
                return self
            self._read(self._file)
            undo.pop_all()
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
            # torn, or not ours
            with suppress(
                ValueError,
                TypeError,
                KeyError,
                RecursionError,
                AttributeError,
                OverflowError,
                InvalidDigestError,
            ):
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
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise FileSystemError(
            f"{path}: {err.strerror or err}; uploads under way cannot be written down there, name "
            "another folder with --state-dir"
        ) from err
