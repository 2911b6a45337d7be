"""Blobs: served whole or in part, and deleted (distribution-spec, "Pulling blobs")."""

from __future__ import annotations

from starlette.responses import Response

from mirror.oci import Digest
from mirror.serve.bodies import BlobResponse, requested_range
from mirror.serve.call import Call, in_thread
from mirror.serve.errors import RefusedError


async def get_blob(call: Call) -> Response:
    """GET: all of it, or the bytes that `Range` names."""
    digest = Digest.parse(call.part("digest"))
    reader = await in_thread(call.store.open_blob, call.repository, digest)
    if reader is None:
        raise _unknown(digest)
    headers = call.request.headers
    try:
        # A range of another state of the resource is answered with all of this one (RFC 9110,
        # 13.1.5); under a digest there is only one state, so any other validator is foreign.
        wanted = headers.get("range")
        if headers.get("if-range", f'"{digest}"') != f'"{digest}"':
            wanted = None
        span = requested_range(wanted, reader.size)
    except RefusedError:
        reader.close()
        raise
    if span is None:
        return BlobResponse(reader, 0, reader.size, 200, _headers(digest, reader.size))
    first, last = span
    length = last - first + 1
    answered = {"Content-Range": f"bytes {first}-{last}/{reader.size}"}
    return BlobResponse(reader, first, length, 206, _headers(digest, length) | answered)


async def head_blob(call: Call) -> Response:
    """HEAD: whether it is there, and its size."""
    digest = Digest.parse(call.part("digest"))
    size = await in_thread(call.store.blob_size, call.repository, digest)
    if size is None:
        raise _unknown(digest)
    return Response(headers=_headers(digest, size))


async def delete_blob(call: Call) -> Response:
    """DELETE: from this repository only."""
    digest = Digest.parse(call.part("digest"))
    if not await in_thread(call.target.delete_blob, call.repository, digest):
        raise _unknown(digest)
    return Response(status_code=202, headers={"Content-Length": "0"})


def _unknown(digest: Digest) -> RefusedError:
    return RefusedError(404, "BLOB_UNKNOWN", f"{digest} is not in this repository")


def _headers(digest: Digest, length: int) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(length),
        "Docker-Content-Digest": str(digest),
        "Accept-Ranges": "bytes",
        "ETag": f'"{digest}"',
        "Cache-Control": "max-age=31536000",
    }
