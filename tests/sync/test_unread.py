"""What goes out of files as it lies, because the registry proves it, and when it is hashed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import DamagedBundleError, DigestMismatchError, MirrorError
from mirror.events import Event, Warned
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy, upload_sessions
from mirror.run import Run
from mirror.sync import CopyBlob, FailoverSource, MemoryStore, Source, tree
from mirror.sync.failover import BlobContent
from mirror.sync.tree import RegistryTarget
from tests.conftest import MakeEmbeddedRegistry
from tests.support import bundles
from tests.support.bundles import BIG
from tests.support.fake_api import FakeRegistry, error, once
from tests.support.real_registry import RealRegistry
from tests.support.scripted_server import Hangup, Reply, Request, ScriptedServer
from tests.support.tls import Authority

DIGEST = Digest.of(BIG)
STEP = CopyBlob(DIGEST, len(BIG), ("install",), "install")
PROOF = ["POST", "PUT", "DELETE", "POST", "PATCH", "PUT", "DELETE"]
"""The requests that find out whether a registry proves digests."""


@pytest.fixture(autouse=True)
def worth_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_WORTH_PROOF", 1 << 20)


@pytest.fixture
def sent_by_the_system(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of files the system sent, call by call."""
    counts: list[int] = []
    real = os.sendfile

    def counting(out: int, of: int, offset: int, size: int) -> int:
        sent = real(out, of, offset, size)
        counts.append(sent)
        return sent

    monkeypatch.setattr(os, "sendfile", counting)
    return counts


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def server(fake: FakeRegistry) -> Iterator[ScriptedServer]:
    with ScriptedServer(fake) as running:
        yield running


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def target(server: ScriptedServer, events: list[Event]) -> Iterator[RegistryTarget]:
    retries = RetryPolicy(attempts=3, base_delay_s=0)
    options = ConnectionOptions(plain_http=True, retries=retries)
    with RegistryClient(server.host, options=options) as client:
        yield RegistryTarget(client, lambda path: path, run=Run(on_event=events.append))


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[BundleReader]:
    bundles.plain(tmp_path)
    with BundleReader([tmp_path]) as reader:
        yield reader


def content(source: Source) -> BlobContent:
    return BlobContent(source, "install", DIGEST, len(BIG))


def methods(server: ScriptedServer) -> list[str]:
    return [request.method for request in server.log]


