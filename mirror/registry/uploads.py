"""Sending a blob: in one piece, in chunks where the registry wants that, continued when cut.

Distribution-spec, "Pushing blobs": POST opens a session, PUT with everything (or PATCH chunk by
chunk and an empty PUT) completes it, GET tells how far it got. What the registry names a blob is
checked by the registry itself: it refuses a PUT whose bytes do not hash to the digest.

CNCF distribution ties a session's address to the bytes it had when it gave that address out, and
refuses a session that a broken connection got further: there a break always starts anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mirror.errors import (
    CancelledError,
    DeniedError,
    MirrorError,
    RegistryError,
    SizeMismatchError,
    UnreachableError,
)
from mirror.oci import Digest
from mirror.registry import downloads, scopes, sessions
from mirror.registry.retry import TransientFailure
from mirror.registry.transport import Answer, Body, Transport

_log = logging.getLogger(__name__)

Content: TypeAlias = Callable[[int], Generator[bytes, None, None]]
"""Opens the blob's bytes from an offset (bytes) on."""

_CHUNK = 16 << 20
_SMALLEST_CHUNK = 64 << 10
_PROGRESS_BYTES = 64 << 10
_BREAKS_BEFORE_CHUNKS = 2
_WANTS_CHUNKS = frozenset({405, 411, 413, 416, 501})
"""Answers to a whole blob in one PUT that a registry or a proxy before it gives for its form."""


@dataclass(slots=True)
class _Session:
    """An upload under way: where it continues and how many bytes the registry has of it.

    `resumed`: bytes of a broken connection may be in it, so that its content is not certain.
    """

    location: str
    offset: int = 0
    min_chunk: int = 0
    resumed: bool = False


