"""Uvicorn in a thread of ours: no signal handlers, no log configuration, a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

_EXTENSION = "mirror.connection"
"""The ASGI extension by which an app reaches its connection, in order to cut it."""

KEEP_ALIVE_S = 75
_START_TIMEOUT_S = 30.0
_BACKLOG = 1024


class _Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol, which hands its connection to the app."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"transport": self.transport}}


class _Server(uvicorn.Server):
    """Uvicorn's server, which waits for events where uvicorn polls every 0.1 s.

    That matters to programs that start hundreds of servers, such as tests.
    """

    def __init__(self, config: uvicorn.Config, grace_s: float) -> None:
        super().__init__(config)
        self._grace_s = grace_s
        self.running = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.running.set()

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)  # keeps the Date header right
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), timeout=1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # closes idle ones; busy ones close after their answer
        deadline = asyncio.get_running_loop().time() + self._grace_s
        while self._busy() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for _ in range(3):  # the requests learn in these turns that their clients are gone
            await asyncio.sleep(0)
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=1.0)
        await self.lifespan.shutdown()

    def stop(self) -> None:
        """Begin to shut down. Any thread may call it."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stop.set)

    def _busy(self) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks)


class ServerThread:
    """A thread that serves an ASGI app on a listening socket until `stop`."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        grace_s: float = 0.2,
    ) -> None:
        async def app_until_stopped(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self._server.should_exit:
                    raise
                logger.debug("stopped amid %s %s", scope.get("method"), scope.get("path"))

        config = uvicorn.Config(
            app_until_stopped,
            loop="asyncio",
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        config.load()  # here, where the caller hears of a bad certificate
        self._server = _Server(config, grace_s)
        self._listener = listener
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mirror-serve")

    def start(self) -> None:
        """Begin to serve; on return the server answers, or RuntimeError says that it cannot."""
        self._thread.start()
        if not self._server.running.wait(_START_TIMEOUT_S) or self._failure:
            self.stop()
            raise RuntimeError("the server did not start") from self._failure

    def stop(self) -> None:
        """Close idle connections at once, and busy ones after at most `grace_s` seconds."""
        self._server.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._listener]))
        except BaseException as err:  # noqa: BLE001 - handed to the thread that waits in `start`
            self._failure = err
        finally:
            self._server.running.set()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Clients can connect at once, and wait for the server to start."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def abort(scope: Scope, *, reset: bool = False) -> None:
    """Break the connection at once; unsent bytes are lost. `reset` says so to the client."""
    connection = connection_of(scope)
    if reset:
        sock: socket.socket = connection.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.abort()
    for _ in range(3):  # the server notices in the next turns of the loop
        await asyncio.sleep(0)


async def close(scope: Scope, receive: Receive) -> None:
    """Send what is buffered, then close the connection before the answer is complete."""
    connection_of(scope).close()
    while (await receive())["type"] != "http.disconnect":
        pass


def connection_of(scope: Scope) -> asyncio.Transport:
    """The connection that a request came on, for bytes that HTTP has no place for."""
    transport = scope.get("extensions", {}).get(_EXTENSION, {}).get("transport")
    if not isinstance(transport, asyncio.Transport):
        raise RuntimeError("only the server of mirror.serve can cut a connection")
    return transport
