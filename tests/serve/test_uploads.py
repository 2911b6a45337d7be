"""Pushing blobs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mirror.oci import Digest
from mirror.serve import Store, put_blob
from mirror.serve.call import RefusedError
from mirror.serve.uploads import Uploads
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.sample_images import codes

DATA = b"0123456789" * 200_000
DIGEST = Digest.of(DATA)
UPLOADS = "/v2/a/b/blobs/uploads/"


def stored(client: httpx.Client, digest: Digest = DIGEST, repository: str = "a/b") -> bytes | None:
    answer = client.get(f"/v2/{repository}/blobs/{digest}")
    return answer.content if answer.status_code == 200 else None


def begun(client: httpx.Client) -> str:
    answer = client.post(UPLOADS)
    assert answer.status_code == 202
    return str(answer.headers["Location"])


def patched(client: httpx.Client, location: str, data: bytes, start: int) -> httpx.Response:
    span = f"{start}-{start + len(data) - 1}"
    return client.patch(location, content=data, headers={"Content-Range": span})


def test_a_blob_is_pushed_in_one_request(client: httpx.Client) -> None:
    answer = client.post(UPLOADS, params={"digest": str(DIGEST)}, content=DATA)
    assert answer.status_code == 201
    assert client.get(answer.headers["Location"]).content == DATA


def test_a_blob_is_pushed_in_two_requests(client: httpx.Client) -> None:
    answer = client.put(begun(client), params={"digest": str(DIGEST)}, content=DATA)
    assert answer.status_code == 201
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
    assert stored(client) == DATA


def test_a_blob_is_pushed_as_a_stream_of_unknown_length(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield DATA[:5]
        yield DATA[5:]

    location = begun(client)
    assert client.patch(location, content=chunks()).status_code == 202
    assert client.put(location, params={"digest": str(DIGEST)}).status_code == 201
    assert stored(client) == DATA


def test_a_blob_is_pushed_in_chunks_the_last_one_with_the_digest(client: httpx.Client) -> None:
    location = begun(client)
    for start in (0, 700_000):
        answer = patched(client, location, DATA[start : start + 700_000], start)
        assert answer.status_code == 202
        assert answer.headers["Range"] == f"0-{start + 699_999}"
    status = client.get(location)
    assert (status.status_code, status.headers["Range"]) == (204, "0-1399999")
    answer = client.put(
        location,
        params={"digest": str(DIGEST)},
        content=DATA[1_400_000:],
        headers={"Content-Range": f"1400000-{len(DATA) - 1}"},
    )
    assert answer.status_code == 201
    assert stored(client) == DATA


@pytest.mark.parametrize("start", [0, 5, 20])
def test_a_chunk_out_of_order_is_refused_and_told_where_to_go_on(
    client: httpx.Client, start: int
) -> None:
    location = begun(client)
    patched(client, location, DATA[:10], 0)
    answer = patched(client, location, DATA[start : start + 10], start)
    assert answer.status_code == 416
    assert answer.headers["Range"] == "0-9"
    assert patched(client, answer.headers["Location"], DATA[10:], 10).status_code == 202
    assert client.put(location, params={"digest": str(DIGEST)}).status_code == 201


def test_a_range_that_is_not_the_bodys_length_is_refused(client: httpx.Client) -> None:
    location = begun(client)
    answer = client.patch(location, content=b"123", headers={"Content-Range": "0-9"})
    assert (answer.status_code, codes(answer)) == (400, ["SIZE_INVALID"])
    answer = client.patch(location, content=b"123", headers={"Content-Range": "all"})
    assert (answer.status_code, codes(answer)) == (400, ["BLOB_UPLOAD_INVALID"])


@pytest.mark.parametrize("sessions", [False, True])
def test_wrong_bytes_are_never_kept(client: httpx.Client, storage: Store, sessions: bool) -> None:
    params = {"digest": str(DIGEST)}
    if sessions:
        answer = client.put(begun(client), params=params, content=DATA[:-1] + b"x")
    else:
        answer = client.post(UPLOADS, params=params, content=DATA[:-1] + b"x")
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])
    assert str(DIGEST) in answer.json()["errors"][0]["message"]
    assert stored(client) is None
    assert storage.blob_size("a/b", DIGEST) is None


def test_a_digest_must_be_given_in_the_end(client: httpx.Client) -> None:
    assert codes(client.put(begun(client), content=DATA)) == ["DIGEST_INVALID"]
    assert codes(client.put(begun(client), params={"digest": "x"})) == ["DIGEST_INVALID"]


@pytest.mark.parametrize("announced", [False, True])
def test_sha512_is_as_good_as_sha256(client: httpx.Client, announced: bool) -> None:
    digest = Digest.parse(f"sha512:{hashlib.sha512(DATA).hexdigest()}")
    params = {"digest-algorithm": "sha512"} if announced else {}
    location = client.post(UPLOADS, params=params).headers["Location"]
    wrong = client.put(location, params={"digest": str(digest)}, content=b"wrong")
    assert codes(wrong) == ["DIGEST_INVALID"]
    location = client.post(UPLOADS, params=params).headers["Location"]
    assert client.put(location, params={"digest": str(digest)}, content=DATA).status_code == 201
    assert stored(client, digest) == DATA


def test_a_finished_or_cancelled_or_foreign_upload_is_unknown(client: httpx.Client) -> None:
    cancelled, finished = begun(client), begun(client)
    assert client.delete(cancelled).status_code == 204
    client.put(finished, params={"digest": str(DIGEST)}, content=DATA)
    foreign = begun(client).replace("/a/b/", "/a/c/")
    for location in (cancelled, finished, foreign):
        for method in ("GET", "PATCH", "DELETE"):
            answer = client.request(method, location)
            assert (answer.status_code, codes(answer)) == (404, ["BLOB_UPLOAD_UNKNOWN"])
        answer = client.put(location, params={"digest": str(DIGEST)})
        assert codes(answer) == ["BLOB_UPLOAD_UNKNOWN"]


def test_a_blob_is_mounted_from_where_it_is(
    client: httpx.Client, storage: Store, registry: EmbeddedRegistry
) -> None:
    put_blob(storage, "x", DATA)
    answer = client.post(UPLOADS, params={"mount": str(DIGEST), "from": "x"})
    assert answer.status_code == 201
    assert client.get(answer.headers["Location"]).content == DATA
    assert registry.requests.received() == 0


@pytest.mark.parametrize("source", ["nowhere", "../x", ""])
def test_a_mount_that_cannot_be_becomes_an_upload(client: httpx.Client, source: str) -> None:
    answer = client.post(UPLOADS, params={"mount": str(DIGEST), "from": source})
    assert answer.status_code == 202
    answer = client.put(answer.headers["Location"], params={"digest": str(DIGEST)}, content=DATA)
    assert answer.status_code == 201


def test_many_clients_push_at_once_even_the_same_blob(
    registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    bodies = [bytes([number % 5]) * 300_000 for number in range(20)]

    def push(data: bytes) -> int:
        with httpx.Client(base_url=registry.url, timeout=30) as own:
            location = begun(own)
            patched(own, location, data[:100_000], 0)
            params = {"digest": str(Digest.of(data))}
            return own.put(location, params=params, content=data[100_000:]).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(push, bodies)) == {201}
    for data in bodies:
        assert stored(client, Digest.of(data)) == data


def test_two_requests_to_one_upload_take_turns(
    registry: EmbeddedRegistry, client: httpx.Client
) -> None:
    location = begun(client)
    first_half_sent, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield DATA[:10]
        first_half_sent.set()
        go_on.wait(10)
        yield DATA[10:20]

    def send(**what: Any) -> int:
        return httpx.patch(registry.url + location, timeout=20, **what).status_code

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, content=slowly())
        first_half_sent.wait(10)
        second = pool.submit(send, content=DATA[20:])
        go_on.set()
        assert (first.result(), second.result()) == (202, 202)
    assert client.put(location, params={"digest": str(DIGEST)}).status_code == 201


def test_a_registry_that_only_serves_takes_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, storage: Store
) -> None:
    put_blob(storage, "a/b", DATA)
    registry = make_embedded_registry(storage, read_only=True)
    for method, path in [
        ("POST", UPLOADS),
        ("POST", f"{UPLOADS}?mount={DIGEST}&from=a/b"),
        ("PUT", "/v2/a/b/manifests/v1"),
        ("DELETE", "/v2/a/b/manifests/v1"),
        ("DELETE", f"/v2/a/b/blobs/{DIGEST}"),
    ]:
        answer = httpx.request(method, registry.url + path)
        assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert httpx.get(f"{registry.url}/v2/a/b/blobs/{DIGEST}").content == DATA


def test_a_session_that_nobody_touches_makes_room(storage: Store) -> None:
    sessions = Uploads(idle_s=0, limit=1)
    old = sessions.open("a/b", storage.stage())
    sessions.make_room()
    new = sessions.open("a/b", storage.stage())
    with pytest.raises(RefusedError, match="no such upload"):
        sessions.find("a/b", old.id)
    assert sessions.find("a/b", new.id) is new
    sessions.discard_all()


def test_open_sessions_are_limited(storage: Store) -> None:
    sessions = Uploads(limit=1)
    sessions.open("a/b", storage.stage())
    with pytest.raises(RefusedError, match="too many uploads"):
        sessions.make_room()
    sessions.discard_all()
    sessions.make_room()
