"""Whatever a registry answers, what leaves the client is one of our errors, and soon."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Generator

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
