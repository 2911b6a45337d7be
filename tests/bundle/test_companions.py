"""Files beside the archives: GOST digests that are checked, and what a pull may remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.bundle import gost
from mirror.bundle.gost import gost_digest
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.seal import Seal
from mirror.bundle.verify import verify_bundle
from mirror.errors import DamagedBundleError, InputError
from mirror.sync.statement import Statement
from tests.support.bundles import archives_of, pack, pack_store
from tests.support.inventories import sample_store

STORE = sample_store()
with_gost = pytest.mark.skipif(gost.available() is None, reason="no GOST module here")


def findings(folder: Path, *, quick: bool = False) -> dict[str, str]:
    """What a verification finds: place → problem."""
    with BundleReader([folder]) as reader:
        return {one.place: one.problem for one in verify_bundle(reader, quick=quick).findings}


def as_d8_writes_it(folder: Path) -> Path:
    """A bundle without a seal, with `.gostsum` files beside the archives; one archive of it."""
    pack_store(STORE, folder)
    (folder / "inventory.json").unlink()
    (folder / "SHA256SUMS").unlink()
    for archive in list(folder.glob("*.tar")):
        (folder / f"{archive.name}.gostsum").write_text(gost_digest([archive.read_bytes()]))
    return folder / "platform.tar"


@with_gost
def test_gost_sums_of_d8_are_checked(tmp_path: Path) -> None:
    archive = as_d8_writes_it(tmp_path)
    assert findings(tmp_path) == {}
    other = "0" * 64
    (tmp_path / f"{archive.name}.gostsum").write_text(other)
    told = findings(tmp_path)
    assert told.keys() == {"platform.tar"}
    assert told["platform.tar"].startswith(f"expected GOST digest {other}, got ")
    assert findings(tmp_path, quick=True) == {}


@with_gost
def test_a_file_that_is_not_a_gost_sum_is_a_finding(tmp_path: Path) -> None:
    archive = as_d8_writes_it(tmp_path)
    (tmp_path / f"{archive.name}.gostsum").write_text("nonsense")
    assert findings(tmp_path)["platform.tar.gostsum"].startswith("it does not hold a GOST digest")


def test_without_the_gost_module_a_notice_says_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path)
    (tmp_path / "platform.tar.gostsum").write_text("0" * 64)
    monkeypatch.setattr(gost, "available", lambda: None)
    with BundleReader([tmp_path]) as reader:
        report = verify_bundle(reader)
    assert not report.findings
    assert "1 files ending in .gostsum were not checked" in report.notices[0]


def test_a_pull_removes_no_file_for_being_named_in_an_old_seal(tmp_path: Path) -> None:
    """A seal may name any file, and may come from anywhere."""
    notes = b"my notes"
    old = Seal.over(archives_of(STORE.inventory()), {}, "other tool", {"notes.txt": notes})
    (tmp_path / "inventory.json").write_bytes(old.to_json())
    (tmp_path / "notes.txt").write_bytes(notes)
    (tmp_path / "deckhousereleases.yaml").write_bytes(b"of the old bundle")
    pack_store(STORE, tmp_path)
    assert (tmp_path / "notes.txt").read_bytes() == notes
    assert not (tmp_path / "deckhousereleases.yaml").exists()


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_first_part_that_is_cut_short_is_named_and_no_part_is_invented(
    tmp_path: Path, cut: int
) -> None:
    seal = pack(STORE, STORE.inventory(), tmp_path, part_size=0)
    size = seal.archives["platform.tar"].size
    part_size = size // 2 + 512
    pack(STORE, STORE.inventory(), tmp_path, part_size=part_size)
    first = tmp_path / "platform.tar.0000.chunk"
    first.write_bytes(first.read_bytes()[:-cut])
    expected = f"{first.name} has {part_size - cut} bytes instead of {part_size}"
    with BundleReader([tmp_path]) as reader:
        problems = [one.problem for one in verify_bundle(reader).findings]
    assert any(problem.startswith(expected) for problem in problems), problems
    assert not any("is missing" in problem for problem in problems), problems


def test_one_reader_takes_every_inventory_from_a_path(tmp_path: Path) -> None:
    wanted = STORE.inventory()
    pack_store(STORE, tmp_path / "bundle")
    (tmp_path / "plain.json").write_bytes(wanted.to_json())
    (tmp_path / "statement.json").write_bytes(Statement(wanted, 7).to_json())
    for name in ("bundle", "bundle/inventory.json", "plain.json", "statement.json"):
        assert read_inventory(tmp_path / name) == wanted, name


def test_what_is_not_an_inventory_is_told_from_one_that_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_inventory(tmp_path / "nothing")
    (tmp_path / "x").write_bytes(b"not JSON")
    with pytest.raises(InputError, match="neither a bundle's folder nor an inventory"):
        read_inventory(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"[1]")
    with pytest.raises(DamagedBundleError, match="not an inventory"):
        read_inventory(tmp_path / "x")
    (tmp_path / "x").write_bytes(b'{"generation": "7"}')
    with pytest.raises(DamagedBundleError, match="copy it again from its origin"):
        read_inventory(tmp_path / "x")
