"""Uvicorn in a thread of ours: no signal handlers, no log configuration, a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

logger = logging.getLogger(__name__)

_EXTENSION = "mirror.connection"
"""The ASGI extension by which an app reaches its connection, in order to cut it."""

ZERO_COPY = "http.response.zerocopysend"
"""The ASGI extension by which the server sends a file itself (ASGI, "Extensions")."""

KEEP_ALIVE_S = 75
_START_TIMEOUT_S = 30.0
_GRACE_S = 0.2
_BACKLOG = 1024
_SENDERS = 32
"""Files that are sent at a time without passing through this process; more are read and sent."""
_SENT_BYTES = 8 << 20
_LOOK_MS = 200
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may take of a server before it has said all that it wants.

    Attributes:
        head_bytes: the longest head of a request; also of trailers, and of what comes with chunks.
        head_s: from the connection, or the first byte of a later request, to the end of the head.
        silence_s: without a byte of a body that the server waits for, or taken of an answer.
        connections: the most at a time. One more makes the one leave that has been without a
            request for the longest time, or leaves itself if all have one.
    """

    head_bytes: int = 64 << 10
    head_s: float = 30.0
    silence_s: float = 300.0
    connections: int = 512


class _Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol, which hands its connection to the app and holds `limits`."""

    limits = ServerLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._in_head, self._too_long = True, False
        self._count = 0  # bytes since the last that belonged to a body, or ended a head
        self._owed: asyncio.TimerHandle | None = None  # the client has to send something until then
        self._unread = self.loop.call_later(0, bool)  # until then it has to take of an answer
        self._idle_since = self._heard = self.loop.time()
        self._await(self.limits.head_s)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        self._unread.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._unread = self.loop.call_later(self.limits.silence_s, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread.cancel()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if self._in_head and self._owed is None:  # the next request begins
            self._await(self.limits.head_s)
        self._count += len(data)
        super().data_received(data)
        if self._count > self.limits.head_bytes:
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"transport": self.transport, "protocol": self}}

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._too_long = size > self.limits.head_bytes
        if self._too_long:
            raise ValueError("the head is too long")
        self._in_head, self._count = False, 0
        self._await(self.limits.silence_s)
        super().on_headers_complete()
        self.scope["extensions"][_EXTENSION]["cycle"] = self.cycle

    def on_body(self, body: bytes) -> None:
        self._count = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._count = True, 0
        self._await(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_long:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _await(self, seconds: float | None) -> None:
        """Look in so many seconds whether the client is late; never where it owes nothing."""
        if self._owed is not None:
            self._owed.cancel()
        self._owed = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        left_s = self._heard + self.limits.silence_s - self.loop.time()
        if self.flow.read_paused:  # the server is what is late
            self._await(self.limits.silence_s)
        elif left_s > 0 and not self._in_head:
            self._await(left_s)
        else:
            self.transport.abort()

    def _refuse(self) -> None:
        if self._idle and not self.transport.is_closing():
            self.transport.write(_TOO_LONG)
        self.transport.close()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        """Abort the connection that has been without a request for the longest time."""
        here = [one for one in self.connections if isinstance(one, _Protocol)]
        here = [one for one in here if not one.transport.is_closing()]
        if len(here) > self.limits.connections:
            idle = [one for one in here if one._idle]
            min(idle, key=lambda one: one._idle_since, default=self).transport.abort()


class _Server(uvicorn.Server):
    """Uvicorn's server, which waits for events where uvicorn polls every 0.1 s.

    That matters to programs that start hundreds of servers, such as tests.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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
        deadline = asyncio.get_running_loop().time() + _GRACE_S
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


class _Files:
    """Sends files over connections without TLS, from the disk's cache straight to the socket.

    That is the ASGI extension `http.response.zerocopysend`. A thread waits for the disk and the
    client, so that a slow one of either holds up no other request.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_SENDERS, thread_name_prefix="mirror-send")
        self._busy = 0  # changed by the event loop alone

    def offered(self, scope: Scope, send: Send) -> Send:
        """`send` that takes files too, where that can be had; `scope` says so then."""
        place = scope.get("extensions", {}).get(_EXTENSION)
        if place is None or self._busy >= _SENDERS:
            return send
        if place["transport"].get_extra_info("sslcontext") is not None:
            return send
        scope["extensions"][ZERO_COPY] = {}

        async def sending(message: Message) -> None:
            if message["type"] == ZERO_COPY:
                await self._send(place["protocol"], place["cycle"], message)
                message = {"type": "http.response.body", "more_body": message["more_body"]}
            await send(message)

        return sending

    async def _send(
        self, protocol: _Protocol, cycle: RequestResponseCycle, message: Message
    ) -> None:
        transport = protocol.transport
        transport.set_write_buffer_limits(high=0)  # nothing may be left that belongs before it
        await protocol.flow.drain()
        transport.set_write_buffer_limits()
        if cycle.disconnected or transport.is_closing():
            return
        count = message["count"]
        if count > cycle.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        cycle.expected_content_length -= count
        # What is closed meanwhile gives its number to another file; those of copies stay ours.
        out, file = (
            os.dup(one.fileno()) for one in (transport.get_extra_info("socket"), message["file"])
        )
        self._busy += 1
        try:
            late_s = protocol.limits.silence_s
            work = partial(_send_file, out, file, message["offset"], count, late_s)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, work, transport.is_closing)
        except (ConnectionError, TimeoutError):
            transport.abort()
        finally:
            self._busy -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _send_file(
    out: int, file: int, offset: int, count: int, late_s: float, stopped: Callable[[], bool]
) -> None:
    """Send `count` bytes of a file to a socket that does not block; both are closed then.

    Raises TimeoutError where the other side takes nothing for `late_s` seconds.
    """
    taken = time.monotonic()
    try:
        writable = select.poll()
        writable.register(out, select.POLLOUT)
        end = offset + count
        while offset < end and not stopped():
            try:
                sent = _sent(out, file, offset, min(_SENT_BYTES, end - offset))
            except BlockingIOError:
                if time.monotonic() - taken > late_s:
                    raise TimeoutError from None
                writable.poll(_LOOK_MS)
                continue
            taken = time.monotonic()
            if not sent:
                raise OSError(f"a file ended {end - offset} bytes early")
            offset += sent
    finally:
        os.close(out)
        os.close(file)


def _sent(out: int, file: int, offset: int, count: int) -> int:
    try:
        return os.sendfile(out, file, offset, count)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    return os.write(out, os.pread(file, min(count, 1 << 20), offset))  # the file system cannot


class ServerThread:
    """A thread that serves an ASGI app on a listening socket until `stop`."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        files = _Files()

        async def app_until_stopped(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, files.offered(scope, send))
            except asyncio.CancelledError:
                if not self._server.should_exit:
                    raise
                logger.debug("stopped amid %s %s", scope.get("method"), scope.get("path"))

        config = uvicorn.Config(
            app_until_stopped,
            loop="asyncio",
            http=type("_Limited", (_Protocol,), {"limits": limits or ServerLimits()}),
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
        self._files = files
        config.load()  # here, where the caller hears of a bad certificate
        self._server = _Server(config)
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
        """Close idle connections at once, and busy ones after at most `_GRACE_S` seconds."""
        self._server.stop()
        self._thread.join()
        self._files.close()

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
        # Connections take this over: one whose client lost its power ends some day.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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
