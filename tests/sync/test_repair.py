"""A registry's files, of which only the damaged are ever removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.errors import FileSystemError, InputError, NotFoundError
from mirror.oci import Digest, Repository
from mirror.serve import MemoryStorage
from mirror.sync import Inventory, make_plan, transfer
from mirror.sync.repair import RepairingTarget, Storage
from mirror.sync.tree import RegistryTarget, RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.support.inventories import sample_store
from tests.support.places import below, client_of

DATA = b"what was stored"
DIGEST = Digest.of(DATA)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(tmp_path)
    made.path_of(DIGEST).parent.mkdir(parents=True)
    return made


@pytest.mark.parametrize("wrong", [b"", DATA[:-1], DATA + b"x", b"y" + DATA[1:]])
def test_a_file_with_other_bytes_is_removed(storage: Storage, wrong: bytes) -> None:
    path = storage.path_of(DIGEST)
    path.write_bytes(wrong)
    assert storage.discard_damaged(DIGEST)
    assert not path.exists()


def test_a_sound_file_and_an_absent_one_are_left_alone(storage: Storage) -> None:
    assert not storage.discard_damaged(DIGEST)
    path = storage.path_of(DIGEST)
    path.write_bytes(DATA)
    assert not storage.discard_damaged(DIGEST)
    assert path.read_bytes() == DATA


def test_a_file_that_the_registry_is_writing_is_left_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = storage.path_of(DIGEST)
    path.write_bytes(b"")  # distribution empties a manifest's file before it writes it anew
    fstat = os.fstat

    def then_written(handle: int) -> os.stat_result:
        found = fstat(handle)
        path.write_bytes(DATA)
        return found

    monkeypatch.setattr(os, "fstat", then_written)
    assert not storage.discard_damaged(DIGEST)
    assert path.read_bytes() == DATA


def test_no_link_is_followed_and_nothing_but_a_file_removed(
    storage: Storage, tmp_path: Path
) -> None:
    path = storage.path_of(DIGEST)
    other = tmp_path / "precious"
    other.write_bytes(b"not the registry's")
    path.symlink_to(other)
    with pytest.raises(FileSystemError, match="cannot be read"):
        storage.discard_damaged(DIGEST)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileSystemError, match="Is a directory"):
        storage.discard_damaged(DIGEST)
    assert other.exists()


@pytest.mark.parametrize("at", ["docker", "docker/registry/v2/blobs/sha256"])
def test_no_folder_of_the_registrys_is_reached_through_a_link(
    storage: Storage, tmp_path: Path, at: str
) -> None:
    storage.path_of(DIGEST).write_bytes(b"damaged, and of another registry")
    other = Storage(tmp_path / "linked")
    (other.root / at).parent.mkdir(parents=True)
    (other.root / at).symlink_to(storage.root / at)
    with pytest.raises(FileSystemError, match="cannot be read: Too many levels of symbolic links"):
        other.discard_damaged(DIGEST)
    assert storage.path_of(DIGEST).exists()


def test_a_folder_that_is_no_data_root_is_refused(storage: Storage, tmp_path: Path) -> None:
    storage.check()
    Storage(tmp_path / "not-yet").check()
    with pytest.raises(InputError, match="there is no such folder"):
        Storage(tmp_path / "a" / "b").check()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(InputError, match="rootdirectory"):
        Storage(tmp_path / "other").check()


def test_a_repaired_manifest_survives_where_blobs_and_manifests_lie_in_one_place(
    embedded_registry: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sample_store()
    path, repository = "modules/console", "root/modules/console"
    (digest,) = store.inventory().repository(path).manifests
    stored = embedded_registry.storage
    assert isinstance(stored, MemoryStorage)
    with client_of(embedded_registry) as client:
        target = RegistryTarget(client, below("root"))
        transfer(make_plan(store.inventory(), Inventory()), store, target)
        delete = client.delete_blob

        def delete_both(repository: str, digest: Digest) -> None:
            delete(repository, digest)
            stored.delete_manifest(repository, digest)

        monkeypatch.setattr(client, "delete_blob", delete_both)
        repairing = RepairingTarget(RegistryTree(client, Repository(client.host, "root")))
        repairing.repair_manifest(path, store.manifest(path, digest), NotFoundError("it was lost"))
    assert stored.manifest(repository, digest) is not None
