"""The whole daemon: clients, threads and pages from one settings file, until somebody stops it.

The pages are `/healthz`, `/readyz`, `/metrics` and the webhook `/notify`, which takes CNCF
distribution's notifications (its documentation, "Work with notifications").
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mirror.documents import parse_json
from mirror.errors import FileSystemError
from mirror.layout import normalised_suffix
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
from mirror.registry.options import BRIEF
from mirror.serve.server import ServerThread, listen
from mirror.sync.tree import RegistryTree
from mirror.watch.cycle import Replicator
from mirror.watch.daemon import Daemon
from mirror.watch.settings import WatchedRegistry, WatchSettings

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_ENVELOPE_BYTES = 4 << 20
_CHANGES = frozenset({"push", "mount", "delete"})


@contextmanager
def running(settings: WatchSettings) -> Iterator[tuple[Daemon, str | None]]:
    """The daemon, at work while the `with` block lasts, and the URL of its pages if it has any.

    Leaving the block stops what is under way; no thread of ours is left.
    """
    with ExitStack() as opened:
        trees = {
            name: _tree(settings, name, place, opened)
            for name, place in settings.registries.items()
        }
        replicator = Replicator(trees, settings.leader, prune=settings.prune, jobs=settings.jobs)
        daemon = Daemon(
            settings.followers, replicator, schedule=settings.schedule, this=settings.this
        )
        url = _serve(settings, daemon, opened) if settings.listen else None
        opened.callback(daemon.stop)
        daemon.start()
        yield daemon, url


def _serve(settings: WatchSettings, daemon: Daemon, opened: ExitStack) -> str:
    host, port = settings.listener()
    try:
        listener = listen(host, port)
    except OSError as err:
        raise FileSystemError(
            f"cannot listen on {settings.listen}: {err.strerror}; name another address as `listen`"
        ) from err
    token = settings.notify_token.get_secret_value() if settings.notify_token else None
    server = ServerThread(create_app(daemon, notify_token=token), listener)
    server.start()
    opened.callback(server.stop)
    return f"http://{host}:{listener.getsockname()[1]}"


def _tree(
    settings: WatchSettings, name: str, place: WatchedRegistry, opened: ExitStack
) -> RegistryTree:
    root = settings.repository(name)
    options = ConnectionOptions(
        plain_http=place.insecure,
        verify=not place.tls_skip_verify,
        retries=BRIEF,
        limit_rate=settings.limit_rate,
        max_connections=settings.jobs * (len(settings.registries) + 1) + 8,
    )
    if place.ca is not None and "-----BEGIN" in place.ca:  # as in the mirrorer's settings
        options = replace(options, ca=place.ca)
    elif place.ca is not None:
        options = replace(options, ca_file=Path(place.ca))
    secret = place.secret()
    if place.login is not None and secret is not None:
        login: Credentials | None = Credentials(place.login, secret)
    else:
        login = find_credentials(str(root))
    client = opened.enter_context(RegistryClient(root.host, options=options, credentials=login))
    suffix = normalised_suffix(settings.modules_path_suffix)
    return RegistryTree(client, root, suffix, storage=place.storage)


# -- pages -----------------------------------------------------------------------------------------


def create_app(daemon: Daemon, *, notify_token: str | None = None) -> Starlette:
    """The pages of `daemon`. With a token, notifications must carry it as their bearer."""

    async def healthz(_: Request) -> Response:
        if not daemon.alive():
            return PlainTextResponse("a thread ended", 500)
        # Not 500: restarting for a bug that one peer provokes would end replication from all.
        bugs = [
            f"\nthe last cycle of {n} ended with {bug}" for n, bug in daemon.state.bugs().items()
        ]
        return PlainTextResponse("".join(["ok", *bugs]))

    async def readyz(_: Request) -> Response:
        document = daemon.state.to_document()
        return JSONResponse(document, 200 if document["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(daemon.metrics.page(), media_type=_METRICS_TYPE)

    async def notify(request: Request) -> Response:
        if notify_token is not None and not _authorised(request, notify_token):
            return PlainTextResponse("a bearer token is needed", 401)
        try:
            body = await _read(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return PlainTextResponse("too large", 413)
        try:
            changed = tells_of_change(parse_json(body))
        except (ValueError, RecursionError) as err:
            return PlainTextResponse(f"not a notification: {err}", 400)
        if changed:
            daemon.wake()
        return Response(status_code=202)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/notify", notify, methods=["POST"]),
        ]
    )


def tells_of_change(envelope: Any) -> bool:
    """Whether a notification's events change what a registry holds; pulls do not."""
    if not isinstance(envelope, dict) or not isinstance(events := envelope.get("events"), list):
        raise ValueError("there is no list of events")
    if not all(isinstance(event, dict) for event in events):
        raise ValueError("an event is no object")
    return any(event.get("action") in _CHANGES for event in events)


def _authorised(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _read(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_ENVELOPE_BYTES:
            return None
    return bytes(body)
