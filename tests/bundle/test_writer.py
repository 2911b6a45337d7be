from __future__ import annotations

import errno
import os
import random
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle.archive import lay_out
from mirror.bundle.folder import FolderPlace, check_space
from mirror.bundle.format import size_text
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.writer import BundleWriter
from mirror.durable import Folder, write_durably
from mirror.errors import (
    CancelledError,
    FileSystemError,
    IncompleteError,
    InputError,
    IntegrityError,
    MirrorError,
    NoSpaceError,
    SizeMismatchError,
)
from mirror.events import BlobDone, Event
from mirror.oci import Descriptor, Digest
from mirror.run import Cancellation, Run
from mirror.sync import (
    BlobContent,
    CopyBlob,
    Inventory,
    InventoryBuilder,
    MemoryStore,
    PutManifest,
    make_plan,
    transfer,
)
from tests.support.bundles import archives_of, origins, pack_store, seal_of
from tests.support.inventories import fake_manifest, put_image, sample_store, stores
from tests.support.sources import CountedSource

STORE = sample_store()
WANTED = STORE.inventory()
ARCHIVES = archives_of(WANTED)
SEAL = seal_of(ARCHIVES)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# -- the same bytes --------------------------------------------------------------------------------


@settings(max_examples=20)
@given(store=stores(), order=st.randoms(use_true_random=False), piece=st.integers(1, 600))
def test_no_order_and_no_parallelism_shows_in_the_bytes(
    store: MemoryStore,
    order: random.Random,
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    inventory = store.inventory()
    archives = archives_of(inventory)
    folder = tmp_path_factory.mktemp("bundles")
    pack_store(store, folder / "plain")
    with BundleWriter(folder / "shuffled", seal_of(tuple(reversed(archives)))) as writer:
        plan = make_plan(inventory, Inventory())
        blobs = list(plan.blobs)
        order.shuffle(blobs)
        for step in blobs:
            content = BlobContent(
                CountedSource(store, piece=piece), step.source, step.digest, step.size
            )
            assert writer.put_blob(step, content) == step.size
        puts = [put for wave in plan.manifests for put in wave]
        order.shuffle(puts)
        for put in puts:
            writer.put_manifest(put.repository, store.manifest(put.repository, put.digest))
        writer.finish()
    with BundleWriter(folder / "parallel", seal_of(archives)) as writer:
        plan = make_plan(inventory, writer.held(inventory))
        transfer(plan, CountedSource(store, piece=piece), writer, run=Run(jobs=6))
        writer.finish()
    plain = files_in(folder / "plain")
    assert files_in(folder / "shuffled") == plain
    assert files_in(folder / "parallel") == plain


def test_a_blob_of_several_layouts_is_fetched_once_and_written_to_each(tmp_path: Path) -> None:
    base = Digest.of(b"base layer " * 300)
    source = CountedSource(STORE, piece=100)
    with BundleWriter(tmp_path, SEAL) as writer:
        report = transfer(make_plan(WANTED, Inventory()), source, writer)
        writer.finish()
    assert sorted(digest for digest, _ in source.asked) == sorted(WANTED.blob_sizes())
    assert report.sent == sum(WANTED.blob_sizes().values())
    with BundleReader([tmp_path]) as reader:
        copies = [
            archive.name
            for archive in reader._archives
            for path in archive.members
            if path.endswith(base.encoded)
        ]
    assert copies == ["module-console.tar", "platform.tar"]


def test_blobs_are_asked_for_in_the_order_in_which_they_lie(tmp_path: Path) -> None:
    with BundleWriter(tmp_path, SEAL) as writer:
        plan = make_plan(WANTED, Inventory())
        (staged,) = writer.stages(plan)
        blobs, ordered = plan.blobs, staged.blobs
        assert sorted(ordered, key=lambda step: step.digest) == sorted(
            blobs, key=lambda step: step.digest
        )
        places = [
            min(
                (number, entry.offset)
                for number, archive in enumerate(ARCHIVES)
                for entry in archive.entries
                if entry.digest == step.digest
            )
            for step in ordered
        ]
    assert places == sorted(places)


@pytest.mark.parametrize("known", [STORE, None, MemoryStore()], ids=["known", "unknown", "lost"])
def test_what_lies_before_a_blob_is_there_with_it_so_that_sums_follow(
    known: MemoryStore | None, tmp_path: Path
) -> None:
    with BundleWriter(tmp_path, SEAL, known=known) as writer:
        plan = make_plan(WANTED, Inventory())
        (staged,) = writer.stages(plan)
        seen = {}
        for step in staged.blobs:
            writer.put_blob(step, BlobContent(STORE, step.source, step.digest, step.size))
            seen[step.digest] = files_in(tmp_path)
        transfer(replace(plan, blobs=()), STORE, writer)
        writer.finish()
    whole = files_in(tmp_path)
    manifests = WANTED.manifest_nodes()
    lacking = set()
    for archive in ARCHIVES:
        between = [one for one in archive.entries if one.content or one.digest in manifests]
        for entry in archive.entries:
            if entry.digest not in seen:
                continue
            there = seen[entry.digest][f"{archive.name}.partial"]
            for one in between:
                stretch = slice(one.offset, one.end)
                if one.offset < entry.offset and there[stretch] != whole[archive.name][stretch]:
                    lacking.add(one.digest)
    assert lacking <= manifests.keys()
    assert bool(lacking) == (known is not STORE)


# -- names are promises ----------------------------------------------------------------------------


def test_nothing_has_its_name_before_all_of_it_is_there(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def on_event(_event: Event) -> None:
        seen.append({path.name for path in tmp_path.iterdir()})

    with BundleWriter(tmp_path, SEAL) as writer:
        transfer(make_plan(WANTED, Inventory()), STORE, writer, run=Run(on_event=on_event))
        partial = {f"{archive.name}.partial" for archive in ARCHIVES}
        partial |= {"inventory.json.partial", "pull.journal.partial"}
        assert all(names == partial for names in seen)
        writer.finish()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(archive.name for archive in ARCHIVES),
        "inventory.json",
        "SHA256SUMS",
    }
    assert writer.size == sum((tmp_path / archive.name).stat().st_size for archive in ARCHIVES)


def test_leaving_without_finishing_leaves_nothing_that_has_a_name(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "new", SEAL) as writer:
        transfer(make_plan(WANTED, Inventory()), STORE, writer)
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".partial"}
    with BundleWriter(tmp_path / "new", SEAL, packing=Packing(resume=False)) as writer:
        transfer(make_plan(WANTED, Inventory()), STORE, writer)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(KeyError, match="a bug"), BundleWriter(tmp_path / "new", SEAL):
        raise KeyError("a bug")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_leavings_of_an_interrupted_pull_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "module-gone.tar.partial").write_bytes(b"half")
    (tmp_path / "platform.tar.partial").write_bytes(b"half" * 100_000)
    FolderPlace(tmp_path).check(force=False)
    pack_store(STORE, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == WANTED


def test_a_cancelled_pull_leaves_no_archive_and_another_completes(tmp_path: Path) -> None:
    cancel = Cancellation()

    def on_event(event: Event) -> None:
        if isinstance(event, BlobDone):
            cancel.cancel()

    def interrupted() -> None:
        with BundleWriter(tmp_path, SEAL) as writer:
            plan = make_plan(WANTED, Inventory())
            transfer(plan, STORE, writer, run=Run(2, on_event, cancel))

    with pytest.raises(CancelledError, match="stopped on request"):
        interrupted()
    assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
    pack_store(STORE, tmp_path)
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == WANTED


# -- an earlier bundle -----------------------------------------------------------------------------


def _earlier(folder: Path) -> dict[str, bytes]:
    """A bundle of last year, with what lies beside such a thing."""
    old = MemoryStore()
    put_image(old, "", "v0.9.0", layers=(b"old",))
    put_image(old, "modules/gone", "v1", layers=(b"old",))
    pack_store(old, folder)
    (folder / "platform.tar.gostsum").write_text("0" * 64)
    (folder / "package-x.tar.0000.chunk.gostsum").write_bytes(b"0" * 64)
    (folder / "README.txt").write_text("mine")
    return files_in(folder)


def test_an_earlier_bundle_is_whole_until_the_new_one_is_and_then_gone(tmp_path: Path) -> None:
    before = _earlier(tmp_path)
    with BundleWriter(tmp_path, SEAL) as writer:
        transfer(make_plan(WANTED, Inventory()), STORE, writer)
        now = files_in(tmp_path)
        assert {name: now[name] for name in before} == before
        writer.finish()
    assert set(files_in(tmp_path)) == {
        *(archive.name for archive in ARCHIVES),
        *("inventory.json", "SHA256SUMS", "README.txt"),
    }
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == WANTED


def test_an_earlier_bundle_survives_a_pull_that_fails(tmp_path: Path) -> None:
    before = _earlier(tmp_path)

    def failing() -> None:
        with BundleWriter(tmp_path, SEAL) as writer:
            transfer(make_plan(WANTED, Inventory()), MemoryStore("nothing"), writer)

    with pytest.raises(IncompleteError, match="could not be brought from nothing"):
        failing()
    assert files_in(tmp_path) == before


def test_a_folder_with_other_things_needs_force(tmp_path: Path) -> None:
    FolderPlace(tmp_path / "new").check(force=False)
    FolderPlace(tmp_path).check(force=False)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / "platform.tar.partial").write_bytes(b"half")
    FolderPlace(tmp_path).check(force=False)
    (tmp_path / "something").write_text("x")
    told = f"^{tmp_path} is not empty \\(it has something\\); name an empty folder, or add --force"
    with pytest.raises(InputError, match=told):
        FolderPlace(tmp_path).check(force=False)
    FolderPlace(tmp_path).check(force=True)
    with pytest.raises(InputError, match="something is not a folder; name a new or empty one"):
        FolderPlace(tmp_path / "something").check(force=True)


