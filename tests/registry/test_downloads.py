"""Blobs come whole and right, however the connection behaves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from mirror.errors import (
    DigestMismatchError,
    RegistryError,
    RegistryNotFoundError,
    SizeMismatchError,
    StalledError,
    UnreachableError,
)
from mirror.events import Event, Retrying
from mirror.oci import Digest
from mirror.registry import Credentials, RegistryClient
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry, error, once, start_of, times
from tests.support.patience import PATIENCE_S
from tests.support.scripted_server import Hangup, Reply, Request, ScriptedServer

DATA = random.Random(1).randbytes(700_000)
DIGEST = Digest.of(DATA)


@pytest.fixture(autouse=True)
def _filled(fake: FakeRegistry) -> None:
    fake.blobs[str(DIGEST)] = DATA
    fake.blobs[str(Digest.of(b""))] = b""


def is_blob(request: Request) -> bool:
    return request.method == "GET" and "/blobs/" in request.path


def cut_after(count: int) -> Reply:
    return Reply(body=DATA, cut=count)


def test_a_blob_arrives_as_it_is_stored(client: RegistryClient) -> None:
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert b"".join(client.blob("a", DIGEST)) == DATA


def test_an_empty_blob_is_a_blob(client: RegistryClient) -> None:
    assert list(client.blob("a", Digest.of(b""), size=0)) == []


def test_no_encoding_is_asked_for_and_ranges_only_when_needed(
    client: RegistryClient, fake_server: ScriptedServer
) -> None:
    list(client.blob("a", DIGEST))
    (request,) = fake_server.log
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"].startswith("mirror/")
    assert "range" not in request.headers
    assert "authorization" not in request.headers


@pytest.mark.parametrize("cut", [0, 1, 65_536, 350_000, len(DATA) - 1])
def test_a_cut_transfer_continues_where_it_was(
    cut: int, client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    fake.fault = once(is_blob, lambda request: cut_after(cut))
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert [start_of(request) for request in fake_server.log] == [None, cut or None]


def test_a_transfer_that_progresses_outlives_any_number_of_cuts(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    def some(request: Request) -> Reply:
        reply = fake._blob(request, str(DIGEST))
        reply.cut = 70_000
        return reply

    fake.fault = times(9, is_blob, some)
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert len(fake_server.log) == 10


def test_a_transfer_without_progress_ends_after_the_attempts(
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    waits: list[float],
    events: list[Event],
) -> None:
    fake.fault = times(99, is_blob, lambda request: cut_after(0))
    with pytest.raises(UnreachableError, match=r"the connection to 127\.0\.0\.1:\d+ broke"):
        list(client.blob("a", DIGEST, size=len(DATA)))
    assert len(fake_server.log) == 5
    assert waits == [1, 2, 4, 8]
    assert [e.attempt for e in events if isinstance(e, Retrying)] == [1, 2, 3, 4]


def test_an_answer_without_length_that_ends_early_is_continued(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = once(is_blob, lambda request: Reply(body=iter([DATA[:100_000]])))
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA


def test_a_server_that_ignores_ranges_is_read_again_from_its_start(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    cuts = iter([200_000, 300_000])

    def no_ranges(request: Request) -> Reply:
        return Reply(body=DATA, cut=next(cuts, None))

    fake.fault = times(3, is_blob, no_ranges)
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    fake.fault = once(is_blob, no_ranges)
    assert b"".join(client.blob("a", DIGEST, offset=600_000)) == DATA[600_000:]


@pytest.mark.parametrize("told", ["bytes 0-699999/700000", "bytes 99999-699999/700000", "", "x"])
def test_another_range_than_asked_for_is_refused(
    told: str, client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = once(is_blob, lambda request: Reply(206, {"Content-Range": told}, DATA))
    with pytest.raises(RegistryError, match="asked for bytes from 100000 on"):
        list(client.blob("a", DIGEST, size=len(DATA), offset=100_000))


def test_the_rest_from_an_offset_comes_alone(client: RegistryClient) -> None:
    assert b"".join(client.blob("a", DIGEST, offset=123_456)) == DATA[123_456:]
    assert b"".join(client.blob("a", DIGEST, size=len(DATA), offset=len(DATA))) == b""
    assert b"".join(client.blob("a", DIGEST, offset=len(DATA))) == b""  # told by a 416


def test_an_offset_outside_of_the_blob_is_the_callers_mistake(client: RegistryClient) -> None:
    with pytest.raises(ValueError, match="outside"):
        client.blob("a", DIGEST, size=5, offset=6)


def test_wrong_bytes_are_never_completed_nor_asked_for_again(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    fake.blobs[str(DIGEST)] = wrong
    got: list[bytes] = []
    with pytest.raises(DigestMismatchError, match="this copy is damaged"):
        got.extend(client.blob("a", DIGEST, size=len(DATA)))
    assert sum(map(len, got)) < len(DATA)
    assert len(fake_server.log) == 1


def test_a_caller_that_checks_the_bytes_itself_gets_them_unhashed_but_counted(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    fake.blobs[str(DIGEST)] = wrong
    assert b"".join(client.blob("a", DIGEST, size=len(DATA), verify=False)) == wrong
    with pytest.raises(SizeMismatchError):
        list(client.blob("a", DIGEST, size=len(DATA) + 1, verify=False))


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_another_size_than_the_descriptors_is_damage(size: int, client: RegistryClient) -> None:
    with pytest.raises(SizeMismatchError, match=rf"expected {size} bytes, got 700000"):
        list(client.blob("a", DIGEST, size=size))


def test_a_cache_with_a_short_copy_is_passed_by(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    fake.fault = lambda r: None if "cache-control" in r.headers else Reply(body=DATA[:300_000])
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert [r.headers.get("cache-control") for r in fake_server.log] == [None, "no-cache"]


def test_a_cache_whose_copy_ends_early_is_passed_by(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, waits: list[float]
) -> None:
    def cached(request: Request) -> Reply | None:
        if "cache-control" in request.headers:
            return None
        start = start_of(request)
        if start is None:
            return Reply(body=iter([DATA[:300_000]]))
        return Reply(416, {"Content-Range": "bytes */300000"})

    fake.fault = cached
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert waits == [1]


def test_a_cache_with_too_long_a_copy_is_passed_by(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    def cached(request: Request) -> Reply | None:
        long = Reply(body=iter([DATA[:400_000], DATA[400_000:] + bytes(200)]))
        return None if "cache-control" in request.headers else long

    fake.fault = cached
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    for request in fake_server.log:
        begin = start_of(request)
        assert begin is None or begin < len(DATA)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br, gzip"])
@pytest.mark.parametrize("length", [True, False])
def test_a_blob_that_comes_encoded_is_told_as_that(
    coding: str, length: bool, client: RegistryClient, fake: FakeRegistry
) -> None:
    body = DATA[:1000]
    reply = Reply(200, {"Content-Encoding": coding}, body if length else iter([body]))
    fake.fault = lambda request: reply
    with pytest.raises(RegistryError) as caught:
        list(client.blob("a", DIGEST, size=len(DATA)))
    assert f"sends this blob encoded ({coding}) although its own bytes were asked for" in str(
        caught.value
    )
    assert "nginx: gzip off" in str(caught.value)


def test_stored_bytes_that_a_storage_calls_encoded_are_taken_as_they_are(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = lambda request: Reply(200, {"Content-Encoding": "gzip"}, DATA)
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA


def test_a_missing_blob_is_told_from_a_failing_registry(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    with pytest.raises(RegistryNotFoundError) as caught:
        list(client.blob("a", Digest.of(b"?")))
    assert (caught.value.status, caught.value.codes) == (404, ("BLOB_UNKNOWN",))
    fake.fault = times(9, is_blob, lambda request: Reply(503))
    with pytest.raises(UnreachableError, match="HTTP 503") as failed:
        list(client.blob("a", DIGEST))
    assert failed.value.status == 503


def test_a_connection_that_trickles_is_replaced(
    make_client: MakeClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    def trickle() -> Iterator[bytes]:
        yield DATA[:100_000]
        for at in range(100_000, 100_100):
            time.sleep(0.02)
            yield DATA[at : at + 1]

    client = make_client(fake_server.host, stall_timeout_s=0.2, stall_min_bytes=1000)
    fake.fault = once(is_blob, lambda request: Reply(body=trickle(), length=len(DATA)))
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    start = start_of(fake_server.log[1])
    assert start is not None
    assert 100_000 <= start < 100_100


def test_a_connection_that_stands_still_is_reported_as_stalled(
    make_client: MakeClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    over = threading.Event()

    def still() -> Iterator[bytes]:
        yield DATA[:10]
        over.wait(PATIENCE_S)

    client = make_client(fake_server.host, attempts=1, stall_timeout_s=0.5)
    fake.fault = once(is_blob, lambda request: Reply(body=still(), length=len(DATA)))
    with pytest.raises(StalledError, match=r"stalled: fewer than 65536 bytes in 0.5 s"):
        list(client.blob("a", DIGEST, size=len(DATA)))
    over.set()


def test_closing_the_generator_ends_the_connection(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    ended = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(65_536)
        finally:
            ended.set()  # nobody listens any more

    fake.fault = once(is_blob, lambda request: Reply(body=endless(), length=1 << 40))
    blob = client.blob("a", DIGEST)
    next(blob)
    blob.close()
    assert ended.wait(PATIENCE_S)


def test_redirected_blobs_come_without_our_authorisation(
    serve: Serve, make_client: MakeClient
) -> None:
    storage = serve(lambda request: Reply(body=DATA))

    def registry(request: Request) -> Reply:
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        return Reply(307, {"Location": f"{storage.url}/bucket?signature=s3cr3t"})

    front = serve(registry)
    client = make_client(front.host, Credentials("u", "p"))
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
    assert [request.query for request in storage.log] == [{"signature": ["s3cr3t"]}]
    assert all("authorization" not in request.headers for request in storage.log)


def test_redirects_come_to_an_end(serve: Serve, make_client: MakeClient) -> None:
    server = serve(lambda request: Reply(302, {"Location": request.path}))
    with pytest.raises(RegistryError, match="redirects more than 5 times"):
        list(make_client(server.host).blob("a", DIGEST))
    assert len(server.log) == 6


def test_a_redirect_to_something_else_than_the_web_is_refused(
    serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda request: Reply(302, {"Location": "file:///etc/passwd"}))
    with pytest.raises(RegistryError, match="neither http nor https"):
        list(make_client(server.host).blob("a", DIGEST))


def test_a_failing_storage_is_named_without_its_signature(
    serve: Serve, make_client: MakeClient
) -> None:
    storage = serve(lambda request: Reply(403, body=b"<Error>expired</Error>"))
    front = serve(lambda request: Reply(307, {"Location": f"{storage.url}/b?signature=s3cr3t"}))
    with pytest.raises(RegistryError) as caught:
        list(make_client(front.host).blob("a", DIGEST))
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.status == 403


def test_the_size_of_a_blob_comes_without_the_blob(
    client: RegistryClient, fake_server: ScriptedServer
) -> None:
    assert client.blob_size("a", DIGEST) == len(DATA)
    assert client.blob_size("a", Digest.of(b"")) == 0
    assert client.blob_size("a", Digest.of(b"?")) is None
    assert {request.method for request in fake_server.log} == {"HEAD"}


@pytest.mark.parametrize("status", [403, 405, 400])
def test_a_size_is_found_where_head_is_refused(
    status: int, client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = times(9, lambda r: r.method == "HEAD", lambda r: Reply(status))
    assert client.blob_size("a", DIGEST) == len(DATA)
    assert client.blob_size("a", Digest.of(b"?")) is None


def test_a_size_is_not_guessed_while_the_registry_fails(
    client: RegistryClient, fake: FakeRegistry, waits: list[float]
) -> None:
    fake.fault = times(2, lambda r: True, lambda r: error(502, "UNAVAILABLE"))
    assert client.blob_size("a", DIGEST) == len(DATA)
    assert waits == [1, 2]

    def hang_up(request: Request) -> Reply:
        raise Hangup

    fake.fault = times(99, lambda r: True, hang_up)
    with pytest.raises(UnreachableError):
        client.blob_size("a", DIGEST)
