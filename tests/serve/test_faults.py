"""Faults strike where they are told to, and nowhere else."""

from __future__ import annotations

import asyncio
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
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    EmbeddedRegistry,
    Fault,
    Faults,
    IgnoreRange,
    LoseAnswer,
    Refuse,
    Stall,
)
from mirror.testing.faults import FaultMiddleware
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


@pytest.fixture
def client(embedded_registry: EmbeddedRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedded_registry.url) as made:
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
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    fault = Fault(Answer(429, {"Retry-After": "3"}), method="GET", path="/blobs/", nth=2, times=2)
    embedded_registry.faults.add(fault)
    client.head(BLOB)  # another method
    client.get("/v2/")  # another path
    assert [client.get(BLOB).status_code for _ in range(4)] == [200, 429, 429, 200]
    assert embedded_registry.faults.struck == 2
    embedded_registry.faults.add(fault)
    client.get(BLOB)
    answer = client.get(BLOB)
    assert answer.headers["Retry-After"] == "3"
    assert codes(answer) == ["TOOMANYREQUESTS"]
    embedded_registry.faults.clear()
    assert client.get(BLOB).status_code == 200


@pytest.mark.parametrize("after", [0, 1, 1000, 999_999])
def test_a_response_is_cut_after_exactly_so_many_bytes(
    embedded_registry: EmbeddedRegistry, client: httpx.Client, after: int
) -> None:
    embedded_registry.faults.add(Fault(CutResponse(after), path="/blobs/"))
    assert partial(client, BLOB) == (DATA[:after], False)
    assert partial(client, BLOB) == (DATA, True)
    assert [request.sent for request in embedded_registry.requests] == [after, len(DATA)]


def test_an_upload_is_cut_and_what_arrived_is_kept(
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    location = client.post(UPLOADS).headers["Location"]
    embedded_registry.faults.add(Fault(CutUpload(after=300_000), method="PATCH"))
    with pytest.raises(httpx.TransportError):
        client.patch(location, content=DATA)
    assert client.get(location).headers["Range"] == "0-299999"
    headers = {"Content-Range": f"300000-{len(DATA) - 1}"}
    assert client.patch(location, content=DATA[300_000:], headers=headers).status_code == 202
    assert client.put(location, params={"digest": str(DIGEST)}).status_code == 201
    cut = embedded_registry.requests.matching("PATCH")[0]
    assert (cut.status, cut.received >= 300_000) == (None, True)


def test_an_upload_in_one_request_that_is_cut_leaves_nothing(
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    client.delete(BLOB)
    embedded_registry.faults.add(Fault(CutUpload(after=300_000), method="POST"))
    with pytest.raises(httpx.TransportError):
        client.post(UPLOADS, params={"digest": str(DIGEST)}, content=DATA)
    assert client.head(BLOB).status_code == 404


def test_a_lost_answer_hides_work_that_was_done(
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    client.delete(BLOB)
    embedded_registry.faults.add(Fault(LoseAnswer(), method="POST"))
    with pytest.raises(httpx.TransportError):
        client.post(UPLOADS, params={"digest": str(DIGEST)}, content=DATA)
    assert client.get(BLOB).content == DATA
    assert embedded_registry.requests.count("POST", status=None) == 1


def test_a_refused_connection_does_no_work(
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    embedded_registry.faults.add(Fault(Refuse(), method="DELETE"))
    with pytest.raises(httpx.TransportError):
        client.delete(BLOB)
    assert client.head(BLOB).status_code == 200


@pytest.mark.parametrize("at", [0, 4, 999_999])
def test_one_bit_of_one_byte_is_flipped(
    embedded_registry: EmbeddedRegistry, client: httpx.Client, at: int
) -> None:
    embedded_registry.faults.add(Fault(CorruptBody(at), path="/blobs/"))
    got = client.get(BLOB).content
    assert [offset for offset in range(len(DATA)) if got[offset] != DATA[offset]] == [at]
    assert got[at] == DATA[at] ^ 1


def test_a_range_is_ignored(embedded_registry: EmbeddedRegistry, client: httpx.Client) -> None:
    embedded_registry.faults.add(Fault(IgnoreRange(), path="/blobs/"))
    headers = {"Range": "bytes=5-9"}
    assert client.get(BLOB, headers=headers).status_code == 200
    assert client.get(BLOB, headers=headers).status_code == 206


@pytest.mark.parametrize("action", [Delay(0.2), Stall(1000, 0.2)])
def test_time_passes_and_then_all_is_well(
    embedded_registry: EmbeddedRegistry, client: httpx.Client, action: Action
) -> None:
    embedded_registry.faults.add(Fault(action, path="/blobs/"))
    start = time.monotonic()
    assert client.get(BLOB).content == DATA
    assert time.monotonic() - start >= 0.2


def test_a_stalled_answer_shows_its_first_bytes(
    embedded_registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    embedded_registry.faults.add(Fault(Stall(1000, 60), path="/blobs/"))
    client.timeout = httpx.Timeout(2.0)
    assert partial(client, BLOB) == (DATA[:1000], False)


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
