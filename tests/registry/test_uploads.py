"""Blobs get into a registry whole, however the connection and the registry behave."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator

import pytest

from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    RegistryError,
    SizeMismatchError,
    UnreachableError,
)
from mirror.oci import Digest, verified
from mirror.registry import Credentials, OpenUpload, RegistryClient, upload_sessions
from mirror.run import Run
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry, error, once, times
from tests.support.scripted_server import Hangup, Reply, Request, ScriptedServer

DATA = random.Random(2).randbytes(1_000_000)
DIGEST = Digest.of(DATA)


class Source:
    """Content that remembers from where it was opened and whether it was closed."""

    def __init__(self, data: bytes = DATA, piece: int = 65_536) -> None:
        self.data, self.piece = data, piece
        self.opened: list[int] = []
        self.closed = 0

    def __call__(self, offset: int) -> Generator[bytes, None, None]:
        self.opened.append(offset)
        try:
            for at in range(offset, len(self.data), self.piece):
                yield self.data[at : at + self.piece]
        finally:
            self.closed += 1


@pytest.fixture
def source() -> Source:
    return Source()


def method(*names: str) -> Callable[[Request], bool]:
    return lambda request: request.method in names


def hang_up(request: Request) -> Reply:
    raise Hangup


def test_a_blob_goes_over_in_one_piece(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)
    assert fake.blobs == {str(DIGEST): DATA}
    assert [request.method for request in fake_server.log] == ["POST", "PUT"]
    assert fake_server.log[1].headers["content-length"] == str(len(DATA))
    assert "content-range" not in fake_server.log[1].headers
    assert (source.opened, source.closed) == ([0], 1)


def test_a_registry_that_opens_no_upload_is_asked_as_often_as_any(
    serve: Serve, make_client: MakeClient, source: Source
) -> None:
    server = serve(lambda request: error(500, "UNKNOWN"))
    with pytest.raises(UnreachableError, match="has trouble"):
        make_client(server.host, attempts=3).upload("a", DIGEST, len(DATA), source)
    assert [request.method for request in server.log] == ["POST"] * 3


def test_an_empty_blob_can_be_uploaded(client: RegistryClient, fake: FakeRegistry) -> None:
    empty = Digest.of(b"")
    assert client.upload("a", empty, 0, Source(b"")) == 0
    assert fake.blobs == {str(empty): b""}


@pytest.mark.parametrize(
    "location",
    ["{path}?state=a%2Fb", "http://{host}{path}?state=a%2Fb", "//{host}{path}?state=a%2Fb"],
)
def test_the_session_may_be_named_in_any_way(
    location: str,
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    source: Source,
) -> None:
    fake.location = location.replace("{host}", fake_server.host)
    client.upload("a", DIGEST, len(DATA), source)
    assert str(DIGEST) in fake.blobs


@pytest.mark.parametrize("cut", [0, 1, 70_000, 500_000, 999_999])
def test_a_cut_upload_continues_where_the_registry_got_to(
    cut: int,
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    source: Source,
) -> None:
    def take_some(request: Request) -> Reply:
        fake.sessions["s1"] += request.read(cut)
        raise Hangup

    fake.fault = once(method("PUT"), take_some)
    sent = client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    # `0-0` is said of an empty session too, so that a single byte is not relied on.
    assert source.opened == {0: [0, 0], 1: [0, 0, 0]}.get(cut, [0, cut])
    assert sent >= len(DATA) - cut
    assert source.closed == len(source.opened)
    methods = [request.method for request in fake_server.log]
    assert methods[:4] == ["POST", "PUT", "HEAD", "GET"]


def test_an_upload_that_keeps_breaking_goes_on_as_long_as_it_progresses(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def take_some(request: Request) -> Reply:
        fake.sessions["s1"] += request.read(100_000)
        raise Hangup

    fake.fault = times(8, method("PUT", "PATCH"), take_some)
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 1


def test_a_registry_that_forgot_the_session_gets_a_new_one(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def crash(request: Request) -> Reply:
        request.read(300_000)
        fake.sessions.clear()
        raise Hangup

    fake.fault = once(method("PUT"), crash)
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 2
    assert source.opened == [0, 0]


def test_a_lost_answer_to_a_finished_upload_is_noticed(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    def answer_nothing(request: Request) -> Reply:
        fake.blobs[str(DIGEST)] = request.body
        fake.sessions.clear()
        raise Hangup

    fake.fault = once(method("PUT"), answer_nothing)
    assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)
    assert [r.method for r in fake_server.log] == ["POST", "PUT", "HEAD"]


def test_a_lost_answer_is_noticed_even_by_the_last_attempt(
    make_client: MakeClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    def answer_nothing(request: Request) -> Reply:
        fake.blobs[str(DIGEST)] = request.body
        raise Hangup

    fake.fault = once(method("PUT"), answer_nothing)
    client = make_client(fake_server.host, attempts=1)
    assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)


@pytest.mark.parametrize("step", range(6))
def test_a_fault_at_any_step_is_survived(
    step: int,
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    source: Source,
) -> None:
    steps = iter(range(99))
    first_put = once(method("PUT"), hang_up)

    def fault(request: Request) -> Reply | None:
        # The first PUT breaks, so that the steps of the recovery come by as well.
        broken = first_put(request)
        if next(steps) == step:
            return error(503, "UNAVAILABLE")
        return broken

    fake.fault = fault
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}


def test_an_upload_that_never_succeeds_ends_and_leaves_no_session(
    client: RegistryClient, fake: FakeRegistry, waits: list[float], source: Source
) -> None:
    fake.fault = times(99, method("PUT"), lambda r: error(503, "UNAVAILABLE", "maintenance"))
    with pytest.raises(UnreachableError, match="UNAVAILABLE: maintenance"):
        client.upload("a", DIGEST, len(DATA), source)
    assert waits == [1, 2, 1, 2, 4, 8]  # as chunks it gets far, and then stays where it is
    assert fake.sessions == {}
    assert source.closed == len(source.opened)


@pytest.mark.parametrize("status", [413, 405, 411])
def test_a_registry_that_refuses_the_whole_gets_chunks(
    status: int, client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    source = Source()

    def too_large(request: Request) -> Reply | None:
        if request.method == "PUT" and request.length:
            request.body  # noqa: B018 (read, as nginx' lingering close does)
            return Reply(status)
        return None

    fake.fault = too_large
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert [r.method for r in fake_server.log] == ["POST", "PUT", "DELETE", "POST", "PATCH", "PUT"]
    assert fake_server.log[-1].length == 0


def test_chunks_shrink_until_they_pass(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    def limited(request: Request) -> Reply | None:
        if request.length > 300_000:
            request.body  # noqa: B018
            return Reply(413)
        return None

    fake.fault = limited
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    passed = [
        r.headers["content-range"]
        for r in fake_server.log
        if r.method == "PATCH" and r.length <= 300_000
    ]
    assert passed == ["0-262143", "262144-524287", "524288-786431", "786432-999999"]


def test_chunks_are_at_least_as_large_as_the_registry_wants(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    data = random.Random(3).randbytes((16 << 20) + (4 << 20))
    fake.start_headers = {"OCI-Chunk-Min-Length": str(17 << 20)}

    def no_whole(request: Request) -> Reply | None:
        if request.method == "PUT" and request.length:
            request.body  # noqa: B018
            return Reply(413)
        return None

    fake.fault = no_whole
    client.upload("a", Digest.of(data), len(data), Source(data))
    lengths = [r.length for r in fake_server.log if r.method == "PATCH"]
    assert lengths == [17 << 20, 3 << 20]


def test_a_size_that_the_registry_never_takes_is_told(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def never(request: Request) -> Reply | None:
        if request.length:
            request.body  # noqa: B018
            return Reply(413)
        return None

    fake.fault = never
    with pytest.raises(RegistryError) as caught:
        client.upload("a", DIGEST, len(DATA), source)
    assert caught.value.status == 413
    assert fake.sessions == {}


def test_a_proxy_that_cuts_large_bodies_off_gets_chunks(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def cut_off(request: Request) -> Reply | None:
        if request.method == "PUT" and request.length:
            raise Hangup
        return None

    fake.fault = cut_off
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}


def test_a_registry_that_kept_less_of_a_chunk_gets_the_rest_again(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def half(request: Request) -> Reply:
        body = request.body
        fake.sessions["s2"] += body[:500_000]
        return fake._accepted(request.path, "s2")

    whole = once(method("PUT"), lambda r: Reply(413, body=r.body[:0]))
    patch = once(method("PATCH"), half)
    fake.fault = lambda r: whole(r) or patch(r)
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert source.opened == [0, 0, 500_000]


def test_a_chunk_out_of_place_is_put_right_by_asking(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    def lost_answer(request: Request) -> Reply:
        fake.sessions["s2"] += request.read(200_000)
        request.body  # noqa: B018
        return Reply(416)

    whole = once(method("PUT"), lambda r: Reply(413, body=r.body[:0]))
    patch = once(method("PATCH"), lost_answer)
    fake.fault = lambda r: whole(r) or patch(r)
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}


def test_content_that_is_not_its_digest_never_completes_and_cancels(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    wrong = Source(DATA[:-1] + b"x")

    def content(offset: int) -> Generator[bytes, None, None]:
        yield from verified(wrong(offset), DIGEST, len(DATA), where="the bundle")

    with pytest.raises(DigestMismatchError, match="the bundle"):
        client.upload("a", DIGEST, len(DATA), content)
    assert (fake.blobs, fake.sessions) == ({}, {})


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
def test_content_of_another_size_is_refused(
    data: bytes, client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    source = Source(data)
    with pytest.raises(SizeMismatchError, match="the content for"):
        client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {}
    assert source.closed == 1


def test_a_registry_that_finds_another_digest_is_believed(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    other = Digest.of(b"other")
    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        client.upload("a", other, len(DATA), source)
    assert (fake.blobs, fake.sessions) == ({}, {})


def test_a_cancelled_upload_stops_and_cancels_its_session(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    run = Run()

    def stopping(offset: int) -> Generator[bytes, None, None]:
        for number, chunk in enumerate(source(offset)):
            if number == 2:
                run.cancellation.cancel()
            yield chunk

    with pytest.raises(CancelledError, match="stopped on request"):
        client.within(run).upload("a", DIGEST, len(DATA), stopping)
    assert fake.cancelled == ["s1"]
    assert source.closed == 1


def test_a_denied_upload_is_not_tried_again(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    fake.fault = lambda r: error(403, "DENIED", "read only")
    with pytest.raises(DeniedError, match="DENIED: read only"):
        client.upload("a", DIGEST, len(DATA), source)
    assert len(fake_server.log) == 1
    assert source.opened == []


def test_a_login_that_expires_mid_push_is_renewed(
    client: RegistryClient, serve: Serve, make_client: MakeClient, fake: FakeRegistry
) -> None:
    tokens = iter(["t1", "t2", "t3"])
    realm = serve(lambda r: Reply(body=b'{"token": "%s"}' % next(tokens).encode()))
    valid = {"Bearer t1"}

    def guarded(request: Request) -> Reply:
        if request.headers.get("authorization") not in valid:
            request.body  # noqa: B018
            challenge = f'Bearer realm="{realm.url}/token",service="s",error="invalid_token"'
            return Reply(401, {"WWW-Authenticate": challenge})
        if request.method == "POST":
            valid.clear()
            valid.add("Bearer t2")  # the token that opened the session is revoked
        return fake(request)

    server = serve(guarded)
    source = Source()
    make_client(server.host, Credentials("u", "p")).upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert [r.method for r in server.log] == ["POST", "POST", "PUT", "PUT"]
    assert source.opened == [0, 0]
    assert len(realm.log) == 2


def test_an_upload_elsewhere_gets_no_authorisation(
    serve: Serve, make_client: MakeClient, fake: FakeRegistry, source: Source
) -> None:
    fake.sessions["x"] = bytearray()
    storage = serve(fake)

    def front(request: Request) -> Reply:
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        location = f"{storage.url}/v2/a/blobs/uploads/x?state=a%2Fb"
        return Reply(202, {"Location": location})

    make_client(serve(front).host, Credentials("u", "p")).upload("a", DIGEST, len(DATA), source)
    assert str(DIGEST) in fake.blobs
    assert all("authorization" not in request.headers for request in storage.log)


def test_a_session_without_an_address_is_an_error(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = lambda r: Reply(202)
    with pytest.raises(RegistryError, match="without saying where"):
        client.upload("a", DIGEST, len(DATA), Source())


def test_a_mounted_blob_is_not_sent(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    fake.fault = lambda r: Reply(201)
    assert client.mount("a/b", DIGEST, "c/d") is True
    (request,) = fake_server.log
    assert request.query == {"mount": [str(DIGEST)], "from": ["c/d"]}


def test_a_mount_that_became_a_session_is_cancelled(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    assert client.mount("a/b", DIGEST, "c/d") is False
    assert fake.cancelled == ["s1"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_refused_mount_leads_to_an_upload(
    status: int, client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = lambda r: Reply(status)
    assert client.mount("a/b", DIGEST, "c/d") is False


def test_a_mount_at_a_failing_registry_is_an_error(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    fake.fault = lambda r: Reply(503)
    with pytest.raises(UnreachableError):
        client.mount("a/b", DIGEST, "c/d")


# -- large blobs: chunks by choice -----------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of which a small blob has several; their size."""
    monkeypatch.setattr(upload_sessions, "CHUNK", 300_000)
    monkeypatch.setattr(upload_sessions, "SHORT_CHUNK", 20_000)
    return 300_000


