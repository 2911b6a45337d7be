"""The client against CNCF distribution itself, over lines that break."""

from __future__ import annotations

import random
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from mirror.errors import DeniedError, RegistryError, RegistryNotFoundError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.registry import Credentials, RegistryClient
from tests.conftest import MakeRealRegistry
from tests.registry.conftest import MakeClient
from tests.support.lines import BreakingLine
from tests.support.real_registry import RealRegistry
from tests.support.sample_images import image
from tests.support.tls import Authority

# htpasswd -nbB alice 'correct horse'
HTPASSWD = "alice:$2y$04$C7MRDfUTeVvsgfmaZDownOYUTsZGs3mBUKGZICTdU50lJDY5tvuWu\n"
ALICE = Credentials("alice", "correct horse")
DATA = random.Random(4).randbytes(3_000_000)
DIGEST = Digest.of(DATA)
CONFIG = b"{}"


class Content:
    """Bytes to upload; remembers from where it was opened."""

    def __init__(self, data: bytes, piece: int = 100_000) -> None:
        self.data, self.piece, self.opened = data, piece, list[int]()

    def __call__(self, offset: int) -> Generator[bytes, None, None]:
        self.opened.append(offset)
        for at in range(offset, len(self.data), self.piece):
            yield self.data[at : at + self.piece]


def send(client: RegistryClient, repository: str, *layers: bytes, tag: str = "v1") -> Manifest:
    for data in (CONFIG, *layers):
        client.upload(repository, Digest.of(data), len(data), Content(data))
    manifest = Manifest.parse(image(layers, CONFIG))
    client.put_manifest(repository, tag, manifest)
    return manifest


@pytest.fixture
def real(real_registry: RealRegistry, make_client: MakeClient) -> RegistryClient:
    return make_client(real_registry.address)


def test_an_image_goes_in_and_comes_out_byte_for_byte(real: RegistryClient) -> None:
    real.ping()
    manifest = send(real, "deckhouse/ee", DATA, b"")
    assert real.resolve("deckhouse/ee", "v1") == manifest.descriptor
    assert real.resolve("deckhouse/ee", manifest.digest) == manifest.descriptor
    assert real.manifest("deckhouse/ee", "v1").raw == manifest.raw
    assert real.blob_size("deckhouse/ee", DIGEST) == len(DATA)
    assert b"".join(real.blob("deckhouse/ee", DIGEST, size=len(DATA))) == DATA
    assert b"".join(real.blob("deckhouse/ee", DIGEST, offset=2_500_000)) == DATA[2_500_000:]
    assert list(real.blob("deckhouse/ee", Digest.of(b""), size=0)) == []


def test_distribution_answers_304_to_who_knows_what_a_tag_names(
    real_registry: RealRegistry, real: RegistryClient
) -> None:
    held = send(real, "a", DATA).descriptor
    url = f"http://{real_registry.address}/v2/a/manifests/v1"
    answer = httpx.head(url, headers={"If-None-Match": f'"{held.digest}"', "Accept": OCI_MANIFEST})
    assert answer.status_code == 304
    assert real.resolve("a", "v1", known=held) == held
    newer = send(real, "a", b"others").descriptor
    assert real.resolve("a", "v1", known=held) == newer


def test_what_is_not_there_is_told_apart_from_failure(real: RegistryClient) -> None:
    send(real, "a", DATA)
    assert real.resolve("a", "v2") is None
    assert real.resolve("b", "v1") is None
    assert real.blob_size("a", Digest.of(b"?")) is None
    with pytest.raises(RegistryNotFoundError, match="no such repository"):
        real.tags("b")
    with pytest.raises(RegistryNotFoundError):
        list(real.blob("a", Digest.of(b"?")))


def test_lists_mounts_and_referrers(real: RegistryClient) -> None:
    manifest = send(real, "a/one", DATA)
    real.put_manifest("a/one", "v2", manifest)
    assert real.mount("b/two", DIGEST, "a/one") is True
    assert real.blob_size("b/two", DIGEST) == len(DATA)
    assert real.mount("b/two", Digest.of(b"?"), "a/one") is False
    assert sorted(real.tags("a/one")) == ["v1", "v2"]
    assert list(real.catalogue()) == ["a/one", "b/two"]
    assert real.referrers("a/one", manifest.digest) == []


