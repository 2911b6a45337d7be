"""A source of content that notes what it gives."""

from __future__ import annotations

import threading
from collections.abc import Generator

from mirror.oci import Digest, Manifest
from mirror.sync import Source


class StopError(Exception):
    """The process ends here, as far as the code under test can tell."""


class CountedSource:
    """A source that counts the bytes it gives, in pieces, and may stop behind `most` of them.

    `asked` are the blobs that it was asked for, each with its offset.
    """

    name = "source"

    def __init__(self, store: Source, *, piece: int = 1 << 20, most: int | None = None) -> None:
        self._store, self._piece, self._most = store, piece, most
        self._lock = threading.Lock()
        self.given = 0
        self.asked: list[tuple[Digest, int]] = []

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        """A manifest of the store."""
        return self._store.manifest(repository, digest)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        """A blob of the store, from `offset` on."""
        assert offset < max(size, 1), "nothing is left of this blob"
        self.asked.append((digest, offset))
        for chunk in self._store.blob(repository, digest, size, offset):
            for start in range(0, len(chunk), self._piece):
                piece = chunk[start : start + self._piece]
                with self._lock:
                    self.given += len(piece)
                    if self._most is not None and self.given > self._most:
                        raise StopError
                yield piece
