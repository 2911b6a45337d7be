"""What an upload is made of: its session, its bytes on their way out, the form that they go in.

Distribution-spec, "Pushing blobs": POST opens a session, GET asks how far it got, DELETE ends it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias
from urllib.parse import quote

from mirror.durable import FileExtent
from mirror.errors import MirrorError, RegistryError, SizeMismatchError
from mirror.oci import Digest
from mirror.oci.reference import check_repository
from mirror.registry import answers
from mirror.registry.auth import PULL, PUSH, Scopes, merge_scopes
from mirror.registry.retries import TransientFailure
from mirror.registry.transport import Transport, WholeAnswer
from mirror.run import Run

_log = logging.getLogger(__name__)

DIGEST_INVALID = "DIGEST_INVALID"
_CANCEL_S, _STOPPED_CANCEL_S = 10.0, 1.0
_RANGE = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload session that a registry has opened and that nothing was sent into yet."""

    location: str = field(repr=False)  # it may be signed


def open_upload(transport: Transport, repository: str) -> OpenUpload:
    """See `RegistryClient.open_upload`."""
    return OpenUpload(location_of(transport, begin(transport, repository)))


def begin(transport: Transport, repository: str, *, once: bool = False) -> WholeAnswer:
    """Open a session (POST, end-4a), and return what the registry answers."""
    url, scopes = transport.at(repository, "blobs/uploads/"), (PUSH.format(repository),)
    return transport.call("POST", url, accept=answers.OPEN, scopes=scopes, once=once)


def mount_or_open(
    transport: Transport, repository: str, digest: Digest, from_repository: str
) -> bool | OpenUpload:
    """See `RegistryClient.mount_or_open`."""
    check_repository(from_repository)
    query = f"mount={quote(str(digest), safe='')}&from={quote(from_repository, safe='')}"
    url = transport.at(repository, f"blobs/uploads/?{query}")
    wanted = merge_scopes((PUSH.format(repository),), (PULL.format(from_repository),))
    try:
        answer = transport.call("POST", url, accept=answers.MOUNT, scopes=wanted)
    except RegistryError as err:
        # Mounting only spares an upload: where it is refused, the upload tells the real reason.
        if err.status is None or not 400 <= err.status < 500 or err.status in (408, 429):
            raise
        _log.debug("mount of %s refused: %s", digest, err)
        return False
    if answer.status != 201 and answer.headers.get("location"):
        return OpenUpload(location_of(transport, answer))
    return answer.status == 201


def cancel(transport: Transport, location: str, wanted: Scopes) -> bool:
    """DELETE a session, and say whether the registry answered.

    It takes a few seconds at most and raises nothing: registries forget old sessions anyway. It is
    done for a run that was stopped, too, so it does not listen to that.
    """
    patience_s = _STOPPED_CANCEL_S if transport.run.stopped else _CANCEL_S
    try:
        aside = transport.within(Run().with_deadline(patience_s))
        aside.call("DELETE", location, accept=answers.CANCEL, scopes=wanted, once=True)
    except (MirrorError, TransientFailure) as err:
        _log.debug("an upload session could not be cancelled: %s", err)
        error = err.error if isinstance(err, TransientFailure) else err
        return isinstance(error, RegistryError) and error.status is not None
    return True


def proves_digests(transport: Transport, repository: str) -> bool:
    """See `RegistryWriter.proves_digests`."""
    return all(_refuses_wrong(transport, repository, in_chunks=form) for form in (False, True))


def _refuses_wrong(transport: Transport, repository: str, *, in_chunks: bool) -> bool:
    """Whether wrong bytes are refused for their digest, in one of the usual forms. Asked once."""
    digest, location, data = Digest.of(os.urandom(64)), None, b"not that"
    fields = {"Content-Type": "application/octet-stream"}
    send = partial(transport.call, scopes=(PUSH.format(repository),), headers=fields, once=True)
    try:
        location = location_of(transport, begin(transport, repository, once=True))
        if in_chunks:
            fields["Content-Range"] = "0-3"
            answer = send("PATCH", location, accept=answers.CHUNK, content=data[:4])
            location, data = location_of(transport, answer, location), data[4:]
            fields["Content-Range"] = "4-7"
        send("PUT", with_digest(location, digest), accept=answers.PUT_BLOB, content=data)
    except (RegistryError, TransientFailure) as err:
        if location is not None:
            cancel(transport, location, (PUSH.format(repository),))
        return DIGEST_INVALID in getattr(err, "codes", ())
    # What was taken is of no use.
    cancel(transport, transport.at(repository, f"blobs/{digest}"), (PUSH.format(repository),))
    return False


def location_of(transport: Transport, answer: WholeAnswer, default: str | None = None) -> str:
    """Where an upload continues; raises RegistryError where the registry does not say it."""
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


