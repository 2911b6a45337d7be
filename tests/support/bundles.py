"""Bundles of whatever a store holds, packed as a pull packs them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from mirror.bundle.archive import COMPLETE, Archive, Coverage, lay_out
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.layout import archive_of
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, Source, make_plan, transfer
from tests.support.inventories import put_image, sample_store

BIG = random.Random(7).randbytes(2_300_000)
"""A layer that travels in three parts."""
ORIGIN = "registry.example.com/deckhouse/ee"


def origins(inventory: Inventory) -> dict[str, str]:
    """What each repository is called at the source."""
    return {path: f"{ORIGIN}/{path}".rstrip("/") for path in inventory.repositories}


def archives_of(inventory: Inventory) -> tuple[Archive, ...]:
    """The archives in which the format has `inventory` travel."""
    names = itertools.groupby(sorted(inventory.repositories, key=archive_of), archive_of)
    return tuple(
        lay_out(name, part, origins(part))
        for name, part in (
            (name, inventory.filtered(frozenset(paths).__contains__)) for name, paths in names
        )
    )


def seal_of(archives: tuple[Archive, ...]) -> Seal:
    """The seal that a pull would put on `archives`."""
    return Seal.over(archives, {"platform": True}, "mirror 0.test")


def pack(
    source: Source,
    inventory: Inventory,
    folder: Path,
    *,
    jobs: int = 2,
    coverage: Coverage = COMPLETE,
    part_size: int = 0,
    compress: bool = False,
) -> Seal:
    """Make a bundle of `inventory` in `folder`; whatever bundle is there is replaced."""
    seal = seal_of(archives_of(inventory)).carried_as(coverage)
    packing = Packing(part_size=part_size, compress=compress)
    with BundleWriter(folder, seal, packing=packing) as writer:
        plan = make_plan(seal.carried, writer.held(seal.carried))
        transfer(plan, source, writer, run=Run(jobs=jobs))
        writer.finish()
    return seal


def pack_store(store: MemoryStore, folder: Path) -> Seal:
    """Make a bundle of all that `store` holds."""
    return pack(store, store.inventory(), folder)


def _with_big_layer() -> MemoryStore:
    store = sample_store()
    put_image(store, "install", "v1", layers=(BIG, b"small"))
    return store


STORE = _with_big_layer()
"""What `plain` and `in_parts` are made of; tests only read it."""
WANTED = STORE.inventory()


def plain(folder: Path) -> None:
    """Make a bundle of `STORE` with whole archives."""
    pack_store(STORE, folder)


def in_parts(folder: Path) -> None:
    """Make one with parts of a megabyte."""
    pack(STORE, WANTED, folder, part_size=10**6)


def verify(folder: Path, *, quick: bool = False) -> BundleReport:
    """Verify the bundle in `folder`."""
    with BundleReader([folder]) as reader:
        return verify_bundle(reader, run=Run(jobs=2), quick=quick)


def flip(path: Path, at: int, mask: int = 1) -> None:
    """Change the byte of a file at an offset; the same again changes it back."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
