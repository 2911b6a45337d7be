"""A blob's bytes on their way out: read in order, one request after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

from mirror.errors import CancelledError, SizeMismatchError

Content: TypeAlias = Callable[[int], Generator[bytes, None, None]]
"""Opens the blob's bytes from an offset (bytes) on."""


class Outgoing:
    """The content of one upload, `size` bytes in all. Used by one thread.

    A request that begins where the one before ended goes on reading: a source far away is not
    asked anew for each chunk. Whatever breaks in between, the content is opened where it is needed.
    `what` and `where` are the blob and the request, for messages.
    """

    def __init__(
        self, content: Content, size: int, cancelled: Callable[[], bool], what: str, where: str
    ) -> None:
        self._content, self._size, self._cancelled = content, size, cancelled
        self._what, self._where = what, where
        self._stream: Generator[bytes, None, None] | None = None
        self._at = 0  # where the stream goes on, the rest included
        self._rest = b""

    def close(self) -> None:
        """Let go of the source."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def pieces(self, start: int, count: int) -> Iterator[bytes]:
        """Exactly `count` bytes from `start` on; the source runs to its end where that is theirs.

        A source that verifies tells its verdict with its last bytes, so the last are never handed
        out before it has been heard.

        Raises:
            SizeMismatchError: the content is longer or shorter than its size.
            CancelledError: on request.
        """
        if self._stream is None or self._at != start:
            self.close()
            self._stream, self._at, self._rest = self._content(start), start, b""
        end = start + count
        for chunk in self._chunks(self._stream, until_the_end=end == self._size, end=end):
            left = end - self._at
            if len(chunk) > left:
                if end == self._size:
                    raise self._wrong_size(self._at + len(chunk))
                chunk, self._rest = chunk[:left], chunk[left:]
            self._at += len(chunk)
            if chunk:
                yield chunk
        if self._at < end:
            raise self._wrong_size(self._at)

    def _chunks(
        self, stream: Generator[bytes, None, None], *, until_the_end: bool, end: int
    ) -> Iterator[bytes]:
        while until_the_end or self._at < end:
            if self._cancelled():
                raise CancelledError(f"{self._where}: stopped on request")
            chunk: bytes | None = self._rest
            self._rest = b""
            if not chunk:
                chunk = next(stream, None)
            if chunk is None:
                return
            yield chunk

    def _wrong_size(self, actual: int) -> SizeMismatchError:
        return SizeMismatchError(
            where=f"the content for {self._what}", expected=self._size, actual=actual
        )
