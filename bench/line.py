"""A slow line in front of a server: what goes through waits, and no more than so much at a time.

`python -m bench.line PORT SERVER_PORT` stands between clients at 127.0.0.1:PORT and the server. A
process of its own, so that its processor time counts for neither side.
"""

from __future__ import annotations

import asyncio
import sys

ONE_WAY_S = 0.020
BYTES_PER_S = 200e6 / 8
_PIECE = 16 << 10
_UNDER_WAY = int(4 * ONE_WAY_S * BYTES_PER_S / _PIECE)
"""Pieces that a direction of a connection holds at most: twice what the line itself does."""


class _Direction:
    """One direction of the line, shared by all connections."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def due(self, size: int) -> float:
        """When bytes that are handed over now arrive at the other end."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + size / BYTES_PER_S
        return self._free_at + ONE_WAY_S


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Direction, first_s: float
) -> None:
    """Carry one direction of one connection; its first piece comes `first_s` later."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)

    async def deliver() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    piece = b" "
    try:
        while piece:
            piece = await reader.read(_PIECE)
            await pieces.put((line.due(len(piece)) + first_s, piece))
            first_s = 0.0
        await delivering
    except OSError:  # either side has gone
        delivering.cancel()
        writer.close()


async def serve(port: int, server_port: int) -> None:
    """Stand between, until the process is ended."""
    there, back = _Direction(), _Direction()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server_port)
        # Loopback has shaken hands at once, which takes a round trip on a line.
        await asyncio.gather(
            _pump(reader, up_writer, there, 2 * ONE_WAY_S), _pump(up_reader, writer, back, 0.0)
        )

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
