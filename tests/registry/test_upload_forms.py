"""A large layer gets into every registry in some form, whatever the registry thinks of chunks.

Each of these registries has been met: what they answer is told beside them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from mirror.errors import RegistryError
from mirror.oci import Digest
from mirror.registry import upload_sessions
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry, error
from tests.support.scripted_server import Hangup, Reply, Request

MIB = 1 << 20
SIZE = 200 * MIB
LIMIT = 5 * MIB
BLOCK = random.Random(9).randbytes(1 << 14)


class Layer:
    """A layer of `size` bytes, none of its blocks like another."""

    def __init__(self, size: int) -> None:
        self.size = size
        hasher = hashlib.sha256()
        for piece in self(0):
            hasher.update(piece)
        self.digest = Digest("sha256", hasher.hexdigest())

    def __call__(self, offset: int) -> Generator[bytes, None, None]:
        while offset < self.size:
            number, within = divmod(offset, len(BLOCK))
            piece = (number.to_bytes(8) + BLOCK[8:])[within : within + self.size - offset]
            yield piece
            offset += len(piece)


@pytest.fixture(
    params=[
        pytest.param(64, id="the same number of small chunks"),
        pytest.param(1, id="200 MiB", marks=pytest.mark.soak),
    ]
)
def share(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """By what all sizes are divided."""
    part: int = request.param
    for name in ("CHUNK", "SHORT_CHUNK", "SMALLEST_CHUNK"):
        monkeypatch.setattr(upload_sessions, name, getattr(upload_sessions, name) // part)
    return part


class Odd(FakeRegistry):
    """A registry with a quirk of its own; `share` divides the sizes that matter to it."""

    def __init__(self, share: int) -> None:
        super().__init__()
        self.limit = LIMIT // share

    def _upload(self, request: Request) -> Reply:
        reply = self.refused(request)
        if reply is not None:
            request.body  # noqa: B018 (read, as most do before they answer)
            return reply
        before = {name: len(held) for name, held in self.sessions.items()}
        reply = super()._upload(request)
        if request.method == "PATCH" and reply.status == 202:
            name = request.path.rpartition("/")[2]
            self.accepted(reply, before[name], len(self.sessions[name]))
        return reply

    def refused(self, request: Request) -> Reply | None:
        return None

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        """Change the answer to a chunk, after which there are `after` bytes."""


class RangeStandsStill(Odd):
    """ECR, of every chunk but the first; it answers 201 (aws/containers-roadmap#2831)."""

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        reply.status = 201
        reply.headers["Range"] = f"0-{self.limit}"


class RangeOfTheChunk(Odd):
    """Aliyun (regclient#627)."""

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        reply.headers["Range"] = f"0-{after - before - 1}"


class RangeIsSmall(Odd):
    """zot, before it was mended (regclient#961)."""

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        reply.headers["Range"] = "0-32767"


class RangeAbsent(Odd):
    def accepted(self, reply: Reply, before: int, after: int) -> None:
        del reply.headers["Range"]


class NoContent(Odd):
    """Pulp: 204 for a chunk, 405 for the session's state (pulp_container#2199, #483)."""

    def refused(self, request: Request) -> Reply | None:
        return Reply(405) if request.method == "GET" else None

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        reply.status = 204


class LastChunkUnread(Odd):
    """Old ones, which close a session by an empty PUT and read no other (distribution#475)."""

    def refused(self, request: Request) -> Reply | None:
        if request.method == "PUT" and request.length:
            return error(400, "DIGEST_INVALID")
        return None


class NoChunks(Odd):
    def refused(self, request: Request) -> Reply | None:
        return Reply(405) if request.method == "PATCH" else None


class OneChunk(Odd):
    """Takes a stream in one request and no second one, as Artifact Registry has it."""

    def refused(self, request: Request) -> Reply | None:
        second = request.method == "PATCH" and self.sessions[request.path.rpartition("/")[2]]
        return error(400, "BLOB_UPLOAD_INVALID") if second else None


class PartsHaveALeastSize(Odd):
    """Storage that wants parts of 5 MiB, and finds that out when they are put together: S3."""

    def __init__(self, share: int) -> None:
        super().__init__(share)
        self.short = False

    def refused(self, request: Request) -> Reply | None:
        if request.method == "PUT" and self.short and not request.length:
            return error(400, "BLOB_UPLOAD_INVALID", "All layer parts except the last part ...")
        return None

    def accepted(self, reply: Reply, before: int, after: int) -> None:
        self.short = self.short or after - before < self.limit


class BreaksDownOverChunks(Odd):
    """HTTP 500 for every chunk that is not the first."""

    def refused(self, request: Request) -> Reply | None:
        second = request.method == "PATCH" and self.sessions[request.path.rpartition("/")[2]]
        return error(500, "UNKNOWN") if second else None


class ChunksHaveALimit(Odd):
    status = 413

    def refused(self, request: Request) -> Reply | None:
        return Reply(self.status) if request.length > self.limit else None


class ChunksHaveAnUnnamedLimit(ChunksHaveALimit):
    status = 400


class ChunksBeyondALimitAreOutOfRange(ChunksHaveALimit):
    status = 416


class LimitCutsTheLine(Odd):
    def refused(self, request: Request) -> Reply | None:
        if request.length > self.limit:
            request.read(self.limit)
            raise Hangup
        return None


QUIRKS = [
    RangeStandsStill,
    RangeOfTheChunk,
    RangeIsSmall,
    RangeAbsent,
    NoContent,
    LastChunkUnread,
    NoChunks,
    OneChunk,
    PartsHaveALeastSize,
    BreaksDownOverChunks,
    ChunksHaveALimit,
    ChunksHaveAnUnnamedLimit,
    ChunksBeyondALimitAreOutOfRange,
    LimitCutsTheLine,
]


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_layer_gets_into_a_registry_of_every_kind(
    quirk: Callable[[int], Odd], share: int, serve: Serve, make_client: MakeClient
) -> None:
    registry, layer = quirk(share), Layer(SIZE // share)
    sent = make_client(serve(registry).host).upload("a", layer.digest, layer.size, layer)
    assert list(registry.blobs) == [str(layer.digest)]
    assert registry.sessions == {}
    assert sent <= 3 * layer.size


@contextmanager
def cuts(registry: FakeRegistry, layer: Layer, *, whole: bool, answer: bool) -> Iterator[None]:
    """Five cuts, each further to the beginning of the layer than the one before."""
    at = [layer.size * tenths // 10 for tenths in (9, 7, 5, 3, 1)]

    def cut(request: Request) -> Reply | None:
        if not at or request.method not in ("PATCH", "PUT") or not request.length:
            return None
        held = registry.sessions.get(request.path.rpartition("/")[2])
        if held is None or not len(held) <= at[0] < len(held) + request.length:
            return None
        here = at.pop(0) - len(held)
        if answer:
            held += request.body
        elif not whole:
            held += request.read(here)
        raise Hangup

    registry.fault = cut
    yield
    assert len(at) < 5


@pytest.mark.parametrize("session_is_told", [True, False], ids=["GET answers", "GET refused"])
@pytest.mark.parametrize(
    ("whole", "answer"),
    [(False, False), (True, False), (False, True)],
    ids=["bytes stay", "bytes go", "answers are lost"],
)
@pytest.mark.parametrize("quirk", [Odd, RangeStandsStill, RangeIsSmall, RangeAbsent])
def test_a_layer_gets_over_a_line_that_is_cut_five_times(
    quirk: Callable[[int], Odd],
    whole: bool,
    answer: bool,
    session_is_told: bool,
    share: int,
    serve: Serve,
    make_client: MakeClient,
) -> None:
    registry, layer = quirk(share), Layer(SIZE // share)
    refused = registry.refused

    def mute(request: Request) -> Reply | None:
        return Reply(405) if request.method == "GET" else refused(request)

    if not session_is_told:
        registry.refused = mute  # type: ignore[method-assign]
    client = make_client(serve(registry).host, attempts=20)  # patience has tests of its own
    with cuts(registry, layer, whole=whole, answer=answer):
        client.upload("a", layer.digest, layer.size, layer)
    assert list(registry.blobs) == [str(layer.digest)]
    assert registry.sessions == {}


def test_a_session_whose_state_nobody_tells_goes_on_where_it_was_confirmed(
    share: int, serve: Serve, make_client: MakeClient
) -> None:
    registry, layer = NoContent(share), Layer(SIZE // share)
    with cuts(registry, layer, whole=True, answer=False):
        sent = make_client(serve(registry).host).upload("a", layer.digest, layer.size, layer)
    assert registry.opened == 1
    assert sent < layer.size + 5 * upload_sessions.CHUNK


def test_a_session_that_says_it_has_less_than_was_confirmed_is_believed_the_second_time(
    share: int, serve: Serve, make_client: MakeClient
) -> None:
    registry, layer = Odd(share), Layer(SIZE // share)
    chunk, lost = upload_sessions.CHUNK, False

    def lose(request: Request) -> Reply | None:
        nonlocal lost
        held = registry.sessions.get("s1", bytearray())
        if lost or request.method != "PATCH" or len(held) < 3 * chunk:
            return None
        lost = True
        del held[chunk:]
        raise Hangup

    registry.fault = lose
    make_client(serve(registry).host).upload("a", layer.digest, layer.size, layer)
    assert list(registry.blobs) == [str(layer.digest)]
    assert registry.opened == 1


def test_a_registry_that_takes_no_form_is_told_after_each_has_had_its_turn(
    share: int, serve: Serve, make_client: MakeClient
) -> None:
    class Never(Odd):
        def refused(self, request: Request) -> Reply | None:
            if request.length:
                return error(400, "BLOB_UPLOAD_INVALID", "not like this")
            return None

    registry, layer = Never(share), Layer(SIZE // share)
    server = serve(registry)
    with pytest.raises(RegistryError, match="BLOB_UPLOAD_INVALID: not like this"):
        make_client(server.host).upload("a", layer.digest, layer.size, layer)
    chunk = upload_sessions.CHUNK
    assert [(one.method, one.length) for one in server.log if one.length] == [
        ("PATCH", chunk),
        ("PUT", layer.size),
        ("PATCH", chunk // 4),
    ]
    assert registry.sessions == {}