@pytest.mark.parametrize("name", ["platform.tar", "platform.tar.partial", "inventory.json"])
def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_fetched(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is a folder, .*; move it elsewhere"):
        FolderPlace(tmp_path).check(force=True)


def test_a_link_to_nowhere_is_no_folder_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link is a symbolic link to no folder"):
        FolderPlace(tmp_path / "link").check(force=False)


@pytest.mark.parametrize("part_size", [0, 1_000_000])
def test_no_archive_is_written_through_a_link(part_size: int, tmp_path: Path) -> None:
    """What an interrupted pull left is gone on with: a link there would lead out of the folder."""
    folder, victim = tmp_path / "bundle", tmp_path / "victim"
    victim.write_bytes(b"mine")

    def stopped() -> None:
        with BundleWriter(folder, SEAL, packing=Packing(part_size=part_size)) as writer:
            transfer(make_plan(WANTED, writer.held(WANTED)), STORE, writer)

    stopped()
    archive = next(folder.glob("*.tar*.partial"))
    archive.unlink()
    archive.symlink_to(victim)
    with pytest.raises(FileSystemError, match="remove the symbolic link there"):
        stopped()
    assert victim.read_bytes() == b"mine"


def test_what_is_not_a_bundles_stays_and_what_could_be_taken_for_one_is_refused(
    tmp_path: Path,
) -> None:
    _earlier(tmp_path)
    (tmp_path / "movie.partial").write_bytes(b"mine")
    (tmp_path / "notes.gostsum").write_bytes(b"mine")
    FolderPlace(tmp_path).check(force=True)
    for name in ("backup.tar", "db.tar.0000.chunk"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(InputError, match=f"has {name}, which is not a bundle's archive"):
            FolderPlace(tmp_path).check(force=True)
        (tmp_path / name).unlink()
    pack_store(STORE, tmp_path)
    assert set(files_in(tmp_path)) == {
        *(archive.name for archive in ARCHIVES),
        *("inventory.json", "SHA256SUMS", "README.txt", "movie.partial", "notes.gostsum"),
    }


def test_two_pulls_do_not_meet_in_one_folder(tmp_path: Path) -> None:
    with BundleWriter(tmp_path, SEAL) as writer:
        transfer(make_plan(WANTED, Inventory()), STORE, writer)
        told = f"another pull is making a bundle in {tmp_path}; wait for it"
        with pytest.raises(InputError, match=told), BundleWriter(tmp_path, SEAL):
            pytest.fail("it began nonetheless")
        writer.finish()
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == WANTED
    with BundleWriter(tmp_path, SEAL):
        pass


# -- what must not be finished ---------------------------------------------------------------------


def test_a_bundle_that_lacks_anything_is_not_finished(tmp_path: Path) -> None:
    plan = make_plan(WANTED, Inventory())
    steps: list[CopyBlob | PutManifest] = [
        *plan.blobs,
        *(put for wave in plan.manifests for put in wave),
    ]
    for left_out in steps:
        with BundleWriter(tmp_path, SEAL, packing=Packing(resume=False)) as writer:
            for step in steps:
                if step is left_out:
                    continue
                if isinstance(step, CopyBlob):
                    content = BlobContent(STORE, step.source, step.digest, step.size)
                    writer.put_blob(step, content)
                else:
                    manifest = STORE.manifest(step.repository, step.digest)
                    writer.put_manifest(step.repository, manifest)
            told = (
                rf"^bundle .*: .*\.tar: .*{left_out.digest.encoded} was never written; nothing is"
            )
            with pytest.raises(IntegrityError, match=told):
                writer.finish()
        assert list(tmp_path.iterdir()) == []


@given(data=st.data())
@settings(max_examples=30)
def test_wrong_bytes_never_land_in_a_finished_archive(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    class Wrong(CountedSource):
        name = "slow"

        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            if digest == bad:
                yield from (wrong[at : at + 50] for at in range(offset, len(wrong), 50))
            else:
                yield from super().blob(repository, digest, size, offset)

    bad = data.draw(st.sampled_from(sorted(WANTED.blob_sizes())))
    size = WANTED.blob_sizes()[bad]
    wrong = data.draw(st.binary(max_size=20)) + bytes(data.draw(st.integers(0, size + 600)))
    if Digest.of(wrong) == bad:
        return
    folder = tmp_path_factory.mktemp("wrong")
    with BundleWriter(folder, SEAL, packing=Packing(resume=False)) as writer:
        with pytest.raises(IncompleteError, match=f"blob {bad} into .*: slow: blob {bad} of"):
            transfer(make_plan(WANTED, Inventory()), Wrong(STORE), writer, run=Run(jobs=2))
        with pytest.raises(IntegrityError, match="was never written; nothing is sealed"):
            writer.finish()
    assert list(folder.iterdir()) == []


def test_a_manifest_of_another_length_than_planned_is_refused(tmp_path: Path) -> None:
    raw = STORE.manifest("", WANTED.repository("").tags["v1.0.0"])
    node = fake_manifest()
    forged = Descriptor(raw.media_type, raw.digest, len(raw.raw) + 1)
    builder = InventoryBuilder()
    builder.add_manifest("", type(node)(forged))
    inventory = builder.build()
    with BundleWriter(
        tmp_path, seal_of((lay_out("a.tar", inventory, origins(inventory)),))
    ) as writer:
        told = f"manifest {raw.digest} of the root repository: expected {len(raw.raw) + 1} bytes"
        with pytest.raises(SizeMismatchError, match=told):
            writer.put_manifest("", raw)


def test_a_blob_whose_manifests_disagree_about_its_size_spoils_no_neighbour(
    tmp_path: Path,
) -> None:
    data = b"x" * 2000
    builder = InventoryBuilder()
    builder.add_blob("install", Digest.of(data), 10)  # some manifest there has it so
    builder.add_blob("release-channel", Digest.of(data), len(data))
    inventory = builder.build()
    store = MemoryStore()
    store.add_blob("install", data)
    store.add_blob("release-channel", data)
    archives = archives_of(inventory)
    with BundleWriter(tmp_path, seal_of(archives), packing=Packing(resume=False)) as writer:
        with pytest.raises(IncompleteError, match="expected 10 bytes, got 2000"):
            transfer(make_plan(inventory, Inventory()), store, writer)
        with pytest.raises(IntegrityError, match="was never written"):
            writer.finish()


# -- disks -----------------------------------------------------------------------------------------


def _refusing(number: int, after: int) -> Any:
    """A `pwritev` that fails from some call on."""
    real, calls = os.pwritev, 0

    def pwritev(fd: int, buffers: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))
        return real(fd, buffers, offset)

    return pwritev


@pytest.mark.parametrize(
    ("number", "error", "told"),
    [
        (errno.ENOSPC, NoSpaceError, "No space left on device; free some space there and run"),
        (errno.EDQUOT, NoSpaceError, "free some space there and run"),
        (errno.EFBIG, FileSystemError, r"takes no file so large \(FAT: 4 GiB\), use ext4 or exFAT"),
    ],
    ids=["full", "quota", "too large"],
)
@pytest.mark.parametrize("after", [0, 3, 15, 30])
def test_a_disk_that_refuses_is_told_with_advice_and_nothing_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[MirrorError],
    told: str,
    after: int,
) -> None:
    before = _earlier(tmp_path)
    monkeypatch.setattr(os, "pwritev", _refusing(number, after))

    def writing() -> None:
        with BundleWriter(tmp_path, SEAL) as writer:
            transfer(make_plan(WANTED, Inventory()), STORE, writer, run=Run(jobs=1))
            writer.finish()

    with pytest.raises((error, IncompleteError), match=told) as caught:
        writing()
    assert caught.value.exit_code == error.exit_code
    assert f"cannot write {tmp_path}/" in str(caught.value)
    monkeypatch.undo()
    left = files_in(tmp_path)
    assert {name: left[name] for name in before} == before
    assert all(name.endswith(".partial") for name in left.keys() - before.keys())


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path / "whole")
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())

    class Stat:
        f_frsize = 1
        f_bavail = needed - 1

    monkeypatch.setattr(os, "statvfs", lambda _path: Stat)
    told = (
        rf"^the bundle needs {size_text(needed)} and the disk of {tmp_path}/new has "
        rf"{size_text(needed - 1)} free: 1 B too few; nothing was fetched; "
    )
    with pytest.raises(NoSpaceError, match=told), BundleWriter(tmp_path / "new", SEAL):
        pytest.fail("it began nonetheless")
    assert list((tmp_path / "new").iterdir()) == []
    Stat.f_bavail += 1
    check_space(Folder(tmp_path), needed)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(FileSystemError, match=f"^cannot create {tmp_path}/file"),
        BundleWriter(tmp_path / "file", SEAL),
    ):
        pytest.fail("it began nonetheless")


