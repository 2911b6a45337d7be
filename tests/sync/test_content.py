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
from mirror.run import Run
from mirror.sync import BlobContent


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


def damaged(expected: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that are not `expected`: one bit flipped, cut short, too long, or others altogether."""
    places = st.integers(0, len(expected) - 1)
    return st.one_of(
        places.map(lambda at: expected[:at] + bytes([expected[at] ^ 1]) + expected[at + 1 :]),
        places.map(lambda at: expected[:at]),
        st.binary(min_size=1, max_size=20).map(lambda more: expected + more),
        st.binary(max_size=60).filter(lambda other: other != expected),
    )


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), ATTEMPTS, st.data())
def test_wrong_bytes_never_complete_a_blob(
    expected: bytes, piece: int, attempts: list[tuple[int, int]], data: st.DataObject
) -> None:
    size = len(expected)
    blob = content(ChunkSource(data.draw(damaged(expected)), piece), expected)
    for start, chunks in [*attempts, (0, 99), (size, 99), (0, 99)]:
        position = start = min(start, size)
        raised = ""
        try:
            with closing(blob.chunks(start)) as stream:
                for _ in range(chunks):
                    position += len(next(stream, b""))
        except IntegrityError as err:
            raised = str(err)
        # Whoever was told the size still waits for bytes, or has heard the truth.
        assert position < size or start == size
        assert "this copy is damaged" in raised or (chunks < 99 and not raised)


@pytest.mark.parametrize(
    ("found", "error", "told"),
    [
        (b"abcX", DigestMismatchError, "expected sha256:.*, got sha256:.*; this copy is damaged"),
        (b"abc", SizeMismatchError, "expected 4 bytes, got 3; this copy is damaged"),
        (b"abcdefgh", SizeMismatchError, "expected 4 bytes, got 8; this copy is damaged"),
    ],
)
def test_the_error_says_whose_copy_is_damaged_and_how(
    found: bytes, error: type[IntegrityError], told: str
) -> None:
    blob = content(ChunkSource(found), b"abcd")
    with pytest.raises(error, match=f"^the source: blob sha256:[0-9a-f]{{64}} of a/b: {told}"):
        b"".join(blob.chunks())


def test_the_last_chunk_waits_for_the_verdict() -> None:
    blob = content(ChunkSource(b"abcdefgX", 4), b"abcdefgh")
    stream = blob.chunks()
    assert next(stream) == b"abcd"
    with pytest.raises(DigestMismatchError):
        next(stream)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), ATTEMPTS)
def test_a_byte_counts_as_progress_once_however_often_it_is_sent(
    data: bytes, piece: int, attempts: list[tuple[int, int]]
) -> None:
    told: list[int] = []
    blob = content(ChunkSource(data, piece), data, on_bytes=told.append)
    for start, chunks in attempts:
        read(blob, min(start, len(data)), chunks)
        assert sum(told) <= len(data)
    b"".join(blob.chunks())
    assert sum(told) == len(data)
    assert all(count > 0 for count in told)
    b"".join(blob.chunks())
    assert sum(told) == len(data)


def test_a_continued_blob_is_not_read_again_from_its_beginning() -> None:
    data = random.Random(1).randbytes(400)
    source = ChunkSource(data, 10)
    blob = content(source, data)
    assert read(blob, 0, 20) == data[:200]
    source.served = 0
    assert b"".join(blob.chunks(200)) == data[200:]
    assert source.served <= 200 + 10


def test_cancellation_ends_it_between_two_chunks() -> None:
    run = Run()
    source = ChunkSource(b"abcdefgh", 2)
    blob = content(source, source.data, run=run)
    stream = blob.chunks()
    assert next(stream) == b"ab"
    run.cancellation.cancel()
    with pytest.raises(CancelledError, match=r"the source: blob sha256:.*: stopped on request"):
        next(stream)
    assert source.open == 0


def test_an_abandoned_read_lets_go_of_the_source() -> None:
    source = ChunkSource(b"abcdefgh", 2)
    stream = content(source, source.data).chunks()
    next(stream)
    assert source.open == 1
    stream.close()
    assert source.open == 0


def test_a_blob_of_no_bytes_is_verified_too() -> None:
    assert b"".join(content(ChunkSource(b""), b"").chunks()) == b""
    with pytest.raises(SizeMismatchError, match="expected 0 bytes, got 1"):
        b"".join(content(ChunkSource(b"x"), b"").chunks())
