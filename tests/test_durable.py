"""The one way in which files are written that must outlive a power cut."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mirror.durable import (
    Folder,
    make_folder,
    os_errors,
    write_at,
    write_durably,
    write_if_changed,
)
from mirror.errors import FileSystemError, NoSpaceError
from mirror.serve import FolderStorage
from tests.support.sample_images import fill
from tests.support.synced import Recorder


def test_bytes_come_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    with Folder(tmp_path) as folder:
        folder.write("a", b"data", staged="a.partial")
    assert recorder.steps == ["fsync a.partial", "rename a", f"fsync {tmp_path.name}"]
    assert (tmp_path / "a").read_bytes() == b"data"


def test_the_limit_of_this_process_is_told_where_it_and_not_the_file_system_is_met(
    tmp_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = r"File too large; this process may write 4096 bytes of a file, raise that \(ulimit -f\)"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            Folder(tmp_path) as folder,
            pytest.raises(FileSystemError, match=told),
            os_errors(tmp_path / "a", "write"),
        ):
            folder.write("a", bytes(8192), staged="a.partial")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_new_folder_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    make_folder(tmp_path / "a/b")
    assert recorder.steps == [f"fsync {tmp_path.name}", "fsync a"]
    make_folder(tmp_path / "a/b")
    assert len(recorder.steps) == 2


def test_a_leftover_of_the_staged_name_is_replaced_and_a_link_is_not_followed(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "a.partial").symlink_to(victim)
    with Folder(tmp_path) as folder:
        folder.write("a", b"data", staged="a.partial")
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "a").read_bytes() == b"data"
    assert not (tmp_path / "a").is_symlink()


def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(NoSpaceError, match=r"^cannot write .*/a: No space left.*; free some space"):
        write_durably(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileSystemError, match=r"cannot write .*/nowhere/a: No such file"):
        write_durably(tmp_path / "nowhere/a", b"data")


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "new/a"
    assert write_if_changed(path, b"data", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_ino
    assert not write_if_changed(path, b"data", mode=0o600)
    assert path.stat().st_ino == before
    assert write_if_changed(path, b"data", mode=0o644)
    assert path.stat().st_mode & 0o777 == 0o644


def test_pieces_are_written_whole_however_little_the_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def stingy(fd: int, pieces: list[bytes], offset: int) -> int:
        return real(fd, [bytes(pieces[0])[:3]], offset)

    monkeypatch.setattr(os, "pwritev", stingy)
    fd = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    write_at(fd, 2, b"12345", b"", memoryview(b"678"), b"9")
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"\0\x00123456789"


def test_a_registry_acknowledges_what_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FolderStorage(tmp_path)
    recorder = Recorder(monkeypatch)
    fill(storage, "a/b", "v1")
    assert len(recorder.names) > 5
    for number, source, target in recorder.names:
        assert f"fsync {source.name}" in recorder.steps[:number], f"{target} may be empty"
        assert recorder.steps[number + 1] == f"fsync {target.parent.name}", f"{target} may be lost"


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "../a"])
def test_a_folder_takes_names_and_no_paths(name: str, tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        for work in (folder.unlink, folder.create, folder.remove, folder.status):
            with pytest.raises(ValueError, match="is not the name of one thing in a folder"):
                work(name)


def test_no_component_below_a_folder_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/b").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "elsewhere")
    with Folder(tmp_path / "in") as folder:
        for below in ("a", "a/b", "a/new"):
            for opened in (folder.inside, folder.make):
                with pytest.raises(OSError, match="Too many levels of symbolic links"):
                    opened(below)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["b"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_a_folder_of_secrets_is_its_owners_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        assert write_if_changed(tmp_path / "new/secrets/key", b"x", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "new/secrets").stat().st_mode & 0o777 == 0o700
    # Who may rename in the folder above could put another one in its place.
    assert (tmp_path / "new").stat().st_mode & 0o022 == 0
    assert (tmp_path / "new/secrets/key").stat().st_mode & 0o777 == 0o600


def test_a_file_is_created_only_where_nothing_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "link").symlink_to("nowhere")
    with Folder(tmp_path) as folder:
        for name in ("file", "link"):
            with pytest.raises(FileExistsError):
                folder.create(name)
    assert (tmp_path / "file").read_text() == "somebody's"
    assert not (tmp_path / "nowhere").exists()
