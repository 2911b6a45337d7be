"""A large layer over a line that breaks again and again costs little more than its size."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from pathlib import Path

import pytest

from mirror.oci import Digest
from mirror.registry import upload_sessions
from mirror.registry.answers import Response
from mirror.serve import FolderStorage
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.registry.conftest import MakeClient
from tests.support.lines import BreakingLine
from tests.support.nginx import Nginx
from tests.support.real_registry import RealRegistry
from tests.support.watched_client import watch

SIZE = 200 << 20
CUTS = 20
CHUNK = upload_sessions.CHUNK
BLOCK = random.Random(7).randbytes(1 << 20)
OVERHEAD = 1 << 20
"""Heads of requests, and what was on its way when the line broke."""


def content(offset: int) -> Generator[bytes, None, None]:
    """A layer without a large file: block n is a header of eight bytes and the rest of BLOCK."""
    while offset < SIZE:
        number, within = divmod(offset, len(BLOCK))
        piece = (number.to_bytes(8) + BLOCK[8:])[within:]
        yield piece
        offset += len(piece)


@pytest.fixture(scope="module")
def digest() -> Digest:
    hasher = hashlib.sha256()
    for piece in content(0):
        hasher.update(piece)
    return Digest("sha256", hasher.hexdigest())


def offsets(seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(SIZE) for _ in range(CUTS)]


def push_over(line: BreakingLine, make_client: MakeClient, digest: Digest) -> int:
    """Send the layer over `line`; the bytes that the client says it sent."""
    with line, make_client(line.address) as client:
        sent = client.upload("a", digest, SIZE, content)
    assert line.cuts_left == 0
    return sent


def test_a_layer_cut_at_twenty_offsets_costs_its_size_and_a_chunk_per_cut(
    make_embedded_registry: MakeEmbeddedRegistry,
    make_client: MakeClient,
    digest: Digest,
    tmp_path: Path,
) -> None:
    registry: EmbeddedRegistry = make_embedded_registry(FolderStorage(tmp_path / "registry"))
    line = BreakingLine(registry.port, offsets(1))
    sent = push_over(line, make_client, digest)
    assert SIZE <= line.carried <= SIZE + CUTS * CHUNK
    # This registry keeps every byte that it got, so that a cut costs what was in the pipe.
    assert line.carried <= SIZE + OVERHEAD * CUTS
    assert sent >= line.carried - OVERHEAD
    assert make_client(registry.address).blob_size("a", digest) == SIZE
    print(f"embedded: {line.carried / SIZE:.4f} of the size")


def test_behind_a_proxy_that_takes_requests_whole_a_cut_costs_a_chunk_at_most(
    real_registry: RealRegistry, make_client: MakeClient, digest: Digest, tmp_path: Path
) -> None:
    with Nginx(tmp_path / "nginx", real_registry.address) as nginx:
        line = BreakingLine(nginx.port, offsets(2))
        push_over(line, make_client, digest)
    assert SIZE <= line.carried <= SIZE + CUTS * CHUNK
    assert make_client(real_registry.address).blob_size("a", digest) == SIZE
    print(f"nginx and distribution: {line.carried / SIZE:.4f} of the size")


def test_distribution_alone_loses_a_session_whose_chunk_was_cut_and_the_blob_arrives(
    real_registry: RealRegistry, make_client: MakeClient, digest: Digest
) -> None:
    # It counts the broken chunk's bytes and refuses the address that does not: see `uploads`.
    line = BreakingLine(real_registry.port, [100 << 20])
    push_over(line, make_client, digest)
    assert line.carried <= SIZE + (100 << 20) + OVERHEAD
    assert make_client(real_registry.address).blob_size("a", digest) == SIZE


def test_distribution_goes_on_where_the_break_falls_between_two_chunks(
    real_registry: RealRegistry, make_client: MakeClient, digest: Digest
) -> None:
    chunks: list[int] = []

    def restart(response: Response) -> None:
        if response.method == "PATCH" and response.status == 202:
            chunks.append(response.status)
            if len(chunks) == 6:
                real_registry.restart()

    line = BreakingLine(real_registry.port)
    with line, make_client(line.address) as client:
        watch(client, answered=restart)
        client.upload("a", digest, SIZE, content)
    assert len(chunks) >= 6
    # What was on its way into the dead connection, at most.
    assert line.carried <= SIZE + CHUNK
    assert make_client(real_registry.address).blob_size("a", digest) == SIZE
    print(f"restarted distribution: {line.carried / SIZE:.4f} of the size")
