"""Uploads: monolithic, chunked, resumed, mounted (distribution-spec, "Pushing blobs")."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from mirror.errors import InvalidReferenceError
from mirror.oci import Digest
from mirror.oci.reference import check_repository
from mirror.serve.call import Call, RefusedError, empty, in_thread
from mirror.serve.store import BlobStaging

CHUNK_BYTES = 1 << 20  # that pass from one thread to another at a time
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?")
_LOCK_WAIT_S = 10.0


@dataclass(slots=True)
class Session:
    """An open upload. Hold `lock` while using `staging`."""

    id: str
    repository: str
    staging: BlobStaging
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Uploads:
    """The handlers of uploads, and their sessions, which end with the server.

    Only the event loop uses it. A session that is idle for `idle_s` seconds is dropped. At most
    `limit` are open, since each holds an open file.
    """

    def __init__(self, idle_s: float = 3600.0, limit: int = 500) -> None:
        self._idle_s, self._limit = idle_s, limit
        self._sessions: dict[str, Session] = {}

    def make_room(self) -> None:
        """Drop idle sessions before one more is opened; refuse that if `limit` are in use."""
        oldest = time.monotonic() - self._idle_s
        for session in [held for held in self._sessions.values() if held.used_at < oldest]:
            if not session.lock.locked():
                self.close(session)
                session.staging.discard()
        if len(self._sessions) >= self._limit:
            raise RefusedError(
                429, "TOOMANYREQUESTS", "too many uploads are open", headers={"Retry-After": "1"}
            )

    def open(self, repository: str, staging: BlobStaging) -> Session:
        """Begin a session for bytes that go into `staging`."""
        session = Session(secrets.token_hex(16), repository, staging, time.monotonic())
        self._sessions[session.id] = session
        return session

    def find(self, repository: str, session_id: str) -> Session:
        """The open session of that repository and id."""
        session = self._sessions.get(session_id)
        if session is None or session.repository != repository:
            raise RefusedError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; begin a new one")
        session.used_at = time.monotonic()
        return session

    def close(self, session: Session) -> None:
        """Forget a session; the caller commits or discards its staging."""
        self._sessions.pop(session.id, None)

    def discard_all(self) -> None:
        """Drop every session and its bytes."""
        while self._sessions:
            self._sessions.popitem()[1].staging.discard()

    # -- the handlers ----------------------------------------------------------------------------

    async def start(self, call: Call) -> Response:
        """POST: mount a blob, take one whole (`?digest=`), or open a session for one."""
        self.make_room()
        query = call.request.query_params
        if "mount" in query:
            digest = Digest.parse(query["mount"])
            if await _mount(call, digest, query.get("from", "")):
                return _created(call, digest)
        algorithm = query.get("digest-algorithm", "sha256")
        if algorithm not in ("sha256", "sha512"):
            raise RefusedError(400, "DIGEST_INVALID", "known algorithms are sha256 and sha512")
        if "digest" not in query:
            staging = await in_thread(call.target.stage, algorithm)
            return _progress(call, self.open(call.repository, staging), 202)
        digest = Digest.parse(query["digest"])
        staging = await in_thread(call.target.stage, digest.algorithm)
        try:
            await receive_into(call.request, staging)
            _check_length(call, staging.size)
            await in_thread(staging.commit, call.repository, digest)
        finally:
            await in_thread(staging.discard)
        return _created(call, digest)

    async def append(self, call: Call) -> Response:
        """PATCH: append the body. A `Content-Range` must begin where the upload ends."""
        async with self._session(call) as session:
            await self._take(call, session)
            return _progress(call, session, 202)

    async def finish(self, call: Call) -> Response:
        """PUT: append the body, which may be empty, and make the upload a blob."""
        text = call.request.query_params.get("digest")
        if text is None:
            raise RefusedError(400, "DIGEST_INVALID", "add ?digest= to say what was uploaded")
        digest = Digest.parse(text)
        async with self._session(call) as session:
            await self._take(call, session)
            self.close(session)
            await in_thread(session.staging.commit, call.repository, digest)
        return _created(call, digest)

    async def show(self, call: Call) -> Response:
        """GET: how many bytes have arrived."""
        async with self._session(call) as session:
            return _progress(call, session, 204)

    async def cancel(self, call: Call) -> Response:
        """DELETE: drop the upload."""
        async with self._session(call) as session:
            self.close(session)
            await in_thread(session.staging.discard)
        return empty(204)

    @asynccontextmanager
    async def _session(self, call: Call) -> AsyncIterator[Session]:
        """The session of the request's path, locked."""
        _ = call.target  # refuses if nothing can be written
        session = self.find(call.repository, call.part("session"))
        try:
            # A client whose connection broke may be back before its old request has ended here.
            async with asyncio.timeout(_LOCK_WAIT_S):
                await session.lock.acquire()
        except TimeoutError:
            raise RefusedError(
                409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload"
            ) from None
        try:
            # Again: the request that held the lock may have ended the session.
            self.find(call.repository, session.id)
            yield session
        finally:
            session.lock.release()

    async def _take(self, call: Call, session: Session) -> None:
        """Append the request's body, if it begins where the upload ends."""
        _check_position(call, session)
        before = session.staging.size
        try:
            await receive_into(call.request, session.staging)
        except OSError:
            # The count no longer matches the disk, so the upload cannot continue.
            self.close(session)
            await in_thread(session.staging.discard)
            raise
        _check_length(call, session.staging.size - before)


