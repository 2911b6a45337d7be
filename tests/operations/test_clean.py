"""Clean: what interrupted pulls have left goes, and nothing else."""

from __future__ import annotations

import fcntl
import os
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mirror.bundle import gost
from mirror.bundle.place import Packing
from mirror.bundle.seal import Seal
from mirror.errors import IncompleteError, InputError, MirrorError
from mirror.layout import RELEASES_FILE
from mirror.operations.pull import clean, pack
from mirror.run import Run
from mirror.sync import MemoryStore
from mirror.testing import FaultyProxy
from mirror.testing.faults import Answer, Fault, Faults
from tests.support.bundles import archives_of
from tests.support.disk import Disk, KilledError
from tests.support.inventories import put_image
from tests.support.object_storage import ObjectStorage

STORE = MemoryStore()
put_image(STORE, "", "v1", layers=(b"platform" * 500,))
put_image(STORE, "modules/m", "v1", layers=(b"module",))
FILES = {RELEASES_FILE: b"releases: []\n"}
SEAL = Seal.over(archives_of(STORE.inventory()), {}, "mirror 0.test", FILES)
EARLIER = Seal.over(archives_of(STORE.inventory()), {"earlier": True}, "mirror 0.test")
ALL = Packing(
    9_000, gost_digest=gost.available() is not None, sign=lambda _: b"mine", compress=True
)


def pull(folder: Path, packing: Packing, *, seal: Seal = SEAL) -> None:
    files = FILES if seal is SEAL else {}
    pack(seal, files, STORE, folder, packing, force=True, run=Run(jobs=1))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("packing", [Packing(), Packing(9_000), ALL], ids=["whole", "parts", "all"])
def test_what_a_pull_leaves_that_dies_anywhere_can_be_cleaned(
    packing: Packing, tmp_path: Path
) -> None:
    with Disk(tmp_path / "whole") as disk:
        pull(tmp_path / "whole", packing)
    for at in range(len(disk.changes)):
        folder = tmp_path / f"cut {at}"
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        with suppress(KilledError), Disk.killing(folder, at):
            pull(folder, packing)
        sealed = (folder / "inventory.json").exists()
        before = content(folder)
        told = clean(folder, dry_run=True)
        assert content(folder) == before, at
        assert clean(folder).removed == told.removed
        whole = content(tmp_path / "whole") if sealed else {}
        assert content(folder) == {**whole, "notes.txt": b"mine"}, at
        assert not clean(folder).removed
        assert told.removed.keys() == before.keys() - content(folder).keys()


def test_a_sealed_bundle_stays_when_the_pull_that_was_to_replace_it_is_given_up(
    tmp_path: Path,
) -> None:
    pull(tmp_path, Packing(), seal=EARLIER)
    before = content(tmp_path)
    with suppress(KilledError), Disk.killing(tmp_path, 12):
        pull(tmp_path, Packing())
    partial = tmp_path / "platform.tar.partial"
    size = partial.stat().st_blocks * 512
    assert size
    assert clean(tmp_path).removed[partial.name] == size
    assert content(tmp_path) == before


def test_a_folder_in_which_somebody_makes_a_bundle_is_left_alone(tmp_path: Path) -> None:
    with suppress(KilledError), Disk.killing(tmp_path, 12):
        pull(tmp_path, Packing())
    before = content(tmp_path)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another pull is making a bundle"):
        clean(tmp_path)
    os.close(held)
    assert content(tmp_path) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder; name that of a bundle"):
        clean(tmp_path / "none")
    assert not (tmp_path / "none").exists()


# -- in a bucket -----------------------------------------------------------------------------------


def test_what_a_pull_into_a_bucket_leaves_that_fails_at_any_request_can_be_cleaned(
    storage: ObjectStorage,
) -> None:
    """Sealed bundles are as they were: the earlier one, or the new one."""
    faults, seen, run = Faults(), set[str](), Run(jobs=1)
    with (
        FaultyProxy(f"http://{storage.address}", faults=faults) as proxy,
        closing(storage.bucket("cut", address=proxy.address)) as failing,
        closing(storage.bucket("cut")) as bucket,
    ):
        bucket.put("notes.txt", b"mine", run)
        for number in range(1, 200, 2):
            faults.clear()
            pack(EARLIER, {}, STORE, bucket, Packing(), force=True, run=run)
            before, struck = storage.content("cut"), faults.struck
            faults.add(Fault(Answer(403), nth=number, times=None))
            packing = Packing(compress=number % 4 == 1)
            with suppress(MirrorError):
                pack(SEAL, FILES, STORE, failing, packing, force=True, run=run)
            if faults.struck == struck:
                break
            there, pending = storage.content("cut"), bucket.uploads(run)
            told = clean(bucket, dry_run=True).removed
            assert (storage.content("cut"), bucket.uploads(run)) == (there, pending)
            assert clean(bucket).removed == told
            assert not clean(bucket).removed
            assert bucket.uploads(run) == []
            left = storage.content("cut")
            assert left["notes.txt"] == b"mine"
            assert left.items() <= there.items()
            if there.get("inventory.json") == before["inventory.json"]:
                assert left == before
            elif "inventory.json" not in there:
                assert left.items() <= before.items()
            seen |= told.keys()
    marks = {"inventory.json.partial", "pull.journal.partial"}
    packed = {f"{name}.zst{one}" for name in SEAL.archives for one in ("", ".partial")}
    assert seen == {*marks, *SEAL.archives, *packed, "SHA256SUMS", RELEASES_FILE}


def test_a_program_may_clean_what_was_uploaded(storage: ObjectStorage) -> None:
    large = MemoryStore()
    put_image(large, "", "v1", layers=[os.urandom(12 << 20)])
    seal = Seal.over(archives_of(large.inventory()), {}, "mirror 0.test")
    faults = Faults(Fault(Answer(403), "PUT", "partNumber=2"))
    with (
        FaultyProxy(f"http://{storage.address}", faults=faults) as proxy,
        closing(storage.bucket("large", address=proxy.address)) as bucket,
        pytest.raises(IncompleteError),
    ):
        pack(seal, {}, large, bucket, Packing(), run=Run(jobs=1))
    with closing(storage.bucket("large")) as bucket:
        assert clean(bucket).removed["platform.tar"] > 4 << 20
    assert (storage.pending("large"), storage.names("large")) == ([], [])