def offset_told(answer: WholeAnswer) -> int | None:
    """How many bytes a session has; its `Range` names the last one, inclusive.

    `0-0` is what registries send for none as well as for one. It is taken for none: if that was
    wrong, the registry refuses the upload in the end, and a new session starts.
    """
    match = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0


Content: TypeAlias = Callable[[int], Generator[bytes | FileExtent, None, None]]
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
        self._stream: Generator[bytes | FileExtent, None, None] | None = None
        self._at = 0  # where the stream goes on, the rest included
        self._rest: bytes | FileExtent = b""

    def close(self) -> None:
        """Let go of the source."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def pieces(self, start: int, count: int) -> Iterator[bytes | FileExtent]:
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
        end, ends_all = start + count, start + count == self._size
        while ends_all or self._at < end:
            self._check()
            chunk: bytes | FileExtent | None = self._rest
            self._rest = b""
            if not chunk:
                try:
                    chunk = next(self._stream, None)
                except MirrorError as err:
                    raise SourceFailedError(err) from err
            if chunk is None:
                break
            left = end - self._at
            if len(chunk) > left:
                if ends_all:
                    raise self._wrong_size(self._at + len(chunk))
                chunk, self._rest = chunk[:left], chunk[left:]
            self._at += len(chunk)
            if chunk:
                yield chunk
        if self._at < end:
            raise self._wrong_size(self._at)

    def _wrong_size(self, actual: int) -> SizeMismatchError:
        return SizeMismatchError(
            where=f"the content for {self._what}", expected=self._size, actual=actual
        )


CHUNK = 16 << 20  # bytes that a break costs, at most, and above which a blob is sent in chunks
SHORT_CHUNK = 1 << 20  # on a line that keeps breaking; they grow again when some get through
SMALLEST_CHUNK = 64 << 10  # where a registry or a proxy finds them too large
_BREAKS_BEFORE_CHUNKS = 2
_FRUITLESS = 2  # sessions of one form may come to nothing before the next form is tried
# What a registry, or a proxy before it, answers for the form: to a whole blob in one PUT, and to a
# chunk or a form that took the place of another.
WANTS_CHUNKS = frozenset({405, 411, 413, 416, 501})
WANTS_ANOTHER = WANTS_CHUNKS | {400, 404, 415}


class Form:
    """In which pieces one blob of `size` bytes is sent, as registries let it. Used by one thread.

    The specification has two forms: all with the PUT, or chunks. Most registries take both; some
    refuse one, some let chunks be no larger than so much, or no smaller, and not all of them say
    so. What failed decides what is tried next: chunks, then one PUT, then smaller chunks that an
    empty PUT completes, as docker and skopeo have it. A blob that fits into one chunk begins with
    the PUT.

    `chunk` is the length of a chunk in bytes, None for the whole in one PUT. `is_usual`: nobody
    asked for chunks; the last of them goes with the PUT, which saves a request.
    """

    def __init__(self, size: int) -> None:
        self.chunk = CHUNK if size > CHUNK else None
        self.is_usual = True
        self._may_be_whole = self.chunk is not None
        self._breaks = self._fruitless = 0

    @property
    def is_first(self) -> bool:
        """Whether no other has failed."""
        return self.is_usual and (self.chunk is None or self._may_be_whole)

    def passed(self) -> None:
        """A chunk got through."""
        if self.is_usual and self.chunk is not None:
            self.chunk = min(CHUNK, 2 * self.chunk)

    def progressed(self) -> None:
        """The upload got further than ever before."""
        self._fruitless = 0

    def broke(self) -> None:
        """The line broke."""
        self._breaks += 1
        if self.chunk is None:
            # A proxy that finds a body too large may cut the line before its 413 can be read.
            if self._breaks >= _BREAKS_BEFORE_CHUNKS:
                self.shrink()
        elif self.is_usual:
            # Shorter than what lies between two breaks, or nothing ever gets through.
            self.chunk = max(SHORT_CHUNK, self.chunk // 2)

    def shrink(self) -> bool:
        """Go over to chunks, or to smaller ones; False when they cannot become smaller."""
        if self.chunk is None:
            self.chunk = CHUNK if self.is_usual else CHUNK // 4
        elif self.chunk > SMALLEST_CHUNK:
            self.chunk //= 4
        else:
            return False
        self.is_usual = self._may_be_whole = False
        self._fruitless = 0
        return True

    def change(self) -> bool:
        """Go over to the next form; False after the last."""
        if self._may_be_whole:
            self.chunk, self.is_usual, self._may_be_whole = None, False, False
            self._fruitless = 0
            return True
        return (self.chunk is None or self.chunk > CHUNK // 4) and self.shrink()

    def failed(self) -> bool:
        """A session came to nothing; whether the next one has another form."""
        self._fruitless += 1
        return self._fruitless >= _FRUITLESS and self.change()
