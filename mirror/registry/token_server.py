"""Requests to token servers, by httpx over our connections.

They are few, and httpx knows how redirects treat a login. It is loaded with the first of them, as
that takes a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing

import httpx

from mirror.errors import RegistryError
from mirror.registry.addresses import host_of, path_of
from mirror.registry.answers import unreadable
from mirror.registry.connections import Connections, read_whole
from mirror.registry.http1 import Body, Patience, Response

_MAX_REDIRECTS = 5
_MAX_BYTES = 1 << 20


class _TokenBody(httpx.SyncByteStream):
    def __init__(self, response: Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.pieces()

    def close(self) -> None:
        self._response.close()


class _OurConnections(httpx.BaseTransport):
    """Our connections, and with them trust, proxies and patience, for httpx."""

    def __init__(self, connections: Connections, patience: Patience) -> None:
        self._connections, self._patience = connections, patience

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        body = Body(len(content), lambda: (content,)) if content else None
        url = str(request.url)
        response = self._connections.send(request.method, url, headers, body, self._patience)
        fields = dict(response.headers)
        if 300 <= response.status < 400:
            # httpx would read and decompress whatever comes with a redirect.
            response.close()
            fields.pop("content-encoding", None)
            return httpx.Response(response.status, headers=fields, request=request)
        return httpx.Response(
            response.status, headers=fields, stream=_TokenBody(response), request=request
        )


def ask(
    connections: Connections,
    patience: Patience,
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: bytes,
    *,
    head: Callable[[int, str | None], None],
    watched: Callable[[Iterable[bytes]], Iterable[bytes]],
) -> tuple[httpx.Response, bytes]:
    """Send a request and return the answer and its body.

    `head` hears of status and `Retry-After`, and `watched` passes the body on. An identity token
    travels in the body of a request, which goes where it was meant to and no further.

    Raises:
        WireError: the network failed.
        RegistryError: it is not what a token server answers.
    """
    where = f"{method} {path_of(url)}"
    carrier = _OurConnections(connections, patience)
    try:
        with httpx.Client(
            transport=carrier, trust_env=False, max_redirects=_MAX_REDIRECTS
        ) as client:
            request = httpx.Request(method, url, headers=headers, content=content)
            response = client.send(request, stream=True, follow_redirects=method == "GET")
            with closing(response):
                head(response.status_code, response.headers.get("retry-after"))
                # Raw: httpx would decompress a whole piece, to whatever size.
                pieces = watched(response.iter_raw())
                data = read_whole(response.headers, pieces, _MAX_BYTES)
                if response.status_code == 200 and (data is None or len(data) > _MAX_BYTES):
                    server = host_of(str(response.url))
                    raise unreadable(200, response.headers, _MAX_BYTES, where, server)
                return response, (data or b"")[:_MAX_BYTES]
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as err:
        raise RegistryError(
            f"{where}: the token server cannot be used this way ({type(err).__name__}); "
            "check the registry's configuration",
            where=where,
        ) from err
