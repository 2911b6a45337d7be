"""Merge: a complete bundle out of a base and the deltas behind it, without any registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mirror.bundle.archive import Compressed, Coverage, Omissions, missing_findings
from mirror.bundle.bucket import Bucket
from mirror.bundle.location import Location
from mirror.bundle.place import AS_USUAL, BundlePlace, Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import check_limits, read_files
from mirror.bundle.verify import check_signed
from mirror.errors import InputError, MissingBaseError
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.operations.pull import pack, place_of
from mirror.run import Run
from mirror.sync import FailoverSource, Holder, Inventory, RepositoryContent, union


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A finished merge. `archives` maps file names to sizes, `copied` is bytes of blobs that were
    read from the bundles, each once however many layouts hold it. `compressed` is what archives
    take on the disk, if they are."""

    folder: Path | Bucket
    merged: tuple[str, ...]
    inventory: Inventory
    digest: Digest
    archives: Mapping[str, int]
    copied: int
    omissions: Omissions
    compressed: Compressed | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "archives", MappingProxyType(dict(self.archives)))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "bundle": str(self.folder),
            "merged": list(self.merged),
            "archives": dict(self.archives),
            "bytes": sum(self.archives.values()),
            "copied": self.copied,
            "inventory": str(self.digest),
            **self.omissions.to_document(),
            **self.inventory.counts(),
            **({} if self.compressed is None else {"compressed": self.compressed.to_document()}),
        }


def merge(
    readers: Sequence[BundleReader],
    folder: Path | Bucket,
    *,
    dedupe: bool = False,
    force: bool = False,
    key: bytes | None = None,
    packing: Packing = AS_USUAL,
    run: Run | None = None,
) -> MergeReport:
    """Make a complete bundle in `folder`, or in a bucket, of what the last of `readers` speaks of.

    Content comes from all of them. The first is the base and the others are deltas, oldest first; a
    single bundle is written anew, in parts or without. The outcome is what a pull of the last one's
    selection would have made, byte for byte. Each blob is read once, hashed on its way, and written
    once. A merge that was stopped is completed by running it again. With `key`, a public key in
    PEM, its holder must have signed each of the bundles.

    Raises:
        InputError: `folder` holds something else than the outcome and `force` is not given, or is
            one of the bundles, or has a delta, or the last bundle has no seal, or a delta comes
            before what it was made against.
        SignatureError: a bundle was not signed by the holder of `key`.
        DamagedBundleError: a bundle is not whole.
        BundleLimitError: the outcome would be larger than any reader takes.
        MissingBaseError: not all that the last one speaks of is there; nothing was written.
        NoSpaceError: the disk is too small; nothing was written.
        IncompleteError: some content is damaged.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    place = place_of(folder, run)
    _refuse_delta(place, readers)
    place.check(force=force)
    for reader in readers:
        reader.follow(run)
        if reader.folder is not None and _same(reader.folder, folder):
            raise InputError(f"{folder} is one of the bundles to merge; name another place")
        if key is not None:
            check_signed(reader, key, run)
    last = readers[-1]
    if last._seal is None or last.folder is None:
        raise InputError(
            f"{last.name} has no inventory.json, which says what the merged bundle must hold"
        )
    run.on_event(PhaseStarted("reading the bundles"))
    inventories = [reader.inventory() for reader in readers]
    wanted = inventories[-1]
    _check_order(readers, inventories)
    missing = missing_findings(wanted, wanted, _at_hand(wanted, readers), "the merged bundle")
    if missing:
        raise MissingBaseError(
            f"{len(missing)} of the manifests and blobs that {last.name} needs are in none of "
            f"the bundles{_named(last, readers, inventories)}; name the base in front, and all "
            "deltas between it and the last one; nothing was written",
            [finding.located for finding in missing],
        )
    files = read_files(last.folder, last._seal)
    seal = last._seal.carried_as(Coverage(once=dedupe))
    check_limits(seal)
    # The newest first: what a delta carries was just made.
    source = FailoverSource([Holder(reader, reader.carried()) for reader in reversed(readers)])
    packed = pack(seal, files, source, folder, packing, force=force, run=run)
    return MergeReport(
        folder,
        tuple(reader.name for reader in readers),
        wanted,
        wanted.digest(),
        packed.archives,
        packed.taken,
        seal.omissions,
        packed.compressed,
    )


def _same(bundle: Location, place: Path | Bucket) -> bool:
    if isinstance(bundle, Path) and isinstance(place, Path):
        return bundle.resolve() == place.resolve()
    return str(bundle) == str(place)


def _refuse_delta(place: BundlePlace, readers: Sequence[BundleReader]) -> None:
    """Raise InputError if a delta is there: it was to be merged, and would be replaced."""
    there = place.found_seal()
    if there is None or (base := there.coverage.base) is None:
        return
    seals = ((f" to {one.folder}", one._seal) for one in readers if one._seal is not None)
    to = next((name for name, seal in seals if seal.inventory.digest() == base), "")
    told = f"{place.where}, the last place named, is where the result goes, and has a delta"
    raise InputError(f"{told}{to}; name OUT behind it")


def _check_order(readers: Sequence[BundleReader], inventories: Sequence[Inventory]) -> None:
    """Raise InputError if a bundle comes behind a delta that was made against it, and no equal one
    before it: the outcome would be the older of the two."""
    digests = [inventory.digest() for inventory in inventories]
    for number, reader in enumerate(readers):
        for later, digest in enumerate(digests[number + 1 :], number + 1):
            if digest in reader.bases and digest not in digests[: number + 1]:
                raise InputError(
                    f"{reader.name} is a delta to {readers[later].name}, which is named behind it; "
                    "name the base first and then the deltas, oldest first"
                )


def _at_hand(wanted: Inventory, readers: Iterable[BundleReader]) -> Inventory:
    """What of `wanted` lies in any layout of any of the bundles: here all can be taken from
    everywhere."""
    carried = union(reader.carried() for reader in readers)
    nodes, sizes = carried.manifest_nodes(), carried.blob_sizes()
    return Inventory(
        {
            path: RepositoryContent(
                content.tags,
                {digest: node for digest, node in content.manifests.items() if digest in nodes},
                {d: size for d, size in content.blobs.items() if sizes.get(d) == size},
            )
            for path, content in wanted.repositories.items()
        }
    )


def _named(
    last: BundleReader, readers: Sequence[BundleReader], inventories: Sequence[Inventory]
) -> str:
    """Which base a delta was made against, and what it was given instead."""
    if not last.bases:
        return ""
    before = "; ".join(
        f"{reader.name} has inventory {inventory.digest()}"
        for reader, inventory in zip(readers[:-1], inventories[:-1], strict=True)
    )
    made = f": it was made against inventory {', '.join(map(str, last.bases))}"
    return f"{made}; {before}" if before else f"{made}, and no base was named"
