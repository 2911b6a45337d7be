"""A proxy before a registry adds its faults and nothing else."""

from __future__ import annotations

import ssl

import httpx
import pytest

from mirror.oci import Digest
from mirror.serve import MemoryStorage, put_blob
from mirror.testing import EmbeddedRegistry, FaultyProxy
from mirror.testing.plugin import MakeEmbeddedRegistry, MakeFaultyProxy
from tests.support.processes import free_port
from tests.support.program import call_mirror
from tests.support.real_registry import RealRegistry
from tests.support.release_source import TINY, serve
from tests.support.tls import Authority


def test_a_whole_journey_passes_a_proxy_before_a_real_registry(
    embedded_registry: EmbeddedRegistry,
    real_registry: RealRegistry,
    make_faulty_proxy: MakeFaultyProxy,
    tmp_path: object,
) -> None:
    source = serve(TINY, embedded_registry)
    bundle = f"{tmp_path}/bundle"
    from_proxy = make_faulty_proxy(embedded_registry.url)
    root = source.root.replace(embedded_registry.address, from_proxy.address)
    call_mirror("pull", bundle, "--source", root, "--insecure").succeeded()
    target = make_faulty_proxy(real_registry.url)
    call_mirror("push", bundle, f"{target.address}/dkp", "--insecure").succeeded()
    against = ("verify", bundle, "--against", f"{real_registry.address}/dkp", "--deep")
    call_mirror(*against, "--insecure").succeeded()
    assert target.requests.count("PUT", "/manifests/", 201) > 10


def test_a_proxy_speaks_tls_on_both_sides(
    make_embedded_registry: MakeEmbeddedRegistry,
    make_faulty_proxy: MakeFaultyProxy,
    authority: Authority,
) -> None:
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    storage = MemoryStorage()
    digest = put_blob(storage, "a", b"content")
    upstream = make_embedded_registry(storage, tls=authority.issue())
    proxy = make_faulty_proxy(upstream.url, trust=trust, tls=authority.issue())
    assert proxy.url.startswith("https://")
    with httpx.Client(base_url=proxy.url, verify=trust) as client:
        assert client.get(f"/v2/a/blobs/{digest}").content == b"content"


def test_bodies_of_unknown_length_pass_in_both_directions(
    embedded_registry: EmbeddedRegistry, make_faulty_proxy: MakeFaultyProxy
) -> None:
    proxy = make_faulty_proxy(embedded_registry.url)
    data = bytes(range(256)) * 4000
    pieces = (data[at : at + 10_000] for at in range(0, len(data), 10_000))
    with httpx.Client(base_url=proxy.url) as client:
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        assert client.patch(location, content=pieces).status_code == 202
        digest = Digest.of(data)
        assert client.put(location, params={"digest": str(digest)}).status_code == 201
        assert client.get(f"/v2/a/blobs/{digest}").content == data
        head = client.head(f"/v2/a/blobs/{digest}")
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(data)))


def test_a_registry_that_is_away_is_a_bad_gateway(make_faulty_proxy: MakeFaultyProxy) -> None:
    proxy = make_faulty_proxy(f"http://127.0.0.1:{free_port()}")
    answer = httpx.get(f"{proxy.url}/v2/")
    assert answer.status_code == 502
    assert "the registry behind this proxy does not answer" in answer.text


@pytest.mark.parametrize("upstream", ["registry:5000", "ftp://registry", "http://"])
def test_a_proxy_wants_the_url_of_a_server(upstream: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port or https://host:port"):
        FaultyProxy(upstream)
