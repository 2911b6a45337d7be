"""The registry as an ASGI application: its routes, and what is served (distribution-spec v1.1).

Manifests, blobs and lists are answered here ("Pull", "Content Discovery"), uploads in `uploads`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from mirror.errors import InvalidManifestError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import MANIFESTS, MAX_MANIFEST_BYTES, OCI_INDEX, referrer_json
from mirror.oci.reference import check_repository, valid_tag
from mirror.serve.call import (
    ALL,
    HANDLERS,
    PULL,
    PUSH,
    Anonymous,
    Auth,
    Call,
    RefusedError,
    Service,
    TokenAuth,
    empty,
    in_thread,
    judged,
)
from mirror.serve.server import ZERO_COPY
from mirror.serve.store import BlobReader, ReadableStore, Store, StoredManifest
from mirror.serve.uploads import CHUNK_BYTES, Uploads

Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
DELETE = ALL - PUSH
_RANGE = re.compile(r"bytes=(?:(?P<first>\d{1,18})-(?P<last>\d{0,18})|-(?P<suffix>\d{1,18}))")
_COUNT = re.compile(r"[0-9]{1,9}")


def create_app(
    storage: ReadableStore,
    *,
    auth: Auth | None = None,
    read_only: bool = False,
    page_limit: int | None = None,
    sparse_indexes: bool = False,
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """A registry that serves `storage` and, unless `read_only`, takes pushes into it.

    Lists come in pages of at most `page_limit` names, even if the client asks for more. Requests
    pass through `middleware` first, in its order. With `sparse_indexes` an index is taken before
    its images, or without them.

    Raises:
        ValueError: `storage` cannot be written to, and `read_only` is not set.
    """
    if not read_only and not isinstance(storage, Store):
        raise ValueError("this storage can only be read; say read_only=True")
    writable = storage if not read_only and isinstance(storage, Store) else None
    service = Service(storage, writable, auth or Anonymous(), page_limit, sparse_indexes)
    uploads = Uploads()

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await in_thread(uploads.discard_all)

    app = Starlette(
        routes=_routes(service, uploads),
        middleware=middleware,
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # /v2/x/blobs/uploads/ means what it says
    return app


def _routes(service: Service, uploads: Uploads) -> list[BaseRoute]:
    def route(path: str, method: str, handler: Handler, actions: Set[str] = PULL) -> Route:
        async def endpoint(request: Request) -> Response:
            repository = str(request.path_params.get("name", ""))
            if repository:
                check_repository(repository)
            header = request.headers.get("authorization")
            check = service.auth.check
            await judged(service.auth, header, check, request, repository, actions)
            response = await handler(Call(request, service, repository))
            response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
            return response

        made = Route(path, endpoint, methods=[method])
        made.methods = {method}  # Starlette adds HEAD to GET; ours differ
        return made

    name = "/v2/{name:path}"
    session = f"{name}/blobs/uploads/{{session}}"
    # What is asked for most comes first; no answer depends on their order.
    routes: list[BaseRoute] = [
        route(f"{name}/manifests/{{reference}}", "GET", get_manifest),
        route(f"{name}/manifests/{{reference}}", "HEAD", get_manifest),
        route(f"{name}/manifests/{{reference}}", "PUT", put_manifest, PUSH),
        route(f"{name}/manifests/{{reference}}", "DELETE", delete_manifest, DELETE),
        route(f"{name}/blobs/{{digest}}", "GET", get_blob),
        route(f"{name}/blobs/{{digest}}", "HEAD", head_blob),
        route(f"{name}/blobs/{{digest}}", "DELETE", delete_blob, DELETE),
        route(f"{name}/blobs/uploads/", "POST", uploads.start, PUSH),
        route(session, "PUT", uploads.finish, PUSH),
        route(session, "PATCH", uploads.append, PUSH),
        route(session, "GET", uploads.show, PUSH),
        route(session, "DELETE", uploads.cancel, PUSH),
        route(f"{name}/blobs/uploads", "POST", uploads.start, PUSH),
        route(f"{name}/tags/list", "GET", list_tags),
        route(f"{name}/referrers/{{digest}}", "GET", list_referrers),
        route("/v2/", "GET", _root),
        route("/v2/", "HEAD", _root),
        route("/v2", "GET", _root),
        route("/v2/_catalog", "GET", list_repositories),
    ]
    tokens = service.auth
    if isinstance(tokens, TokenAuth):

        async def issue(request: Request) -> Response:
            header = request.headers.get("authorization")
            scopes = request.query_params.getlist("scope")
            return JSONResponse(await judged(tokens, header, tokens.issue, header, scopes))

        routes.append(Route("/token", issue, methods=["GET"]))
    return routes


async def _root(_call: Call) -> Response:
    return JSONResponse({})


async def get_manifest(call: Call) -> Response:
    """GET and HEAD: the pushed bytes, whatever `Accept` says."""
    digest, held = await in_thread(
        _find_manifest, call.store, call.repository, call.part("reference")
    )
    told = {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}
    known = call.request.headers.get("if-none-match", "")
    if str(digest) in (one.strip().removeprefix("W/").strip('"') for one in known.split(",")):
        return Response(status_code=304, headers=told)  # distribution takes it without quotes, too
    headers = {"Content-Type": held.media_type, "Content-Length": str(len(held.raw)), **told}
    return Response(held.raw if call.request.method == "GET" else b"", headers=headers)


async def put_manifest(call: Call) -> Response:
    """PUT: keep the manifest if its digest is right and the repository has what it needs."""
    store, reference = call.target, call.part("reference")
    tag = None if ":" in reference else reference
    algorithm = Digest.parse(reference).algorithm if tag is None else "sha256"
    if tag is not None and not valid_tag(tag):
        raise RefusedError(400, "MANIFEST_INVALID", f"{tag[:200]!r} is not a tag")
    raw = await read_bounded(call.request, MAX_MANIFEST_BYTES, "SIZE_INVALID")
    manifest = _parsed(raw, call.request.headers.get("content-type"), algorithm)
    if tag is None and str(manifest.digest) != reference:
        raise RefusedError(400, "DIGEST_INVALID", f"the manifest's digest is {manifest.digest}")
    sparse = call.service.sparse_indexes
    await in_thread(_keep_manifest, store, call.repository, manifest, tag, sparse)
    headers = {
        "Location": call.url(f"manifests/{manifest.digest}"),
        "Docker-Content-Digest": str(manifest.digest),
    }
    if manifest.subject:
        # With this header the client need not maintain the referrers tag.
        headers["OCI-Subject"] = str(manifest.subject.digest)
    return empty(201, headers)


async def delete_manifest(call: Call) -> Response:
    """DELETE: by digest the manifest and its tags, by tag the tag alone."""
    store, reference = call.target, call.part("reference")
    found = False
    if ":" in reference:
        found = await in_thread(store.delete_manifest, call.repository, Digest.parse(reference))
    elif valid_tag(reference):
        found = await in_thread(store.delete_tag, call.repository, reference)
    if not found:
        raise _no_manifest(reference)
    return empty(202)


def _find_manifest(
    store: ReadableStore, repository: str, reference: str
) -> tuple[Digest, StoredManifest]:
    if ":" in reference:
        digest: Digest | None = Digest.parse(reference)
    else:
        digest = store.resolve(repository, reference) if valid_tag(reference) else None
    if digest is None or (held := store.manifest(repository, digest)) is None:
        raise _no_manifest(reference)
    return digest, held


def _keep_manifest(
    store: Store, repository: str, manifest: Manifest, tag: str | None, sparse: bool
) -> None:
    """Keep a manifest if the repository holds all that it needs; of a `sparse` index nothing.

    The subject may be missing: it may be pushed later (distribution-spec, "Pushing Manifests with
    Subject").
    """
    for blob in manifest.blobs:
        if store.blob_size(repository, blob.digest) is None:
            raise _missing("MANIFEST_BLOB_UNKNOWN", blob.digest)
    for child in () if sparse else manifest.children:
        if store.manifest(repository, child.descriptor.digest) is None:
            raise _missing("MANIFEST_UNKNOWN", child.descriptor.digest)
    store.put_manifest(repository, manifest, tag)


def _missing(code: str, digest: Digest) -> RefusedError:
    return RefusedError(400, code, f"{digest} is not in this repository; push it first")


def _parsed(raw: bytes, content_type: str | None, algorithm: str) -> Manifest:
    said = (content_type or "").partition(";")[0].strip()
    manifest = Manifest.parse(raw, said if said in MANIFESTS else None, algorithm=algorithm)
    if said in MANIFESTS and said != manifest.media_type:
        raise InvalidManifestError(
            f"manifest {manifest.digest} says it is {manifest.media_type}, but Content-Type {said}"
        )
    return manifest


def _no_manifest(reference: str) -> RefusedError:
    return RefusedError(404, "MANIFEST_UNKNOWN", f"{reference[:200]} is not in this repository")


async def get_blob(call: Call) -> Response:
    """GET: the whole blob, or the bytes that `Range` names."""
    digest = Digest.parse(call.part("digest"))
    reader = await in_thread(call.store.open_blob, call.repository, digest)
    if reader is None:
        raise _no_blob(digest)
    headers = call.request.headers
    # A validator of another state of the resource gets all of it (RFC 9110, 13.1.5). A digest has
    # one state only, so the digest is the one validator that matches.
    same = headers.get("if-range", f'"{digest}"') == f'"{digest}"'
    try:
        span = requested_range(headers.get("range") if same else None, reader.size)
    except RefusedError:
        reader.close()
        raise
    if span is None:
        return BlobResponse(reader, 0, reader.size, 200, _blob_headers(digest, reader.size))
    first, last = span
    length = last - first + 1
    answered = {"Content-Range": f"bytes {first}-{last}/{reader.size}"}
    return BlobResponse(reader, first, length, 206, _blob_headers(digest, length) | answered)


async def head_blob(call: Call) -> Response:
    """HEAD: whether the repository holds the blob, and its size."""
    digest = Digest.parse(call.part("digest"))
    size = await in_thread(call.store.blob_size, call.repository, digest)
    if size is None:
        raise _no_blob(digest)
    return Response(headers=_blob_headers(digest, size))


async def delete_blob(call: Call) -> Response:
    """DELETE: remove the blob from this repository; others keep it."""
    digest = Digest.parse(call.part("digest"))
    if not await in_thread(call.target.delete_blob, call.repository, digest):
        raise _no_blob(digest)
    return empty(202)


def _no_blob(digest: Digest) -> RefusedError:
    return RefusedError(404, "BLOB_UNKNOWN", f"{digest} is not in this repository")


def _blob_headers(digest: Digest, length: int) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(length),
        "Docker-Content-Digest": str(digest),
        "Accept-Ranges": "bytes",
        "ETag": f'"{digest}"',
        "Cache-Control": "max-age=31536000",
    }


async def read_bounded(request: Request, limit: int, code: str) -> bytes:
    """Read the request's body; one of more than `limit` bytes is refused with 413 and `code`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RefusedError(413, code, f"larger than {limit} bytes")
    return bytes(body)


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last offset that a `Range` header asks for; None for everything (RFC 9110, 14.2).

    A header with several ranges, or in an unknown form, is ignored, as the RFC allows. A range that
    begins behind the `size` bytes is refused with 416.
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
        told = {"Content-Range": f"bytes */{size}"}
        raise RefusedError(416, "BLOB_UNKNOWN", f"the blob has {size} bytes", headers=told)
    return first, last


class BlobResponse(StreamingResponse):
    """Send `length` bytes of an open blob from `offset`; the reader is closed in every case."""

    def __init__(
        self, reader: BlobReader, offset: int, length: int, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__((), status_code=status, headers=headers)
        self._reader, self._offset, self._length = reader, offset, length
        self._reading: asyncio.Future[bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._zero_copy = ZERO_COPY in scope.get("extensions", {})
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._reading is None:
                self._reader.close()
            else:  # the answer broke off, and a thread may still read the file
                self._reading.add_done_callback(self._abandon)

    def _abandon(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled():
            reading.exception()  # retrieved, so that asyncio does not report it
        self._reader.close()

    async def stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        pieces = self._reader.pieces(self._offset, self._length) if self._zero_copy else ()
        for number, piece in enumerate(pieces, 1):
            message = {"type": ZERO_COPY, "more_body": number < len(pieces)}
            with await in_thread(piece.path.open, "rb", buffering=0) as file:
                await send({**message, "file": file, "offset": piece.offset, "count": piece.size})
        if pieces:
            return
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
        """Start reading the next chunk while the one before it is sent."""
        self._reading = None
        if at < end:
            length = min(CHUNK_BYTES, end - at)
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(None, self._reader.read_at, at, length)


async def list_tags(call: Call) -> Response:
    """GET tags/list: tags in code-point order, in pages if `n` asks for them."""
    if not await in_thread(call.store.has_repository, call.repository):
        raise RefusedError(404, "NAME_UNKNOWN", f"there is no repository {call.repository}")
    tags = await in_thread(call.store.tags, call.repository)
    page, headers = _page(call, tags, call.url("tags/list"))
    return JSONResponse({"name": call.repository, "tags": page}, headers=headers)


async def list_repositories(call: Call) -> Response:
    """GET _catalog: all repositories, as Docker's registry lists them."""
    repositories = await in_thread(call.store.repositories)
    page, headers = _page(call, repositories, "/v2/_catalog")
    return JSONResponse({"repositories": page}, headers=headers)


async def list_referrers(call: Call) -> Response:
    """GET referrers: an index of the manifests that refer to a digest, which may be empty."""
    subject = Digest.parse(call.part("digest"))
    wanted = call.request.query_params.get("artifactType")
    found = await in_thread(_referrers, call.store, call.repository, subject)
    headers = {}
    if wanted is not None:
        found = [entry for entry in found if entry.get("artifactType") == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    return JSONResponse(index, headers=headers, media_type=OCI_INDEX)


def _referrers(store: ReadableStore, repository: str, subject: Digest) -> list[dict[str, Any]]:
    entries = []
    for digest in store.referrers(repository, subject):
        if held := store.manifest(repository, digest):  # else it was deleted since the listing
            manifest = Manifest.parse(held.raw, held.media_type, algorithm=digest.algorithm)
            entries.append(referrer_json(manifest))
    return entries


def _page(call: Call, names: Sequence[str], path: str) -> tuple[list[str], dict[str, str]]:
    """The part of `names` that `n` and `last` ask for, and the `Link` to the next part."""
    query = call.request.query_params
    limit = call.service.page_limit
    if "n" in query:
        if not _COUNT.fullmatch(query["n"]):
            raise RefusedError(400, "UNSUPPORTED", "n is a number")
        asked = int(query["n"])
        limit = asked if limit is None else min(asked, limit)
    last = query.get("last")
    rest = [name for name in names if last is None or name > last]
    page = rest[:limit]
    if len(page) == len(rest) or not page:  # n=0 leaves no name to continue from
        return page, {}
    link = f"{path}?{urlencode({'n': limit, 'last': page[-1]})}"
    return page, {"Link": f'<{link}>; rel="next"'}
