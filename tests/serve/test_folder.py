"""What a folder keeps."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import httpx
import pytest

from mirror.errors import InvalidReferenceError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.serve import FolderStorage, put_blob
from mirror.serve.folder import StagingFolder
from tests.conftest import MakeEmbeddedRegistry
from tests.support.disk import Disk, after_a_power_cut, keeping
from tests.support.sample_images import CONFIG, LAYER, codes, descriptor, fill, image


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

    monkeypatch.setattr("mirror.serve.folder.write_at", full)
    with pytest.raises(OSError, match="No space"):
        storage.put_manifest("a/b", Manifest.parse(image()), "v1")
    assert files(tmp_path) == []


def test_a_client_of_a_full_registry_is_told_so(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make_embedded_registry(FolderStorage(tmp_path))

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirror.serve.folder.write_at", full)
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


def test_a_file_that_was_swept_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts between the creation of a staging file and its lock."""
    storage = FolderStorage(tmp_path)
    lock = fcntl.flock

    def late(file: IO[bytes], operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        FolderStorage(tmp_path)
        assert files(tmp_path / "staging") == []
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    digest = put_blob(storage, "a/b", LAYER)
    monkeypatch.setattr(fcntl, "flock", late)
    storage.put_manifest("a/b", Manifest.parse(image()), "v1")
    assert storage.blob_size("a/b", digest) == len(LAYER)
    assert storage.resolve("a/b", "v1") == Digest.of(image())
    assert files(tmp_path / "staging") == []


def test_processes_that_start_do_not_disturb_one_that_writes(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    over = threading.Event()

    def start() -> None:
        while not over.is_set():
            FolderStorage(tmp_path)

    starter = threading.Thread(target=start)
    starter.start()
    try:
        digests = [put_blob(storage, "a/b", b"%d" % number) for number in range(200)]
    finally:
        over.set()
        starter.join()
    assert all(storage.blob_size("a/b", digest) for digest in digests)


@pytest.mark.parametrize("kind", ["blob", "manifest", "mount"])
def test_a_process_that_removes_waits_for_one_that_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two objects lock each other out as two processes do."""
    adding, removing = FolderStorage(tmp_path), FolderStorage(tmp_path)
    manifest = Manifest.parse(image())
    digest = put_blob(removing, "b", LAYER)
    removing.put_manifest("b", manifest)
    write = StagingFolder.write

    def remove() -> None:
        removing.delete_blob("b", digest)
        removing.delete_manifest("b", manifest.digest)

    remover = threading.Thread(target=remove)

    def slow(staging: StagingFolder, target: Path, data: bytes) -> None:
        if remover.ident is None and "repositories/a" in str(target):  # the bytes are there
            remover.start()
            remover.join(0.3)
            assert remover.is_alive()
        write(staging, target, data)

    monkeypatch.setattr(StagingFolder, "write", slow)
    match kind:
        case "blob":
            put_blob(adding, "a", LAYER)
        case "mount":
            assert adding.mount_blob("b", "a", digest)
        case _:
            adding.put_manifest("a", manifest, "v1")
    remover.join()
    if kind == "manifest":
        assert adding.manifest("a", manifest.digest) is not None
    else:
        assert adding.blob_size("a", digest) == len(LAYER)
    assert adding.blob_size("b", digest) is None


def test_what_others_put_into_the_folder_is_passed_over(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    subject = fill(storage)
    fill(storage, tag=None, subject=descriptor(OCI_MANIFEST, subject.raw))
    referrers = storage.referrers("a/b", subject.digest)
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        (folder / ".nfs0001").write_bytes(b"\xff")
        (folder / "lost+found").mkdir()
    again = FolderStorage(tmp_path)
    assert again.repositories() == ["a/b"]
    assert again.tags("a/b") == ["v1"]
    assert again.resolve("a/b", "v1") == subject.digest
    assert again.referrers("a/b", subject.digest) == referrers != []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"sha256:1234", b"latest"])
def test_a_damaged_tag_is_the_registrys_fault_and_not_the_clients(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path, content: bytes
) -> None:
    storage = FolderStorage(tmp_path)
    fill(storage)
    (tmp_path / "repositories/a/b/_tags/v1").write_bytes(content)
    registry = make_embedded_registry(storage)
    answer = httpx.get(f"{registry.url}/v2/a/b/manifests/v1")
    assert (answer.status_code, codes(answer)) == (500, ["UNKNOWN"])


def test_what_is_acknowledged_is_on_the_disk_name_and_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that gets its name has been synced before, and its folder is synced after."""
    steps: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.rename

    def synced(fd: int) -> None:
        steps.append(("sync", str(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path))))
        sync(fd)

    def renamed(path: Path, target: Path) -> Path:
        staged, name = path.relative_to(tmp_path), target.relative_to(tmp_path)
        assert ("sync", str(staged)) in steps, "it may be empty after a power cut"
        steps.append(("name", str(name)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    storage = FolderStorage(tmp_path)
    manifest = fill(storage)
    for path in files(tmp_path):
        at = steps.index(("name", path))
        assert ("sync", str(Path(path).parent)) in steps[at:]
        for folder in Path(path).parents[1:]:
            assert ("sync", str(folder)) in steps[:at], "a folder on its way may be lost"
    assert storage.resolve("a/b", "v1") == manifest.digest
    assert steps[-2][1].endswith("_tags/v1"), "the tag comes last"


def test_what_was_acknowledged_outlives_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    """And what was not is there as a whole or not at all."""
    manifest, blobs = Manifest.parse(image()), (CONFIG, LAYER)
    acknowledged: list[int] = []
    with Disk(tmp_path / "store") as disk:
        storage = FolderStorage(tmp_path / "store")
        for data in blobs:
            put_blob(storage, "a/b", data)
            acknowledged.append(len(disk.changes))
        storage.put_manifest("a/b", manifest, "v1")
        acknowledged.append(len(disk.changes))
    for at in range(len(disk.changes) + 1):
        cut = tmp_path / str(at)
        after_a_power_cut(disk.at_first, disk.changes[:at], keeping(at)).put_into(cut)
        found = FolderStorage(cut)
        for data, when in zip(blobs, acknowledged, strict=False):
            reader = found.open_blob("a/b", Digest.of(data))
            assert reader is not None or at < when, at
            if reader is not None:
                assert reader.read_at(0, len(data) + 1) == data, at
                reader.close()
        held = found.manifest("a/b", manifest.digest)
        assert held is not None or at < acknowledged[-1], at
        assert held is None or held.raw == manifest.raw, at
        assert not found.tags("a/b") or held is not None, "a tag names nothing"
        for data in blobs:
            put_blob(found, "a/b", data)
        found.put_manifest("a/b", manifest, "v1")
        assert found.resolve("a/b", "v1") == manifest.digest


def test_staging_is_on_the_disk_before_it_has_a_name(tmp_path: Path) -> None:
    folder = StagingFolder(tmp_path)
    folder.write(tmp_path / "x/y/z", b"data")
    assert (tmp_path / "x/y/z").read_bytes() == b"data"
    assert files(tmp_path) == ["x/y/z"]


def test_one_upload_does_not_wait_until_another_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FolderStorage(tmp_path)
    sync, waiting, go_on = os.fsync, threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        if threading.current_thread() is first and not waiting.is_set():
            waiting.set()
            assert go_on.wait(60)
        sync(fd)

    def write_link(staging: StagingFolder, target: Path, data: bytes) -> None:
        if threading.current_thread() is first:
            monkeypatch.setattr(os, "fsync", slow)
        write(staging, target, data)

    write = StagingFolder.write
    monkeypatch.setattr(StagingFolder, "write", write_link)
    first = threading.Thread(target=put_blob, args=(storage, "a/b", b"one"))
    first.start()
    assert waiting.wait(60)
    second = put_blob(storage, "a/b", b"two")
    assert storage.blob_size("a/b", second) == 3
    removal = threading.Thread(target=storage.delete_blob, args=("a/b", second))
    removal.start()
    removal.join(0.1)
    assert removal.is_alive(), "what removes must wait for what adds"
    go_on.set()
    removal.join(60)
    first.join(60)
    assert storage.blob_size("a/b", second) is None
    assert storage.blob_size("a/b", Digest.of(b"one")) == 3
