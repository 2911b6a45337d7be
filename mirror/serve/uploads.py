"""Uploads: monolithic, chunked, resumed, mounted (distribution-spec, "Pushing blobs")."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.responses import Response

from mirror.errors import InvalidReferenceError
from mirror.oci import Digest
from mirror.oci.reference import check_repository
from mirror.serve.bodies import receive_into
from mirror.serve.call import Call, in_thread
from mirror.serve.errors import RefusedError
from mirror.serve.sessions import Session

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?")
_LOCK_WAIT_S = 10.0


async def start_upload(call: Call) -> Response:
    """POST: mount a blob, take one whole (`?digest=`), or open a session for one."""
    call.service.sessions.make_room()
    query = call.request.query_params
    if "mount" in query:
        digest = Digest.parse(query["mount"])
        if await _mount(call, digest, query.get("from", "")):
            return _created(call, digest)
    algorithm = query.get("digest-algorithm", "sha256")
    if algorithm not in ("sha256", "sha512"):
        raise RefusedError(400, "DIGEST_INVALID", "known algorithms are sha256 and sha512")
    if "digest" in query:
        digest = Digest.parse(query["digest"])
        staging = await in_thread(call.target.stage, digest.algorithm)
        try:
            await receive_into(call.request, staging)
            _check_length(call, staging.size)
            await in_thread(staging.commit, call.repository, digest)
        finally:
            await in_thread(staging.discard)
        return _created(call, digest)
    staging = await in_thread(call.target.stage, algorithm)
    session = call.service.sessions.open(call.repository, staging)
    return _progress(call, session, 202)


async def continue_upload(call: Call) -> Response:
    """PATCH: append the body; with `Content-Range`, only if it begins where the upload ends."""
    _ = call.target
    async with _session(call) as session:
        _check_position(call, session)
        await _append(call, session)
        return _progress(call, session, 202)


async def finish_upload(call: Call) -> Response:
    """PUT: append the body, if any, and make the whole a blob."""
    _ = call.target
    text = call.request.query_params.get("digest")
    if text is None:
        raise RefusedError(400, "DIGEST_INVALID", "add ?digest= to say what was uploaded")
    digest = Digest.parse(text)
    async with _session(call) as session:
        _check_position(call, session)
        await _append(call, session)
        call.service.sessions.close(session)
        await in_thread(session.staging.commit, call.repository, digest)
    return _created(call, digest)


async def show_upload(call: Call) -> Response:
    """GET: how far it has come."""
    async with _session(call) as session:
        return _progress(call, session, 204)


async def cancel_upload(call: Call) -> Response:
    """DELETE: drop what was sent."""
    _ = call.target
    async with _session(call) as session:
        call.service.sessions.close(session)
        await in_thread(session.staging.discard)
    return Response(status_code=204)


async def _mount(call: Call, digest: Digest, source: str) -> bool:
    """Whether the blob is ours now. If not, for whatever reason, the client shall upload it."""
    try:
        check_repository(source)
    except InvalidReferenceError:
        return False
    # Who may not pull there must not learn by mounting what is there.
    if not call.service.auth.allows(call.request, source, {"pull"}):
        return False
    return await in_thread(call.target.mount_blob, source, call.repository, digest)


@asynccontextmanager
async def _session(call: Call) -> AsyncIterator[Session]:
    """The session of the request's path, locked."""
    session = call.service.sessions.find(call.repository, call.part("session"))
    try:
        # A client whose connection broke may be back before its old request has ended here.
        async with asyncio.timeout(_LOCK_WAIT_S):
            await session.lock.acquire()
    except TimeoutError:
        raise RefusedError(
            409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload"
        ) from None
    try:
        # Again: who held the lock may have ended the session.
        call.service.sessions.find(call.repository, session.id)
        yield session
    finally:
        session.lock.release()


async def _append(call: Call, session: Session) -> None:
    before = session.staging.size
    try:
        await receive_into(call.request, session.staging)
    except OSError:
        # What is on the disk is not what was counted; there is no going on from here.
        call.service.sessions.close(session)
        await in_thread(session.staging.discard)
        raise
    _check_length(call, session.staging.size - before)


def _check_position(call: Call, session: Session) -> None:
    header = call.request.headers.get("content-range")
    if header is None:
        return
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise RefusedError(400, "BLOB_UPLOAD_INVALID", "Content-Range is <first>-<last>")
    first, last = int(match[1]), int(match[2])
    if first != session.staging.size:
        headers = {"Location": _location(call, session), "Range": _range(session)}
        message = f"the upload has {session.staging.size} bytes; go on from there"
        raise RefusedError(416, "BLOB_UPLOAD_INVALID", message, headers=headers)
    length = call.request.headers.get("content-length")
    if length is not None and int(length) != last - first + 1:
        raise RefusedError(400, "SIZE_INVALID", "Content-Range and Content-Length disagree")


def _check_length(call: Call, received: int) -> None:
    """A second look at what the HTTP server has promised: a short body is never taken for whole."""
    length = call.request.headers.get("content-length")
    if length is not None and int(length) != received:
        raise RefusedError(400, "SIZE_INVALID", f"{length} bytes announced, {received} received")


def _location(call: Call, session: Session) -> str:
    return call.url(f"blobs/uploads/{session.id}")


def _range(session: Session) -> str:
    # There is no way to write an empty range; registries say 0-0 for it.
    return f"0-{max(0, session.staging.size - 1)}"


def _progress(call: Call, session: Session, status: int) -> Response:
    headers = {
        "Location": _location(call, session),
        "Range": _range(session),
        "Docker-Upload-UUID": session.id,
    }
    if status != 204:
        headers["Content-Length"] = "0"
    return Response(status_code=status, headers=headers)


def _created(call: Call, digest: Digest) -> Response:
    headers = {
        "Location": call.url(f"blobs/{digest}"),
        "Docker-Content-Digest": str(digest),
        "Content-Length": "0",
    }
    return Response(status_code=201, headers=headers)
