"""Pull: select at the source, lay the bundle out, carry the content, seal.

Clean: remove what pulls that nobody goes on with have left at a bundle's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mirror.bundle.archive import Compressed, Coverage, Omissions, against
from mirror.bundle.bucket import Bucket
from mirror.bundle.folder import FolderPlace, check_tool
from mirror.bundle.format import source_reference
from mirror.bundle.place import AS_USUAL, BundlePlace, Packing
from mirror.bundle.seal import Seal, check_limits, lay_out_all
from mirror.bundle.writer import BundleWriter
from mirror.documents import document
from mirror.errors import ChangedLeftoversError, InputError, SourceContentError
from mirror.events import Warned
from mirror.layout import TOOL_FILE, archive_of, tool_name
from mirror.oci import Digest
from mirror.registry import RegistryReader
from mirror.release.select import SelectedContent, resolve, select
from mirror.release.selection import Selection
from mirror.release.source import ReleaseSource, SourceTree
from mirror.run import Run
from mirror.sync import Inventory, Source, make_plan, transfer, union


@dataclass(frozen=True, slots=True)
class PullReport:
    """A finished pull. `archives` maps file names to sizes in bytes; `fetched` is bytes of blobs
    that came over the wire, each once however many archives hold it. `compressed` is what archives
    take on the disk, if they are. `tool` is the size of the program that the bundle brings."""

    folder: Path | Bucket
    tree: SourceTree
    selection: SelectedContent
    inventory: Inventory
    digest: Digest
    archives: Mapping[str, int]
    fetched: int
    omissions: Omissions
    compressed: Compressed | None = None
    tool: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "archives", MappingProxyType(dict(self.archives)))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "bundle": str(self.folder),
            "source": str(self.tree.root),
            "edition": self.tree.edition,
            **self.selection.to_document(),
            "archives": dict(self.archives),
            "bytes": sum(self.archives.values()),
            "fetched": self.fetched,
            "inventory": str(self.digest),
            **self.omissions.to_document(),
            **self.inventory.counts(),
            **({} if self.compressed is None else {"compressed": self.compressed.to_document()}),
            **({} if self.tool is None else {"tool": self.tool}),
        }


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A pull that is decided but not begun: every image by digest, every archive laid out."""

    tree: SourceTree
    selection: SelectedContent
    _seal: Seal = field(repr=False)
    _source: ReleaseSource = field(repr=False)
    _files: Mapping[str, bytes] = field(repr=False)

    @property
    def archives(self) -> Mapping[str, int]:
        """The size in bytes of each archive, by its file name."""
        return {name: archive.size for name, archive in self._seal.archives.items()}

    @property
    def omissions(self) -> Omissions:
        """How much the bundle leaves out."""
        return self._seal.omissions

    @property
    def inventory(self) -> Inventory:
        """All that the bundle will speak of: what a target holds after a push."""
        return self._seal.inventory

    @property
    def fetch(self) -> int:
        """Bytes of blobs to fetch."""
        return sum(self._seal.carried.blob_sizes().values())

    def references(self) -> Iterator[PlannedReference]:
        """Yield every image that gets a name in the bundle, in canonical order."""
        listed = {one.tag: one.component for one in self.selection.images if one.component}
        for archive in self._seal.archives.values():
            for path, content in archive.inventory.repositories.items():
                for tag, digest in sorted(content.tags.items()):
                    source = source_reference(archive.origins[path], tag, digest)
                    size = content.closure_size(digest)
                    called = "" if path else listed.get(tag, "")
                    yield PlannedReference(archive.name, path, tag, digest, size, source, called)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        inventory = self.inventory
        return {
            "source": str(self.tree.root),
            "edition": self.tree.edition,
            **self.selection.to_document(),
            "references": [one.to_document() for one in self.references()],
            "archives": dict(self.archives),
            "bytes": sum(self.archives.values()),
            "fetch": self.fetch,
            "inventory": str(inventory.digest()),
            **self.omissions.to_document(),
            **inventory.counts(),
        }

    def carry_out(
        self,
        folder: Path | Bucket,
        *,
        force: bool = False,
        packing: Packing = AS_USUAL,
        run: Run | None = None,
    ) -> PullReport:
        """Fetch everything into a new bundle in `folder`; see `pull`."""
        run = Run.of(run)
        place_of(folder, run).check(force=force)
        if TOOL_FILE in self._files and isinstance(folder, Path):
            check_tool(folder, self._files[TOOL_FILE])
        inventory, source = self.inventory, self._source.content.within(run)
        packed = pack(self._seal, self._files, source, folder, packing, force=force, run=run)
        return PullReport(
            folder,
            self.tree,
            self.selection,
            inventory,
            inventory.digest(),
            packed.archives,
            packed.taken,
            self.omissions,
            packed.compressed,
            len(self._files[TOOL_FILE]) if TOOL_FILE in self._files else None,
        )


