"""Sending a blob: small ones in one piece, large ones in chunks, continued when cut.

Distribution-spec, "Pushing blobs": POST opens a session, PUT with everything (or PATCH chunk by
chunk and a last PUT) completes it, GET tells how far it got. The registry checks the digest: it
refuses a PUT whose bytes do not hash to it.

CNCF distribution ties a session's address to the bytes it had when it gave that address out, and
refuses a session that a broken connection got further: there a break in the midst of a chunk starts
the blob anew. Chunks help there nonetheless: where a proxy in front takes a request whole before
it passes it on (nginx does unless told otherwise), where the break falls between two of them, and
where the registry is restarted.

With a journal a session outlives this process: the next one asks the registry how far it got.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass

from mirror.errors import CancelledError, DeniedError, MirrorError, RegistryError, UnreachableError
from mirror.oci import Digest
from mirror.registry import answers, downloads, upload_sessions
from mirror.registry.auth import PUSH
from mirror.registry.http1 import Body, Piece
from mirror.registry.retries import TransientFailure
from mirror.registry.transport import Transport, WholeAnswer
from mirror.registry.upload_journal import UploadJournal
from mirror.registry.upload_sessions import (
    DIGEST_INVALID,
    WANTS_ANOTHER,
    WANTS_CHUNKS,
    Content,
    Form,
    OpenUpload,
    Outgoing,
    SourceFailedError,
    location_of,
    offset_told,
)

_log = logging.getLogger(__name__)

_WORTH_KEEPING = 1 << 20  # bytes: what is smaller is as soon sent again as its session is asked
_PROGRESS_BYTES = 64 << 10
_FAULTS_OF_A_SESSION = 2
_UNANSWERED = (405, 501)  # of registries that do not tell how far a session got


@dataclass(slots=True)
class _UploadSession:
    """An upload under way: where it continues and how many bytes the registry has of it.

    `resumed`: bytes of a broken connection may be in it, so that its content is not certain.
    `unsure`: so is how far it got; the registry has to be asked. `doubted`: it said that it has
    less than it had accepted. `faults`: how often in a row the registry broke down over it.
    """

    location: str
    offset: int = 0
    min_chunk: int = 0
    resumed: bool = False
    unsure: bool = False
    doubted: bool = False
    faults: int = 0


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
        *,
        opened: OpenUpload | None = None,
        journal: UploadJournal | None = None,
        hashed: bool = True,
    ) -> None:
        if size < 0:
            raise ValueError("a blob's size is not negative")
        self._transport, self._repository, self._digest = transport, repository, digest
        self._size, self._opened, self._hashed = size, opened, hashed
        self._journal = journal if size >= _WORTH_KEEPING else None
        self._scopes = (PUSH.format(repository),)
        self._what = f"{transport.host}/{repository}@{digest}"
        self._where = f"PUT {self._what}"
        self._outgoing = Outgoing(content, size, transport.check, self._what)
        self._backoff = transport.backoff(self._where)
        self._form = Form(size)
        self._best = 0  # the furthest offset that a registry has confirmed
        self._sent = 0

    def run(self) -> int:
        """Send the blob; see `RegistryClient.upload`."""
        session: _UploadSession | None = None
        try:
            session = self._kept()
            while session is not _DONE:
                try:
                    if session is None:
                        session = self._start()
                    elif session.unsure:
                        self._ask(session)
                    self._carry(session)
                    break
                except TransientFailure as failure:
                    session = self._recovered(session, failure)
                except _RestartError as restart:
                    self._cancel(session)
                    session = None
                    if not (restart.at_once or self._form.failed()):
                        lost = f"{self._transport.host} lost the beginning of an upload"
                        self._backoff.wait(TransientFailure(restart.error, lost))
        except BaseException as err:
            actual = err.error if isinstance(err, SourceFailedError) else err
            if self._journal is None or not _to_be_continued(actual):
                self._cancel(session)
            if actual is not err:
                raise actual from actual.__cause__
            raise
        finally:
            self._outgoing.close()
            if self._opened is not None:  # another session was continued
                upload_sessions.cancel(self._transport, self._opened.location, self._scopes)
        self._forget()
        self._backoff.progressed()
        return self._sent

    # -- a session's life ----------------------------------------------------------------------

    def _kept(self) -> _UploadSession | None:
        """The session that an earlier run left, or one that was opened for us.

        What the journal says is only where to ask. A session that the registry does not know may
        be one that was completed, and whose answer nobody lived to hear.
        """
        kept = self._journal.find(self._repository, self._digest) if self._journal else None
        if kept is not None and self._transport.at_home(kept.location):
            session = _UploadSession(kept.location, resumed=True, unsure=True)
            try:
                self._ask(session)
            except TransientFailure:
                return session
            except UnreachableError:
                raise
            except (_RestartError, RegistryError) as err:
                _log.debug("%s: an earlier upload is gone: %s", self._where, err)
                self._forget()
                if self._arrived_after_all():
                    return _DONE
            else:
                self._confirmed(session.offset)
                return session
        if self._opened is None:
            return None
        session, self._opened = _UploadSession(self._opened.location), None
        self._note(session)
        return session

    def _start(self) -> _UploadSession:
        # One attempt here, as `run` has the patience: two loops would multiply.
        answer = upload_sessions.begin(self._transport, self._repository, once=True)
        session = _UploadSession(location_of(self._transport, answer))
        self._learn(session, answer)
        return session

    def _carry(self, session: _UploadSession) -> None:
        """Bring the session from its offset to its end."""
        done, form = False, self._form
        if not (self._hashed or form.is_first):  # as if it was refused: that form is unproved
            raise RegistryError("unproved form", where=self._where, codes=(DIGEST_INVALID,))
        while not done:
            left = self._size - session.offset
            chunk = max(form.chunk, session.min_chunk) if form.chunk is not None else left
            # Who asked for chunks is not sent bytes with the PUT.
            if not left or (left <= chunk and (form.chunk is None or form.is_usual)):
                done = self._put(session)
            else:
                self._patch(session, chunk)

    def _put(self, session: _UploadSession) -> bool:
        """Complete the session with all that is missing of it, nothing included.

        False if it is not complete, and is to go on in other chunks.
        """
        start, count = session.offset, self._size - session.offset
        url = upload_sessions.with_digest(session.location, self._digest)
        said = (*answers.PUT_BLOB, *answers.UNSAID)
        try:
            answer = self._send("PUT", url, start, count, said)
            if answer.status not in answers.PUT_BLOB and not self._arrived():
                raise self._transport.refused(answer, self._where)
        except RegistryError as err:
            if count and err.status in WANTS_CHUNKS and self._form.shrink():
                if start:
                    self._ask(session, err)
                    return False
                raise _RestartError(err, at_once=True) from err
            if not self._hashed and DIGEST_INVALID in err.codes and not session.resumed:
                raise  # the bytes may be wrong
            if _session_lost(err, session):
                raise _RestartError(err) from err
            # What was put together of chunks may be refused for that.
            in_pieces = start > 0 or not self._form.is_first
            if in_pieces and err.status in WANTS_ANOTHER and self._form.change():
                raise _RestartError(err, at_once=True) from err
            raise
        return True

    def _patch(self, session: _UploadSession, length: int) -> None:
        start = session.offset
        count = min(length, self._size - start)
        try:
            answer = self._send("PATCH", session.location, start, count, answers.CHUNK)
        except RegistryError as err:
            if err.status == 413 and length > session.min_chunk and self._form.shrink():
                self._ask(session, err)
                return
            if not start and err.status in WANTS_ANOTHER and self._form.change():
                raise _RestartError(err, at_once=True) from err
            if err.status == 416:
                self._ask(session, err)
                if session.offset == start:
                    raise _RestartError(err) from err
                return
            if _session_lost(err, session) or (start and err.status in WANTS_ANOTHER):
                raise _RestartError(err) from err
            raise
        # It was accepted. Registries differ in what they count in `Range` here (nothing new, the
        # chunk alone, the whole), so only the session's own answer can say that it kept less.
        told = offset_told(answer)
        session.offset = start + count
        self._learn(session, answer)
        if told is not None and start < told < start + count:
            self._ask(session, believed=True)
            session.resumed = False
            if not start < session.offset <= start + count:
                session.offset = start + count
            self._note(session)
        session.faults, session.doubted = 0, False
        self._confirmed(session.offset)
        self._form.passed()

    def _ask(
        self,
        session: _UploadSession,
        reason: RegistryError | None = None,
        *,
        believed: bool = False,
    ) -> None:
        """Learn from the registry how far the session got ("Pushing a blob in chunks").

        It has what it has accepted, even if it denies it once; a second denial is `believed`.
        `reason` is why it is asked.
        """
        if reason is None:
            text = f"{self._where}: the registry does not know an earlier upload"
            reason = RegistryError(text, where=self._where)
        confirmed = None if session.unsure else session.offset
        try:
            answer = self._transport.call(
                "GET", session.location, accept=answers.SESSION, scopes=self._scopes, once=True
            )
        except RegistryError as err:
            if err.status is None or err.status in (401, 403):
                raise
            if err.status in _UNANSWERED and confirmed:
                session.resumed = True
                return
            raise _RestartError(reason) from err
        told = offset_told(answer)
        told = confirmed if told is None else told
        if told is None or told > self._size:
            raise _RestartError(reason)
        if confirmed is not None and told < confirmed and not (believed or session.doubted):
            told, session.doubted = confirmed, True
        session.offset, session.resumed, session.unsure = told, True, False
        self._learn(session, answer)

    def _recovered(
        self, session: _UploadSession | None, failure: TransientFailure
    ) -> _UploadSession | None:
        """After a break: the session to go on with, None for a new one, or `_DONE`. May raise."""
        if session is not None:
            self._form.broke()
        while True:
            try:
                self._backoff.wait(failure)
            except RegistryError:
                if session is not None and self._arrived_after_all():
                    return _DONE
                raise
            if session is None:
                return None
            if failure.error.status == 500:
                # Distribution that was killed may leave a session which it can never read again,
                # and there are registries that break down over any second chunk.
                session.faults += 1
                if session.faults >= _FAULTS_OF_A_SESSION:
                    self._cancel(session)
                    self._form.failed()
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
        at, digest = self._repository, self._digest
        try:
            return downloads.probe_size(self._transport, at, digest, self._scopes) == self._size
        except (DeniedError, UnreachableError):
            raise
        except RegistryError:
            return False  # a registry that cannot say it; sending again is never wrong

    def _arrived_after_all(self) -> bool:
        try:
            return self._arrived()
        except (MirrorError, TransientFailure):
            return False  # what is known already is the better error

    def _confirmed(self, offset: int) -> None:
        if offset - self._best >= _PROGRESS_BYTES:
            self._best = offset
            self._form.progressed()
            self._backoff.progressed()

    def _learn(self, session: _UploadSession, answer: WholeAnswer) -> None:
        """Where the session goes on, for us and for the journal."""
        session.location = location_of(self._transport, answer, session.location)
        text = answer.headers.get("oci-chunk-min-length", "")
        if text.isascii() and text.isdigit() and len(text) < 19:
            session.min_chunk = int(text)
        self._note(session)

    def _cancel(self, session: _UploadSession | None) -> None:
        """Tell the registry to forget the session; best effort, it also forgets by itself."""
        if session is None or session is _DONE:
            return
        self._forget()
        upload_sessions.cancel(self._transport, session.location, self._scopes)

    def _note(self, session: _UploadSession) -> None:
        if self._journal is not None:
            self._journal.note(self._repository, self._digest, session.location, session.offset)

    def _forget(self) -> None:
        if self._journal is not None:
            self._journal.forget(self._repository, self._digest)

    # -- bytes ---------------------------------------------------------------------------------

    def _send(
        self, method: str, url: str, start: int, count: int, accept: tuple[int, ...]
    ) -> WholeAnswer:
        headers = {"Content-Type": "application/octet-stream"}
        if count and (start or method == "PATCH"):
            headers["Content-Range"] = f"{start}-{start + count - 1}"
        transport = self._transport
        where, late_s = transport.where(method, url), transport.options.answer_timeout_s
        body = Body(count, lambda: self._bytes(start, count))
        with transport.open(
            method, url, scopes=self._scopes, headers=headers, body=body, answer_timeout_s=late_s
        ) as response:
            return transport.whole(response, accept=accept, where=where)

    def _bytes(self, start: int, count: int) -> Generator[Piece, None, None]:
        """`count` bytes of the content from `start` on, as pieces for the socket."""
        if not count:
            return
        watch = self._transport.watch(self._where)
        for piece in watch.sent(self._outgoing.pieces(start, count)):
            yield piece
            self._sent += len(piece)


_DONE = _UploadSession("")
"""Stands for an upload that turned out to be complete."""


def _to_be_continued(err: BaseException) -> bool:
    """Whether it ends this run and not the upload: the next run may go on with the session."""
    if isinstance(err, UnreachableError):
        return err.status != 500  # that may be the session's own fault
    return isinstance(err, CancelledError | KeyboardInterrupt | SystemExit)


def _session_lost(err: RegistryError, session: _UploadSession) -> bool:
    """Whether a new session may do better than this one, which was refused with `err`."""
    if err.status == 404 or "BLOB_UPLOAD_UNKNOWN" in err.codes:
        return True
    return session.resumed and err.status in (400, 416)