class _RestartError(Exception):
    """This session leads nowhere; `error` is what to raise if a new one does not help either.

    `at_once`: the new one will be another kind of attempt, so there is nothing to wait for.
    """

    def __init__(self, error: RegistryError, *, at_once: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.at_once = error, at_once


class Upload:
    """One blob on its way to a registry. Used by one thread, once."""

    def __init__(
        self,
        transport: Transport,
        repository: str,
        digest: Digest,
        size: int,
        content: Content,
        cancelled: Callable[[], bool],
    ) -> None:
        if size < 0:
            raise ValueError("a blob's size is not negative")
        self._transport, self._repository, self._digest = transport, repository, digest
        self._size, self._content, self._cancelled = size, content, cancelled
        self._scopes = scopes.push(repository)
        self._what = f"{transport.host}/{repository}@{digest}"
        self._where = f"PUT {self._what}"
        self._backoff = transport.backoff(self._where)
        self._chunk: int | None = None  # bytes; None sends all in one piece
        self._best = 0  # the furthest offset that a registry has confirmed
        self._breaks = 0
        self._sent = 0

    def run(self) -> int:
        """Send the blob; see `RegistryClient.upload`."""
        session: _Session | None = None
        try:
            while True:
                try:
                    if session is None:
                        session = self._start()
                    self._carry(session)
                    return self._sent
                except TransientFailure as failure:
                    session = self._recovered(session, failure)
                    if session is _DONE:
                        return self._sent
                except _RestartError as restart:
                    self._cancel(session)
                    session = None
                    if not restart.at_once:
                        lost = f"{self._transport.host} lost the beginning of an upload"
                        self._backoff.wait(TransientFailure(restart.error, lost))
        except BaseException:
            self._cancel(session)
            raise

    # -- a session's life ----------------------------------------------------------------------

    def _start(self) -> _Session:
        transport = self._transport
        url = transport.url(f"/v2/{self._repository}/blobs/uploads/")
        # One attempt here, as `run` has the patience: two loops would multiply.
        answer = sessions.attempt(transport, "POST", url, accept=(202,), wanted=self._scopes)
        session = _Session(sessions.location_of(transport, answer))
        self._learn(session, answer)
        return session

    def _carry(self, session: _Session) -> None:
        """Bring the session from its offset to its end."""
        while self._chunk is not None and session.offset < self._size:
            self._patch(session, max(self._chunk, session.min_chunk))
        self._put(session)

    def _put(self, session: _Session) -> None:
        """Complete the session with all that is missing of it, nothing included."""
        start, count = session.offset, self._size - session.offset
        headers = {"Content-Type": "application/octet-stream"}
        if 0 < start < self._size:
            headers["Content-Range"] = f"{start}-{self._size - 1}"
        url = sessions.with_digest(session.location, self._digest)
        try:
            self._send("PUT", url, headers, start, count, (200, 201, 202, 204))
        except RegistryError as err:
            if count and err.status in _WANTS_CHUNKS and self._smaller():
                raise _RestartError(err, at_once=True) from err
            if _session_lost(err, session):
                raise _RestartError(err) from err
            raise

    def _patch(self, session: _Session, length: int) -> None:
        start = session.offset
        count = min(length, self._size - start)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + count - 1}",
        }
        try:
            answer = self._send("PATCH", session.location, headers, start, count, (200, 202, 204))
        except RegistryError as err:
            if err.status == 413 and length > session.min_chunk and self._smaller():
                self._ask(session, err)
                return
            if err.status == 416:
                self._ask(session, err)
                if session.offset == start:
                    raise _RestartError(err) from err
                return
            if _session_lost(err, session):
                raise _RestartError(err) from err
            raise
        session.location = sessions.location_of(self._transport, answer, session.location)
        told = sessions.offset_told(answer)
        whole = told is None or (told, count) == (0, 1)  # see `offset_told` for the second
        session.offset = start + count if whole or told is None else told
        self._learn(session, answer)
        if not start < session.offset <= start + count:
            raise _RestartError(
                RegistryError(
                    f"{self._where}: of {count} bytes from {start} on, {self._transport.host} "
                    f"says that it keeps those up to {session.offset}; check the registry",
                    where=self._where,
                )
            )
        self._confirmed(session.offset)

    def _ask(self, session: _Session, reason: RegistryError) -> None:
        """Learn from the registry how far the session got ("Pushing a blob in chunks")."""
        try:
            answer = sessions.attempt(
                self._transport,
                "GET",
                session.location,
                accept=(200, 204),
                wanted=self._scopes,
            )
        except RegistryError as err:
            if err.status is None or err.status in (401, 403):
                raise
            raise _RestartError(reason) from err
        told = sessions.offset_told(answer)
        if told is None or told > self._size:
            raise _RestartError(reason)
        session.offset, session.resumed = told, True
        session.location = sessions.location_of(self._transport, answer, session.location)
        self._learn(session, answer)

    def _recovered(self, session: _Session | None, failure: TransientFailure) -> _Session | None:
        """After a break: the session to go on with, None for a new one, or `_DONE`.

        Raises:
            RegistryError: patience is at its end.
        """
        self._breaks += 1
        if session is not None and self._chunk is None and self._breaks >= _BREAKS_BEFORE_CHUNKS:
            # A proxy that finds a body too large may cut the line before its 413 can be read.
            self._smaller()
        while True:
            try:
                self._backoff.wait(failure)
            except RegistryError:
                if session is not None and self._arrived_after_all():
                    return _DONE
                raise
            if session is None:
                return None
            try:
                # The answer to a completed upload may be what got lost.
                if self._arrived():
                    return _DONE
                self._ask(session, failure.error)
            except TransientFailure as again:
                failure = again
            except _RestartError as restart:
                _log.debug("%s: starting anew: %s", self._where, restart)
                self._cancel(session)
                return None
            else:
                self._confirmed(session.offset)
                return session

    def _arrived(self) -> bool:
        try:
            size = downloads.probe_size(
                self._transport, self._repository, self._digest, self._scopes
            )
        except (DeniedError, UnreachableError):
            raise
        except RegistryError:
            return False  # a registry that cannot say it; sending again is never wrong
        return size == self._size

    def _arrived_after_all(self) -> bool:
        try:
            return self._arrived()
        except (MirrorError, TransientFailure):
            return False  # what is known already is the better error

    def _confirmed(self, offset: int) -> None:
        if offset - self._best >= _PROGRESS_BYTES:
            self._best = offset
            self._backoff.progressed()

    def _smaller(self) -> bool:
        """Go over to chunks, or to smaller ones; False when they cannot become smaller."""
        if self._chunk is None:
            self._chunk = _CHUNK
            return True
        if self._chunk <= _SMALLEST_CHUNK:
            return False
        self._chunk //= 4
        return True

    def _learn(self, session: _Session, answer: Answer) -> None:
        text = answer.headers.get("oci-chunk-min-length", "")
        if text.isascii() and text.isdigit() and len(text) < 19:
            session.min_chunk = int(text)

    def _cancel(self, session: _Session | None) -> None:
        """Tell the registry to forget the session; best effort, it also forgets by itself."""
        if session is None or session is _DONE:
            return
        sessions.cancel(self._transport, session.location, self._scopes)

    # -- bytes ---------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        start: int,
        count: int,
        accept: tuple[int, ...],
    ) -> Answer:
        transport = self._transport
        where = transport.where(method, url)
        body = Body(count, lambda: self._bytes(start, count))
        with transport.open(
            method,
            url,
            scopes=self._scopes,
            headers=headers,
            body=body,
            answer_timeout_s=transport.options.answer_timeout_s,
        ) as response:
            return transport.whole(
                response, accept=accept, limit=sessions.MAX_ANSWER_BYTES, where=where
            )

    def _bytes(self, start: int, count: int) -> Generator[bytes, None, None]:
        """`count` bytes of the content from `start` on, as pieces for the socket."""
        if not count:
            return
        source = self._content(start)
        try:
            watch = self._transport.watch(self._where)
            for piece in watch.sent(self._exactly(source, start, count)):
                yield piece  # type: ignore[misc] # httpx and h11 take any bytes-like piece
                self._sent += len(piece)
        finally:
            source.close()

    def _exactly(
        self, source: Generator[bytes, None, None], start: int, count: int
    ) -> Iterator[bytes]:
        """Exactly `count` bytes of `source`, which runs to its end where that is the blob's.

        A source that verifies tells its verdict with its last bytes, so the last are never sent
        before it has been heard.
        """
        left = count
        for chunk in source:
            if self._cancelled():
                raise CancelledError(f"{self._where}: stopped on request")
            if len(chunk) > left:
                if start + count == self._size:
                    raise SizeMismatchError(
                        where=f"the content for {self._what}",
                        expected=self._size,
                        actual=start + count - left + len(chunk),
                    )
                chunk = chunk[:left]
            left -= len(chunk)
            if chunk:
                yield chunk
            if not left and start + count < self._size:
                return
        if left:
            raise SizeMismatchError(
                where=f"the content for {self._what}",
                expected=self._size,
                actual=start + count - left,
            )


_DONE = _Session("")
"""Stands for an upload that turned out to be complete."""


def _session_lost(err: RegistryError, session: _Session) -> bool:
    """Whether a new session may do better than this one, which was refused with `err`."""
    if err.status == 404 or "BLOB_UPLOAD_UNKNOWN" in err.codes:
        return True
    return session.resumed and err.status in (400, 416)