async def _mount(call: Call, digest: Digest, source: str) -> bool:
    """Mount a blob, and return whether that worked; otherwise the client uploads it."""
    try:
        check_repository(source)
        # A client that may not pull there must not find out by mounts what is there.
        call.service.auth.check(call.request, source, {"pull"})
    except (InvalidReferenceError, RefusedError):
        return False
    return await in_thread(call.target.mount_blob, source, call.repository, digest)


async def receive_into(request: Request, staging: BlobStaging) -> None:
    """Move the request's body into `staging`; on return or error no thread is writing there.

    The bytes that arrived before a connection broke are kept: the client continues there.
    """
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] | None = None
    chunks: list[bytes] = []
    held = 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            held += len(chunk)
            if held >= CHUNK_BYTES:
                if writing is not None:
                    await asyncio.shield(writing)
                # Hashing and writing go on beside the reception of the next chunks.
                writing = loop.run_in_executor(None, _write, staging, chunks)
                chunks, held = [], 0
    finally:
        if writing is not None:
            await writing
        if chunks:
            await in_thread(_write, staging, chunks)


def _write(staging: BlobStaging, chunks: list[bytes]) -> None:
    staging.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))


def _check_position(call: Call, session: Session) -> None:
    header = call.request.headers.get("content-range")
    if header is None:
        return
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise RefusedError(400, "BLOB_UPLOAD_INVALID", "Content-Range is <first>-<last>")
    first, last = int(match[1]), int(match[2])
    if first != session.staging.size:
        message = f"the upload has {session.staging.size} bytes; go on from there"
        raise RefusedError(416, "BLOB_UPLOAD_INVALID", message, headers=_state(call, session))
    length = call.request.headers.get("content-length")
    if length is not None and int(length) != last - first + 1:
        raise RefusedError(400, "SIZE_INVALID", "Content-Range and Content-Length disagree")


def _check_length(call: Call, received: int) -> None:
    """Check once more what the HTTP server promises: that no short body passes for a whole one."""
    length = call.request.headers.get("content-length")
    if length is not None and int(length) != received:
        raise RefusedError(400, "SIZE_INVALID", f"{length} bytes announced, {received} received")


def _state(call: Call, session: Session) -> dict[str, str]:
    """The headers that say where an upload goes on."""
    return {
        "Location": call.url(f"blobs/uploads/{session.id}"),
        # An empty range cannot be written; registries send 0-0 for it.
        "Range": f"0-{max(0, session.staging.size - 1)}",
    }


def _progress(call: Call, session: Session, status: int) -> Response:
    return empty(status, _state(call, session) | {"Docker-Upload-UUID": session.id})


def _created(call: Call, digest: Digest) -> Response:
    location = call.url(f"blobs/{digest}")
    return empty(201, {"Location": location, "Docker-Content-Digest": str(digest)})
