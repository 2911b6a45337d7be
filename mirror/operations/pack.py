"""Packing: what a seal promises, carried from a source into the archives of a new bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.bundle.compress import Compressed
from mirror.bundle.seal import Seal
from mirror.bundle.writer import BundleWriter
from mirror.run import Run
from mirror.sync import Source, make_plan, transfer


@dataclass(frozen=True, slots=True)
class Packing:
    """How a bundle is written, whatever is in it.

    `part_size` in bytes cuts archives into parts; 0 leaves them whole. `gost_digest` writes a
    GOST R 34.11-2012 digest beside each file. `sign` makes a signature over the seal
    (`mirror.bundle.signing.sign`). Without `resume` nothing of an interrupted run is used.
    `compress` writes archives in zstd frames, which needs room for both forms while it lasts.
    """

    part_size: int = 0
    gost_digest: bool = False
    sign: Callable[[bytes], bytes] | None = None
    resume: bool = True
    compress: bool = False


AS_USUAL = Packing()


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
    carried = seal.carried
    with BundleWriter(
        folder,
        seal,
        files,
        part_size=packing.part_size,
        resume=packing.resume,
        gost_digest=packing.gost_digest,
        sign=packing.sign,
        compress=packing.compress,
    ) as writer:
        plan = make_plan(carried, writer.held(carried))
        plan = replace(plan, blobs=writer.in_archive_order(plan.blobs))
        report = transfer(plan, source, writer, run=run)
        writer.finish()
    sizes = {archive.name: archive.size for archive in seal.archives.values()}
    compressed = Compressed(sizes, writer.stored) if packing.compress else None
    return Packed(sizes, report.sent, compressed)