@dataclass(frozen=True, slots=True)
class PlannedReference:
    """An image of a plan. `size` is the bytes of everything it needs, shared parts included.

    `component` is what the installer calls it (`module/image`); empty if it does not list it.
    """

    archive: str
    repository: str
    tag: str
    digest: Digest
    size: int
    source: str
    component: str = ""

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        named = ("archive", "repository", "tag", "component", "digest", "bytes=size", "source")
        return document(self, *named)


def plan_pull(
    client: RegistryReader,
    tree: SourceTree,
    wanted: Selection,
    *,
    selection: Mapping[str, Any] | None = None,
    base: Inventory | None = None,
    dedupe: bool = False,
    tool: bytes | None = None,
    run: Run | None = None,
) -> PullPlan:
    """Decide what `wanted` puts into a bundle, down to each byte's place; fetch no image.

    `selection` is kept in the bundle's seal: what was asked for, as JSON values. What `base` holds
    is left out: the bundle is a delta then, unless there is nothing of that kind. With `dedupe`
    each blob lies in one layout only; other tools cannot read such a bundle. `tool` is a program
    that the bundle is to bring, for who receives it.

    Raises:
        InputError: what was asked for contradicts itself.
        SourceContentError: the source's release tree is incomplete or contradicts itself.
        BundleLimitError: the bundle would be larger than any reader takes.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    client = client.within(run)
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    source = ReleaseSource(client, tree, run=run)
    selected = select(source, wanted)
    inventories = resolve(source, selected.images, wanted)
    if not inventories:
        raise SourceContentError(f"nothing at {tree.root} was selected; there is no bundle to make")
    coverage = Coverage(once=dedupe)
    if base is not None:
        coverage = against(base, union(inventories.values()), once=dedupe)
        if coverage.base is None:
            run.on_event(
                Warned("the base holds none of the selected content: the bundle is complete")
            )
    origins = {
        name: {path: tree.origin(path) for path in inventory.repositories}
        for name, inventory in inventories.items()
    }
    archives = lay_out_all(inventories, origins, coverage)
    files = {**selected.files, **({} if tool is None else {TOOL_FILE: tool})}
    seal = Seal.over(archives, selection or {}, tool_name(), files, coverage)
    check_limits(seal)
    return PullPlan(tree, selected, seal, source, files)


def plan_patch(
    client: RegistryReader, tree: SourceTree, wanted: Inventory, *, run: Run | None = None
) -> PullPlan:
    """Decide on a bundle of the content of `wanted` alone, by its digests and without a tag.

    It is what a repair asks for (`RepairReport.lacking`), and what `repair` takes as a copy.

    Raises:
        InputError: there is nothing in it, or it has a repository that no bundle has.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    client = client.within(run)
    client.ping()
    names = {path: archive_of(path) for path in wanted.repositories}
    if not names:
        raise InputError("the request lists no content; there is nothing to pull")
    parts = {
        name: wanted.filtered({path for path in names if names[path] == name}.__contains__)
        for name in sorted(set(names.values()))
    }
    origins = {
        name: {path: tree.origin(path) for path in part.repositories}
        for name, part in parts.items()
    }
    asked = {"only": str(wanted.digest())}
    seal = Seal.over(lay_out_all(parts, origins), asked, tool_name())
    check_limits(seal)
    return PullPlan(tree, SelectedContent(()), seal, ReleaseSource(client, tree, run=run), {})


