from __future__ import annotations

import os
import threading
from pathlib import Path
from random import Random
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.files import PartedReader, ReadAt, WriteAt, open_parts
from mirror.bundle.format import parse_part_name, part_name, part_sizes
from mirror.bundle.location import Readable
from mirror.durable import Folder
from mirror.errors import DamagedBundleError, FileSystemError, InputError


class Writable(Protocol):
    """What the writer of a bundle needs of a file."""

    path: Path

    def write(self, offset: int, *pieces: bytes) -> None: ...
    def sync(self) -> int: ...
    def close(self) -> None: ...


READERS: tuple[type[Readable], ...] = (ReadAt, PartedReader)
WRITERS: tuple[type[Writable], ...] = (WriteAt,)


def cut(folder: Path, *pieces: bytes, archive: str = "x.tar") -> list[Path]:
    """Files of `pieces` as the parts of an archive."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / part_name(archive, number) for number in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    return paths


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- sizes -----------------------------------------------------------------------------------------


@given(st.integers(0, 10**14), st.integers(1, 10**12).filter(lambda size: size > 10**8))
def test_part_sizes_add_up_and_only_the_last_is_shorter(total: int, part_size: int) -> None:
    sizes = part_sizes(total, part_size)
    assert sum(sizes) == total
    assert all(size == part_size for size in sizes[:-1])
    assert all(0 < size <= part_size for size in sizes)


@pytest.mark.parametrize(("total", "part_size"), [(1, 0), (1, -1), (-1, 1)])
def test_impossible_parts_are_the_callers_mistake(total: int, part_size: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        part_sizes(total, part_size)


# -- names -----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_a_parts_name_tells_its_archive_and_number(number: int) -> None:
    name = part_name("module-x.tar", number)
    assert parse_part_name(name) == ("module-x.tar", number)


def test_numbers_have_four_digits_until_they_need_more() -> None:
    assert part_name("x.tar", 7) == "x.tar.0007.chunk"
    assert part_name("x.tar", 9999) == "x.tar.9999.chunk"
    assert part_name("x.tar", 10000) == "x.tar.10000.chunk"


@pytest.mark.parametrize(
    "name",
    [
        "x.tar",
        "x.tar.000.chunk",
        "x.tar.00010.chunk",
        "x.tar.0000.chunk.partial",
        "x.tar.0000.chunk\n",
        "x.0000.chunk",
        ".tar.0000.chunk",
        "x.tar.-001.chunk",
        "x.tar.٠٠٠٠.chunk",
    ],
)
def test_other_names_are_no_parts(name: str) -> None:
    assert parse_part_name(name) is None


# -- reading ---------------------------------------------------------------------------------------


@given(data=st.data())
def test_parts_read_as_the_whole_at_every_offset(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
    whole = b"".join(pieces)
    paths = cut(tmp_path_factory.mktemp("parts"), *pieces)
    reader = open_parts(data.draw(st.permutations(paths)))
    start = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - start))
    assert (reader.size, reader.path) == (len(whole), paths[0].with_name("x.tar"))
    assert reader.read(start, size) == whole[start : start + size]
    assert reader.parts == tuple(paths)
    reader.close()


def test_pieces_are_of_bounded_size(tmp_path: Path) -> None:
    reader = open_parts(cut(tmp_path, bytes(3 << 20), bytes(1 << 19)))
    assert [len(chunk) for chunk in reader.chunks(5, (3 << 20) + 100)] == [
        1 << 20,
        1 << 20,
        (1 << 20) - 5,
        105,
    ]
    reader.close()


def test_parts_may_come_from_several_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "disc-1", tmp_path / "disc-2"
    cut(first, b"one")
    for path in cut(second, b"", b"two")[:1]:
        path.unlink()
    reader = open_parts([second / "x.tar.0001.chunk", first / "x.tar.0000.chunk"])
    assert reader.read(0, 6) == b"onetwo"
    assert reader.path == first / "x.tar"
    reader.close()


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = cut(tmp_path, *[b"part"] * 9)
    with pytest.raises(DamagedBundleError) as caught:
        open_parts([path for number, path in enumerate(paths) if number not in (0, 3, 4, 5)])
    assert "x.tar.0000.chunk, x.tar.0003.chunk to x.tar.0005.chunk of 9 parts are" in str(
        caught.value
    )


def test_a_missing_last_part_is_named_when_the_sizes_are_known(tmp_path: Path) -> None:
    paths = cut(tmp_path, b"part", b"par")
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.0001\.chunk of 2 parts is missing"):
        open_parts(paths[:1], [4, 3])


def test_without_sizes_a_missing_last_part_shows_as_a_cut_archive(tmp_path: Path) -> None:
    reader = open_parts(cut(tmp_path, b"part", b"part")[:1])
    with pytest.raises(DamagedBundleError, match="end at byte 4, 2 bytes too early"):
        reader.read(3, 3)
    reader.close()


@pytest.mark.parametrize("sizes", [[4, 4, 3], [4, 3, 4]])
def test_a_part_of_another_size_than_stated_is_named(tmp_path: Path, sizes: list[int]) -> None:
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.000[12]\.chunk has 4 bytes instead"):
        open_parts(cut(tmp_path, b"part", b"part", b"part"), sizes)


def test_a_part_too_many_is_named(tmp_path: Path) -> None:
    paths = cut(tmp_path, b"part", b"part", b"more")
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.0002\.chunk does not belong"):
        open_parts(paths, [4, 4])


@pytest.mark.parametrize("sizes", [None, [4, 4]])
def test_the_empty_last_part_that_other_tools_leave_is_accepted(
    tmp_path: Path, sizes: list[int] | None
) -> None:
    reader = open_parts(cut(tmp_path, b"part", b"part", b""), sizes)
    assert reader.read(0, reader.size) == b"partpart"
    reader.close()


@pytest.mark.parametrize("empty", [0, 1])
def test_another_empty_part_is_named(tmp_path: Path, empty: int) -> None:
    pieces = [b"part"] * 3
    pieces[empty] = b""
    with pytest.raises(DamagedBundleError, match=f"x.tar.000{empty}.chunk is empty"):
        open_parts(cut(tmp_path, *pieces))
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.0000\.chunk is empty"):
        open_parts(cut(tmp_path / "alone", b""))


def test_foreign_files_are_named(tmp_path: Path) -> None:
    ours, others = cut(tmp_path, b"1"), cut(tmp_path, b"2", archive="y.tar")
    with pytest.raises(InputError, match=r"several archives \(x\.tar, y\.tar\)"):
        open_parts([*ours, *others])
    with pytest.raises(InputError, match="notes is not a part"):
        open_parts([*ours, tmp_path / "notes"])
    with pytest.raises(InputError, match="at least one part"):
        open_parts([])
    with pytest.raises(FileSystemError, match="cannot examine"):
        open_parts([tmp_path / "z.tar.0000.chunk"])


def test_a_part_that_is_there_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedBundleError, match="is there twice"):
        open_parts([*cut(tmp_path / "a", b"1"), *cut(tmp_path / "b", b"1")])


def test_a_part_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    paths = cut(tmp_path, b"part", b"part")
    reader = open_parts(paths)
    os.truncate(paths[1], 1)
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.0001\.chunk: ends 3 bytes too early"):
        reader.read(0, 8)
    reader.close()


def test_many_parts_take_few_open_files_whoever_reads_them(tmp_path: Path) -> None:
    before = open_files()
    pieces = [number.to_bytes(2, "big") for number in range(400)]
    reader = open_parts(cut(tmp_path, *pieces))
    wrong: list[int] = []
    most = 0

    def read(seed: int) -> None:
        nonlocal most
        random = Random(seed)
        for _ in range(400):
            number = random.randrange(400)
            if reader.read(2 * number, 2) != pieces[number]:
                wrong.append(number)
            most = max(most, open_files() - before)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert most < 64 + 2 * len(threads)
    reader.close()
    assert open_files() == before
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 1)


# -- writing ---------------------------------------------------------------------------------------


@given(data=st.data())
def test_writes_in_any_order_fill_the_parts_exactly(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = data.draw(st.binary(min_size=1, max_size=200))
    part_size = data.draw(st.integers(1, 80))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    ranges = list(zip([0, *cuts], [*cuts, len(whole)], strict=True))
    folder = tmp_path_factory.mktemp("parts")
    opened = Folder(folder)
    writer = WriteAt(opened, "x.tar.partial", len(whole), part_size)
    for start, end in data.draw(st.permutations(ranges)):
        middle = data.draw(st.integers(start, end))
        writer.write(start, whole[start:middle], b"", whole[middle:end])
    assert b"".join(writer.chunks(0, len(whole))) == whole
    assert writer.sync() == len(whole)
    writer.close()
    writer.close()
    opened.close()
    assert tuple(part.stat().st_size for part in writer.parts) == part_sizes(len(whole), part_size)
    assert b"".join(part.read_bytes() for part in writer.parts) == whole
    names = [part.name.removesuffix(".partial") for part in writer.parts]
    assert names == [part_name("x.tar", number) for number in range(len(names))]


def test_what_was_written_reads_as_an_archive(tmp_path: Path) -> None:
    writer = WriteAt(Folder(tmp_path), "x.tar", 10, 4)
    writer.write(0, b"0123", b"456789")
    writer.close()
    reader = open_parts(reversed(writer.parts), writer.sizes)
    assert reader.read(2, 7) == b"2345678"
    reader.close()


def test_a_part_that_was_not_written_to_its_end_shows_in_the_size(tmp_path: Path) -> None:
    writer = WriteAt(Folder(tmp_path), "x.tar", 10, 4)
    writer.write(0, b"012")
    writer.write(4, b"456789")
    assert writer.sync() == 9
    writer.close()


@pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (9, b"xy"), (11, b"x")])
def test_nothing_is_written_outside(tmp_path: Path, offset: int, data: bytes) -> None:
    writer = WriteAt(Folder(tmp_path), "x.tar", 10, 4)
    with pytest.raises(ValueError, match=r"not all in x\.tar"):
        writer.write(offset, data)
    writer.close()


def test_what_an_earlier_run_left_is_kept_on_request_and_cut_to_its_window(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "x.tar.0000.chunk.partial").write_bytes(b"012345")
    writer = WriteAt(folder, "x.tar.partial", 6, 4, keep=True)
    assert [part.read_bytes() for part in writer.parts] == [b"0123", b""]
    writer.close()
    writer = WriteAt(folder, "x.tar.partial", 6, 4)
    assert [part.read_bytes() for part in writer.parts] == [b"", b""]
    with pytest.raises(DamagedBundleError, match=r"x\.tar\.0000\.chunk\.partial: ends 4 bytes"):
        b"".join(writer.chunks(0, 6))
    writer.close()


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    folder = Folder(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileSystemError, match=r"cannot create .*x\.tar\.0000\.chunk"):
        WriteAt(folder, "x.tar", 6, 4)