def test_deletes(real: RegistryClient) -> None:
    manifest = send(real, "a", DATA)
    with pytest.raises(RegistryError, match="does not delete tags"):
        real.delete_tag("a", "v1")
    real.delete_manifest("a", manifest.digest)
    assert real.resolve("a", "v1") is None
    real.delete_blob("a", DIGEST)
    assert real.blob_size("a", DIGEST) is None
    with pytest.raises(RegistryNotFoundError):
        real.delete_blob("a", DIGEST)


def test_a_manifest_before_its_blobs_is_refused_with_the_registrys_code(
    real: RegistryClient,
) -> None:
    with pytest.raises(RegistryError) as caught:
        real.put_manifest("a", "v1", Manifest.parse(image((DATA,))))
    assert "MANIFEST_BLOB_UNKNOWN" in caught.value.codes


@pytest.mark.parametrize("cuts", [[1_000_000], [600, 1_500_000, 700_000], [3_000_300]])
def test_a_blob_comes_whole_over_a_line_that_breaks(
    real: RegistryClient, real_registry: RealRegistry, make_client: MakeClient, cuts: list[int]
) -> None:
    send(real, "a", DATA)
    with (
        BreakingLine(real_registry.port, budgets=cuts) as line,
        make_client(line.address) as client,
    ):
        assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
        assert line.connections == len(cuts) + 1


@pytest.mark.parametrize("cuts", [[1_500_000], [500, 1_000_000, 1_000_000], [3_000_700]])
def test_a_blob_gets_in_whole_over_a_line_that_breaks(
    real: RegistryClient, real_registry: RealRegistry, make_client: MakeClient, cuts: list[int]
) -> None:
    with (
        BreakingLine(real_registry.port, budgets=cuts) as line,
        make_client(line.address) as client,
    ):
        content = Content(DATA)
        client.upload("a", DIGEST, len(DATA), content)
    # This registry keeps no session across a break, so that each break starts anew.
    assert set(content.opened) == {0}
    assert real.blob_size("a", DIGEST) == len(DATA)
    assert b"".join(real.blob("a", DIGEST, size=len(DATA))) == DATA


def test_wrong_bytes_get_no_name(real: RegistryClient) -> None:
    with pytest.raises(RegistryError) as caught:
        real.upload("a", DIGEST, len(DATA), Content(DATA[:-1] + b"?"))
    assert caught.value.codes == ("DIGEST_INVALID",)
    assert real.blob_size("a", DIGEST) is None


def test_a_source_that_breaks_leaves_no_blob(real: RegistryClient) -> None:
    def broken(offset: int) -> Generator[bytes, None, None]:
        yield DATA[:1_000_000]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        real.upload("a", DIGEST, len(DATA), broken)
    assert real.blob_size("a", DIGEST) is None


def test_a_cancelled_session_is_gone(real: RegistryClient, real_registry: RealRegistry) -> None:
    # A mount of what is not there opens a session, and cancels it with nothing under way.
    assert real.mount("a", Digest.of(b"?"), "b") is False
    uploads = real_registry.root / "docker/registry/v2/repositories/a/_uploads"
    assert uploads.is_dir()
    # The registry leaves the state of its hash behind, but neither content nor session.
    assert not list(uploads.glob("*/data"))


def test_a_registry_with_passwords_wants_the_right_one(
    make_real_registry: MakeRealRegistry, make_client: MakeClient
) -> None:
    host = make_real_registry(htpasswd=HTPASSWD).address
    send(make_client(host, ALICE), "a", DATA)
    for wrong, told in (
        (None, "none was given"),
        (Credentials("alice", "wrong"), "refuses the login of user alice"),
        (Credentials("bob", "correct horse"), "refuses the login of user bob"),
    ):
        with pytest.raises(DeniedError, match=told) as caught:
            make_client(host, wrong).resolve("a", "v1")
        assert caught.value.status == 401
        assert "correct horse" not in str(caught.value)


def test_a_registry_behind_tls_and_a_restart_in_between(
    make_real_registry: MakeRealRegistry, make_client: MakeClient, authority: Authority
) -> None:
    registry = make_real_registry(tls=authority.issue("registry"))
    ca: Path = authority.certificate
    client = make_client(registry.address, plain_http=False, ca_file=ca)
    send(client, "a", DATA)
    registry.restart()  # the pooled connection is dead now
    assert client.resolve("a", "v1") is not None
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA
