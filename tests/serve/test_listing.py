"""Tags, catalogue and referrers."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import httpx
import pytest

from mirror.oci import Digest
from mirror.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from mirror.serve import Store, put_blob
from tests.conftest import MakeEmbeddedRegistry
from tests.support.sample_images import codes, descriptor, fill, image

TAGS = ["V1", "a", "b", "c", "v1", "v10", "v2"]  # in the order of their code points


@pytest.fixture
def tagged(storage: Store) -> None:
    for tag in reversed(TAGS):
        fill(storage, tag=tag)


def pages(client: httpx.Client, url: str, key: str) -> list[list[str]]:
    found = []
    while url:
        answer = client.get(url)
        found.append(answer.json()[key])
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("Link", ""))
        url = link[1] if link else ""
    return found


def joined(found: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(found))


@pytest.mark.usefixtures("tagged")
def test_all_tags_are_listed_in_order(client: httpx.Client) -> None:
    assert client.get("/v2/a/b/tags/list").json() == {"name": "a/b", "tags": TAGS}


@pytest.mark.usefixtures("tagged")
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_pages_joined_are_the_whole_list(client: httpx.Client, size: int) -> None:
    found = pages(client, f"/v2/a/b/tags/list?n={size}", "tags")
    assert joined(found) == TAGS
    assert all(len(page) == size for page in found[:-1])


@pytest.mark.usefixtures("tagged")
def test_a_list_goes_on_after_a_tag_that_need_not_be_there(client: httpx.Client) -> None:
    answer = client.get("/v2/a/b/tags/list", params={"last": "bb", "n": 2})
    assert answer.json()["tags"] == ["c", "v1"]
    assert client.get("/v2/a/b/tags/list", params={"n": 0}).json()["tags"] == []
    assert client.get("/v2/a/b/tags/list", params={"n": "many"}).status_code == 400
    assert client.get("/v2/a/b/tags/list", params={"n": "9" * 5000}).status_code == 400


@pytest.mark.usefixtures("tagged")
def test_a_registry_may_insist_on_small_pages(
    make_embedded_registry: MakeEmbeddedRegistry, storage: Store
) -> None:
    registry = make_embedded_registry(storage, page_limit=2)
    with httpx.Client(base_url=registry.url) as client:
        assert joined(pages(client, "/v2/a/b/tags/list?n=1000", "tags")) == TAGS
        assert len(pages(client, "/v2/a/b/tags/list", "tags")) == 4


def test_an_unknown_repository_has_no_list(client: httpx.Client, storage: Store) -> None:
    put_blob(storage, "only/blobs", b"x")
    for name in ("nothing", "only/blobs"):
        answer = client.get(f"/v2/{name}/tags/list")
        assert (answer.status_code, codes(answer)) == (404, ["NAME_UNKNOWN"])
    fill(storage, tag=None)
    assert client.get("/v2/a/b/tags/list").json() == {"name": "a/b", "tags": []}


def test_the_catalogue_lists_what_holds_manifests(client: httpx.Client, storage: Store) -> None:
    names = ["a", "a/b", "a/b/c", "b", "tags/list"]
    for name in names:
        fill(storage, name)
    put_blob(storage, "only/blobs", b"x")
    assert client.get("/v2/_catalog").json() == {"repositories": names}
    assert joined(pages(client, "/v2/_catalog?n=2", "repositories")) == names
    assert client.get("/v2/tags/list/tags/list").json()["tags"] == ["v1"]


def test_referrers_are_found_by_subject_and_filtered_by_type(
    client: httpx.Client, storage: Store
) -> None:
    subject = fill(storage)
    refers: dict[str, Any] = {"subject": descriptor(OCI_MANIFEST, subject.raw)}
    signature = fill(
        storage, tag=None, artifactType="application/x.signature", annotations={"k": "v"}, **refers
    )
    plain = fill(storage, tag=None, **refers)
    url = f"/v2/a/b/referrers/{subject.digest}"
    answer = client.get(url)
    assert answer.headers["Content-Type"] == OCI_INDEX
    entries = {entry["digest"]: entry for entry in answer.json()["manifests"]}
    assert set(entries) == {str(signature.digest), str(plain.digest)}
    assert entries[str(signature.digest)] == {
        "mediaType": OCI_MANIFEST,
        "digest": str(signature.digest),
        "size": len(signature.raw),
        "artifactType": "application/x.signature",
        "annotations": {"k": "v"},
    }
    assert entries[str(plain.digest)]["artifactType"] == OCI_CONFIG
    answer = client.get(url, params={"artifactType": "application/x.signature"})
    assert [entry["digest"] for entry in answer.json()["manifests"]] == [str(signature.digest)]
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    client.delete(f"/v2/a/b/manifests/{signature.digest}")
    assert len(client.get(url).json()["manifests"]) == 1


def test_what_nothing_refers_to_has_an_empty_index(client: httpx.Client) -> None:
    answer = client.get(f"/v2/a/b/referrers/{Digest.of(image())}")
    assert (answer.status_code, answer.json()["manifests"]) == (200, [])
    assert client.get("/v2/a/b/referrers/nonsense").status_code == 400


def test_what_the_registry_does_not_know_is_said_in_its_own_form(client: httpx.Client) -> None:
    assert codes(client.get("/nothing")) == ["NAME_UNKNOWN"]
    assert codes(client.post("/v2/_catalog")) == ["UNSUPPORTED"]
    assert client.get("/v2/").headers["Docker-Distribution-API-Version"] == "registry/2.0"
