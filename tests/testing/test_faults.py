"""Faults strike where they are told to, and nowhere else."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator

import httpx
import pytest

from mirror.oci import Digest
from mirror.serve import create_app, put_blob
from mirror.testing import (
    Action,
    Answer,
    ChangeHeaders,
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    Drip,
    EmbeddedRegistry,
    Encode,
    EndlessBody,
    Fault,
    Faults,
    FaultyServer,
    IgnoreRange,
    LoseAnswer,
    Redirect,
    Refuse,
    RepeatAnswer,
    ShiftRange,
    Stall,
    WrongLength,
)
from mirror.testing.middleware import FaultMiddleware
from mirror.testing.plugin import MakeFaultyProxy
from tests.conftest import MakeEmbeddedRegistry
from tests.support.sample_images import codes
from tests.support.tls import Authority

DATA = b"abcdefghij" * 100_000
DIGEST = Digest.of(DATA)
BLOB = f"/v2/a/b/blobs/{DIGEST}"
UPLOADS = "/v2/a/b/blobs/uploads/"


@pytest.fixture(autouse=True)
def held(embedded_registry: EmbeddedRegistry) -> None:
    put_blob(embedded_registry.storage, "a/b", DATA)  # type: ignore[arg-type]


@pytest.fixture(params=["embedded", "proxy"])
def faulty(
    request: pytest.FixtureRequest,
    embedded_registry: EmbeddedRegistry,
    make_faulty_proxy: MakeFaultyProxy,
) -> FaultyServer:
    """A server with faults: a registry, or a proxy before one without any."""
    if request.param == "embedded":
        return embedded_registry
    return make_faulty_proxy(embedded_registry.url)


@pytest.fixture
def client(faulty: FaultyServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=faulty.url) as made:
        yield made


def partial(client: httpx.Client, url: str) -> tuple[bytes, bool]:
    """What arrives of a body, and whether it was all."""
    got = bytearray()
    try:
        with client.stream("GET", url) as answer:
            for chunk in answer.iter_raw():
                got += chunk
    except (httpx.RemoteProtocolError, httpx.ReadTimeout):
        return bytes(got), False
    return bytes(got), True


def test_an_answer_is_given_to_the_nth_matching_request(
    faulty: FaultyServer, client: httpx.Client
) -> None:
    fault = Fault(Answer(429, {"Retry-After": "3"}), method="GET", path="/blobs/", nth=2, times=2)
    faulty.faults.add(fault)
    client.head(BLOB)  # another method
    client.get("/v2/")  # another path
    assert [client.get(BLOB).status_code for _ in range(4)] == [200, 429, 429, 200]
    assert faulty.faults.struck == 2
    assert faulty.faults.victims == (f"GET {BLOB}?",) * 2
    faulty.faults.add(fault)
    client.get(BLOB)
    answer = client.get(BLOB)
    assert answer.headers["Retry-After"] == "3"
    assert codes(answer) == ["TOOMANYREQUESTS"]
    faulty.faults.clear()
    assert client.get(BLOB).status_code == 200


@pytest.mark.parametrize("after", [0, 1, 1000, 999_999])
def test_a_response_is_cut_after_exactly_so_many_bytes(
    faulty: FaultyServer, client: httpx.Client, after: int
) -> None:
    faulty.faults.add(Fault(CutResponse(after), path="/blobs/"))
    assert partial(client, BLOB) == (DATA[:after], False)
    assert partial(client, BLOB) == (DATA, True)
    assert [request.sent for request in faulty.requests] == [after, len(DATA)]


def test_an_upload_is_cut_and_what_arrived_is_kept(
    faulty: FaultyServer, client: httpx.Client
) -> None:
    location = client.post(UPLOADS).headers["Location"]
    faulty.faults.add(Fault(CutUpload(after=300_000), method="PATCH"))
    with pytest.raises(httpx.TransportError):
        client.patch(location, content=DATA)
    assert client.get(location).headers["Range"] == "0-299999"
    headers = {"Content-Range": f"300000-{len(DATA) - 1}"}
    assert client.patch(location, content=DATA[300_000:], headers=headers).status_code == 202
    assert client.put(location, params={"digest": str(DIGEST)}).status_code == 201
    cut = faulty.requests.matching("PATCH")[0]
    assert (cut.status, cut.received >= 300_000) == (None, True)


def test_an_upload_in_one_request_that_is_cut_leaves_nothing(
    faulty: FaultyServer, client: httpx.Client
) -> None:
    client.delete(BLOB)
    faulty.faults.add(Fault(CutUpload(after=300_000), method="POST"))
    with pytest.raises(httpx.TransportError):
        client.post(UPLOADS, params={"digest": str(DIGEST)}, content=DATA)
    assert client.head(BLOB).status_code == 404


def test_a_lost_answer_hides_work_that_was_done(faulty: FaultyServer, client: httpx.Client) -> None:
    client.delete(BLOB)
    faulty.faults.add(Fault(LoseAnswer(), method="POST"))
    with pytest.raises(httpx.TransportError):
        client.post(UPLOADS, params={"digest": str(DIGEST)}, content=DATA)
    assert client.get(BLOB).content == DATA
    assert faulty.requests.count("POST", status=None) == 1


def test_a_refused_connection_does_no_work(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(Refuse(), method="DELETE"))
    with pytest.raises(httpx.TransportError):
        client.delete(BLOB)
    assert client.head(BLOB).status_code == 200


@pytest.mark.parametrize("at", [0, 4, 999_999])
def test_one_bit_of_one_byte_is_flipped(
    faulty: FaultyServer, client: httpx.Client, at: int
) -> None:
    faulty.faults.add(Fault(CorruptBody(at), path="/blobs/"))
    got = client.get(BLOB).content
    assert [offset for offset in range(len(DATA)) if got[offset] != DATA[offset]] == [at]
    assert got[at] == DATA[at] ^ 1


def test_a_range_is_ignored(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(IgnoreRange(), path="/blobs/"))
    headers = {"Range": "bytes=5-9"}
    assert client.get(BLOB, headers=headers).status_code == 200
    assert client.get(BLOB, headers=headers).status_code == 206


@pytest.mark.parametrize("action", [Delay(0.2), Stall(1000, 0.2)])
def test_time_passes_and_then_all_is_well(
    faulty: FaultyServer, client: httpx.Client, action: Action
) -> None:
    faulty.faults.add(Fault(action, path="/blobs/"))
    start = time.monotonic()
    assert client.get(BLOB).content == DATA
    assert time.monotonic() - start >= 0.2


def test_a_stalled_answer_shows_its_first_bytes(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(Stall(1000, 60), path="/blobs/"))
    client.timeout = httpx.Timeout(2.0)
    assert partial(client, BLOB) == (DATA[:1000], False)


def test_an_answer_is_reset_in_its_midst(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(CutResponse(1000, reset=True), path="/blobs/"))
    with pytest.raises(httpx.ReadError, match=r"reset by peer"):
        client.get(BLOB)


def test_an_answer_drips(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(Drip(size=300_000, seconds=0.05), path="/blobs/"))
    start = time.monotonic()
    assert client.get(BLOB).content == DATA
    assert time.monotonic() - start >= 0.15


def test_a_range_is_moved_and_the_answer_says_so(
    faulty: FaultyServer, client: httpx.Client
) -> None:
    faulty.faults.add(Fault(ShiftRange(2), path="/blobs/", times=None))
    answer = client.get(BLOB, headers={"Range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, DATA[7:12])
    assert answer.headers["Content-Range"] == f"bytes 7-11/{len(DATA)}"
    assert client.get(BLOB, headers={"Range": "bytes=5-"}).content == DATA[7:]
    assert client.get(BLOB).content == DATA


def test_a_length_promises_more_than_comes(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(WrongLength(9), path="/blobs/"))
    with client.stream("GET", BLOB) as answer:
        assert answer.headers["Content-Length"] == str(len(DATA) + 9)
    faulty.faults.add(Fault(WrongLength(9), path="/blobs/"))
    assert partial(client, BLOB) == (DATA, False)


def test_a_length_promises_less_than_comes(faulty: FaultyServer) -> None:
    faulty.faults.add(Fault(WrongLength(-4), path="/v2/"))
    answer = on_the_wire(faulty, "GET", "/v2/", ends=b"{}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: 0" in head.lower()
    assert body == b"{}"


def on_the_wire(
    faulty: FaultyServer, method: str, path: str, *, ends: bytes, times: int = 1
) -> bytes:
    """What a plain client reads until `ends` has come so many times."""
    with socket.create_connection(("127.0.0.1", faulty.port)) as line:
        line.settimeout(10)
        line.sendall(f"{method} {path} HTTP/1.1\r\nHost: {faulty.address}\r\n\r\n".encode())
        got = b""
        while got.count(ends) < times and (piece := line.recv(4096)):
            got += piece
        return got


def test_an_answer_comes_twice(faulty: FaultyServer) -> None:
    faulty.faults.add(Fault(RepeatAnswer(), path="/v2/"))
    end = b"\r\n\r\n{}"
    got = on_the_wire(faulty, "GET", "/v2/", ends=end, times=2)
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_headers_are_changed_added_and_removed(faulty: FaultyServer, client: httpx.Client) -> None:
    changes = {"Docker-Content-Digest": "sha256:0", "Link": "<x", "Content-Type": None}
    faulty.faults.add(Fault(ChangeHeaders(changes), path="/blobs/", times=None))
    for answer in (client.get(BLOB), client.head(BLOB)):
        assert answer.headers["Docker-Content-Digest"] == "sha256:0"
        assert answer.headers["Link"] == "<x"
        assert "Content-Type" not in answer.headers
        assert answer.headers["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_answer_is_compressed_though_nobody_asked(
    faulty: FaultyServer, client: httpx.Client, coding: str
) -> None:
    faulty.faults.add(Fault(Encode(coding), path="/blobs/"))
    answer = client.get(BLOB, headers={"Accept-Encoding": "identity"})
    assert answer.headers["Content-Encoding"] == coding
    assert int(answer.headers["Content-Length"]) < len(DATA)
    assert answer.content == DATA


def test_a_body_has_no_end(faulty: FaultyServer, client: httpx.Client) -> None:
    faulty.faults.add(Fault(EndlessBody(b"[[["), path="/tags/list"))
    with client.stream("GET", "/v2/a/b/tags/list") as answer:
        got = b""
        for piece in answer.iter_raw():
            got += piece
            if len(got) > 100_000:
                break
    assert got.startswith(b"[[[[[[")
    assert client.get("/v2/").json() == {}


def test_a_request_is_led_home_elsewhere_and_in_a_loop(
    faulty: FaultyServer, client: httpx.Client
) -> None:
    faulty.faults.add(Fault(Redirect(), path="/blobs/"))
    assert client.get(BLOB, follow_redirects=True).content == DATA
    faulty.faults.add(Fault(Redirect("http://elsewhere:1"), path="/blobs/"))
    answer = client.get(BLOB, params={"a": "b"})
    assert answer.status_code == 307
    assert answer.headers["Location"] == f"http://elsewhere:1{BLOB}?a=b"
    faulty.faults.add(Fault(Redirect(), path="/blobs/", times=None))
    with pytest.raises(httpx.TooManyRedirects):
        client.get(BLOB, follow_redirects=True)


def test_faults_strike_under_tls_too(
    make_embedded_registry: MakeEmbeddedRegistry, authority: Authority
) -> None:
    faults = Faults(Fault(CutResponse(1000)), Fault(Refuse(), nth=2))
    registry = make_embedded_registry(tls=authority.issue(), faults=faults)
    put_blob(registry.storage, "a/b", DATA)  # type: ignore[arg-type]
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    with httpx.Client(base_url=registry.url, verify=trust) as client:
        assert partial(client, BLOB) == (DATA[:1000], False)
        with pytest.raises(httpx.TransportError):
            client.get(BLOB)
        assert client.get(BLOB).content == DATA


def test_connections_are_cut_only_by_our_own_server(embedded_registry: EmbeddedRegistry) -> None:
    app = FaultMiddleware(create_app(embedded_registry.storage), Faults(Fault(Refuse())))

    async def call() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://registry") as client:
            await client.get("/v2/")

    with pytest.raises(RuntimeError, match="only the server of mirror"):
        asyncio.run(call())