def test_durable_files_are_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inventory.json"
    write_durably(path, b"first")
    assert path.read_bytes() == b"first"
    monkeypatch.setattr(os, "pwritev", _refusing(errno.ENOSPC, 0))
    with pytest.raises(NoSpaceError, match="free some space"):
        write_durably(path, b"second")
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("at", range(12))
def test_a_finish_that_is_cut_anywhere_leaves_no_seal_on_a_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The process ends between any two changes of names: what is sealed is whole."""
    _earlier(tmp_path)

    class CutError(BaseException):
        pass

    calls = 0

    def cutting(real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise CutError
            return real(*args, **more)

        return call

    def finishing() -> None:
        with BundleWriter(tmp_path, SEAL) as writer:
            transfer(make_plan(WANTED, Inventory()), STORE, writer)
            for name in ("unlink", "replace"):
                monkeypatch.setattr(os, name, cutting(getattr(os, name)))
            writer.finish()

    with suppress(CutError):
        finishing()
    monkeypatch.undo()
    if (tmp_path / "inventory.json").exists():
        with closing(BundleReader([tmp_path])) as reader:
            assert ("v0.9.0" in reader.inventory().repository("").tags) == (at == 0)
    else:
        with pytest.raises(InputError, match="holds no bundle yet: a pull into it was not"):
            BundleReader([tmp_path])
    pack_store(STORE, tmp_path)
    with closing(BundleReader([tmp_path])) as reader:
        assert reader.inventory() == WANTED


def test_the_folder_itself_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    with BundleWriter(tmp_path / "new" / "bundle", SEAL):
        assert synced[:2] == [tmp_path, tmp_path / "new"]
