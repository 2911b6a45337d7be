"""Noticing a transfer that has stalled: by bytes moved, not by total time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

_SLOW_PIECE_S = 1.0
_MIN_PIECE = 16 << 10
_MAX_PIECE = 256 << 10


class StallWatch:
    """Judges one direction of one transfer in windows of `window_s` seconds spent waiting.

    Only the time that the network takes counts: a slow disk on our side is no stall. Sockets have
    time-outs of their own for moving nothing at all; this catches the connection that trickles.
    """

    def __init__(
        self,
        window_s: float,
        min_bytes: int,
        error: Callable[[], Exception],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window_s, self._min_bytes = window_s, min_bytes
        self._error, self._clock = error, clock
        self._waited_s, self._moved = 0.0, 0

    def _note(self, count: int, waited_s: float) -> None:
        self._moved += count
        self._waited_s += waited_s
        if self._waited_s >= self._window_s:
            if self._moved < self._min_bytes:
                raise self._error()
            self._waited_s, self._moved = 0.0, 0

    def received(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on what arrives; raise the error once it has stalled."""
        iterator = iter(chunks)
        while True:
            began = self._clock()
            chunk = next(iterator, None)
            if chunk is None:
                return
            self._note(len(chunk), self._clock() - began)
            yield chunk

    def sent(self, chunks: Iterable[bytes]) -> Iterator[memoryview]:
        """Hand out `chunks` in pieces; raise the error once their receiver has stalled.

        A piece counts when the next is asked for. Pieces shrink when the line is slow, so that
        this is soon enough to tell, and grow when it is fast, so that it costs nothing.
        """
        size = _MIN_PIECE
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                piece, view = view[:size], view[size:]
                began = self._clock()
                yield piece
                waited_s = self._clock() - began
                self._note(len(piece), waited_s)
                size = _MIN_PIECE if waited_s > _SLOW_PIECE_S else min(size * 2, _MAX_PIECE)