def pull(
    client: RegistryReader,
    tree: SourceTree,
    wanted: Selection,
    folder: Path | Bucket,
    *,
    base: Inventory | None = None,
    dedupe: bool = False,
    force: bool = False,
    packing: Packing = AS_USUAL,
    run: Run | None = None,
) -> PullReport:
    """Pack what `wanted` selects at the source into a new bundle in `folder`, or in a bucket.

    A pull that was stopped, in whatever way, is completed by the next one into the same folder:
    what it fetched is not fetched again. `packing` says how the bundle is written: parts, digests,
    signature, compression, and whether to resume. `base` and `dedupe` are as for `plan_pull`.

    Whatever fails, no archive carries its final name until all are complete and durable, and an
    earlier bundle in `folder` (see `force`) is left as it was until then.

    Raises:
        InputError: `folder` holds something else than this bundle, and `force` is not given.
        NoSpaceError: the disk is too small for the plan; nothing was fetched.
        SourceContentError: the source's release tree is incomplete or contradicts itself.
        BundleLimitError: the bundle would be larger than any reader takes.
        IncompleteError: some content could not be fetched.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    place_of(folder, run).check(force=force)
    planned = plan_pull(client, tree, wanted, base=base, dedupe=dedupe, run=run)
    return planned.carry_out(folder, force=force, packing=packing, run=run)


def place_of(folder: Path | Bucket, run: Run) -> BundlePlace:
    """Where a bundle is made."""
    if isinstance(folder, Path):
        return FolderPlace(folder, run.on_event)
    from mirror.bundle.bucket_place import BucketPlace  # few need it

    return BucketPlace(folder, run, alone=True)


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What was removed or, in a dry run, would be: name → bytes that a file or an upload took.
    `uploads` are those that are unfinished uploads: a sealed bundle may have the same names."""

    bundle: str
    dry_run: bool
    removed: Mapping[str, int]
    uploads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed", MappingProxyType(dict(self.removed)))

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(self.removed.values())

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return document(self, "bundle", "dry_run", "removed", "uploads", "bytes=size")


def clean(folder: Path | Bucket, *, dry_run: bool = False, run: Run | None = None) -> CleanReport:
    """Remove what interrupted pulls have left in `folder`, or in a bucket, so that none goes on.

    In a bucket these are unfinished uploads, too. A sealed bundle stays, and so do files
    that are not a bundle's. A pull that works there meanwhile keeps its folder; in a bucket it
    ends with an error.

    Raises:
        InputError: `folder` is not one, or somebody makes a bundle there.
        CancelledError: `run` was stopped.
    """
    if isinstance(folder, Path) and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name that of a bundle")
    place = place_of(folder, Run.of(run))
    with place.held():
        pending = folder.uploads(Run.of(run)) if isinstance(folder, Bucket) else ()
        removed = place.leftovers()
        if removed and not dry_run:
            place.clear()
    uploads = removed.keys() & {name for name, _ in pending}
    return CleanReport(place.where, dry_run, removed, tuple(sorted(uploads)))


# -- packing ---------------------------------------------------------------------------------------


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
    folder: Path | Bucket,
    packing: Packing,
    *,
    force: bool = False,
    run: Run | None = None,
) -> Packed:
    """Write the bundle that `seal` describes, with `files` beside it.

    Raises:
        InputError: another bundle is in `folder`, and `force` is not given.
        NoSpaceError: the disk is too small; nothing was taken.
        IncompleteError: some content could not be had.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    taken: list[int] = []

    def written() -> BundleWriter:
        place = place_of(folder, run)
        with BundleWriter(place, seal, files, packing, force=force, known=source) as writer:
            if not writer.is_complete:
                fill(writer, seal.carried, source, taken, run)
                writer.finish()
        return writer

    try:
        writer = written()
    except ChangedLeftoversError as err:
        run.on_event(Warned(f"{err.problem}; all is checked again, and fetched anew where needed"))
        writer = written()
    for notice in writer.notices:
        run.on_event(Warned(notice))
    sizes = {archive.name: archive.size for archive in seal.archives.values()}
    compressed = Compressed(sizes, writer.stored) if packing.compress else None
    return Packed(sizes, sum(taken), compressed)


def fill(
    writer: BundleWriter, carried: Inventory, source: Source, taken: list[int], run: Run
) -> None:
    """Bring a bundle's writer what it lacks; add to `taken` the bytes of blobs that came for it."""
    plan = make_plan(carried, writer.held(carried))
    earlier = writer.brought(carried, plan)
    for stage in writer.stages(plan):
        told = earlier if stage.blobs or stage.tags else 0  # not of manifests that come before
        taken.append(transfer(stage, source, writer, earlier=told, run=run).sent)
