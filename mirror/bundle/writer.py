"""Writing a bundle: every byte once, at its final place, in whatever order it arrives.

The next pull into the same folder completes one that was stopped anywhere (`mirror.bundle.folder`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.bundle import gost
from mirror.bundle.archive import TRAILER_SIZE, Archive, Entry
from mirror.bundle.files import WriteAt
from mirror.bundle.folder import FolderPlace
from mirror.bundle.follow import EntryCheck, Follower, LargeWriteLimit
from mirror.bundle.format import PARTIAL_SUFFIX, compressed_bound
from mirror.bundle.place import AS_USUAL, BundlePlace, Packing, hashes_of, possible_names
from mirror.bundle.seal import Seal, check_limits
from mirror.bundle.staging import ArchiveFile, ArchiveStaging, BlobSlot
from mirror.bundle.sums import CompanionFiles
from mirror.errors import ChangedLeftoversError, IntegrityError, MirrorError, SizeMismatchError
from mirror.oci import Digest, Manifest
from mirror.sync import BlobContent, CopyBlob, Inventory, InventoryBuilder, Plan, Source

if TYPE_CHECKING:
    from mirror.bundle.compress import Compressor

_WRITE_BYTES = 1 << 20
"""Smaller pieces of a blob are written, and noted, together: the most that is fetched twice."""


class BundleWriter:
    """A bundle under construction, as the target of a transfer. Thread-safe.

    `files` lie beside the archives; the seal lists them. Archives carry `.partial` names until
    `finish`. What was written stays when the context is left without it, for the next writer to go
    on with, unless nothing was, or the `packing` says not to resume.

    Content that several layouts hold is taken once and written to each. Digests of archives and
    parts are computed while they are written, by a thread for each archive that follows the writers
    and may compress what it reads. What lies between blobs is written before the blob behind it, or
    the thread could not pass; `known` has the manifests for that.

    Where the folder holds this bundle already, `is_complete` says so and there is nothing to do:
    always behind a pull that was stopped while it cleared up, otherwise without `force`. `notices`
    are what to tell a person in the end.
    """

    def __init__(
        self,
        folder: Path | BundlePlace,
        seal: Seal,
        files: Mapping[str, bytes] | None = None,
        packing: Packing = AS_USUAL,
        *,
        force: bool = True,
        known: Source | None = None,
    ) -> None:
        if packing.gost_digest:
            gost.require()
        self._place = FolderPlace(folder) if isinstance(folder, Path) else folder
        self._seal, self._packing, self._force, self._known = seal, packing, force, known
        self._companions = CompanionFiles(files or {}, packing.sign, packing.gost_digest)
        self._archives = tuple(archive for _, archive in sorted(seal.archives.items()))
        self._followers: dict[str, Follower] = {}
        self._entry_checks: dict[str, EntryCheck] = {}
        self._compressors: dict[str, Compressor] = {}
        self._written: set[tuple[str, int]] = set()  # (archive, offset), under the lock
        self._replaced: set[Digest] = set()  # wrong bytes of these were final; under the lock
        self._lock, self._large_writes = threading.Lock(), LargeWriteLimit(os.cpu_count() or 1)
        self._now: ArchiveStaging | None = None
        self._earlier: ArchiveStaging | None = None
        self._reusable: dict[Digest, BlobSlot] = {}
        self._naming = self._done = False
        self._stored: dict[str, int] | None = None
        self._held = ExitStack()
        self.notices: list[str] = []

    @property
    def name(self) -> str:
        return f"bundle {self._place.where}"

    @property
    def size(self) -> int:
        """Bytes of the archives, as they are before any compression."""
        return sum(archive.size for archive in self._archives)

    @property
    def stored(self) -> Mapping[str, int]:
        """Archive → bytes that it takes on the disk, once `finish` is over."""
        if self._stored is not None:
            return self._stored
        packed = {name: one.size for name, one in self._compressors.items()}
        return {archive.name: archive.size for archive in self._archives} | packed

    @property
    def is_complete(self) -> bool:
        """Whether the folder held this very bundle when the context began."""
        return self._stored is not None

    # -- beginning and end ---------------------------------------------------------------------

    def __enter__(self) -> BundleWriter:
        """Create the archives, or go on with those of an interrupted pull.

        Raises:
            InputError: another bundle, or something else, is in the folder, and `force` is not
                given; or somebody makes a bundle there.
            BundleLimitError: no reader would take a bundle of this size.
            NoSpaceError: the folder's disk has not enough room for all of them.
            FileSystemError: the folder cannot be written.
        """
        sealed = check_limits(self._seal, compressed=self._packing.compress)
        with ExitStack() as undo:
            undo.enter_context(self._place.held())
            there = self._place.complete(self._seal, sealed, self._packing, force=self._force)
            if there is None:
                self._begin_archives(undo, sealed)
            else:
                self._done, (self._stored, what) = True, there
                self.notices.append(f"{self._place.where} holds this bundle already; {what}")
            self._held = undo.pop_all()
        return self

    def _begin_archives(self, undo: ExitStack, sealed: bytes) -> None:
        packing = self._packing
        # What lies beside is written last, which would be a late moment to find the disk full.
        names = (name for archive in self._archives for name in possible_names(packing, archive))
        needed = self.size + len(sealed) + self._companions.size(names)
        if packing.compress:
            # Nobody knows before how much smaller they become.
            needed += sum(compressed_bound(archive.size) for archive in self._archives)
        keep = self._place.begin(self._seal, sealed, packing, needed)
        undo.callback(self._close)
        hashes = hashes_of(packing)
        if packing.compress:
            from mirror.bundle.compress import Compression, Compressor

            compression = undo.enter_context(Compression())

        def follow(archive: Archive, file: ArchiveFile, claimed: list[Entry]) -> Follower:
            check = self._entry_checks[archive.name] = EntryCheck(claimed)
            made, chunks = hashes, file.chunks
            if packing.compress:
                to, cut = self._place.packed(archive), packing.part_size
                compressor = Compressor(compression, to, archive.name, cut, hashes)
                undo.callback(compressor.close)
                self._compressors[archive.name] = compressor
                made = {"zstd": lambda: compressor}
            elif isinstance(file, WriteAt):  # what gets compressed need not reach the disk
                chunks = file.settling
            watch = check.update if claimed else None
            follower = Follower(chunks, file.sizes, hashes=made, watch=watch, name=archive.name)
            self._followers[archive.name] = follower
            return undo.enter_context(follower)

        self._now = self._place.staging(self._seal, keep=keep, follow=follow)
        self._earlier = undo.enter_context(self._place.earlier())
        if self._earlier is not None:
            self._reusable = self._earlier.finished()

    def __exit__(self, *_error: object) -> None:
        begun = self._now is not None and bool(self._now.journal.begun or self._reusable)
        with self._held:
            self._close()
            # Once archives take their names, what is left over is what says that not all have.
            if self._done:
                try:
                    self._place.clear()
                except MirrorError as err:
                    # The bundle has its seal. The next run finds it complete, and clears up.
                    self.notices.append(f"the bundle is complete, but {err}")
            elif not (self._naming or (self._packing.resume and begun)):
                self._place.clear()

    def _close(self) -> None:
        for staging in (self._now, self._earlier):
            if staging is not None:
                staging.close()

    @property
    def _state(self) -> ArchiveStaging:
        if self._now is None:
            raise ValueError("a bundle's writer is a context manager; enter it first")
        return self._now

    # -- Target --------------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:
        """Return what of `wanted` an interrupted pull has brought to its places."""
        state, builder = self._state, InventoryBuilder()
        for path, content in wanted.repositories.items():
            for digest in (*content.manifests, *content.blobs):
                places = state.places.get((path, digest), ())
                if not places or not all(map(state.has, places)):
                    continue
                if digest in content.manifests:
                    builder.add_manifest(path, content.manifests[digest], closed=False)
                if digest in content.blobs:
                    builder.add_blob(path, digest, content.blobs[digest])
                for place in places:
                    place.is_final()
                self._record(places)
        return builder.build()

    def stages(self, plan: Plan) -> Iterator[Plan]:
        """Yield `plan` in the order in which it is best carried out, as one plan or several."""
        return self._place.stages(plan, self._state)

    def brought(self, carried: Inventory, plan: Plan) -> int:
        """Bytes of blobs that are there already, if `plan` brings all that lacks of `carried`."""
        return self._place.brought(carried, plan, self._state)

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        places = self._fitting(self._of(step.into, step.digest), f"blob {step.digest}", step.size)
        sent = 0
        for place in places:
            self._write_before(place)
        # A place without a follower has an order of its own.
        with self._large_writes.one(step.size if places[0].follower else 0):
            if not self._take_over(step, places):
                content, begun = self._begin(step, places, content)
                try:
                    sent = self._write(step, places, content, begun, final=not begun)
                except IntegrityError:
                    if not begun:
                        with self._lock:
                            self._replaced.add(step.digest)
                        raise
                    # Perhaps what lay here was wrong, and not what came: once more, from the start.
                    sent = self._write(step, places, content.restarted(), 0, final=False)
                if begun:
                    for place in places:
                        place.is_final()
        self._state.journal.note(step.digest, step.size)
        self._record(places)
        return sent

    def _take_over(self, step: CopyBlob, places: Sequence[BlobSlot]) -> bool:
        """Copy a blob from the archives of an earlier plan, if it is there and right."""
        source = self._reusable.get(step.digest)
        if source is None or source.entry.size != step.size or not source.is_whole():
            return False
        position = 0
        for chunk in source.read(step.size) if step.size else (b"",):
            for place in places:
                place.write(position, chunk)
            position += len(chunk)
        return True

    def _begin(
        self, step: CopyBlob, places: Sequence[BlobSlot], content: BlobContent
    ) -> tuple[BlobContent, int]:
        """Offer what an interrupted pull has brought of a blob; tell how many bytes that is."""
        if behind := min(map(self._state.journal.behind, places)):
            return content.begin_behind(behind), behind
        begun = min(self._state.journal.count(step.digest), step.size)
        if begun:
            try:
                content.begin_with(places[0].read(begun))
            except IntegrityError:
                return content.restarted(), 0
        return content, begun

    def _write(
        self,
        step: CopyBlob,
        places: Sequence[BlobSlot],
        content: BlobContent,
        begun: int,
        *,
        final: bool,
    ) -> int:
        """Write what comes from `begun` on; return how many bytes that were.

        No byte of a blob that an earlier run began is `final` until the blob has proved right.
        """
        position, pieces, size, journal = begun, list[bytes](), 0, self._state.journal

        def write() -> None:
            nonlocal position, pieces, size
            for place in places:
                place.write(position, *pieces, final=final)
            position, pieces, size = position + size, [], 0
            if position < step.size:
                journal.note(step.digest, position)

        try:
            for chunk in content.chunks(begun):
                pieces.append(chunk)
                size += len(chunk)
                if size >= _WRITE_BYTES:
                    write()
        except BaseException as err:
            if journal.came_short(places, wrong=isinstance(err, IntegrityError)):
                with self._lock:
                    self._replaced.add(step.digest)  # if another source has it
            raise
        finally:
            # Whatever ends this, the next run goes on behind what came.
            if size or not step.size:
                write()
        return position - begun

    def _write_before(self, blob: BlobSlot) -> None:
        for place in self._state.due_before(blob):
            entry, raw = place.entry, place.entry.content
            if raw is None and self._known is not None:
                with suppress(MirrorError):  # whoever brings it meets that, too
                    raw = self._known.manifest(entry.repository, entry.digest).raw
            if raw is not None and len(raw) == entry.size:
                place.write(0, raw)
                self._record([place])

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        places = self._of((repository,), manifest.digest)
        for place in self._fitting(places, f"manifest {manifest.digest}", len(manifest.raw)):
            if not self._has(place):
                place.write(0, manifest.raw)
        self._record(places)

    def list_referrer(self, repository: str, manifest: Manifest) -> None:
        """Do nothing: a bundle has the lists that were selected."""

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Do nothing: tags lie in the layouts' indexes, which `finish` writes."""

    def _of(self, repositories: Iterable[str], digest: Digest) -> list[BlobSlot]:
        return [place for path in repositories for place in self._state.places[path, digest]]

    def _fitting(self, places: list[BlobSlot], what: str, size: int) -> list[BlobSlot]:
        """Return `places`, if each has room for exactly `size` bytes; more would spoil a neighbour.

        Documents at the source may disagree about a size, each in a repository of its own.
        """
        for place in places:
            if place.entry.size != size:
                layout = place.entry.repository or "the root repository"
                raise SizeMismatchError(
                    where=f"{what} of {layout}", expected=place.entry.size, actual=size
                )
        return places

    def _record(self, places: Iterable[BlobSlot]) -> None:
        with self._lock:
            self._written.update((place.archive, place.entry.offset) for place in places)

    def _has(self, place: BlobSlot) -> bool:
        return (place.archive, place.entry.offset) in self._written

    # -- completion ----------------------------------------------------------------------------

    def finish(self) -> None:
        """Write indexes and trailers, make all of it durable, and give it its final names.

        A bundle with a seal is a complete one.

        Raises:
            IntegrityError: some entry was never written.
            ChangedLeftoversError: what an interrupted run wrote is not what it was, or a blob that
                proved wrong was replaced after its bytes had been hashed; a new writer in this
                folder goes on with the rest, and hashes all of it.
        """
        files = self._state.files
        for place in self._state.own:
            assert place.entry.content is not None
            if not self._has(place):
                place.write(0, place.entry.content)
        self._record(self._state.own)
        for archive in self._archives:
            files[archive.name].write(archive.trailer_offset, bytes(TRAILER_SIZE))
            self._followers[archive.name].done(archive.trailer_offset, TRAILER_SIZE)
        for archive in self._archives:
            for entry in archive.entries:
                if (archive.name, entry.offset) not in self._written:
                    raise IntegrityError(
                        f"{archive.name}: {entry.path} was never written",
                        where=self.name,
                        advice="nothing is sealed",
                    )
        self.check_replaced()
        self._place.give_way()
        for archive in () if self._packing.compress else self._archives:
            size = files[archive.name].sync()
            if size != archive.size:
                raise SizeMismatchError(where=archive.name, expected=archive.size, actual=size)
            self._followers[archive.name].done(0, size)  # where nothing could be read before
        digests: dict[str, Mapping[str, str]] = {}
        for archive in self._archives:
            of_windows = self._followers[archive.name].finish()
            compressor = self._compressors.get(archive.name)
            digests |= (
                {
                    part.name: each
                    for part, each in zip(files[archive.name].parts, of_windows, strict=True)
                }
                if compressor is None
                else {one.name: one.digests for one in compressor.files}
            )
        self._check_leftovers()
        named = {name.removesuffix(PARTIAL_SUFFIX): each for name, each in digests.items()}
        companions = self._companions.render(self._seal.to_json(), named)
        self._close()
        self._naming = True
        self._place.take(digests, companions, named)
        self._done = True

    def _check_leftovers(self) -> None:
        """Raise ChangedLeftoversError if digests were made of other bytes than there are now, or
        what an interrupted pull had left is not what it wrote."""
        wrong = {name: check.wrong for name, check in self._entry_checks.items() if check.wrong}
        if wrong:
            lost = {digest for digests in wrong.values() for digest in digests}
            self._state.journal.forget(lost)
            raise ChangedLeftoversError(
                f"{len(lost)} of the blobs that an interrupted run had written are no longer what "
                f"they were (in {', '.join(sorted(wrong))}), as when a disk is taken away while it "
                "is written",
                where=self.name,
                advice="run the same command again, which fetches these anew",
            )

    def check_replaced(self) -> None:
        """Check that no bytes came that were not the last ones: they may have been hashed, or sent.

        Raises:
            ChangedLeftoversError: some did; a new writer goes on.
        """
        if self._replaced:
            raise ChangedLeftoversError(
                f"{len(self._replaced)} of the blobs came damaged and were replaced by sound ones",
                where=self.name,
                advice="run the same command again, which reads the archives once more",
            )
