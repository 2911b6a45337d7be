"""Pulling and deleting blobs."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci import Digest
from mirror.serve import Store, put_blob
from mirror.serve.app import requested_range
from mirror.serve.call import RefusedError
from mirror.testing import EmbeddedRegistry
from tests.support.sample_images import codes

DATA = bytes(range(256)) * 10_000  # several chunks
DIGEST = Digest.of(DATA)
URL = f"/v2/a/b/blobs/{DIGEST}"


@pytest.fixture(autouse=True)
def _held(storage: Store) -> None:
    put_blob(storage, "a/b", DATA)


def test_a_blob_is_served_whole_with_its_digest(client: httpx.Client) -> None:
    answer = client.get(URL)
    assert answer.content == DATA
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
    assert answer.headers["Content-Length"] == str(len(DATA))


def test_a_head_tells_size_and_sends_nothing(
    client: httpx.Client, registry: EmbeddedRegistry
) -> None:
    answer = client.head(URL)
    assert answer.status_code == 200
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert registry.requests.sent() == 0


def test_an_empty_blob_is_a_blob(client: httpx.Client, storage: Store) -> None:
    digest = put_blob(storage, "a/b", b"")
    assert client.get(f"/v2/a/b/blobs/{digest}").content == b""
    assert client.head(f"/v2/a/b/blobs/{digest}").headers["Content-Length"] == "0"


@pytest.mark.parametrize(
    ("header", "expected", "span"),
    [
        ("bytes=0-0", DATA[:1], f"0-0/{len(DATA)}"),
        ("bytes=5-9", DATA[5:10], f"5-9/{len(DATA)}"),
        (f"bytes={len(DATA) - 3}-", DATA[-3:], f"{len(DATA) - 3}-{len(DATA) - 1}/{len(DATA)}"),
        ("bytes=-7", DATA[-7:], f"{len(DATA) - 7}-{len(DATA) - 1}/{len(DATA)}"),
        ("bytes=10-99999999", DATA[10:], f"10-{len(DATA) - 1}/{len(DATA)}"),
    ],
)
def test_a_range_is_served_as_asked(
    client: httpx.Client, header: str, expected: bytes, span: str
) -> None:
    answer = client.get(URL, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == expected
    assert answer.headers["Content-Range"] == f"bytes {span}"
    assert answer.headers["Content-Length"] == str(len(expected))


def test_a_range_beyond_the_end_is_refused_with_the_size(client: httpx.Client) -> None:
    answer = client.get(URL, headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=", "x"])
def test_a_range_that_makes_no_sense_is_ignored(client: httpx.Client, header: str) -> None:
    answer = client.get(URL, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, DATA)


def test_a_range_of_another_state_is_answered_with_all_of_this_one(client: httpx.Client) -> None:
    headers = {"Range": "bytes=5-9", "If-Range": '"something else"'}
    assert client.get(URL, headers=headers).status_code == 200
    headers["If-Range"] = client.head(URL).headers["ETag"]
    assert client.get(URL, headers=headers).status_code == 206


def test_blobs_of_one_repository_are_not_visible_in_another(client: httpx.Client) -> None:
    for method in ("GET", "HEAD", "DELETE"):
        assert client.request(method, f"/v2/a/c/blobs/{DIGEST}").status_code == 404
    assert codes(client.get(f"/v2/a/c/blobs/{DIGEST}")) == ["BLOB_UNKNOWN"]


def test_a_deleted_blob_is_gone_here_and_stays_elsewhere(
    client: httpx.Client, storage: Store
) -> None:
    assert storage.mount_blob("a/b", "a/c", DIGEST)
    assert client.delete(URL).status_code == 202
    assert client.get(URL).status_code == 404
    assert client.delete(URL).status_code == 404
    assert client.get(f"/v2/a/c/blobs/{DIGEST}").content == DATA


@pytest.mark.parametrize(
    "digest", ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "nonsense", "..", "sha256:.."]
)
def test_what_is_no_digest_is_refused(client: httpx.Client, digest: str) -> None:
    answer = client.get(f"/v2/a/b/blobs/{digest}")
    assert answer.status_code in (400, 404)
    assert codes(answer)[0] in ("DIGEST_INVALID", "NAME_UNKNOWN")


@given(size=st.integers(0, 50), first=st.integers(0, 60), last=st.integers(0, 60))
def test_a_range_lies_inside_or_is_refused(size: int, first: int, last: int) -> None:
    data = bytes(size)
    header = f"bytes={first}-{last}"
    if first >= size and first <= last:
        with pytest.raises(RefusedError, match=f"the blob has {size} bytes"):
            requested_range(header, size)
        return
    span = requested_range(header, size)
    if span is None:
        assert last < first
    else:
        assert len(data[span[0] : span[1] + 1]) == span[1] - span[0] + 1 > 0
