from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle import files
from mirror.bundle.files import CHUNK, ReadAt, WriteAt
from mirror.durable import Folder, os_errors, sync_folder
from mirror.errors import DamagedBundleError, FileSystemError, NoSpaceError


def test_pieces_land_where_they_belong_whoever_writes_them_first(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(200_000)
    pieces = [(at, data[at : at + 700]) for at in range(0, len(data), 700)]
    random.Random(2).shuffle(pieces)
    with closing(WriteAt(Folder(tmp_path), "a")) as file, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: file.write(piece[0], piece[1][:300], piece[1][300:]), pieces))
        assert file.sync() == len(data)
    assert (tmp_path / "a").read_bytes() == data


@given(
    pieces=st.lists(st.binary(max_size=20), max_size=6),
    bites=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_a_kernel_that_takes_little_at_a_time_loses_nothing(
    pieces: list[bytes], bites: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bites"
    real = os.pwritev
    turns = 0

    def little(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        nonlocal turns
        turns += 1
        return real(fd, [b"".join(buffers)[: bites[turns % len(bites)]]], offset)

    with (
        pytest.MonkeyPatch.context() as patch,
        Folder(path.parent) as folder,
        closing(WriteAt(folder, path.name)) as file,
    ):
        patch.setattr(os, "pwritev", little)
        file.write(3, *pieces)
    written = path.read_bytes()
    assert written[3:] == b"".join(pieces)


def test_any_part_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(2 * CHUNK + 5)
    (tmp_path / "a").write_bytes(data)
    with closing(ReadAt(tmp_path / "a")) as file:
        assert file.size == len(data)
        assert file.read(0, 0) == b""
        assert file.read(CHUNK - 3, 6) == data[CHUNK - 3 : CHUNK + 3]
        pieces = list(file.chunks(2, len(data) - 2))
        assert b"".join(pieces) == data[2:]
        assert max(map(len, pieces)) == CHUNK


def test_a_file_that_ends_too_early_says_by_how_much(tmp_path: Path) -> None:
    (tmp_path / "platform.tar").write_bytes(b"x" * 100)
    with (
        closing(ReadAt(tmp_path / "platform.tar")) as file,
        pytest.raises(
            DamagedBundleError,
            match=r"^platform.tar: ends at byte 100, 50 bytes too early; the archive is truncated",
        ),
    ):
        file.read(90, 60)


@pytest.mark.parametrize(
    ("number", "error", "advice"),
    [
        (errno.ENOSPC, NoSpaceError, "free some space there and run the command again"),
        (errno.EDQUOT, NoSpaceError, "free some space there and run the command again"),
        (errno.EFBIG, FileSystemError, r"takes no file so large \(FAT: 4 GiB\), use ext4 or exFAT"),
        (errno.EACCES, FileSystemError, "check the permissions, or use another folder"),
        (errno.EROFS, FileSystemError, "check the permissions, or use another folder"),
        (errno.EIO, FileSystemError, "the medium is failing, copy it from its origin"),
        (errno.ENOTDIR, FileSystemError, "$"),
    ],
    ids=lambda one: errno.errorcode[one] if isinstance(one, int) else "",
)
def test_the_systems_refusals_are_put_into_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[FileSystemError],
    advice: str,
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with closing(WriteAt(Folder(tmp_path), "a.tar")) as file:
        monkeypatch.setattr(os, "pwritev", refuse)
        told = f"^cannot write {tmp_path}/a.tar: {os.strerror(number)}.*{advice}"
        with pytest.raises(error, match=told) as caught:
            file.write(0, b"data")
    assert isinstance(caught.value.__cause__, OSError)


def test_what_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileSystemError, match=f"^cannot open {tmp_path}/x: No such file"):
        ReadAt(tmp_path / "x")
    (tmp_path / "gone").mkdir()
    gone = Folder(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileSystemError, match=f"^cannot create {tmp_path}/gone/y: No such file"):
        WriteAt(gone, "y")
    with pytest.raises(FileSystemError, match="cannot write"), os_errors(tmp_path, "write"):
        sync_folder(tmp_path / "x")


def test_other_exceptions_pass_untouched(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), os_errors(tmp_path, "read"):
        raise KeyError("mine")


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Any:
        def fsync(_fd: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    sync_folder(tmp_path)  # as on FAT
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    failing = pytest.raises(FileSystemError, match="the medium is failing")
    with failing, os_errors(tmp_path, "write"):
        sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("part_size", "stretches"),
    [
        (0, [(0, 300), (300, 300), (600, 300)]),
        (450, [(0, 300), (300, 150), (0, 150), (150, 300)]),
    ],
    ids=["whole", "parts"],
)
def test_what_was_hashed_begins_its_way_to_the_disk_at_once_stretch_by_stretch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part_size: int,
    stretches: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(files, "_SETTLED", 300)
    begun: list[tuple[int, int, int]] = []

    def advise(_fd: int, *stretch: int) -> None:
        begun.append((stretch[0], stretch[1], stretch[2]))
        raise OSError(errno.EINVAL, "a file system that cannot")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    data = random.Random(3).randbytes(1000)
    with closing(WriteAt(Folder(tmp_path), "a.tar", 1000, part_size)) as file:
        file.write(0, data)
        read = [b"".join(file.settling(at, 100)) for at in range(0, 1000, 100)]
    assert b"".join(read) == data
    away = os.POSIX_FADV_DONTNEED
    assert begun == [(*stretch, away) for stretch in stretches]
