"""One table of limits: what a reader refuses, nobody writes, and a verification reports."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle import contents, members, seal
from mirror.bundle import format as bundle_format
from mirror.bundle.format import LARGE, ORDINARY, BundleLimits
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import check_limits
from mirror.bundle.verify import verify_bundle
from mirror.documents import value_count
from mirror.errors import BundleLimitError, DamagedBundleError
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.serve import FolderStorage
from mirror.sync import Inventory, InventoryBuilder, ManifestNode, MemoryStore
from mirror.sync.statement import MAX_STATEMENT_VALUES, Statement
from mirror.testing import EmbeddedRegistry
from tests.support.bundles import archives_of, pack, pack_store, seal_of
from tests.support.inventories import put_image, sample_store, stores
from tests.support.measured import measured
from tests.support.sample_images import descriptor

STORE = sample_store()


def images(count: int, blobs: int, *, tags: int = 1, media_type: str = "a/b") -> Inventory:
    """An inventory of so many images in one repository, which share their blobs."""
    builder = InventoryBuilder()
    for number in range(count):
        digest = Digest.of(f"manifest {number}".encode())
        layers = tuple(
            Descriptor(media_type, Digest.of(f"{each}".encode()), 1) for each in range(blobs)
        )
        descriptor = Descriptor(OCI_MANIFEST, digest, 100)
        builder.add_manifest("", ManifestNode(descriptor, layers, (), None))
        for tag in range(tags):
            builder.add_tag("", f"v{number}.{tag}", digest)
    return builder.build()


def test_a_bundle_within_all_limits_may_be_made() -> None:
    check_limits(seal_of(archives_of(STORE.inventory())))


def test_too_many_references_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(BundleLimitError, match=r"more than 120000 tags and references.*; split it"):
        check_limits(seal_of(archives_of(images(11_000, 10))))


def test_an_index_with_too_many_tags_is_refused() -> None:
    sealed = seal_of(archives_of(images(1, 1, tags=25_000)))
    with pytest.raises(BundleLimitError, match=r"platform.tar: index.json would have \d+ bytes"):
        check_limits(sealed)


def test_a_media_type_longer_than_any_is_refused() -> None:
    sealed = seal_of(archives_of(images(1, 1, media_type="a" * 300)))
    with pytest.raises(BundleLimitError, match="media type of more than 255 characters"):
        check_limits(sealed)


def limit(patch: pytest.MonkeyPatch, **values: int) -> None:
    """Make ordinary limits smaller, by their names, or MAX_MEDIA_TYPE."""
    if "media_type" in values:
        patch.setattr(seal, "MAX_MEDIA_TYPE", values["media_type"])
        return
    smaller = replace(ORDINARY, **values)
    for module in (bundle_format, members, contents, seal):
        patch.setattr(module, "ORDINARY", smaller)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("names", 20), ("files", 20), ("members", 10)),
        *(("index_bytes", 100), ("index_values", 5), ("media_type", 10)),
    ],
)
def test_writer_verification_and_reader_agree_on_every_limit(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path)
    limit(monkeypatch, **{name: value})
    with pytest.raises(BundleLimitError):
        check_limits(seal_of(archives_of(STORE.inventory())))
    with BundleReader([tmp_path]) as reader:
        assert [one.place for one in verify_bundle(reader).findings] == ["inventory.json"]
    with BundleReader([tmp_path]) as reader, pytest.raises(DamagedBundleError):
        reader.inventory()


@pytest.mark.parametrize(
    ("name", "told"), [("seal_bytes", "is larger than"), ("seal_values", "has more values than")]
)
def test_a_seal_beyond_its_limits_is_neither_written_nor_parsed(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path)
    limit(monkeypatch, **{name: 100})
    with pytest.raises(BundleLimitError, match=r"its inventory.json would have \d+ bytes, and"):
        check_limits(seal_of(archives_of(STORE.inventory())))
    with pytest.raises(DamagedBundleError, match=f"{told} any bundle's table of contents"):
        BundleReader([tmp_path])


def test_what_a_reader_refuses_gets_no_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer asks for the reader's limits before it writes anything."""
    store = MemoryStore()
    put_image(store, "", "v1", layers=(b"x" * 5000,))
    limit(monkeypatch, index_bytes=10)
    with pytest.raises(BundleLimitError, match="would have"):
        pack_store(store, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    pack_store(store, tmp_path)
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings


@settings(max_examples=25)
@given(
    store=stores(),
    name=st.sampled_from(["names", "files", "members", "index_bytes", "index_values"]),
    share=st.floats(0.3, 1.5),
)
def test_whatever_a_pull_may_seal_every_reader_takes(
    store: MemoryStore, name: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The limits lie anywhere around what the bundle has; both sides draw the line in one place."""
    folder = tmp_path_factory.mktemp("limits")
    seal = pack_store(store, folder)
    has = {
        "names": sum(
            len(content.tags) + sum(1 + len(node.named) for node in content.manifests.values())
            for archive in seal.archives.values()
            for content in archive.inventory.repositories.values()
        ),
        "files": sum(len(archive.entries) for archive in seal.archives.values()),
        "members": max(len(archive.entries) for archive in seal.archives.values()),
        "index_bytes": max(
            len(entry.content)
            for archive in seal.archives.values()
            for entry in archive.entries
            if entry.content is not None
        ),
        "index_values": 40,
    }
    with pytest.MonkeyPatch.context() as patch:
        limit(patch, **{name: int(has[name] * share)})
        try:
            check_limits(seal)
        except BundleLimitError:
            allowed = False
        else:
            allowed = True
        with BundleReader([folder]) as reader:
            if allowed:
                assert reader.inventory() == store.inventory()
            else:
                with pytest.raises(DamagedBundleError):
                    reader.inventory()
        with BundleReader([folder]) as reader:
            assert allowed != bool(verify_bundle(reader).findings)


# -- large bundles ---------------------------------------------------------------------------------


def test_a_bundle_with_large_archives_may_have_more_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, names=5, files=5, members=5, index_bytes=100, index_values=5, seal_bytes=100)
    with pytest.raises(BundleLimitError):
        pack_store(STORE, tmp_path / "small")
    monkeypatch.setattr(bundle_format, "LARGE_FROM", 10_000)
    pack_store(STORE, tmp_path)
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings
        assert reader.inventory() == STORE.inventory()


def test_compressed_archives_do_not_make_a_bundle_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes of them may claim to be any number of bytes."""
    limit(monkeypatch, names=5)
    monkeypatch.setattr(bundle_format, "LARGE_FROM", 10_000)
    with pytest.raises(BundleLimitError, match="more than 5 tags and references"):
        check_limits(seal_of(archives_of(STORE.inventory())), compressed=True)


def test_the_large_limits_are_the_larger_ones() -> None:
    for field in fields(BundleLimits):
        assert getattr(LARGE, field.name) > 2 * getattr(ORDINARY, field.name)


@pytest.mark.parametrize("repositories", [1, 200], ids=["one-repository", "one-each"])
def test_the_large_limits_have_room_for_100_000_images_of_10_layers(repositories: int) -> None:
    builder = InventoryBuilder()
    for number in range(200):
        path, name = f"modules/m{number % repositories}", f"{number}"
        named = (Digest.of(f"{name} {each}".encode()) for each in range(12))
        first, *others = (Descriptor(OCI_MANIFEST, one, 10**9 + number) for one in named)
        builder.add_manifest(path, ManifestNode(first, tuple(others), ()))
        builder.add_tag(path, f"v1.{number}.0", first.digest)
    inventory = builder.build()
    sealed = seal_of(archives_of(inventory))
    entries = [one for archive in sealed.archives.values() for one in archive.entries]
    indexes = [one.content or b"" for one in entries if one.path.endswith("index.json")]
    scale = 100_000 // 200
    assert scale * value_count(sealed.to_json()) < LARGE.seal_values
    assert scale * value_count(Statement(inventory, 1).to_json()) < MAX_STATEMENT_VALUES
    assert scale * sum(map(value_count, indexes)) < LARGE.index_values
    assert scale * sum(map(len, indexes)) < LARGE.index_bytes


class Many:
    """A release tree of so many small images, which is nowhere in memory as a whole."""

    name = "many"

    def __init__(self, count: int, repositories: int) -> None:
        self.manifests: dict[Digest, int] = {}
        self.blobs: dict[Digest, bytes] = {}
        builder = InventoryBuilder()
        for number in range(count):
            manifest = self._manifest(number)
            path = f"modules/m{number % repositories}"
            builder.add_tag(path, f"v{number}", manifest.digest)
            builder.add_manifest(path, ManifestNode.of(manifest))
            self.manifests[manifest.digest] = number
        self.inventory = builder.build()

    @staticmethod
    def _manifest(number: int) -> Manifest:
        config, *layers = (descriptor("a/b", data) for data in Many.content(number))
        document = {"schemaVersion": 2, "config": config, "layers": layers}
        return Manifest.parse(json.dumps(document).encode(), OCI_MANIFEST)

    @staticmethod
    def content(number: int) -> tuple[bytes, ...]:
        return (f"config {number}".encode(), f"layer {number}".encode(), b"shared by all")

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        return self._manifest(self.manifests[digest])

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        if not self.blobs:
            self.blobs = {
                Digest.of(data): data
                for number in self.manifests.values()
                for data in self.content(number)
            }
        yield self.blobs[digest][offset:]


COUNT = 100_000


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_bundle_of_100_000_images_is_made_read_and_pushed_in_bounded_memory(
    tmp_path: Path,
) -> None:
    many, folder = Many(COUNT, 30), tmp_path / "bundle"
    pack(many, many.inventory, folder)
    del many
    runs, peak = measured(("verify", "--quick", folder), ("verify", folder))
    print(f"verify of {COUNT:,} images: {peak / 1e6:.0f} MB")
    assert [run.code for run in runs] == [0, 0], runs
    assert peak < 800_000_000
    with EmbeddedRegistry(FolderStorage(tmp_path / "registry")) as target:
        push = ("push", "--insecure", folder, f"{target.address}/dkp/ee")
        runs, peak = measured(push, timeout_s=6000)
    print(f"push of {COUNT:,} images: {peak / 1e6:.0f} MB")
    assert [run.code for run in runs] == [0], runs
    assert peak < 1_000_000_000
