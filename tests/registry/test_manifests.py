"""Manifests come and go byte for byte, and nothing is believed that can be checked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mirror.errors import (
    DeniedError,
    DigestMismatchError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import MANIFESTS, MAX_MANIFEST_BYTES, OCI_MANIFEST
from mirror.registry import RegistryClient
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import error, times
from tests.support.sample_images import image
from tests.support.scripted_server import Hangup, Reply, Request, Script, ScriptedServer

RAW = json.dumps(json.loads(image((), b"{}")), indent=3).encode()
MANIFEST = Manifest.parse(RAW)
TOLD = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(MANIFEST.digest)}
Connect = Callable[[Script], tuple[RegistryClient, ScriptedServer]]


@pytest.fixture
def connect(serve: Serve, make_client: MakeClient) -> Connect:
    """A client of a scripted server, and that server."""

    def connected(script: Script) -> tuple[RegistryClient, ScriptedServer]:
        server = serve(script)
        return make_client(server.host), server

    return connected


def good(request: Request) -> Reply:
    return Reply(200, dict(TOLD), RAW)


def test_a_manifest_keeps_its_exact_bytes(connect: Connect) -> None:
    client, server = connect(good)
    assert client.manifest("a/b", "v1").raw == RAW
    assert client.manifest("a/b", MANIFEST.digest).digest == MANIFEST.digest
    assert client.manifest("a/b", str(MANIFEST.digest)).digest == MANIFEST.digest
    assert server.lines() == [
        "GET /v2/a/b/manifests/v1",
        *[f"GET /v2/a/b/manifests/{MANIFEST.digest}"] * 2,
    ]
    for media_type in MANIFESTS:
        assert media_type in server.log[0].headers["accept"]


def test_other_bytes_than_the_digest_says_are_refused_and_not_asked_for_again(
    connect: Connect,
) -> None:
    client, server = connect(lambda r: Reply(200, dict(TOLD), RAW + b" "))
    for reference in ("v1", MANIFEST.digest):
        with pytest.raises(DigestMismatchError, match="this copy is damaged"):
            client.manifest("a", reference)
    assert len(server.log) == 2


def test_a_tag_without_a_told_digest_is_taken_as_it_comes(connect: Connect) -> None:
    client, _ = connect(lambda r: Reply(200, {"Docker-Content-Digest": "md5:1"}, RAW))
    assert client.manifest("a", "v1").digest == MANIFEST.digest


def test_a_manifest_by_sha512_is_checked_by_it(connect: Connect) -> None:
    client, _ = connect(good)
    digest = Digest.of(RAW, "sha512")
    assert client.manifest("a", digest).digest == digest


def test_a_manifest_that_arrives_cut_is_asked_for_again(
    connect: Connect, waits: list[float]
) -> None:
    fault = times(2, lambda r: True, lambda r: Reply(200, dict(TOLD), RAW, cut=20))
    client, _ = connect(lambda r: fault(r) or good(r))
    assert client.manifest("a", "v1").raw == RAW
    assert waits == [1, 2]


def test_an_endless_manifest_is_not_read_to_its_end(connect: Connect) -> None:
    def endless(request: Request) -> Reply:
        return Reply(200, body=(bytes(65_536) for _ in range(10_000)), length=65_536 * 10_000)

    client, _ = connect(endless)
    with pytest.raises(RegistryError, match="is larger than"):
        client.manifest("a", "v1")
    client, _ = connect(lambda r: Reply(body=b" " * (MAX_MANIFEST_BYTES + 1)))
    with pytest.raises(InvalidManifestError, match="more than any manifest may be"):
        client.manifest("a", "v1")


def test_a_missing_manifest_says_what_is_missing(connect: Connect) -> None:
    client, server = connect(lambda r: error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryNotFoundError, match=r"/a:v9: no such manifest") as caught:
        client.manifest("a", "v9")
    assert caught.value.codes == ("MANIFEST_UNKNOWN",)
    assert caught.value.where == f"GET {server.host}/v2/a/manifests/v9"
    client, _ = connect(lambda r: error(404, "NAME_UNKNOWN"))
    with pytest.raises(RegistryNotFoundError, match=r"no such repository"):
        client.manifest("a", "v9")


@pytest.mark.parametrize("reference", ["", "a/b", "../x", "-", "v1?x", "sha256:1"])
def test_a_reference_that_is_none_reaches_no_registry(connect: Connect, reference: str) -> None:
    client, server = connect(good)
    with pytest.raises((InvalidReferenceError, InvalidDigestError)):
        client.manifest("a", reference)
    with pytest.raises(InvalidReferenceError):
        client.manifest("../" + reference, "v1")
    assert server.log == []


def test_what_a_tag_names_is_told_by_head_alone(connect: Connect) -> None:
    client, server = connect(good)
    expected = Descriptor(OCI_MANIFEST, MANIFEST.digest, len(RAW))
    assert client.resolve("a", "v1") == expected
    assert client.resolve("a", MANIFEST.digest) == expected
    assert {r.method for r in server.log} == {"HEAD"}


def test_what_a_tag_named_before_is_asked_about_on_condition(connect: Connect) -> None:
    held = MANIFEST.descriptor
    client, server = connect(lambda _: Reply(304))
    assert client.resolve("a", "v1", known=held) == held
    assert [r.headers["if-none-match"] for r in server.log] == [f'"{held.digest}"']
    with pytest.raises(RegistryError, match="304"):  # to a question without a condition
        client.resolve("a", "v1")
    client, server = connect(good)
    other = Descriptor(OCI_MANIFEST, Digest.of(b"another"), 7)
    assert client.resolve("a", "v1", known=other) == held
    client, server = connect(lambda _: error(404, "MANIFEST_UNKNOWN"))
    assert client.resolve("a", "v1", known=held) is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(405),
        Reply(403),
        Reply(400),
        Reply(200, {"Content-Type": OCI_MANIFEST}, RAW),
        Reply(200, {**TOLD, "Content-Type": "text/html"}, RAW),
        Reply(200, {**TOLD, "Docker-Content-Digest": "x"}, RAW),
        Reply(200, {**TOLD, "Docker-Content-Digest": str(Digest.of(b"other"))}, RAW),
    ],
)
def test_what_head_does_not_tell_is_fetched(connect: Connect, reply: Reply) -> None:
    client, server = connect(lambda r: reply if r.method == "HEAD" else good(r))
    assert client.resolve("a", MANIFEST.digest) == MANIFEST.descriptor
    assert [r.method for r in server.log] == ["HEAD", "GET"]


def test_nothing_is_named_only_by_a_true_404(connect: Connect, waits: list[float]) -> None:
    client, _ = connect(lambda r: error(404, "MANIFEST_UNKNOWN"))
    assert client.resolve("a", "v1") is None
    client, _ = connect(lambda r: Reply(405) if r.method == "HEAD" else Reply(404))
    assert client.resolve("a", "v1") is None
    client, _ = connect(lambda r: Reply(403))
    with pytest.raises(DeniedError, match="denies this"):
        client.resolve("a", "v1")
    client, server = connect(lambda r: Reply(429))
    with pytest.raises(UnreachableError, match="rate limiting"):
        client.resolve("a", "v1")
    assert {r.method for r in server.log} == {"HEAD"}

    def hang_up(request: Request) -> Reply:
        raise Hangup

    client, server = connect(hang_up)
    with pytest.raises(UnreachableError):
        client.resolve("a", "v1")
    assert {r.method for r in server.log} == {"HEAD"}


def test_a_manifest_is_put_with_its_media_type_and_bytes(connect: Connect) -> None:
    got: list[tuple[str, bytes]] = []

    def take(request: Request) -> Reply:
        got.append((request.headers["content-type"], request.body))
        return Reply(201, dict(TOLD))

    client, server = connect(take)
    client.put_manifest("a", "v1", MANIFEST)
    client.put_manifest("a", MANIFEST.digest, MANIFEST)
    assert got == [(OCI_MANIFEST, RAW)] * 2
    assert server.lines()[1] == f"PUT /v2/a/manifests/{MANIFEST.digest}"


def test_a_registry_that_stored_other_bytes_is_found_out(connect: Connect) -> None:
    other = Digest.of(b"other")
    client, _ = connect(lambda r: Reply(201, {"Docker-Content-Digest": str(other)}))
    with pytest.raises(DigestMismatchError) as caught:
        client.put_manifest("a", "v1", MANIFEST)
    assert (caught.value.expected, caught.value.actual) == (MANIFEST.digest, other)
    client, _ = connect(
        lambda r: Reply(201, {"Docker-Content-Digest": str(Digest.of(RAW, "sha512"))})
    )
    client.put_manifest("a", "v1", MANIFEST)  # another algorithm contradicts nothing


def test_a_manifest_under_a_foreign_digest_is_the_callers_mistake(connect: Connect) -> None:
    client, server = connect(good)
    with pytest.raises(ValueError, match="cannot be put under"):
        client.put_manifest("a", Digest.of(b"x"), MANIFEST)
    assert server.log == []


def test_a_manifest_whose_blobs_are_missing_keeps_the_registrys_code(connect: Connect) -> None:
    client, server = connect(lambda r: error(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown"))
    with pytest.raises(RegistryError) as caught:
        client.put_manifest("a", "v1", MANIFEST)
    assert caught.value.codes == ("MANIFEST_BLOB_UNKNOWN",)
    assert len(server.log) == 1


def test_put_is_sent_again_after_a_broken_connection(connect: Connect) -> None:
    bodies: list[bytes] = []

    def take(request: Request) -> Reply:
        bodies.append(request.body)
        if len(bodies) == 1:
            raise Hangup
        return Reply(201)

    client, _ = connect(take)
    client.put_manifest("a", "v1", MANIFEST)
    assert bodies == [RAW, RAW]


def test_deletes_go_where_they_should(connect: Connect) -> None:
    client, server = connect(lambda r: Reply(202))
    client.delete_manifest("a", MANIFEST.digest)
    client.delete_tag("a", "v1")
    client.delete_blob("a", MANIFEST.digest)
    assert server.lines() == [
        f"DELETE /v2/a/manifests/{MANIFEST.digest}",
        "DELETE /v2/a/manifests/v1",
        f"DELETE /v2/a/blobs/{MANIFEST.digest}",
    ]


def test_a_registry_that_deletes_nothing_is_told_so(connect: Connect) -> None:
    client, _ = connect(lambda r: error(405, "UNSUPPORTED"))
    with pytest.raises(RegistryError, match=r"storage\.delete\.enabled"):
        client.delete_manifest("a", MANIFEST.digest)
    with pytest.raises(RegistryError, match="does not delete tags"):
        client.delete_tag("a", "v1")
    client, _ = connect(lambda r: error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryNotFoundError):
        client.delete_manifest("a", MANIFEST.digest)


PORTAL = Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<!doctype html><h1>Log in</h1>")


def test_a_page_of_a_portal_is_no_answer_of_a_registry(connect: Connect) -> None:
    client, server = connect(lambda r: (r.body, PORTAL)[1])
    blob = Digest.of(b"{}")
    requests: list[Callable[[], object]] = [
        client.ping,
        lambda: client.manifest("a", "v1"),
        lambda: client.manifest("a", MANIFEST.digest),
        lambda: client.resolve("a", "v1"),
        lambda: client.put_manifest("a", "v1", MANIFEST),
        lambda: client.delete_tag("a", "v1"),
        lambda: client.delete_manifest("a", MANIFEST.digest),
        lambda: client.delete_blob("a", blob),
        lambda: client.tags("a"),
        lambda: list(client.catalogue()),
        lambda: client.blob_size("a", blob),
        lambda: b"".join(client.blob("a", blob, size=2)),
        lambda: client.open_upload("a"),
        lambda: client.mount("a", blob, "b"),
        lambda: client.upload("a", blob, 2, lambda _offset: (one for one in [b"{}"])),
    ]
    for request in requests:
        with pytest.raises(UnreachableError, match="a web page came in the place of"):
            request()
    assert len(server.log) <= len(requests) + 1  # none of them was asked again, and one by GET


@pytest.mark.parametrize("status", [200, 204, 206])
def test_another_status_than_the_specifications_is_believed_if_the_manifest_is_there(
    status: int, connect: Connect
) -> None:
    held: list[bytes] = []

    def script(request: Request) -> Reply:
        if request.method == "PUT":
            held.append(request.body)
            return Reply(status)
        return good(request) if held and status != 204 else error(404, "MANIFEST_UNKNOWN")

    client, server = connect(script)
    if status == 200:
        client.put_manifest("a", "v1", MANIFEST)
        assert [r.method for r in server.log] == ["PUT", "HEAD"]
        return
    with pytest.raises(RegistryError, match=f"HTTP {status} where the specification has another"):
        client.put_manifest("a", "v1", MANIFEST)


def test_a_deletion_with_another_status_is_believed_if_the_manifest_is_gone(
    connect: Connect,
) -> None:
    gone = False

    def script(request: Request) -> Reply:
        if request.method == "DELETE":
            return Reply(204)
        return error(404, "MANIFEST_UNKNOWN") if gone else good(request)

    client, _ = connect(script)
    with pytest.raises(RegistryError, match="HTTP 204 where the specification has another"):
        client.delete_manifest("a", MANIFEST.digest)
    gone = True
    client.delete_manifest("a", MANIFEST.digest)
