"""Somebody else may write in a bundle's folder: nothing outside it is written, emptied or removed.

Another user of the machine can put links, pipes and second names of foreign files wherever a pull
is about to write, before it and while it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.bundle.place import EARLIER, Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.staging import JOURNAL
from mirror.bundle.writer import BundleWriter
from mirror.errors import FileSystemError
from mirror.events import BlobDone, Event
from mirror.run import Run
from mirror.sync import Inventory, make_plan, transfer
from tests.support.bundles import archives_of, seal_of
from tests.support.inventories import sample_store

STORE = sample_store()
WANTED = STORE.inventory()
SEAL = seal_of(archives_of(WANTED))
MINE = b"somebody else's file"
PLANTED = (
    *(JOURNAL, f"{JOURNAL}.partial", "inventory.json.partial", "inventory.json.partial.partial"),
    *("platform.tar.partial", "platform.tar", "inventory.json", "SHA256SUMS.partial"),
    *("platform.tar.0000.chunk.partial", "platform.tar.zst.partial", "deckhousereleases.yaml"),
    *(EARLIER, "platform.tar.gostsum", ".tmp"),
)
"""Every kind of name that a pull makes, renames or removes."""


def symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def link_to_folder(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent)


def hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


KINDS = (symlink, link_to_folder, hard_link, pipe)
PACKINGS = (Packing(), Packing(part_size=1_000_000), Packing(compress=True))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere" / JOURNAL
    victim.write_bytes(MINE)
    return victim


def pull(folder: Path, packing: Packing, *, stop: bool = False) -> None:
    with BundleWriter(folder, SEAL, packing=packing) as writer:
        transfer(make_plan(WANTED, writer.held(WANTED)), STORE, writer)
        if not stop:
            writer.finish()


def assert_untouched(victim: Path) -> None:
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]
    assert victim.read_bytes() == MINE


@pytest.mark.parametrize("packing", PACKINGS, ids=["whole", "parts", "compressed"])
@pytest.mark.parametrize("plant", KINDS)
def test_what_is_planted_in_an_empty_folder_leads_nowhere(
    packing: Packing, plant: Callable[[Path, Path], None], victim: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in PLANTED:
        plant(folder / name, victim)
    pull(folder, packing)
    assert_untouched(victim)
    with BundleReader([folder]) as reader:
        assert reader.inventory() == WANTED
    made = [path for path in folder.iterdir() if path.name != ".tmp"]
    assert not any(path.is_symlink() or path.suffix == ".partial" for path in made), made


@pytest.mark.parametrize("packing", PACKINGS, ids=["whole", "parts", "compressed"])
@pytest.mark.parametrize("plant", KINDS)
def test_what_is_planted_among_leftovers_leads_nowhere(
    packing: Packing, plant: Callable[[Path, Path], None], victim: Path, tmp_path: Path
) -> None:
    """An archive that an interrupted pull left is gone on with; there a plant is refused."""
    archive = "platform.tar.0000.chunk.partial" if packing.part_size else "platform.tar.partial"
    for name in (JOURNAL, f"{JOURNAL}.partial", "inventory.json.partial", EARLIER, archive):
        folder = tmp_path / f"bundle {name}"
        pull(folder, packing, stop=True)
        (folder / name).unlink(missing_ok=True)
        plant(folder / name, victim)
        if name == archive:
            with pytest.raises(FileSystemError, match=f"^cannot create {folder}/.*; remove "):
                pull(folder, packing)
            (folder / name).unlink()
        pull(folder, packing)
        assert_untouched(victim)
        with BundleReader([folder]) as reader:
            assert reader.inventory() == WANTED


def test_a_folder_that_is_swapped_under_a_pull_is_left_alone(victim: Path, tmp_path: Path) -> None:
    """Whoever may write above the bundle's folder can put a link to another one in its place."""
    folder, away = tmp_path / "bundle", tmp_path / "away"
    pull(folder, Packing(), stop=True)  # puts aside what it has, in the next run
    other = seal_of(archives_of(WANTED)[:1])

    def swap(event: Event) -> None:
        if isinstance(event, BlobDone) and not away.exists():
            folder.rename(away)
            folder.symlink_to(victim.parent)

    with BundleWriter(folder, other) as writer:
        transfer(make_plan(other.inventory, Inventory()), STORE, writer, run=Run(1, swap))
        writer.finish()
    assert_untouched(victim)
    with BundleReader([away]) as reader:
        assert reader.inventory() == other.inventory
    assert not list(away.glob("*.partial"))


def test_leftovers_are_removed_without_following_a_link_in_them(
    victim: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    (folder / EARLIER).mkdir(parents=True)
    (folder / EARLIER / "linked").symlink_to(victim.parent)
    with suppress(FileSystemError):
        pull(folder, Packing())
    assert_untouched(victim)


def test_a_bundles_folder_may_be_reached_through_a_link(tmp_path: Path) -> None:
    """A mount point behind a link is a folder like any other."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to(tmp_path / "disk")
    pull(tmp_path / "bundle", Packing())
    with BundleReader([tmp_path / "disk"]) as reader:
        assert reader.inventory() == WANTED
