from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import (
    CancelledError,
    DigestMismatchError,
    IntegrityError,
    NotFoundError,
    SizeMismatchError,
)
from mirror.oci import Digest, Manifest
from mirror.sync import BlobContent, MemoryStore, Overlay
from tests.support.inventories import put_image


class ChunkSource:
    """Serves `data` for any blob, in pieces of at most `piece` bytes."""

    name = "the source"

    def __init__(self, data: bytes, piece: int = 4) -> None:
        self.data, self.piece = data, piece
        self.served = 0
        self.open = 0

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        raise NotFoundError(f"{self.name} has no manifests")

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        self.open += 1
        try:
            for start in range(offset, len(self.data), self.piece):
                chunk = self.data[start : start + self.piece]
                self.served += len(chunk)
                yield chunk
        finally:
            self.open -= 1


def content(source: ChunkSource, expected: bytes, **more: object) -> BlobContent:
    """What a transfer makes of a blob of `source` that should be `expected`."""
    return BlobContent(source, "a/b", Digest.of(expected), len(expected), **more)  # type: ignore[arg-type]


def read(of: BlobContent, offset: int, chunks: int) -> bytes:
    """What arrives of an attempt that breaks off after so many chunks."""
    got = bytearray()
    with closing(of.chunks(offset)) as stream:
        for _ in range(chunks):
            got += next(stream, b"")
    return bytes(got)


ATTEMPTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=6)


@given(st.binary(max_size=40), st.integers(1, 9), ATTEMPTS, st.integers(0, 40))
def test_a_blob_is_verified_whole_wherever_it_is_read_from(
    data: bytes, piece: int, attempts: list[tuple[int, int]], offset: int
) -> None:
    source = ChunkSource(data, piece)
    blob = content(source, data)
    for start, chunks in attempts:
        start = min(start, len(data))
        assert data[start:].startswith(read(blob, start, chunks))
    offset = min(offset, len(data))
    assert b"".join(blob.chunks(offset)) == data[offset:]
    assert source.open == 0


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), ATTEMPTS, st.data())
def test_wrong_bytes_never_arrive_to_the_end(
    expected: bytes, piece: int, attempts: list[tuple[int, int]], data: st.DataObject
) -> None:
    found = data.draw(
        st.binary(max_size=60)
        | st.integers(0, len(expected) - 1).map(
            lambda at: expected[:at] + bytes([expected[at] ^ 1]) + expected[at + 1 :]
        )
        | st.integers(0, len(expected) - 1).map(lambda at: expected[:at])
        | st.binary(min_size=1, max_size=9).map(lambda more: expected + more)
    ).removeprefix(b"")
    if found == expected:
        return
    blob = content(ChunkSource(found, piece), expected)
    for start, chunks in [*attempts, (0, 99), (0, 99), (len(expected), 99)]:
        start = min(start, len(expected))
        got = bytearray()
        with pytest.raises(IntegrityError) if chunks == 99 else closing(blob.chunks()):  # type: ignore[attr-defined]
            try:
                got += b""
                with closing(blob.chunks(start)) as stream:
                    for _ in range(chunks):
                        got += next(stream, b"")
            finally:
                # A receiver of the announced size still waits for something.
                complete = start + len(got) >= len(expected) and len(got) > 0
                assert not complete
