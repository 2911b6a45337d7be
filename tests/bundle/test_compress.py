"""Archives in zstd frames: other programs read them, any place of them is read alone, and no byte
of them changes unnoticed."""

from __future__ import annotations

import gc
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from array import array
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle import sums
from mirror.bundle.compress import Compression, Compressor, FolderFiles
from mirror.bundle.files import ReadAt, open_parts
from mirror.bundle.follow import SHA256
from mirror.bundle.format import FRAME, PARTIAL_SUFFIX, SUMS, compressed_bound
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seekable import MAX_FRAME, Forward, SeekableFile, table
from mirror.bundle.verify import verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.durable import Folder
from mirror.errors import DamagedBundleError, InputError, NoSpaceError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, Plan, make_plan, transfer
from tests.support.bundles import archives_of, flip, pack_store, seal_of, verify
from tests.support.inventories import put_image, sample_store
from tests.support.program import ROOT
from tests.support.strategies import MORE_EXAMPLES
from tests.support.tools import require_tool


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def store() -> MemoryStore:
    """Images of several frames: what becomes smaller, what does not, and both at once."""
    made = sample_store()
    text = b"".join(b"line %d of a log\n" % number for number in range(150_000))
    put_image(made, "", "v9.0.0", layers=(text, noise(3 * FRAME + 17)))
    put_image(made, "security/trivy-db", "3", layers=(text[: FRAME + 1] + noise(FRAME // 2, 2),))
    return made


STORE = store()
WANTED = STORE.inventory()


def pack(folder: Path, *, part_size: int = 0, jobs: int = 4) -> BundleWriter:
    with BundleWriter(
        folder, seal_of(archives_of(WANTED)), packing=Packing(compress=True, part_size=part_size)
    ) as writer:
        transfer(make_plan(WANTED, writer.held(WANTED)), STORE, writer, run=Run(jobs=jobs))
        writer.finish()
    return writer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    pack_store(STORE, folder)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zstd(*args: str | Path) -> bytes:
    done = subprocess.run([require_tool("zstd"), *args], capture_output=True, check=True)
    return done.stdout


def squeeze(
    path: Path, data: bytes, *, part_size: int = 0, threads: int = 3, step: int = FRAME
) -> Compressor:
    """Compress `data` as the archive `path`, and give it its name."""
    with Compression(threads) as compression:
        output = FolderFiles(Folder(path.parent))
        made = Compressor(compression, output, path.name, part_size, SHA256)
        for start in range(0, len(data), step):
            made.update(data[start : start + step])
        made.hexdigest()
        made.close()
    for file in made.files:
        staged = path.parent / file.name
        staged.replace(staged.with_name(staged.name.removesuffix(PARTIAL_SUFFIX)))
    return made


# -- what is written -------------------------------------------------------------------------------


def test_zstd_and_tar_read_it(plain: Path, packed: Path) -> None:
    names = sorted(path.name for path in packed.glob("*.zst"))
    assert names == sorted(f"{path.name}.zst" for path in plain.glob("*.tar"))
    assert not list(packed.glob("*.tar"))
    assert not list(packed.glob("*.partial"))
    for name in names:
        data = zstd("-dc", packed / name)
        assert data == (plain / name.removesuffix(".zst")).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getnames()
    zstd("--test", *(packed / name for name in names))


def test_the_seal_is_that_of_the_bundle_without_compression(plain: Path, packed: Path) -> None:
    assert (plain / "inventory.json").read_bytes() == (packed / "inventory.json").read_bytes()


def test_sha256sum_accepts_the_compressed_files(packed: Path) -> None:
    done = subprocess.run(
        [require_tool("sha256sum"), "--strict", "-c", "SHA256SUMS"],
        cwd=packed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "platform.tar.zst: OK" in done.stdout


def test_it_is_the_same_however_it_was_written(packed: Path, tmp_path: Path) -> None:
    pack(tmp_path / "one", jobs=1)
    assert contents(tmp_path / "one") == contents(packed)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3 * FRAME // 2), min_size=1, max_size=4),
    threads=st.integers(1, 5),
    step=st.integers(FRAME // 3, 2 * FRAME),
    part_size=st.sampled_from([0, 0, 300_001, FRAME]),
)
def test_decompressing_undoes_compressing(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    threads: int,
    step: int,
    part_size: int,
) -> None:
    folder = tmp_path_factory.mktemp("z")
    data = b"".join(
        noise(size, seed) if seed % 2 else b"%d" % seed * size for seed, size in enumerate(sizes)
    )
    made = squeeze(folder / "a.tar", data, part_size=part_size, threads=threads, step=step)
    paths = sorted(folder.iterdir())
    assert b"".join(path.read_bytes() for path in paths) == b"".join(
        path.read_bytes() for path in sorted(squeezed_again(folder, data, threads=1).iterdir())
    )
    assert made.size == sum(path.stat().st_size for path in paths) <= compressed_bound(len(data))
    if part_size:
        assert {path.stat().st_size for path in paths[:-1]} <= {part_size}
    for path, done in zip(paths, made.files, strict=True):
        assert done.digests["sha256"] == Digest.of(path.read_bytes()).encoded
    source = open_parts(paths) if part_size else ReadAt(paths[0])
    file = SeekableFile(source)
    try:
        assert file.size == len(data)
        dice = random.Random(len(data))
        for _ in range(20):
            start = dice.randint(0, len(data))
            length = dice.randint(0, len(data) - start)
            assert file.read(start, length) == data[start : start + length]
        told = f"ends at byte {len(data)}, 1 bytes too early; the archive is truncated, copy it"
        with pytest.raises(DamagedBundleError, match=told):
            file.read(len(data), 1)
    finally:
        file.close()


def squeezed_again(folder: Path, data: bytes, *, threads: int) -> Path:
    again = folder.with_name(folder.name + "-again")
    again.mkdir()
    squeeze(again / "a.tar", data, threads=threads)
    return again


def test_what_does_not_become_smaller_is_stored(tmp_path: Path) -> None:
    made = squeeze(tmp_path / "a.tar", noise(8 * FRAME))
    assert made.size <= 8 * FRAME + 8 * 64 + 64


def test_other_tools_find_their_way_by_the_table(packed: Path) -> None:
    """The table as zstd's contrib/seekable_format/zstd_seekable_compression_format.md has it."""
    data = (packed / "platform.tar.zst").read_bytes()
    count, descriptor, magic = struct.unpack("<IBI", data[-9:])
    assert (descriptor, magic) == (0x80, 0x8F92EAB1)
    start = len(data) - 9 - 12 * count - 8
    assert struct.unpack("<II", data[start : start + 8]) == (0x184D2A5E, 12 * count + 9)
    position = 0
    for number in range(count):
        at = start + 8 + 12 * number
        compressed, size, checksum = struct.unpack("<III", data[at : at + 12])
        frame = data[position : position + compressed]
        unpacked = zstandard.ZstdDecompressor().decompress(frame)
        assert len(unpacked) == size
        assert (size == FRAME) == (number < count - 1) or number == count - 1
        assert frame[-4:] == struct.pack("<I", checksum)
        position += compressed
    assert position == start


def test_a_disk_without_room_for_both_forms_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = seal_of(archives_of(WANTED))
    size = sum(archive.size for archive in seal.archives.values())

    class Stat:
        f_frsize = 1
        f_bavail = int(1.5 * size)

    monkeypatch.setattr(os, "statvfs", lambda _path: Stat)
    writer = BundleWriter(tmp_path, seal, packing=Packing(compress=True))
    with pytest.raises(NoSpaceError, match="nothing was fetched"):
        writer.__enter__()


# -- reading ---------------------------------------------------------------------------------------


def test_a_compressed_bundle_is_a_source_like_any_other(packed: Path) -> None:
    with BundleReader([packed]) as reader:
        assert reader.inventory() == WANTED
        target = MemoryStore()
        transfer(make_plan(WANTED, Inventory()), reader, target, run=Run(jobs=4))
    assert target.inventory() == WANTED


@pytest.mark.parametrize("part_size", [1_000_000, 1_500_001])
def test_a_compressed_bundle_in_parts_is_too(packed: Path, tmp_path: Path, part_size: int) -> None:
    pack(tmp_path, part_size=part_size)
    parts = sorted(tmp_path.glob("platform.tar.zst.*.chunk"))
    assert b"".join(map(Path.read_bytes, parts)) == (packed / "platform.tar.zst").read_bytes()
    assert len(parts) > 2
    assert verify(tmp_path).findings == ()
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == WANTED
    with BundleReader([parts[1]]) as reader:
        assert [one.name for one in reader._archives] == ["platform.tar"]
    parts[1].unlink()
    told = r"platform.tar.zst.0001.chunk of \d+ parts is missing"
    with BundleReader([tmp_path]) as reader, pytest.raises(DamagedBundleError, match=told):
        reader.inventory()


def test_a_last_part_that_is_missing_is_named(tmp_path: Path) -> None:
    pack(tmp_path, part_size=1_000_000)
    last = max(tmp_path.glob("platform.tar.zst.*.chunk"))
    last.unlink()
    findings = verify(tmp_path).findings
    assert last.name in {finding.place for finding in findings}


def test_a_bundle_that_is_there_in_both_forms_is_refused(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "platform.tar").write_bytes(b"")
    with pytest.raises(InputError, match="there compressed and not compressed; remove the older"):
        BundleReader([tmp_path])


def test_what_zstd_itself_compressed_is_refused_with_what_to_do(
    plain: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    (tmp_path / "inventory.json").unlink()
    (tmp_path / "SHA256SUMS").unlink()
    zstd("-q", "--rm", tmp_path / "platform.tar")
    told = r"`zstd -d --rm platform\.tar\.zst`"
    with BundleReader([tmp_path]) as reader, pytest.raises(DamagedBundleError, match=told):
        reader.inventory()
    zstd("-q", "-d", "--rm", tmp_path / "platform.tar.zst")
    assert verify(tmp_path).findings == ()


def test_frames_of_other_writers_are_read(plain: Path, tmp_path: Path) -> None:
    """Of other sizes, without sizes and checksums in them, and with a table without checksums."""
    data = (plain / "platform.tar").read_bytes()
    frames, table = b"", b""
    step = 333_333
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        made = zstandard.ZstdCompressor(write_content_size=start % 2 == 0).compress(piece)
        frames += made
        table += struct.pack("<II", len(made), len(piece))
    count = len(table) // 8
    table = struct.pack("<II", 0x184D2A5E, len(table) + 9) + table
    table += struct.pack("<IBI", count, 0, 0x8F92EAB1)
    (tmp_path / "platform.tar.zst").write_bytes(frames + table)
    with BundleReader([tmp_path]) as reader:
        assert reader._archives[0].problem is None
        assert reader._archives[0].file.read(0, len(data)) == data
    assert verify(tmp_path).findings == ()


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_a_whole_one_has_no_findings(packed: Path, plain: Path) -> None:
    report, expected = verify(packed), verify(plain)
    assert report == expected
    assert not report.findings


def test_a_flipped_byte_anywhere_in_a_compressed_archive_is_found(copy: Path) -> None:
    dice = random.Random(7)
    for path in (copy / "security.tar.zst", copy / "platform.tar.zst"):
        size = path.stat().st_size
        frame_starts = [0, 4, 5, 6, 12]
        table = [size - 1, size - 5, size - 9, size - 15, size - 21]
        for at in [*frame_starts, *table, *(dice.randrange(size) for _ in range(50))]:
            flip(path, at, 1 << at % 8)
            findings = verify(copy).findings
            places = {finding.place for finding in findings}
            assert places & {path.name, path.name.removesuffix(".zst")}, at
            assert places <= {path.name, path.name.removesuffix(".zst")}, at
            flip(path, at, 1 << at % 8)
    assert verify(copy).findings == ()


def test_a_compressed_archive_that_its_sums_do_not_fit_is_found(copy: Path) -> None:
    path = copy / SUMS
    stated = {**sums.parse(path.read_bytes()), "platform.tar.zst": Digest.of(b"another file")}
    path.write_bytes(sums.render_sealed(stated))
    assert [str(one) for one in verify(copy).findings] == [
        "platform.tar.zst: is damaged: SHA256SUMS has another digest"
    ]


def test_damage_is_located_and_hides_nothing_behind_it(copy: Path) -> None:
    path = copy / "platform.tar.zst"
    with BundleReader([copy]) as reader:
        file = next(one.file for one in reader._archives if one.name == "platform.tar")
        assert isinstance(file, SeekableFile)
        assert file.frames > 4
    flip(path, 2000)
    flip(path, path.stat().st_size // 2)
    findings = verify(copy).findings
    assert {finding.place for finding in findings} == {"platform.tar", "platform.tar.zst"}
    assert any("cannot be decompressed" in finding.problem for finding in findings)
    assert any(finding.tags == ("v9.0.0",) for finding in findings)
    layers = set(WANTED.repository("").blobs)
    assert {finding.digest for finding in findings} & layers


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9999])
def test_a_compressed_archive_that_is_cut_short_is_found(copy: Path, keep: float) -> None:
    path = copy / "platform.tar.zst"
    os.truncate(path, int(path.stat().st_size * keep))
    findings = verify(copy).findings
    assert any("it is cut short" in finding.problem for finding in findings)
    assert any(finding.tags for finding in findings)
    told = "is damaged or incomplete"
    with BundleReader([copy]) as reader, pytest.raises(DamagedBundleError, match=told):
        reader.inventory()


def test_each_byte_of_a_compressed_archive_is_read_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in packed.glob("*.zst"))
    with BundleReader([packed]) as reader:
        read = 0
        lock = threading.Lock()
        real = os.pread

        def counted(fd: int, count: int, offset: int) -> bytes:
            nonlocal read
            data = real(fd, count, offset)
            if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".zst":
                with lock:
                    read += len(data)
            return data

        monkeypatch.setattr(os, "pread", counted)
        assert verify_bundle(reader).findings == ()
    assert read == size


@MORE_EXAMPLES
@given(noise=st.binary(max_size=200), end=st.booleans(), cut=st.integers(0, 400))
def test_whatever_the_bytes_are_the_answer_is_ours(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, end: bool, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    squeeze(folder / "a.tar", b"some content " * 20)
    path = folder / "a.tar.zst"
    data = path.read_bytes()
    at = max(0, len(data) - cut)
    path.write_bytes(data[:at] + noise + (data[at + len(noise) :] if end else b""))
    source = ReadAt(path)
    with closing(source), suppress(DamagedBundleError):
        file = SeekableFile(source)
        assert len(file.read(0, file.size)) == file.size
        with Forward(file) as forward:
            assert len(forward.read(0, file.size)) == file.size
            forward.finish()


def bomb(path: Path, claimed: int, actual: int, *, content_size: bool = True) -> None:
    """A frame of `actual` zeros in a table that claims `claimed` of it."""
    frame = zstandard.ZstdCompressor(write_content_size=content_size).compress(bytes(actual))
    entry = struct.pack("<II", len(frame), claimed)
    table = struct.pack("<II", 0x184D2A5E, len(entry) + 9) + entry
    path.write_bytes(frame + table + struct.pack("<IBI", 1, 0, 0x8F92EAB1))


@pytest.mark.parametrize("content_size", [True, False])
def test_a_frame_that_holds_more_than_it_says_is_refused(
    tmp_path: Path, content_size: bool
) -> None:
    path = tmp_path / "a.tar.zst"
    bomb(path, 1000, 300 << 20, content_size=content_size)
    source = ReadAt(path)
    file = SeekableFile(source)
    with pytest.raises(DamagedBundleError, match=r"a.tar.zst: it has frame 0"):
        file.read(0, 1000)
    file.close()


def lying(path: Path, stated: int) -> None:
    """A frame of 300 MiB whose own header, and the table, state `stated` bytes of it."""
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(300 << 20)))
    assert frame[4] >> 6 == 2  # four bytes of content size
    at = 5 if frame[4] & 0x20 else 6
    frame[at : at + 4] = struct.pack("<I", stated)
    entry = struct.pack("<II", len(frame), stated)
    table = struct.pack("<II", 0x184D2A5E, len(entry) + 9) + entry
    path.write_bytes(bytes(frame) + table + struct.pack("<IBI", 1, 0, 0x8F92EAB1))


_READ_LIES = """
import sys
from pathlib import Path
from mirror.bundle.files import ReadAt
from mirror.bundle.seekable import SeekableFile
from mirror.errors import DamagedBundleError
from tests.support.measured import peak
before = peak()
for name in sys.argv[1:]:
    file = SeekableFile(ReadAt(Path(name)))
    try:
        file.read(0, file.size)
    except DamagedBundleError as err:
        print(err)
print(peak() - before)
"""


def test_a_frame_whose_header_lies_takes_no_memory(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("small.tar.zst", "large.tar.zst", "unknown.tar.zst")]
    lying(paths[0], 1000)
    lying(paths[1], MAX_FRAME)
    bomb(paths[2], MAX_FRAME, 300 << 20, content_size=False)
    done = subprocess.run(
        [sys.executable, "-c", _READ_LIES, *paths],
        capture_output=True,
        check=True,
        text=True,
        cwd=ROOT,
    )
    *refused, grown = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in refused] == [path.name for path in paths]
    assert int(grown) < 64 << 20


def test_frames_beyond_what_is_read_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    bomb(path, MAX_FRAME + 1, 10)
    source = ReadAt(path)
    with pytest.raises(DamagedBundleError, match=r"at most 4194304 are read; unpack it with `zstd"):
        SeekableFile(source)
    source.close()


# -- interruptions ---------------------------------------------------------------------------------


def test_an_interrupted_compression_is_completed_by_the_next_one(
    packed: Path, tmp_path: Path
) -> None:
    seal = seal_of(archives_of(WANTED))
    for blobs in (3, 9, 100):
        with BundleWriter(tmp_path, seal, packing=Packing(compress=True)) as writer:
            plan = make_plan(WANTED, writer.held(WANTED))
            transfer(_first(plan, blobs), STORE, writer, run=Run(jobs=2))
        assert not list(tmp_path.glob("*.zst"))
        assert list(tmp_path.glob("*.tar.partial"))
    pack(tmp_path)
    assert contents(tmp_path) == contents(packed)


@pytest.mark.parametrize(("running", "refusals"), [(0, 5), (1, 3)])
def test_a_frame_that_no_thread_could_be_started_for_is_compressed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int, refusals: int
) -> None:
    """As under a limit of processes: the system refuses every thread behind `running` ones."""
    start, begun = threading.Thread.start, list[threading.Thread]()

    def refused(thread: threading.Thread) -> None:
        if len(begun) == running:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    frames = [noise(FRAME, seed) for seed in range(running + refusals)]
    with Folder(tmp_path) as folder, Compression(2) as compression:
        made = Compressor(compression, FolderFiles(folder), "platform.tar", 0, SHA256)
        # No thread is idle while its frame waits for this one to write it.
        with monkeypatch.context() as patch, made._changed:
            patch.setattr(threading.Thread, "start", refused)
            for frame in frames:  # of five, the last would wait for a slot
                made.update(_followed(frame))
        made.hexdigest()
        gc.collect()
        assert not _Followed.alive, "the pool keeps them"
    assert len(begun) == running
    with (
        (tmp_path / "platform.tar.zst.partial").open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as unpacked,
    ):
        assert unpacked.read() == b"".join(frames)