def damage(bundle: BundleReader, *, cut: bool = False) -> None:
    """Flip a byte in the middle of the layer, or cut the archive there."""
    (file,) = (one for one in bundle._archives if one.blob("install", DIGEST))
    member = file.blob("install", DIGEST)
    assert member is not None
    at = member.offset + len(BIG) // 2
    with Path(str(file.file.path)).open("r+b") as archive:
        if cut:
            archive.truncate(at)
        else:
            archive.seek(at)
            archive.write(bytes([BIG[len(BIG) // 2] ^ 1]))


def test_a_registry_that_refuses_wrong_bytes_gets_files_as_they_lie(
    target: RegistryTarget,
    bundle: BundleReader,
    fake: FakeRegistry,
    server: ScriptedServer,
    sent_by_the_system: list[int],
) -> None:
    moved: list[int] = []
    given = BlobContent(bundle, "install", DIGEST, len(BIG), on_bytes=moved.append)
    assert target.put_blob(STEP, given) == len(BIG)
    assert fake.blobs == {str(DIGEST): BIG}
    assert sum(sent_by_the_system) == sum(moved) == len(BIG)
    assert methods(server) == [*PROOF, "POST", "PUT"]
    target.put_blob(STEP, content(bundle))
    assert methods(server)[9:] == ["POST", "PUT"], "it is found out once"


def test_little_is_hashed_and_costs_no_request_more(
    target: RegistryTarget,
    bundle: BundleReader,
    server: ScriptedServer,
    sent_by_the_system: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "_WORTH_PROOF", 2 * len(BIG))
    for _ in range(3):
        target.put_blob(STEP, content(bundle))
    assert methods(server) == ["POST", "PUT"] * 2 + [*PROOF, "POST", "PUT"]
    assert sum(sent_by_the_system) == len(BIG)


@pytest.mark.parametrize("status", [201, 400, 403, 500])
def test_a_registry_that_does_not_prove_it_gets_hashed_bytes(
    status: int,
    target: RegistryTarget,
    bundle: BundleReader,
    fake: FakeRegistry,
    server: ScriptedServer,
    sent_by_the_system: list[int],
) -> None:
    """One that takes anything, or refuses for another reason than the digest."""
    fake.proves = status != 201
    if status > 201:
        refusal = error(status, "UNSUPPORTED")
        fake.fault = once(lambda one: one.method == "PUT" and bool(one.body), lambda _: refusal)
    target.put_blob(STEP, content(bundle))
    assert fake.blobs == {str(DIGEST): BIG}, "what was taken under a wrong digest is deleted"
    assert methods(server) == [*PROOF[:3], "POST", "PUT"]
    assert not sent_by_the_system
    damage(bundle)
    fake.blobs.clear()
    with pytest.raises(DigestMismatchError, match=f"^bundle .*: blob {DIGEST} of install"):
        target.put_blob(STEP, content(bundle))
    assert not fake.blobs


def test_a_registry_that_compares_whole_uploads_only_has_proved_nothing(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, sent_by_the_system: list[int]
) -> None:
    """Chunks are put together by other code, and large blobs go in chunks."""

    def take(request: Request) -> Reply | None:
        name = request.path.rpartition("/")[2]
        if request.method == "PUT":
            fake.proves = not fake.sessions[name]
        return None

    fake.fault = take
    target.put_blob(STEP, content(bundle))
    assert not sent_by_the_system


def test_a_form_that_was_not_proved_gets_hashed_bytes(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, events: list[Event]
) -> None:
    """Who refuses a whole blob gets it in chunks, which an empty `PUT` completes."""

    def too_large(request: Request) -> Reply | None:
        return error(413, "SIZE_INVALID") if request.length > 1 << 20 else None

    fake.fault = too_large
    damage(bundle)
    with pytest.raises(DigestMismatchError, match=r"^bundle .*: blob"):
        target.put_blob(STEP, content(bundle))
    assert not fake.blobs
    assert not [event for event in events if isinstance(event, Warned)]


def test_a_registry_that_dies_while_it_is_asked_for_proof_is_asked_once(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, server: ScriptedServer
) -> None:
    def hang_up(_request: Request) -> Reply:
        raise Hangup

    fake.fault = once(lambda one: one.method == "POST", hang_up)
    target.put_blob(STEP, content(bundle))
    target.put_blob(STEP, content(bundle))
    assert methods(server) == ["POST", *["POST", "PUT"] * 2]


def test_a_damaged_archive_is_named_by_who_hashes_it_after_the_registry_refused(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, server: ScriptedServer
) -> None:
    damage(bundle)
    text = f"^{bundle.name}: blob {DIGEST} of install: expected {DIGEST}, got sha256:"
    with pytest.raises(DigestMismatchError, match=text):
        target.put_blob(STEP, content(bundle))
    assert not fake.blobs
    assert not fake.sessions
    sent = sum(request.length for request in server.log)
    assert sent < 2 * len(BIG) + 100, "no other form is tried with the same bytes"


def test_a_shorter_archive_is_named_too(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry
) -> None:
    damage(bundle, cut=True)
    with pytest.raises(DamagedBundleError, match=r"ends at byte \d+, \d+ bytes too early"):
        target.put_blob(STEP, content(bundle))
    assert not fake.blobs


def test_another_place_helps_where_the_file_is_damaged(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry
) -> None:
    other = MemoryStore()
    other.add_blob("install", BIG)
    both = FailoverSource([bundle, other])
    damage(bundle)
    with pytest.raises(DigestMismatchError) as caught:
        target.put_blob(STEP, content(both))
    both.reject(DIGEST, caught.value)
    assert target.put_blob(STEP, content(both)) == len(BIG)
    assert fake.blobs == {str(DIGEST): BIG}


def test_another_place_helps_where_a_part_cannot_be_opened(
    target: RegistryTarget, fake: FakeRegistry, tmp_path: Path
) -> None:
    bundles.in_parts(tmp_path)
    other = MemoryStore()
    other.add_blob("install", BIG)
    with BundleReader([tmp_path]) as reader:
        for part in tmp_path.glob("platform.tar.*.chunk"):
            part.unlink()
        target.put_blob(STEP, content(FailoverSource([reader, other])))
    assert fake.blobs == {str(DIGEST): BIG}


@pytest.mark.parametrize("chunk", [16 << 20, 1 << 20])
def test_what_was_damaged_on_its_way_is_sent_again_and_told(
    chunk: int,
    target: RegistryTarget,
    bundle: BundleReader,
    fake: FakeRegistry,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_sessions, "CHUNK", chunk)
    fake.fault = once(
        lambda one: one.method == "PUT" and one.length > 100,
        lambda _: error(400, "DIGEST_INVALID"),
    )
    target.put_blob(STEP, content(bundle))
    assert fake.blobs == {str(DIGEST): BIG}
    (warning,) = (event.message for event in events if isinstance(event, Warned))
    assert warning.startswith(f"{DIGEST} was sent to {target.name} twice, as the first time it")
    assert warning.endswith("look at the disk, the memory and the network of this machine")


def test_what_a_broken_connection_spoiled_is_not_told_of_this_machine(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, events: list[Event]
) -> None:
    """A registry that counts what was lost on the way as arrived, and so refuses the sum."""

    def spoil(request: Request) -> Reply:
        fake.sessions["s3"] += bytes(len(request.read(70_000)))
        raise Hangup

    fake.fault = once(lambda one: one.length == len(BIG), spoil)
    target.put_blob(STEP, content(bundle))
    assert fake.blobs == {str(DIGEST): BIG}
    assert not [event for event in events if isinstance(event, Warned)]


def test_another_digest_than_the_proved_kind_is_hashed(
    target: RegistryTarget,
    bundle: BundleReader,
    fake: FakeRegistry,
    sent_by_the_system: list[int],
) -> None:
    """A registry that compares SHA-256 need not compare SHA-512."""
    target.put_blob(STEP, content(bundle))
    assert sum(sent_by_the_system) == len(BIG)
    fake.proves = False
    step = CopyBlob(Digest.of(BIG, "sha512"), len(BIG), ("install",), "install")
    target.put_blob(step, content(bundle))
    assert sum(sent_by_the_system) == len(BIG)


def test_another_refusal_is_no_reason_to_send_it_twice(
    target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry, server: ScriptedServer
) -> None:
    fake.fault = lambda one: error(507, "FULL") if one.length > 100 else None
    with pytest.raises(MirrorError):
        target.put_blob(STEP, content(bundle))
    assert methods(server).count("POST") < 5


@pytest.mark.parametrize("cut", [70_000, 2_000_000])
def test_a_cut_upload_continues_at_its_byte(
    cut: int, target: RegistryTarget, bundle: BundleReader, fake: FakeRegistry
) -> None:
    def take_some(request: Request) -> Reply:
        fake.sessions["s3"] += request.read(cut)
        raise Hangup

    fake.fault = once(lambda one: one.length == len(BIG), take_some)
    sent = target.put_blob(STEP, content(bundle))
    assert fake.blobs == {str(DIGEST): BIG}
    assert fake.opened == 3, "the session goes on"
    assert sent >= len(BIG) - cut


@pytest.mark.parametrize("failing", ["sendfile", "pread"])
def test_a_file_that_the_system_cannot_send_or_read_is_not_taken_for_a_broken_line(
    failing: str,
    target: RegistryTarget,
    bundle: BundleReader,
    fake: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some file systems know no `sendfile`; a disk may be unable to give a page."""

    def refuse(*_arguments: object) -> int:
        raise OSError(5, "Input/output error")

    bundle.inventory()
    monkeypatch.setattr(os, "sendfile", refuse)
    if failing == "sendfile":
        target.put_blob(STEP, content(bundle))
        assert fake.blobs == {str(DIGEST): BIG}
        return
    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(MirrorError, match=r"cannot read .*platform\.tar: Input/output error"):
        target.put_blob(STEP, content(bundle))


def test_parts_go_out_as_they_lie_and_compressed_archives_are_hashed(
    target: RegistryTarget,
    fake: FakeRegistry,
    tmp_path: Path,
    sent_by_the_system: list[int],
) -> None:
    bundles.in_parts(tmp_path)
    with BundleReader([tmp_path]) as reader:
        target.put_blob(STEP, content(reader))
    assert fake.blobs == {str(DIGEST): BIG}
    assert sum(sent_by_the_system) == len(BIG)
    packed = tmp_path / "packed"
    bundles.pack(bundles.STORE, bundles.WANTED, packed, compress=True)
    with BundleReader([packed]) as reader:
        target.put_blob(STEP, content(reader))
    assert sum(sent_by_the_system) == len(BIG)


def test_over_tls_nothing_is_hashed_either(
    make_embedded_registry: MakeEmbeddedRegistry,
    bundle: BundleReader,
    authority: Authority,
    sent_by_the_system: list[int],
) -> None:
    registry = make_embedded_registry(tls=authority.issue())
    options = ConnectionOptions(ca_file=authority.certificate)
    with RegistryClient(registry.address, options=options) as client:
        target = RegistryTarget(client, lambda path: path)
        target.put_blob(STEP, content(bundle))
        assert client.blob_size("install", DIGEST) == len(BIG)
        damage(bundle)
        with pytest.raises(DigestMismatchError):
            target.put_blob(CopyBlob(DIGEST, len(BIG), ("other",), "install"), content(bundle))
    refused = registry.requests.matching("PUT", "/blobs/uploads/", 400)
    assert len(refused) == 3, "the proof in two forms, and the damaged file"
    assert not sent_by_the_system


def test_distribution_proves_digests_and_keeps_nothing_of_the_proof(
    real_registry: RealRegistry, bundle: BundleReader, sent_by_the_system: list[int]
) -> None:
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        assert client.proves_digests("a/b")
        target = RegistryTarget(client, lambda path: path)
        target.put_blob(STEP, content(bundle))
        assert sum(sent_by_the_system) == len(BIG)
        assert b"".join(client.blob("install", DIGEST, size=len(BIG))) == BIG
        damage(bundle)
        with pytest.raises(DigestMismatchError, match=r"^bundle .* of install"):
            target.put_blob(CopyBlob(DIGEST, len(BIG), ("other",), "install"), content(bundle))
        assert client.blob_size("other", DIGEST) is None
