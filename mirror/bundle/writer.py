"""Writing a bundle: every byte once, at its final place, in whatever order it arrives.

A pull that was stopped anywhere is completed by the next one into the same folder
(`mirror.bundle.resume`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from mirror.bundle import gost
from mirror.bundle.archive import TRAILER_SIZE, Archive
from mirror.bundle.beside import Beside
from mirror.bundle.compress import Compression, Compressor
from mirror.bundle.folder import (
    check_space,
    clear_leavings,
    only_writer,
    take_the_place,
    write_seal,
)
from mirror.bundle.follow import Follower, MakeHash, windows_of
from mirror.bundle.journal import progress_of
from mirror.bundle.names import PARTIAL_SUFFIX, ZSTD_SUFFIX
from mirror.bundle.parts import part_name, part_sizes
from mirror.bundle.recheck import Recheck, is_amiss, prove
from mirror.bundle.resume import earlier_workplace, partial_files, sort_leavings
from mirror.bundle.seal import Seal
from mirror.bundle.seekable import bound
from mirror.bundle.workplace import (
    JOURNAL,
    ArchiveFile,
    Place,
    Workplace,
    allocated,
    is_there,
)
from mirror.durable import os_errors
from mirror.errors import IntegrityError, SizeMismatchError
from mirror.oci import Digest, Manifest
from mirror.sync import BlobContent, CopyBlob, Inventory, InventoryBuilder

_NOTE_BYTES = 256 << 10
"""A blob under way is noted in the journal this often; so much is fetched twice at most."""


class BundleWriter:
    """A bundle under construction, as the target of a transfer. Thread-safe.

    `files` lie beside the archives; the seal lists them. `part_size` in bytes cuts the archives; 0
    leaves them whole. Archives carry `.partial` names until `finish`. What was written stays when
    the context is left without it, for the next writer to go on with; not if nothing was, and not
    with `resume` False, which also disregards what earlier ones left.

    Content that several layouts hold is taken once and written to each. Digests of archives and
    parts (SHA-256; with `gost_digest` also GOST R 34.11-2012) are computed while they are written,
    by a thread for each archive that follows the writers. `sign` makes a signature over the seal.

    With `compress` the followers write compressed archives (`mirror.bundle.compress`), which
    `part_size` then cuts. Until they have their names, the disk holds both.
    """

    def __init__(
        self,
        folder: Path,
        seal: Seal,
        files: Mapping[str, bytes] | None = None,
        *,
        part_size: int = 0,
        resume: bool = True,
        gost_digest: bool = False,
        sign: Callable[[bytes], bytes] | None = None,
        compress: bool = False,
    ) -> None:
        self._folder, self._seal = folder, seal
        self._beside = Beside(files or {}, sign, gost_digest)
        # What is compressed is in one piece before.
        self._part_size, self._packed_part_size = (0, part_size) if compress else (part_size, 0)
        self._resume, self._compress = resume, compress
        self._compressors: dict[str, Compressor] = {}
        self._hashes: dict[str, MakeHash] = {"sha256": hashlib.sha256}
        if gost_digest:
            gost.require()
            self._hashes["gost"] = gost.GostHash
        self._followers: dict[str, Follower] = {}
        self._rechecks: dict[str, Recheck] = {}  # of archives that an interrupted pull had begun
        self._archives = tuple(archive for _, archive in sorted(seal.archives.items()))
        self._written: set[tuple[str, str]] = set()  # (archive, path), under the lock
        self._lock = threading.Lock()
        self._now: Workplace | None = None
        self._earlier: Workplace | None = None
        self._reusable: dict[Digest, Place] = {}
        self._naming = self._done = False
        self._held = ExitStack()

    @property
    def name(self) -> str:
        return f"bundle {self._folder}"

    @property
    def size(self) -> int:
        """Bytes of the archives, as they are before any compression."""
        return sum(archive.size for archive in self._archives)

    @property
    def stored(self) -> dict[str, int]:
        """Archive → bytes that it takes on the disk, once `finish` is over."""
        return {
            archive.name: self._compressors[archive.name].size if self._compress else archive.size
            for archive in self._archives
        }

    # -- beginning and end ---------------------------------------------------------------------

    def __enter__(self) -> BundleWriter:
        """Create the archives, or go on with those of an interrupted pull.

        Raises:
            NoSpaceError: the folder's disk has not enough room for all of them.
            FileSystemError: the folder cannot be written.
        """
        with os_errors(self._folder, "create"):
            self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.enter_context(only_writer(self._folder))
            self._begin_archives(undo)
            self._held = undo.pop_all()
        return self

    def _begin_archives(self, undo: ExitStack) -> None:
        keep = self._resume and sort_leavings(self._folder, self._seal, self._part_size)
        if not self._resume:
            clear_leavings(self._folder)
        sealed = self._seal.to_json()
        # What lies beside is written last, which would be a late moment to find the disk full.
        names = (name for archive in self._archives for name in self._final_names(archive))
        needed = self.size + len(sealed) + self._beside.size(names)
        if self._compress:
            # Nobody knows before how much smaller they become.
            needed += sum(bound(archive.size) for archive in self._archives)
        check_space(self._folder, needed - (allocated(self._folder) if keep else 0))
        undo.callback(self._close)
        # What somebody took away in between is made anew, and is not what the journal speaks of.
        touched = keep and not all(
            path.exists()
            for archive in self._archives
            for path in partial_files(self._folder, archive, self._part_size)
        )
        if not keep:
            write_seal(self._folder, sealed)

        compression = undo.enter_context(Compression()) if self._compress else None
        claims = progress_of(self._folder / JOURNAL) if keep else {}

        def follow(archive: Archive, file: ArchiveFile) -> Follower:
            windows, hashes = windows_of(self._file_sizes(archive)), self._hashes
            if compression is not None:
                compressor = self._compressors[archive.name] = Compressor(
                    compression,
                    self._folder / archive.name,
                    part_size=self._packed_part_size,
                    hashes=hashes,
                )
                hashes = {"zstd": lambda: compressor}
            watch = None
            if claims:
                left = (entry for entry in archive.entries if entry.digest in claims)
                self._rechecks[archive.name] = recheck = Recheck(left)
                watch = recheck.update
            follower = Follower(file.chunks, windows, hashes=hashes, watch=watch, name=archive.name)
            self._followers[archive.name] = undo.enter_context(follower)
            return follower

        self._now = Workplace(self._folder, self._seal, self._part_size, keep=keep, follow=follow)
        if touched or not self._now.journal.trusted or is_amiss(self._now):
            prove(self._now)
        self._earlier = earlier_workplace(self._folder)
        if self._earlier is not None:
            self._reusable = self._earlier.finished()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        begun = self._now is not None and bool(self._now.journal.progress or self._reusable)
        with self._held:
            self._close()
            # Once archives take their names, what is left over is what says that not all have.
            if self._done or not (self._naming or (self._resume and begun)):
                clear_leavings(self._folder)

    def _file_sizes(self, archive: Archive) -> Sequence[int]:
        """The sizes of the files that an archive consists of."""
        return part_sizes(archive.size, self._part_size) if self._part_size else (archive.size,)

    def _close(self) -> None:
        for leavings in (self._now, self._earlier):
            if leavings is not None:
                leavings.close()

    # -- Target --------------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:
        """The blobs of `wanted` that an interrupted pull has brought to their places."""
        finished = self._state.finished()
        builder = InventoryBuilder()
        for path, content in wanted.repositories.items():
            for digest, size in content.blobs.items():
                places = self._state.places.get((path, digest))
                if places is not None and digest in finished:
                    builder.add_blob(path, digest, size)
                    for place in places:
                        place.is_final()
                    self._record(places)
        return builder.build()

    @property
    def _state(self) -> Workplace:
        if self._now is None:
            raise ValueError("a bundle's writer is a context manager; enter it first")
        return self._now

    def in_archive_order(self, blobs: Sequence[CopyBlob]) -> tuple[CopyBlob, ...]:
        """`blobs` in the order in which they lie in the archives.

        Writes then move through the disk from front to back, which spinning disks thank with
        speed, and file systems without holes (FAT) by not writing zeros that are overwritten.
        """

        def place(step: CopyBlob) -> tuple[str, int]:
            return min(
                (place.archive, place.entry.offset) for place in self._of(step.into, step.digest)
            )

        return tuple(sorted(blobs, key=place))

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        places = self._fitting(self._of(step.into, step.digest), f"blob {step.digest}", step.size)
        sent = 0
        if not self._take_over(step, places):
            content, begun = self._begin(step, places, content)
            try:
                sent = self._write(step, places, content, begun)
            except IntegrityError:
                if not begun:
                    raise
                # Perhaps what lay here was wrong, and not what came: once more, from the start.
                sent = self._write(step, places, content.restarted(), 0, final=False)
            if begun:
                for place in places:
                    place.is_final()
        self._state.journal.note(step.digest, step.size)
        self._record(places)
        return sent

    def _take_over(self, step: CopyBlob, places: Sequence[Place]) -> bool:
        """Copy a blob from the archives of an earlier plan, if it is there and right."""
        source = self._reusable.get(step.digest)
        if source is None or source.entry.size != step.size or not is_there(source):
            return False
        position = 0
        for chunk in source.read(step.size):
            for place in places:
                place.write(position, chunk)
            position += len(chunk)
        if step.size == 0:
            for place in places:
                place.write(0, b"")
        return True

    def _begin(
        self, step: CopyBlob, places: Sequence[Place], content: BlobContent
    ) -> tuple[BlobContent, int]:
        """Offer what an interrupted pull has brought of a blob; tell how many bytes that is."""
        begun = min(self._state.journal.progress.get(step.digest, 0), step.size)
        if begun:
            try:
                content.begin_with(places[0].read(begun))
            except IntegrityError:
                return content.restarted(), 0
        return content, begun

    def _write(
        self,
        step: CopyBlob,
        places: Sequence[Place],
        content: BlobContent,
        begun: int,
        *,
        final: bool = True,
    ) -> int:
        """Write what comes from `begun` on; return how many bytes that were.

        Until a blob that was begun in an earlier run has proved right, nothing of it is final.
        """
        final = final and not begun
        position = noted = begun
        for chunk in content.chunks(begun):
            for place in places:
                place.write(position, chunk, final=final)
            position += len(chunk)
            if position - noted >= _NOTE_BYTES and position < step.size:
                self._state.journal.note(step.digest, position)
                noted = position
        if step.size == 0:
            for place in places:
                place.write(0, b"")
        return position - begun

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        places = self._of((repository,), manifest.digest)
        for place in self._fitting(places, f"manifest {manifest.digest}", len(manifest.raw)):
            place.write(0, manifest.raw)
        self._record(places)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Tags lie in the layouts' indexes, which `finish` writes."""

    def _of(self, repositories: Iterable[str], digest: Digest) -> list[Place]:
        return [place for path in repositories for place in self._state.places[path, digest]]

    def _fitting(self, places: list[Place], what: str, size: int) -> list[Place]:
        """`places`, if each has room for exactly `size` bytes; more would spoil its neighbour.

        Documents at the source may disagree about a size, each in a repository of its own.
        """
        for place in places:
            if place.entry.size != size:
                layout = place.entry.repository or "the root repository"
                raise SizeMismatchError(
                    where=f"{what} of {layout}", expected=place.entry.size, actual=size
                )
        return places

    def _record(self, places: Iterable[Place]) -> None:
        with self._lock:
            self._written.update((place.archive, place.entry.path) for place in places)

    # -- completion ----------------------------------------------------------------------------

    def finish(self) -> None:
        """Write indexes and trailers, make all of it durable, and give it its final names.

        The seal comes last: a bundle with a seal is a complete one.

        Raises:
            IntegrityError: some entry was never written; no archive gets its name.
        """
        files = self._state.files
        for place in self._state.own:
            assert place.entry.content is not None
            place.write(0, place.entry.content)
            self._record([place])
        for archive in self._archives:
            files[archive.name].write(archive.trailer_offset, bytes(TRAILER_SIZE))
            self._followers[archive.name].done(archive.trailer_offset, TRAILER_SIZE)
        for missing in self._missing():
            raise IntegrityError(f"{self.name}: {missing} was never written; nothing is sealed")
        for archive in () if self._compress else self._archives:
            size = files[archive.name].sync()
            if size != archive.size:
                raise SizeMismatchError(where=archive.name, expected=archive.size, actual=size)
        digests = self._digests()
        self._check_leavings()
        named = {path.name.removesuffix(PARTIAL_SUFFIX): each for path, each in digests.items()}
        beside = self._beside.render(self._seal.to_json(), named)
        self._close()
        self._naming = True
        take_the_place(self._folder, digests, beside, named)
        self._done = True

    def _final_names(self, archive: Archive) -> Iterator[str]:
        """The files of an archive; of a compressed one, as many as there may be at most."""
        name, part_size, size = archive.name, self._part_size, archive.size
        if self._compress:
            name, part_size, size = name + ZSTD_SUFFIX, self._packed_part_size, bound(size)
        if not part_size:
            yield name
        else:
            yield from (part_name(name, number) for number in range(-(-size // part_size)))

    def _digests(self) -> dict[Path, Mapping[str, str]]:
        """The files of all archives, each with its digests by algorithm."""
        found: dict[Path, Mapping[str, str]] = {}
        for archive in self._archives:
            digests = self._followers[archive.name].finish()
            if self._compress:
                files = self._compressors[archive.name].files
                found.update((file.path, file.digests()) for file in files)
            else:
                paths = self._state.files[archive.name].parts
                found.update(zip(paths, digests, strict=True))
        return found

    def _check_leavings(self) -> None:
        """Raise IntegrityError if something that an interrupted pull had left is not what it wrote;
        the next pull does without it."""
        wrong = {name: recheck.wrong for name, recheck in self._rechecks.items() if recheck.wrong}
        if not wrong:
            return
        lost = {digest for digests in wrong.values() for digest in digests}
        kept = self._state.journal.progress
        self._state.journal.restart({d: count for d, count in kept.items() if d not in lost})
        raise IntegrityError(
            f"{self.name}: {len(lost)} of the blobs that an interrupted run had written are no "
            f"longer what they were (in {', '.join(sorted(wrong))}), as when a disk is taken away "
            "while it is written; run the same command again, which fetches these anew"
        )

    def _missing(self) -> Iterator[str]:
        for archive in self._archives:
            for entry in archive.entries:
                if (archive.name, entry.path) not in self._written:
                    yield f"{archive.name}: {entry.path}"
