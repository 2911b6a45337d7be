"""The end of a pull: whatever cuts it short, the next run finishes it, or finds it finished."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.bundle import gost
from mirror.bundle.folder import FolderPlace
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.verify import verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.errors import InputError, MirrorError
from mirror.events import Event, Warned
from mirror.operations.pull import Packed, pack
from mirror.run import Run
from mirror.sync import MemoryStore
from tests.support.bundles import archives_of, pack_store
from tests.support.disk import Change, Disk, KilledError
from tests.support.inventories import put_image

STORE = MemoryStore()
put_image(STORE, "", "v1", layers=(b"platform" * 500,))
put_image(STORE, "modules/m", "v1", layers=(b"module",))
FILES = {"deckhousereleases.yaml": b"releases: []\n"}
SEAL = Seal.over(archives_of(STORE.inventory()), {"platform": True}, "mirror 0.test", FILES)


def sign(data: bytes) -> bytes:
    return b"signed: " + data[:10]


PACKINGS = {
    "whole": Packing(),
    "parts": Packing(part_size=5_000),
    "compressed": Packing(compress=True),
    "signed, with GOST digests": Packing(gost_digest=True, sign=sign),
    "all": Packing(5_000, gost_digest=True, sign=sign, compress=True),
}


@pytest.fixture(params=PACKINGS)
def packing(request: pytest.FixtureRequest) -> Packing:
    found = PACKINGS[request.param]
    if found.gost_digest and gost.available() is None:
        found = replace(found, gost_digest=False)
    return found


def pull(
    folder: Path, packing: Packing, *, force: bool = False, heard: list[Event] | None = None
) -> Packed:
    """What the operation does with a plan."""
    FolderPlace(folder).check(force=force)
    run = Run(1, (heard if heard is not None else []).append)
    return pack(SEAL, FILES, STORE, folder, packing, force=force, run=run)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".tmp"}


def the_end(folder: Path, packing: Packing) -> tuple[dict[str, bytes], range]:
    """A bundle, and which of the changes that made it are those of the last phase."""
    begun: list[int] = []
    finish = BundleWriter.finish
    with Disk(folder) as disk, pytest.MonkeyPatch.context() as patch:

        def noted(writer: BundleWriter) -> None:
            begun.append(len(disk.changes))
            finish(writer)

        patch.setattr(BundleWriter, "finish", noted)
        pull(folder, packing)
    return files_in(folder), range(begun[0], len(disk.changes) + 1)


def assert_whole(folder: Path) -> None:
    with BundleReader([folder]) as reader:
        assert reader.inventory() == STORE.inventory()
        assert not verify_bundle(reader).findings


def test_a_pull_that_dies_anywhere_in_its_last_phase_is_completed_by_the_next(
    packing: Packing, tmp_path: Path
) -> None:
    expected, phase = the_end(tmp_path / "whole", packing)
    for at in phase:
        folder = tmp_path / f"cut {at}"
        with suppress(KilledError), Disk.killing(folder, at):
            pull(folder, packing)
        if (folder / "inventory.json").exists():
            assert_whole(folder)
        pull(folder, packing)
        assert files_in(folder) == expected, at


def test_a_pull_whose_last_phase_fails_anywhere_is_completed_by_the_next(
    packing: Packing, tmp_path: Path
) -> None:
    expected, phase = the_end(tmp_path / "whole", packing)
    committed = False
    for at in phase[:-1]:
        folder = tmp_path / f"failed {at}"
        heard: list[Event] = []
        with Disk.failing(folder, at, errno.EIO) as disk:
            try:
                pull(folder, packing, heard=heard)
            except MirrorError as err:
                told: str | None = str(err)
            else:
                told = None
        failed = disk.changes[at - 1] if at else None
        committed = committed or (failed is not None and failed.new == "inventory.json")
        if told is None:
            # It was committed: only clearing up went wrong, and the next pull does that.
            assert committed, at
            warnings = [event.message for event in heard if isinstance(event, Warned)]
            assert [one for one in warnings if "the bundle is complete, but cannot remove" in one]
            assert_whole(folder)
        else:
            assert "Input/output error" in told, told
            last_name = (failed is not None) and failed.new == "inventory.json"
            assert last_name == told.startswith("cannot bring the last name of the complete"), told
        pull(folder, packing)
        assert files_in(folder) == expected, at
    assert committed


def test_a_bundle_that_is_there_already_is_called_that_and_left_alone(
    packing: Packing, tmp_path: Path
) -> None:
    pull(tmp_path, packing)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    heard: list[Event] = []
    packed = pull(tmp_path, packing, heard=heard)
    assert packed.taken == 0
    told = f"{tmp_path} holds this bundle already; nothing was written"
    assert [event.message for event in heard if isinstance(event, Warned)] == [told]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    if packed.compressed is not None:
        sizes = {name: path.stat().st_size for name, path in stored(tmp_path)}
        assert packed.compressed.size == sum(sizes.values())


def sign_as_another(data: bytes) -> bytes:
    return b"signed by another: " + data[:10]


def test_a_bundle_that_is_there_with_another_signature_is_signed_anew(
    packing: Packing, tmp_path: Path
) -> None:
    pull(tmp_path / "wanted", replace(packing, sign=sign_as_another))
    folder = tmp_path / "bundle"
    pull(folder, replace(packing, sign=sign))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    heard: list[Event] = []
    packed = pull(folder, replace(packing, sign=sign_as_another), heard=heard)
    assert packed.taken == 0
    told = f"{folder} holds this bundle already; only its signature was written anew"
    assert [event.message for event in heard if isinstance(event, Warned)] == [told]
    assert files_in(folder) == files_in(tmp_path / "wanted")
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    anew = {name for name in before if after[name] != before[name]}
    assert anew == {"inventory.json.sig", "SHA256SUMS"}


def test_signing_anew_that_is_cut_short_anywhere_is_completed_by_the_next_pull(
    tmp_path: Path,
) -> None:
    anew = Packing(sign=sign_as_another)
    pull(tmp_path / "whole", Packing(sign=sign))
    with Disk(tmp_path / "whole") as disk:
        pull(tmp_path / "whole", anew)
    assert disk.changes
    for at in range(len(disk.changes)):
        folder = tmp_path / f"cut {at}"
        pull(folder, Packing(sign=sign))
        with suppress(KilledError), Disk.killing(folder, at):
            pull(folder, anew)
        pull(folder, anew)
        assert files_in(folder) == files_in(tmp_path / "whole"), at
        assert_whole(folder)


def stored(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((path.name, path) for path in folder.glob("*.zst*") if path.suffix != ".gostsum")


def lead_away(path: Path) -> None:
    path.rename(away := path.parent.with_name(f"{path.parent.name} {path.name}"))
    path.symlink_to(away)


SPOILT: dict[str, Callable[[Path], object]] = {
    "an archive is gone": lambda folder: (folder / "module-m.tar").unlink(),
    "an archive is cut short": lambda folder: (folder / "platform.tar").write_bytes(b"short"),
    "the sums are gone": lambda folder: (folder / "SHA256SUMS").unlink(),
    "the sums are changed": lambda folder: (folder / "SHA256SUMS").write_bytes(b"#\n"),
    "the releases are gone": lambda folder: (folder / "deckhousereleases.yaml").unlink(),
    "the releases are a link": lambda folder: lead_away(folder / "deckhousereleases.yaml"),
    "the seal is another": lambda folder: pack_store(STORE, folder),
    "there is more": lambda folder: (folder / "module-x.tar").write_bytes(b"more"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_any_other_bundle_is_replaced_only_with_force(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    pull(tmp_path, Packing())
    expected = files_in(tmp_path)
    spoil(tmp_path)
    before = files_in(tmp_path)
    told = "is not empty .*; name an empty folder, or add --force to replace the bundle"
    with pytest.raises(InputError, match=told):
        pull(tmp_path, Packing())
    assert files_in(tmp_path) == before
    pull(tmp_path, Packing(), force=True)
    assert files_in(tmp_path) == expected


@pytest.mark.parametrize(
    "other",
    [Packing(part_size=5_000), Packing(compress=True), Packing(sign=sign)],
    ids=["parts", "compressed", "signed"],
)
def test_a_bundle_that_is_packed_in_another_way_is_another(other: Packing, tmp_path: Path) -> None:
    for first, second in ((Packing(), other), (other, Packing())):
        pull(tmp_path, first, force=True)
        with pytest.raises(InputError, match="is not empty"):
            pull(tmp_path, second)


def test_with_force_a_bundle_that_is_there_is_made_anew(tmp_path: Path) -> None:
    pull(tmp_path, Packing())
    expected = files_in(tmp_path)
    damaged = tmp_path / "platform.tar"
    damaged.write_bytes(bytes(damaged.stat().st_size))

    def stop(change: Change) -> None:
        if change.kind == "write" and len(change.data) > 4_000:
            raise KilledError

    with suppress(KilledError), Disk(tmp_path, stop):
        pull(tmp_path, Packing(), force=True)
    pull(tmp_path, Packing(), force=True)
    assert files_in(tmp_path) == expected


def test_the_earlier_seal_goes_before_any_archive_changes_under_it(tmp_path: Path) -> None:
    pull(tmp_path / "bundle", Packing())
    sealed: list[bool] = []

    def look(change: Change) -> None:
        if change.kind == "rename" and change.new.endswith(".tar"):
            sealed.append((tmp_path / "bundle/inventory.json").exists())

    with Disk(tmp_path / "bundle", before=look):
        pull(tmp_path / "bundle", Packing(), force=True)
    assert sealed == [False] * len(SEAL.archives)


def test_a_bundle_of_the_same_names_and_sizes_is_another_bundle(tmp_path: Path) -> None:
    other = MemoryStore()
    put_image(other, "", "v1", layers=(b"platforn" * 500,))
    put_image(other, "modules/m", "v1", layers=(b"nodule",))
    seal = Seal.over(archives_of(other.inventory()), {"platform": True}, "mirror 0.test", FILES)
    pack(seal, FILES, other, tmp_path / "bundle", Packing(), force=False, run=Run(1))
    (tmp_path / "bundle/pull.journal.partial").write_text("parts 0\n")
    pack(SEAL, FILES, STORE, tmp_path / "bundle", Packing(), force=True, run=Run(1))
    with BundleReader([tmp_path / "bundle"]) as reader:
        assert reader.inventory() == STORE.inventory()
