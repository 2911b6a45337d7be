"""The registry as an ASGI application: routes, permissions, answers (distribution-spec v1.1)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from mirror.oci.reference import check_repository
from mirror.serve import blobs, listing, manifests, uploads
from mirror.serve.auth import ALL, PULL, PUSH, Anonymous, Auth, TokenAuth
from mirror.serve.call import Call, Service, in_thread
from mirror.serve.errors import HANDLERS
from mirror.serve.faults import FaultMiddleware, Faults
from mirror.serve.request_log import RequestLog, RequestLogMiddleware
from mirror.serve.sessions import UploadSessions
from mirror.serve.store import ReadableStore, Store

Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
DELETE = ALL - PUSH


def create_app(
    storage: ReadableStore,
    *,
    auth: Auth | None = None,
    read_only: bool = False,
    faults: Faults | None = None,
    requests: RequestLog | None = None,
    page_limit: int | None = None,
) -> Starlette:
    """A registry that serves `storage` and, unless `read_only`, takes pushes into it.

    `faults` strike as they say; without them that layer is left out. `requests` hears of every
    request. Lists come in pages of at most `page_limit` names, even if the client asks for more.

    Raises:
        ValueError: `storage` cannot be written to, and `read_only` is not set.
    """
    if not read_only and not isinstance(storage, Store):
        raise ValueError("this storage can only be read; say read_only=True")
    writable = storage if not read_only and isinstance(storage, Store) else None
    sessions = UploadSessions()
    service = Service(storage, writable, auth or Anonymous(), sessions, page_limit)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await in_thread(sessions.discard_all)

    middleware = []
    if requests is not None:
        middleware.append(Middleware(RequestLogMiddleware, log=requests))
    if faults is not None:  # inside the log, so that struck requests are in it
        middleware.append(Middleware(FaultMiddleware, faults=faults))
    app = Starlette(
        routes=_routes(service),
        middleware=middleware,
        exception_handlers=dict(HANDLERS),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # /v2/x/blobs/uploads/ means what it says
    return app


def _routes(service: Service) -> list[BaseRoute]:
    def route(path: str, method: str, handler: Handler, actions: Set[str] = PULL) -> Route:
        async def endpoint(request: Request) -> Response:
            repository = str(request.path_params.get("name", ""))
            if repository:
                check_repository(repository)
            service.auth.check(request, repository, actions)
            response = await handler(Call(request, service, repository))
            response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
            return response

        made = Route(path, endpoint, methods=[method])
        made.methods = {method}  # Starlette adds HEAD to GET; ours differ
        return made

    name = "/v2/{name:path}"
    session = f"{name}/blobs/uploads/{{session}}"
    routes: list[BaseRoute] = [
        route("/v2/", "GET", _root),
        route("/v2/", "HEAD", _root),
        route("/v2", "GET", _root),
        route("/v2/_catalog", "GET", listing.list_repositories),
        route(f"{name}/blobs/uploads/", "POST", uploads.start_upload, PUSH),
        route(f"{name}/blobs/uploads", "POST", uploads.start_upload, PUSH),
        route(session, "PATCH", uploads.continue_upload, PUSH),
        route(session, "PUT", uploads.finish_upload, PUSH),
        route(session, "GET", uploads.show_upload, PUSH),
        route(session, "DELETE", uploads.cancel_upload, PUSH),
        route(f"{name}/blobs/{{digest}}", "GET", blobs.get_blob),
        route(f"{name}/blobs/{{digest}}", "HEAD", blobs.head_blob),
        route(f"{name}/blobs/{{digest}}", "DELETE", blobs.delete_blob, DELETE),
        route(f"{name}/manifests/{{reference}}", "GET", manifests.get_manifest),
        route(f"{name}/manifests/{{reference}}", "HEAD", manifests.get_manifest),
        route(f"{name}/manifests/{{reference}}", "PUT", manifests.put_manifest, PUSH),
        route(f"{name}/manifests/{{reference}}", "DELETE", manifests.delete_manifest, DELETE),
        route(f"{name}/referrers/{{digest}}", "GET", listing.list_referrers),
        route(f"{name}/tags/list", "GET", listing.list_tags),
    ]
    if isinstance(service.auth, TokenAuth):
        routes.append(Route("/token", _token_endpoint(service.auth), methods=["GET"]))
    return routes


async def _root(_call: Call) -> Response:
    return JSONResponse({})


def _token_endpoint(auth: TokenAuth) -> Callable[[Request], Awaitable[Response]]:
    async def issue(request: Request) -> Response:
        header = request.headers.get("authorization")
        return JSONResponse(auth.issue(header, request.query_params.getlist("scope")))

    return issue
