"""In which pieces a blob is sent, as registries and the proxies before them let it.

Distribution-spec, "Pushing blobs", has two forms: all with the PUT, or chunks. Most registries take
both; some refuse one, some let chunks be no larger than so much, or no smaller, and not all of them
say so. What failed decides what is tried next: chunks, then one PUT, then smaller chunks that an
empty PUT completes, as docker and skopeo have it. A blob that fits into one chunk begins with the
PUT.
"""

from __future__ import annotations

CHUNK = 16 << 20
"""Bytes that a break costs, at most, and above which a blob is sent in chunks."""
SHORT_CHUNK = 1 << 20
"""What chunks shrink to on a line that keeps breaking; they grow again when some get through."""
SMALLEST_CHUNK = 64 << 10
"""What they shrink to where a registry or a proxy finds them too large."""
_BREAKS_BEFORE_CHUNKS = 2
_FRUITLESS = 2
"""How many sessions of one form may come to nothing before the next form is tried."""

WANTS_CHUNKS = frozenset({405, 411, 413, 416, 501})
"""Answers to a whole blob in one PUT that a registry or a proxy before it gives for its form."""
WANTS_ANOTHER = WANTS_CHUNKS | {400, 404, 415}
"""The same to a chunk, and to a form that took the place of another."""


class Form:
    """The form of one upload of `size` bytes. Used by one thread.

    `chunk` is the length of a chunk in bytes, None for the whole in one PUT. `is_usual`: nobody
    asked for chunks; the last of them goes with the PUT, which saves a request.
    """

    def __init__(self, size: int) -> None:
        self.chunk = CHUNK if size > CHUNK else None
        self.is_usual = True
        self._may_be_whole = self.chunk is not None
        self._breaks = self._fruitless = 0

    @property
    def is_first(self) -> bool:
        """Whether no other has failed."""
        return self.is_usual and (self.chunk is None or self._may_be_whole)

    def passed(self) -> None:
        """A chunk got through."""
        if self.is_usual and self.chunk is not None:
            self.chunk = min(CHUNK, 2 * self.chunk)

    def progressed(self) -> None:
        """The upload got further than ever before."""
        self._fruitless = 0

    def broke(self) -> None:
        """The line broke."""
        self._breaks += 1
        if self.chunk is None:
            # A proxy that finds a body too large may cut the line before its 413 can be read.
            if self._breaks >= _BREAKS_BEFORE_CHUNKS:
                self.shrink()
        elif self.is_usual:
            # Shorter than what lies between two breaks, or nothing ever gets through.
            self.chunk = max(SHORT_CHUNK, self.chunk // 2)

    def shrink(self) -> bool:
        """Go over to chunks, or to smaller ones; False when they cannot become smaller."""
        if self.chunk is None:
            self.chunk = CHUNK if self.is_usual else CHUNK // 4
        elif self.chunk > SMALLEST_CHUNK:
            self.chunk //= 4
        else:
            return False
        self.is_usual = self._may_be_whole = False
        self._fruitless = 0
        return True

    def change(self) -> bool:
        """Go over to the next form; False after the last."""
        if self._may_be_whole:
            self.chunk, self.is_usual, self._may_be_whole = None, False, False
            self._fruitless = 0
            return True
        return (self.chunk is None or self.chunk > CHUNK // 4) and self.shrink()

    def failed(self) -> bool:
        """A session came to nothing; whether the next one has another form."""
        self._fruitless += 1
        return self._fruitless >= _FRUITLESS and self.change()