def test_frames_are_read_one_by_one_where_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [noise(FRAME, seed) for seed in range(3)]
    with Folder(tmp_path) as folder, Compression(2) as compression:
        made = Compressor(compression, FolderFiles(folder), "platform.tar", 0, SHA256)
        for frame in frames:
            made.update(frame)
        made.hexdigest()
    refused = list[threading.Thread]()

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with (
        closing(SeekableFile(ReadAt(tmp_path / "platform.tar.zst.partial"))) as file,
        monkeypatch.context() as patch,
        Forward(file) as read,
    ):
        patch.setattr(threading.Thread, "start", refuse)
        packed = file.packed_frame
        patch.setattr(file, "packed_frame", lambda *what: _followed(packed(*what)))
        assert b"".join(read.chunks(0, file.size)) == b"".join(frames)
        gc.collect()
        assert not _Followed.alive, "the pool keeps them"
    assert refused


class _Followed(bytes):
    """Bytes that tell when they go; none can be referred to weakly."""

    alive: ClassVar[set[int]] = set()

    def __del__(self) -> None:
        self.alive.discard(id(self))


def _followed(data: bytes) -> _Followed:
    made = _Followed(data)
    made.alive.add(id(made))
    return made


def _first(plan: Plan, blobs: int) -> Plan:
    return replace(plan, blobs=plan.blobs[:blobs], manifests=(), tags=())


def _frames(
    folder: Path, *, crc: int | None = None, between: bytes = b"", more: tuple[int, ...] = ()
) -> SeekableFile:
    """A file of one frame, whose table may be wrong about it."""
    data = b"content" * 50
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    (checksum,) = struct.unpack("<I", frame[-4:])
    sizes = array("I", (len(frame), len(data), checksum if crc is None else crc, *more))
    path = folder / "platform.tar.zst"
    path.write_bytes(frame + between + table(sizes))
    return SeekableFile(ReadAt(path))


def test_a_table_that_is_wrong_about_a_checksum_is_damage(tmp_path: Path) -> None:
    file = _frames(tmp_path)
    assert b"".join(file.chunks(0, file.size)) == b"content" * 50
    file = _frames(tmp_path, crc=7)
    with pytest.raises(DamagedBundleError, match="another checksum of frame 0 in the table"):
        b"".join(file.chunks(0, file.size))


def test_bytes_that_no_frame_accounts_for_are_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedBundleError, match=r"frames of \d+ bytes in all, and a table"):
        _frames(tmp_path, between=b"smuggled")


def test_an_empty_frame_in_a_table_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedBundleError, match="an empty frame in its table"):
        _frames(tmp_path, more=(0, 0, 0))
