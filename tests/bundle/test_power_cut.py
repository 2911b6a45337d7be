"""The power fails at any moment of a pull: the next completes it, and nothing false is believed.

Every change of the disk is recorded. After any number of them the disk holds all that was synced
by then, and of the rest whatever share it likes (`support.disk.after_a_power_cut`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.verify import verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.errors import MirrorError
from mirror.operations.pull import pack
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from tests.support.bundles import archives_of
from tests.support.disk import Disk, after_a_power_cut, keeping
from tests.support.inventories import put_image


def _store(version: str) -> MemoryStore:
    store = MemoryStore()
    put_image(store, "", version, layers=(b"platform" * 500, version.encode()))
    put_image(store, "modules/m", version, layers=(b"module", version.encode()))
    return store


def _seal(store: MemoryStore) -> Seal:
    return Seal.over(archives_of(store.inventory()), {"platform": True}, "mirror 0.test", FILES)


FILES = {"deckhousereleases.yaml": b"releases: []\n"}
STORE, OLD = _store("v2"), _store("v1")
SEAL, OLD_SEAL = _seal(STORE), _seal(OLD)
WHOLE = Packing()
ALL = Packing(5_000, sign=lambda data: b"signed: " + data[:10], compress=True)


def pull(folder: Path, packing: Packing, *, seal: Seal = SEAL, store: MemoryStore = STORE) -> None:
    pack(seal, FILES, store, folder, packing, force=True, run=Run(1))


def pull_old_in_part(folder: Path) -> None:
    """Another plan was under way, which had brought a part of its content."""
    with BundleWriter(folder, OLD_SEAL, FILES) as writer:
        plan = make_plan(OLD_SEAL.inventory, Inventory())
        transfer(plan, OLD, writer, run=Run(1))


def pull_old(folder: Path) -> None:
    pull(folder, WHOLE, seal=OLD_SEAL, store=OLD)


@dataclass(frozen=True)
class Case:
    """What is in the folder before, and what is run there."""

    packing: Packing
    before: Callable[[Path], object]


CASES = {
    "an empty folder": Case(WHOLE, Path.mkdir),
    "parts": Case(Packing(5_000), Path.mkdir),
    "parts, compressed and signed": Case(ALL, Path.mkdir),
    "over another bundle": Case(WHOLE, pull_old),
    "after another plan": Case(Packing(5_000), pull_old_in_part),
}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def believed(folder: Path) -> Inventory | None:
    """What a push takes the folder for; None if it refuses it."""
    try:
        with BundleReader([folder]) as reader:
            inventory = reader.inventory()
            assert reader._seal is not None, "archives have names and the folder has no seal"
            assert not verify_bundle(reader).findings
            return inventory
    except MirrorError:
        return None


def cut_anywhere(case: Case, folder: Path, seeds: Iterable[int], step: int = 1) -> int:
    """Cut the power at every `step`-th change, once with each seed; return how often that was."""
    start = folder / "start"
    case.before(start)
    with Disk(start) as disk:
        pull(start, case.packing)
    expected, count = files_in(start), 0
    known = (None, OLD.inventory(), STORE.inventory())
    for seed in seeds:
        end = len(disk.changes)
        for at in (*range(seed % step, end, step), end):
            cut = folder / f"{seed}-{at}"
            changes = disk.changes[:at]
            after_a_power_cut(
                disk.at_first, changes, keeping(0 if at == end else seed + at)
            ).put_into(cut)
            found = believed(cut)
            assert found in known[2 if at == end else 0 :], (seed, at)
            pull(cut, case.packing)
            assert files_in(cut) == expected, (seed, at)
            count += 1
    return count


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_next_pull_completes_whatever_a_power_cut_left(case: Case, tmp_path: Path) -> None:
    assert cut_anywhere(case, tmp_path, (0, 1), step=2) > 40


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_next_pull_completes_whatever_any_power_cut_left(case: Case, tmp_path: Path) -> None:
    assert cut_anywhere(case, tmp_path, range(30)) > 1_200
