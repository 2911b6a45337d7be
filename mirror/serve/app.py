"""The registry as an ASGI application: routes, permissions, answers (distribution-spec v1.1)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from mirror.oci.reference import check_repository
from mirror.serve import content
from mirror.serve.call import (
    ALL,
    HANDLERS,
    PULL,
    PUSH,
    Anonymous,
    Auth,
    Call,
    Service,
    TokenAuth,
    in_thread,
    judged,
)
from mirror.serve.store import ReadableStore, Store
from mirror.serve.uploads import Uploads

Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
DELETE = ALL - PUSH


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
        route(f"{name}/manifests/{{reference}}", "GET", content.get_manifest),
        route(f"{name}/manifests/{{reference}}", "HEAD", content.get_manifest),
        route(f"{name}/manifests/{{reference}}", "PUT", content.put_manifest, PUSH),
        route(f"{name}/manifests/{{reference}}", "DELETE", content.delete_manifest, DELETE),
        route(f"{name}/blobs/{{digest}}", "GET", content.get_blob),
        route(f"{name}/blobs/{{digest}}", "HEAD", content.head_blob),
        route(f"{name}/blobs/{{digest}}", "DELETE", content.delete_blob, DELETE),
        route(f"{name}/blobs/uploads/", "POST", uploads.start, PUSH),
        route(session, "PUT", uploads.finish, PUSH),
        route(session, "PATCH", uploads.append, PUSH),
        route(session, "GET", uploads.show, PUSH),
        route(session, "DELETE", uploads.cancel, PUSH),
        route(f"{name}/blobs/uploads", "POST", uploads.start, PUSH),
        route(f"{name}/tags/list", "GET", content.list_tags),
        route(f"{name}/referrers/{{digest}}", "GET", content.list_referrers),
        route("/v2/", "GET", _root),
        route("/v2/", "HEAD", _root),
        route("/v2", "GET", _root),
        route("/v2/_catalog", "GET", content.list_repositories),
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
