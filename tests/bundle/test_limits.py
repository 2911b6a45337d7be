"""One table of limits: what a reader refuses, nobody writes, and a verification reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.bundle import contents, members, seal
from mirror.bundle import format as bundle_format
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import check_limits
from mirror.bundle.verify import verify_bundle
from mirror.errors import BundleLimitError, DamagedBundleError
from mirror.oci import Descriptor, Digest
from mirror.sync import Inventory, InventoryBuilder, ManifestNode, MemoryStore
from tests.support.bundles import archives_of, pack_store, seal_of
from tests.support.inventories import put_image, sample_store

STORE = sample_store()


def images(count: int, blobs: int, *, tags: int = 1, media_type: str = "a/b") -> Inventory:
    """An inventory of so many images in one repository, which share their blobs."""
    builder = InventoryBuilder()
    for number in range(count):
        digest = Digest.of(f"manifest {number}".encode())
        layers = tuple(
            Descriptor(media_type, Digest.of(f"{each}".encode()), 1) for each in range(blobs)
        )
        descriptor = Descriptor("application/vnd.oci.image.manifest.v1+json", digest, 100)
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MAX_NAMES", 20), ("MAX_FILES", 20), ("MAX_MEMBERS", 10)),
        *(("MAX_INDEX_BYTES", 100), ("MAX_INDEX_MARKS", 5), ("MAX_MEDIA_TYPE", 10)),
    ],
)
def test_writer_verification_and_reader_agree_on_every_limit(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path)
    for module in (bundle_format, seal, members, contents):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    with pytest.raises(BundleLimitError):
        check_limits(seal_of(archives_of(STORE.inventory())))
    with BundleReader([tmp_path]) as reader:
        assert [one.place for one in verify_bundle(reader).findings] == ["inventory.json"]
    with BundleReader([tmp_path]) as reader, pytest.raises(DamagedBundleError):
        reader.inventory()


def test_what_a_reader_refuses_gets_no_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer asks for the reader's limits before it writes anything."""
    store = MemoryStore()
    put_image(store, "", "v1", layers=(b"x" * 5000,))
    monkeypatch.setattr(seal, "MAX_INDEX_BYTES", 10)
    with pytest.raises(BundleLimitError, match="would have"):
        pack_store(store, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    pack_store(store, tmp_path)
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings
