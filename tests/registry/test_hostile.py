"""Whatever a registry answers, what leaves the client is one of our errors, and soon."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable, Generator
from functools import cache

import pytest
import zstandard

from mirror.errors import MirrorError, RegistryError, RegistryNotFoundError
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.registry.manifests import next_link
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry
from tests.support.scripted_server import Reply, Request, ScriptedServer

ADDRESSES = [
    "http://127.0.0.1:99999/t",
    "http://[::1",
    "http://127.0.0.1:abc/t",
    "http://xn--/a",
    "http://" + "a" * 300 + "/",
    "http://" + "a." * 200 + "b/",
    "http:///t",
    "gopher://x/",
    "http://a b/",
    "http://\xff/",
    "//",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_token_server_that_cannot_be(address: str, serve: Serve, make_client: MakeClient) -> None:
    server = serve(lambda r: Reply(401, {"WWW-Authenticate": f'Bearer realm="{address}"'}))
    with pytest.raises(MirrorError):
        make_client(server.host, attempts=1).tags("a")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_that_leads_nowhere(
    status: int, address: str, serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(status, {"Location": address}))
    with pytest.raises(RegistryError):
        make_client(server.host, attempts=1).tags("a")


@pytest.mark.parametrize("address", sorted({*ADDRESSES} - {"//", "http:///t"}))  # these are here
def test_an_upload_session_that_lies_nowhere(
    address: str, serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(202, {"Location": address}))
    with pytest.raises(RegistryError):
        make_client(server.host, attempts=1).upload(
            "a", Digest.of(b"x"), 1, lambda offset: (c for c in [b"x"])
        )


@pytest.mark.parametrize("header", ["<" * 60_000, "<>;" * 20_000, "<a>" + ' ;rel="x ' * 6_000])
def test_a_long_link_header_is_read_in_no_time(header: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^<"):
        next_link([header])
    assert time.process_time() - began < 1


def test_an_error_of_the_source_is_no_lost_session(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer
) -> None:
    def source(offset: int) -> Generator[bytes, None, None]:
        yield b"beginning"
        raise RegistryNotFoundError("gone at the source", where="GET source", status=404)

    with pytest.raises(RegistryNotFoundError, match="gone at the source"):
        client.upload("a", Digest.of(bytes(1000)), 1000, source)
    assert [line.partition(" ")[0] for line in fake_server.lines()] == ["POST", "PUT", "DELETE"]
    assert fake.cancelled == ["s1"]


def test_a_bug_in_the_block_of_a_caller_stays_one(serve: Serve, make_client: MakeClient) -> None:
    server = serve(lambda r: Reply(body=bytes(1000)))
    client = make_client(server.host)

    def work() -> None:
        with client._transport.open("GET", client._transport.url("/v2/")):
            client.close()
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        work()


def test_a_token_server_that_redirects_is_followed(serve: Serve, make_client: MakeClient) -> None:
    tokens = serve(
        lambda r: (
            Reply(301, {"Location": "/new?" + "&".join(f"{k}={v[0]}" for k, v in r.query.items())})
            if r.path == "/old"
            else Reply(body=b'{"token": "t"}')
        )
    )

    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer t":
            return Reply(body=b'{"tags": ["v1"]}')
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{tokens.url}/old",service="s"'})

    assert make_client(serve(registry).host).tags("a") == ["v1"]
    assert [request.path for request in tokens.log] == ["/old", "/new"]


@pytest.mark.parametrize(
    ("coding", "status", "told"),
    [
        ("gzip", 200, "larger than"),
        ("zstd", 200, r"comes encoded \(zstd\), although it was asked for as it is"),
        ("gzip, gzip", 200, r"comes encoded \(gzip, gzip\), although"),
        ("gzip", 302, "cannot be used"),
        ("zstd", 302, "cannot be used"),
    ],
)
def test_a_token_that_decompresses_without_end_is_refused(
    coding: str, status: int, told: str, serve: Serve, make_client: MakeClient
) -> None:
    size = 64 << 20
    data = zstandard.compress(bytes(size)) if coding == "zstd" else gzip.compress(bytes(size))
    if coding == "gzip, gzip":
        data = gzip.compress(data)
    tokens = serve(
        lambda request: Reply(status, {"Content-Encoding": coding, "Location": "/t"}, data)
    )
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/t",service="s"'}
    client = make_client(serve(lambda request: Reply(401, challenge)).host)
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError, match=told):
            client.ping()
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()


QUESTIONS: dict[str, Callable[[RegistryClient], object]] = {
    "a list": lambda client: client.tags("a"),
    "a manifest": lambda client: client.manifest("a", "v1"),
    "an upload": lambda client: client.upload(
        "a", Digest.of(b"x"), 1, lambda offset: (piece for piece in [b"x"])
    ),
}


@cache
def _bombs() -> dict[str, bytes]:
    size = 64 << 20
    once = gzip.compress(bytes(size))
    return {
        "gzip": once,
        "gzip, gzip": gzip.compress(once),
        "zstd": zstandard.compress(bytes(size)),
        "br": once,
    }


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "zstd", "br"])
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("what", QUESTIONS)
def test_no_answer_takes_the_memory_that_it_decompresses_to(
    what: str, status: int, coding: str, serve: Serve, make_client: MakeClient
) -> None:
    bomb = _bombs()[coding]
    status = 202 if (what, status) == ("an upload", 200) else status
    client = make_client(
        serve(lambda request: Reply(status, {"Content-Encoding": coding}, bomb)).host, attempts=1
    )
    tracemalloc.start()
    try:
        with pytest.raises(MirrorError) as caught:
            QUESTIONS[what](client)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    if coding != "gzip" and what != "an upload":
        wanted = f"comes encoded ({coding})" if status == 200 else f"a reason encoded as {coding}"
        assert wanted in str(caught.value)


def test_a_manifest_of_nothing_but_values_is_refused_before_it_is_parsed(
    serve: Serve, make_client: MakeClient
) -> None:
    raw = b'{"schemaVersion": 2, "manifests": [' + b"{}," * 1_300_000 + b"{}]}"
    client = make_client(serve(lambda request: Reply(body=raw)).host)
    tracemalloc.start()
    try:
        with pytest.raises(MirrorError, match="more values than any manifest has"):
            client.manifest("a", "v1")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_an_error_without_end_is_not_read_to_its_end(serve: Serve, make_client: MakeClient) -> None:
    def endless() -> Generator[bytes, None, None]:
        while True:
            yield bytes(1 << 16)

    client = make_client(serve(lambda request: Reply(404, body=endless())).host)
    with pytest.raises(RegistryNotFoundError):
        client.tags("a")
