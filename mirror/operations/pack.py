"""Packing: what a seal promises, carried from a source into the archives of a new bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.bundle.compress import Compressed
from mirror.bundle.seal import Seal
from mirror.bundle.writer import BundleWriter, Packing
from mirror.errors import ChangedLeftoversError
from mirror.events import Warned
from mirror.run import Run
from mirror.sync import Source, make_plan, transfer


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle that was written. `archives` maps archives to their sizes, `taken` is bytes of blobs
    that came from the source, each once however many layouts hold it."""

    archives: Mapping[str, int]
    taken: int
    compressed: Compressed | None


def pack(
    seal: Seal,
    files: Mapping[str, bytes],
    source: Source,
    folder: Path,
    packing: Packing,
    *,
    run: Run | None = None,
) -> Packed:
    """Write the bundle that `seal` describes, with `files` beside it.

    Raises:
        NoSpaceError: the disk is too small; nothing was taken.
        IncompleteError: some content could not be had.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    taken: list[int] = []
    try:
        return _pack(seal, files, source, folder, packing, taken, run)
    except ChangedLeftoversError as err:
        run.on_event(Warned(f"{err.problem}; all is checked again, and fetched anew where needed"))
        return _pack(seal, files, source, folder, packing, taken, run)


def _pack(
    seal: Seal,
    files: Mapping[str, bytes],
    source: Source,
    folder: Path,
    packing: Packing,
    taken: list[int],
    run: Run,
) -> Packed:
    carried = seal.carried
    with BundleWriter(folder, seal, files, packing) as writer:
        plan = make_plan(carried, writer.held(carried))
        plan = replace(plan, blobs=writer.in_archive_order(plan.blobs))
        taken.append(transfer(plan, source, writer, run=run).sent)
        writer.finish()
    sizes = {archive.name: archive.size for archive in seal.archives.values()}
    compressed = Compressed(sizes, writer.stored) if packing.compress else None
    return Packed(sizes, sum(taken), compressed)
