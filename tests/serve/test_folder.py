"""What a folder keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from mirror.errors import InvalidReferenceError
from mirror.oci import Digest, Manifest
from mirror.oci.media_types import OCI_MANIFEST
from mirror.serve import FolderStorage, put_blob
from mirror.serve.files import StagingFolder
from tests.conftest import MakeEmbeddedRegistry
from tests.serve.sample import CONFIG, LAYER, descriptor, fill, image


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_restart_loses_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    storage = FolderStorage(tmp_path)
    subject = fill(storage, "a/b", "v1")
    fill(storage, "a/b", None, subject=descriptor(OCI_MANIFEST, subject.raw))
    paths = [
        "a/b/tags/list",
        "a/b/manifests/v1",
        f"a/b/manifests/{subject.digest}",
        f"a/b/blobs/{Digest.of(LAYER)}",
        f"a/b/referrers/{subject.digest}",
        "_catalog",
    ]
    seen = []
    for store in (storage, FolderStorage(tmp_path)):
        registry = make_embedded_registry(store)
        answers = [httpx.get(f"{registry.url}/v2/{path}") for path in paths]
        assert {answer.status_code for answer in answers} == {200}
        seen.append([answer.content for answer in answers])
    assert seen[0] == seen[1]


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    manifest = fill(FolderStorage(tmp_path), "a/b", "v1")
    config, layer = Digest.of(CONFIG).encoded, Digest.of(LAYER).encoded
    assert files(tmp_path) == sorted(
        [
            f"blobs/sha256/{config}",
            f"blobs/sha256/{layer}",
            f"blobs/sha256/{manifest.digest.encoded}",
            f"repositories/a/b/_blobs/sha256/{config}",
            f"repositories/a/b/_blobs/sha256/{layer}",
            f"repositories/a/b/_manifests/sha256/{manifest.digest.encoded}",
            "repositories/a/b/_tags/v1",
        ]
    )
    assert (tmp_path / f"blobs/sha256/{layer}").read_bytes() == LAYER


def test_bytes_are_kept_once_and_go_with_the_last_repository(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    digest = put_blob(storage, "a", LAYER)
    put_blob(storage, "b", LAYER)
    assert files(tmp_path / "blobs") == [f"sha256/{digest.encoded}"]
    storage.delete_blob("a", digest)
    assert storage.blob_size("b", digest) == len(LAYER)
    storage.delete_blob("b", digest)
    assert files(tmp_path) == []


def test_bytes_that_are_a_blob_and_a_manifest_stay_while_either_does(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    manifest = fill(storage)
    put_blob(storage, "other", manifest.raw)
    storage.delete_manifest("a/b", manifest.digest)
    reader = storage.open_blob("other", manifest.digest)
    assert reader is not None
    assert reader.read_at(0, 1 << 20) == manifest.raw
    reader.close()


def test_a_reader_goes_on_when_its_blob_is_deleted(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    digest = put_blob(storage, "a", LAYER)
    reader = storage.open_blob("a", digest)
    assert reader is not None
    storage.delete_blob("a", digest)
    assert reader.read_at(10, 20) == LAYER[10:30]
    reader.close()


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/../../x", "a/_tags", ""])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    storage = FolderStorage(tmp_path / "storage")
    manifest = Manifest.parse(image())
    with pytest.raises(InvalidReferenceError):
        storage.put_manifest(name, manifest)
    with pytest.raises(InvalidReferenceError):
        put_blob(storage, name, LAYER)
    with pytest.raises(InvalidReferenceError):
        storage.put_manifest("a", manifest, "../../../x")
    assert not list(tmp_path.glob("*.*"))
    assert files(tmp_path / "storage/staging") == []


def test_what_a_killed_process_left_is_swept_and_what_lives_is_spared(tmp_path: Path) -> None:
    script = (
        "import sys, time; from mirror.serve import FolderStorage\n"
        "staging = FolderStorage(sys.argv[1]).stage(); staging.write(b'half')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
    living = FolderStorage(tmp_path).stage()
    FolderStorage(tmp_path)
    assert len(files(tmp_path / "staging")) == 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    FolderStorage(tmp_path)
    assert len(files(tmp_path / "staging")) == 1
    living.write(LAYER)
    living.commit("a/b", Digest.of(LAYER))
    assert files(tmp_path / "staging") == []


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FolderStorage(tmp_path)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirror.serve.files.write_all", full)
    with pytest.raises(OSError, match="No space"):
        storage.put_manifest("a/b", Manifest.parse(image()), "v1")
    assert files(tmp_path) == []


def test_a_client_of_a_full_registry_is_told_so(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make_embedded_registry(FolderStorage(tmp_path))

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirror.serve.folder.write_all", full)
    location = httpx.post(f"{registry.url}/v2/a/b/blobs/uploads/").headers["Location"]
    answer = httpx.patch(registry.url + location, content=LAYER)
    assert answer.status_code == 507
    assert "disk is full" in answer.text
    assert httpx.get(registry.url + location).status_code == 404
    assert files(tmp_path) == []


def test_readers_of_a_moving_tag_always_find_a_manifest(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    fill(storage)
    versions = [Manifest.parse(image(annotations={"n": str(n)})) for n in range(50)]
    over = threading.Event()
    found: list[bool] = []

    def read() -> None:
        while not over.is_set():
            digest = storage.resolve("a/b", "v1")
            found.append(digest is not None and storage.manifest("a/b", digest) is not None)

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions:
        storage.put_manifest("a/b", version, "v1")
    over.set()
    reader.join()
    assert found
    assert all(found)


def test_staging_is_on_the_disk_before_it_has_a_name(tmp_path: Path) -> None:
    folder = StagingFolder(tmp_path)
    folder.write(tmp_path / "x/y/z", b"data")
    assert (tmp_path / "x/y/z").read_bytes() == b"data"
    assert files(tmp_path) == ["x/y/z"]
