"""Pushing, pulling and deleting manifests."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from mirror.oci import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from mirror.serve import Store, put_blob
from tests.support.sample_images import CONFIG, LAYER, codes, descriptor, fill, image, index

MANIFESTS = "/v2/a/b/manifests"


def put(
    client: httpx.Client, reference: object, raw: bytes, media_type: str = OCI_MANIFEST
) -> httpx.Response:
    headers = {"Content-Type": media_type}
    return client.put(f"{MANIFESTS}/{reference}", content=raw, headers=headers)


@pytest.fixture
def blobs(storage: Store) -> None:
    put_blob(storage, "a/b", CONFIG)
    put_blob(storage, "a/b", LAYER)


@pytest.mark.usefixtures("blobs")
def test_a_manifest_comes_back_byte_for_byte_by_tag_and_digest(client: httpx.Client) -> None:
    raw = image() + b"\n "  # serialising it anew would lose these
    answer = put(client, "v1", raw)
    digest = str(Digest.of(raw))
    assert answer.status_code == 201
    assert answer.headers["Docker-Content-Digest"] == digest
    for url in (f"{MANIFESTS}/v1", f"{MANIFESTS}/{digest}", answer.headers["Location"]):
        got = client.get(url)
        assert got.content == raw
        assert got.headers["Content-Type"] == OCI_MANIFEST
        assert got.headers["Docker-Content-Digest"] == digest
        head = client.head(url)
        assert head.headers["Content-Length"] == str(len(raw))
        assert head.headers["Docker-Content-Digest"] == digest


@pytest.mark.usefixtures("blobs")
def test_who_knows_what_a_tag_names_is_told_that_nothing_changed(client: httpx.Client) -> None:
    digest = str(Digest.of(image()))
    put(client, "v1", image())
    for known in (f'"{digest}"', digest, f'"x", W/"{digest}"'):
        for method in ("GET", "HEAD"):
            answer = client.request(method, f"{MANIFESTS}/v1", headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["ETag"] == f'"{digest}"'
    answer = client.head(f"{MANIFESTS}/v1", headers={"If-None-Match": f'"{Digest.of(b"x")}"'})
    assert answer.status_code == 200
    assert client.head(f"{MANIFESTS}/v2", headers={"If-None-Match": digest}).status_code == 404


@pytest.mark.usefixtures("blobs")
def test_docker_manifests_keep_their_media_type(client: httpx.Client) -> None:
    raw = image(mediaType=DOCKER_MANIFEST)
    assert put(client, "v1", raw, DOCKER_MANIFEST).status_code == 201
    assert client.get(f"{MANIFESTS}/v1").headers["Content-Type"] == DOCKER_MANIFEST


@pytest.mark.usefixtures("blobs")
def test_a_manifest_is_pushed_by_digest_only_if_it_is_that_one(client: httpx.Client) -> None:
    raw = image()
    answer = put(client, Digest.of(b"other"), raw)
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])
    assert put(client, Digest.of(raw), raw).status_code == 201
    sha512 = f"sha512:{hashlib.sha512(raw).hexdigest()}"
    assert put(client, sha512, raw).status_code == 201
    assert client.get(f"{MANIFESTS}/{sha512}").content == raw


def test_a_manifest_without_its_blobs_is_refused(client: httpx.Client, storage: Store) -> None:
    put_blob(storage, "a/b", CONFIG)
    put_blob(storage, "elsewhere", LAYER)
    answer = put(client, "v1", image())
    assert (answer.status_code, codes(answer)) == (400, ["MANIFEST_BLOB_UNKNOWN"])
    assert str(Digest.of(LAYER)) in answer.json()["errors"][0]["message"]
    assert client.get(f"{MANIFESTS}/v1").status_code == 404
    put_blob(storage, "a/b", LAYER)
    assert put(client, "v1", image()).status_code == 201


def test_layers_that_live_elsewhere_need_not_be_here(client: httpx.Client, storage: Store) -> None:
    put_blob(storage, "a/b", CONFIG)
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layer = descriptor(kind, b"far away", urls=["https://registry.example.com/layer"])
    raw = json.loads(image(layers=()))
    raw["layers"] = [layer]
    assert put(client, "v1", json.dumps(raw).encode()).status_code == 201


@pytest.mark.usefixtures("blobs")
def test_an_index_needs_its_children(client: httpx.Client) -> None:
    first, second = image(), image(layers=())
    raw = index(first, second)
    put(client, Digest.of(first), first)
    answer = put(client, "all", raw, OCI_INDEX)
    assert (answer.status_code, codes(answer)) == (400, ["MANIFEST_UNKNOWN"])
    put(client, Digest.of(second), second)
    assert put(client, "all", raw, OCI_INDEX).status_code == 201


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b'{"schemaVersion":1}',
        b'{"schemaVersion":2,"mediaType":"application/vnd.example+json"}',
        image(config=CONFIG).replace(b"sha256:", b"sha256:../"),
    ],
)
def test_what_is_no_manifest_is_refused(client: httpx.Client, raw: bytes) -> None:
    answer = put(client, "v1", raw)
    assert (answer.status_code, codes(answer)) == (400, ["MANIFEST_INVALID"])


@pytest.mark.usefixtures("blobs")
def test_a_content_type_that_contradicts_the_document_is_refused(client: httpx.Client) -> None:
    answer = put(client, "v1", image(), OCI_INDEX)
    assert (answer.status_code, codes(answer)) == (400, ["MANIFEST_INVALID"])


def test_a_manifest_of_more_than_4_mib_is_refused(client: httpx.Client) -> None:
    answer = put(client, "v1", b" " * (4 << 20) + b"{}")
    assert (answer.status_code, codes(answer)) == (413, ["SIZE_INVALID"])


@pytest.mark.parametrize("tag", ["-v1", "a" * 129, "ä", "v1+x"])
def test_what_is_no_tag_is_refused_on_push_and_unknown_on_pull(
    client: httpx.Client, tag: str
) -> None:
    assert codes(put(client, tag, image())) == ["MANIFEST_INVALID"]
    answer = client.get(f"{MANIFESTS}/{tag}")
    assert (answer.status_code, codes(answer)) == (404, ["MANIFEST_UNKNOWN"])


@pytest.mark.parametrize("name", ["A", "a//b", "a/../../etc", "..", "a/-b", "%2e%2e/x", "_tags/x"])
def test_what_is_no_repository_is_refused(client: httpx.Client, name: str) -> None:
    request = client.build_request("GET", f"{client.base_url}")
    request.url = httpx.URL(
        scheme="http",
        host=request.url.host,
        port=request.url.port,
        raw_path=f"/v2/{name}/manifests/v1".encode(),
    )
    answer = client.send(request)
    assert answer.status_code in (400, 404)
    assert codes(answer)[0] in ("NAME_INVALID", "NAME_UNKNOWN")


def test_a_tag_moves_and_its_old_manifest_stays(client: httpx.Client, storage: Store) -> None:
    old, new = fill(storage, tag="v1"), fill(storage, tag="v1", annotations={"a": "b"})
    assert client.get(f"{MANIFESTS}/v1").content == new.raw
    assert client.get(f"{MANIFESTS}/{old.digest}").content == old.raw


def test_deleting_a_tag_leaves_the_manifest(client: httpx.Client, storage: Store) -> None:
    manifest = fill(storage)
    assert client.delete(f"{MANIFESTS}/v1").status_code == 202
    assert client.get(f"{MANIFESTS}/v1").status_code == 404
    assert client.get(f"{MANIFESTS}/{manifest.digest}").status_code == 200
    assert codes(client.delete(f"{MANIFESTS}/v1")) == ["MANIFEST_UNKNOWN"]


def test_deleting_a_manifest_takes_its_tags_along(client: httpx.Client, storage: Store) -> None:
    manifest = fill(storage, tag="v1")
    fill(storage, tag="v2")
    other = fill(storage, tag="v3", annotations={"a": "b"})
    assert client.delete(f"{MANIFESTS}/{manifest.digest}").status_code == 202
    for reference in ("v1", "v2", manifest.digest):
        assert client.get(f"{MANIFESTS}/{reference}").status_code == 404
    assert client.get(f"{MANIFESTS}/v3").content == other.raw
    assert client.delete(f"{MANIFESTS}/{manifest.digest}").status_code == 404


@pytest.mark.usefixtures("blobs")
def test_a_referrer_may_come_before_its_subject(client: httpx.Client) -> None:
    subject = image()
    signature = image(layers=(), subject=descriptor(OCI_MANIFEST, subject))
    answer = put(client, Digest.of(signature), signature)
    assert answer.status_code == 201
    assert answer.headers["OCI-Subject"] == str(Digest.of(subject))
    assert "OCI-Subject" not in put(client, "v1", subject).headers