def test_a_large_blob_goes_in_chunks_and_the_last_of_them_completes_it(
    small_chunks: int,
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    source: Source,
) -> None:
    assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)
    assert fake.blobs == {str(DIGEST): DATA}
    assert [(r.method, r.length) for r in fake_server.log] == [
        ("POST", 0),
        *[("PATCH", small_chunks)] * 3,
        ("PUT", 100_000),
    ]
    assert source.opened == [0]  # one reading for all requests


@pytest.mark.parametrize("status", [404, 405, 416, 501])
@pytest.mark.usefixtures("small_chunks")
def test_a_registry_that_knows_no_chunks_gets_the_whole(
    status: int,
    client: RegistryClient,
    fake: FakeRegistry,
    fake_server: ScriptedServer,
    source: Source,
    waits: list[float],
) -> None:
    def refuse(request: Request) -> Reply | None:
        if request.method == "PATCH":
            request.body  # noqa: B018
            return Reply(status)
        return None

    fake.fault = refuse
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    methods = [r.method for r in fake_server.log]
    assert methods == ["POST", "PATCH", "DELETE", "POST", "PUT"]
    assert waits == []


@pytest.mark.usefixtures("small_chunks")
def test_a_limit_that_the_last_chunk_meets_makes_chunks_shorter_and_begins_nothing_anew(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    def limited(request: Request) -> Reply | None:
        if request.method == "PUT" and request.length:
            request.body  # noqa: B018
            return Reply(413)
        return None

    fake.fault = limited
    client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 1
    assert fake_server.log[-1].length == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("small_chunks")
def test_chunks_cut_anywhere_arrive_whole_and_cost_no_more_than_a_chunk_each(
    seed: int, client: RegistryClient, fake: FakeRegistry, source: Source, small_chunks: int
) -> None:
    dice = random.Random(seed)

    struck = 0

    def sometimes(request: Request) -> Reply | None:
        nonlocal struck
        if struck == 6 or not request.length or dice.random() > 0.4:
            return None
        struck += 1
        kept = request.read(dice.randrange(request.length))
        if dice.random() < 0.5:  # a proxy in front takes requests whole, or passes on what it has
            fake.sessions["s1"] += kept
        raise Hangup

    fake.fault = sometimes
    sent = client.upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 1
    assert sent <= len(DATA) + struck * small_chunks


def test_a_login_that_expires_between_and_within_chunks_is_renewed(
    small_chunks: int, serve: Serve, make_client: MakeClient, fake: FakeRegistry
) -> None:
    issued: list[str] = []

    def issue(request: Request) -> Reply:
        issued.append(f"t{len(issued)}")
        return Reply(body=b'{"token": "%s"}' % issued[-1].encode())

    realm = serve(issue)
    requests = 0

    def guarded(request: Request) -> Reply:
        nonlocal requests
        if request.headers.get("authorization") != f"Bearer {issued[-1] if issued else ''}":
            request.read(100_000)  # and the rest of the body is cut off by the answer
            challenge = f'Bearer realm="{realm.url}/token",service="s",error="invalid_token"'
            return Reply(401, {"WWW-Authenticate": challenge})
        requests += 1
        if requests % 2 == 0:
            issued.append(f"t{len(issued)}")  # what the client has is worth nothing from here on
        return fake(request)

    server = serve(guarded)
    source = Source()
    make_client(server.host, Credentials("u", "p")).upload("a", DIGEST, len(DATA), source)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 1
    assert len([r for r in server.log if r.method == "PATCH"]) > 3


# -- sessions that are there already ---------------------------------------------------------------


def test_an_upload_uses_the_session_that_was_opened_for_it(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    opened = client.open_upload("a")
    client.upload("a", DIGEST, len(DATA), source, opened=opened)
    assert [r.method for r in fake_server.log] == ["POST", "PUT"]
    assert "state" not in repr(opened)


def test_a_session_that_ended_before_its_use_is_replaced(
    client: RegistryClient, fake: FakeRegistry, source: Source
) -> None:
    opened = client.open_upload("a")
    fake.sessions.clear()
    client.upload("a", DIGEST, len(DATA), source, opened=opened)
    assert fake.blobs == {str(DIGEST): DATA}


def test_an_upload_that_was_opened_in_vain_leaves_nothing(
    client: RegistryClient, fake: FakeRegistry
) -> None:
    client.cancel_upload("a", client.open_upload("a"))
    assert (fake.sessions, fake.cancelled) == ({}, ["s1"])


def test_a_mount_that_becomes_a_session_hands_it_out(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, source: Source
) -> None:
    opened = client.mount_or_open("a/b", DIGEST, "c/d")
    assert isinstance(opened, OpenUpload)
    client.upload("a/b", DIGEST, len(DATA), source, opened=opened)
    assert [r.method for r in fake_server.log] == ["POST", "PUT"]


@pytest.mark.parametrize("told", ["0-0", "0-65535", "0-99", "{chunk}"])
def test_a_chunk_that_was_accepted_is_there_whatever_range_says(
    told: str,
    client: RegistryClient,
    fake: FakeRegistry,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_sessions, "CHUNK", 1 << 18)
    answer = FakeRegistry.__call__

    def lie(self: FakeRegistry, request: Request) -> Reply:
        reply = answer(self, request)
        if request.method == "PATCH":
            reply.headers["Range"] = told.format(chunk=request.headers["content-range"])
        return reply

    monkeypatch.setattr(FakeRegistry, "__call__", lie)
    assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)
    assert fake.blobs == {str(DIGEST): DATA}


@pytest.mark.parametrize("kept", [True, False])
def test_an_upload_that_ends_with_another_status_is_believed_if_the_blob_is_there(
    kept: bool,
    client: RegistryClient,
    fake: FakeRegistry,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = FakeRegistry.__call__

    def swallow(self: FakeRegistry, request: Request) -> Reply:
        reply = answer(self, request)
        if request.method == "PUT":
            reply.status = 200
            if not kept:
                self.blobs.clear()
        return reply

    monkeypatch.setattr(FakeRegistry, "__call__", swallow)
    if kept:
        assert client.upload("a", DIGEST, len(DATA), source) == len(DATA)
        return
    with pytest.raises(RegistryError, match="HTTP 200 where the specification has another"):
        client.upload("a", DIGEST, len(DATA), source)
