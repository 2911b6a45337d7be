"""Bodies on their way: requests into a staging, blobs out of a store, in bounded memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mirror.serve.errors import RefusedError
from mirror.serve.store import BlobReader, Staging

CHUNK_BYTES = 1 << 20
"""Bytes that change threads at a time: few enough to hold, many enough to be worth the change."""

_RANGE = re.compile(r"bytes=(?:(?P<first>\d{1,18})-(?P<last>\d{0,18})|-(?P<suffix>\d{1,18}))")


async def receive_into(request: Request, staging: Staging) -> None:
    """Move the request's body into `staging`; on return or error no thread is writing there.

    What a broken connection delivered is kept, so that the client can go on from there.

    Raises:
        ClientDisconnect: the body broke off.
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
            await loop.run_in_executor(None, _write, staging, chunks)


def _write(staging: Staging, chunks: list[bytes]) -> None:
    staging.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))


async def read_bounded(request: Request, limit: int, code: str) -> bytes:
    """The request's body, if it has at most `limit` bytes.

    Raises:
        RefusedError: 413 with `code`; there are more.
        ClientDisconnect: the body broke off.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RefusedError(413, code, f"larger than {limit} bytes")
    return bytes(body)


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last offset that a `Range` header asks for; None for all of it (RFC 9110, 14.2).

    Headers with several ranges or of unknown form are ignored, as the RFC allows.

    Raises:
        RefusedError: 416, the range lies outside the `size` bytes.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return None
    if match["suffix"]:
        first, last = max(0, size - int(match["suffix"])), size - 1
    else:
        first = int(match["first"])
        last = min(int(match["last"]), size - 1) if match["last"] else size - 1
        if match["last"] and int(match["last"]) < first:
            return None
    if first > last:
        raise RefusedError(
            416,
            "BLOB_UNKNOWN",
            f"the blob has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return first, last


class BlobResponse(StreamingResponse):
    """`length` bytes of an open blob from `offset`. Closes the reader in every case."""

    def __init__(
        self, reader: BlobReader, offset: int, length: int, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__((), status_code=status, headers=headers)
        self._reader, self._offset, self._length = reader, offset, length
        self._reading: asyncio.Future[bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._reading is None:
                self._reader.close()
            else:  # broken off: a thread may still be using the file
                self._reading.add_done_callback(self._abandon)

    def _abandon(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled():
            reading.exception()  # asked for, so that nobody reports it as forgotten
        self._reader.close()

    async def stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        at, end = self._offset, self._offset + self._length
        self._read_ahead(at, end)
        while self._reading is not None:
            chunk = await asyncio.shield(self._reading)
            at += len(chunk)
            if not chunk:
                raise OSError(f"a blob ended {end - at} bytes early")
            self._read_ahead(at, end)
            await send({"type": "http.response.body", "body": chunk, "more_body": at < end})
        if not self._length:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _read_ahead(self, at: int, end: int) -> None:
        """Start reading the next chunk; it is read while the one before it is sent."""
        self._reading = None
        if at < end:
            length = min(CHUNK_BYTES, end - at)
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(None, self._reader.read_at, at, length)
