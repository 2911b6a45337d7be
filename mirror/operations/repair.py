"""Repair of a bundle in place: what is damaged or missing is brought from elsewhere.

The seal settles every byte of the archives: headers, indexes and padding follow from it; content
goes by its digest, so any source will do; it is written only after it has proved right.
It keeps no journal: a repair that was stopped is run again, and finds less to do.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from mirror.bundle.archive import TRAILER_SIZE, Archive
from mirror.bundle.files import CHUNK, WriteAt
from mirror.bundle.folder import only_writer
from mirror.bundle.format import SEAL, ZSTD_SUFFIX, archive_named, parse_part_name, whole_name
from mirror.bundle.location import Location, Readable
from mirror.bundle.reader import BundleReader, find_archives, placed
from mirror.bundle.verify import BundleReport
from mirror.durable import os_errors
from mirror.errors import (
    CancelledError,
    DamagedBundleError,
    FileSystemError,
    InputError,
    IntegrityError,
    MirrorError,
)
from mirror.events import BlobDone, BytesMoved, PhaseStarted, TransferStarted, Warned
from mirror.oci import Digest
from mirror.operations.compare import verify
from mirror.operations.restore import ASIDE, IN_PLACE, Damage, Restorer
from mirror.run import Run, for_each
from mirror.sync import Inventory, InventoryBuilder, Source

_IN_MEMORY = 4 << 20

# -- what is to be done ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What mends damages: `made` follows from the seal alone, `fetched` is content to be had by its
    digest, with every place where it belongs."""

    made: tuple[Damage, ...]
    fetched: Mapping[Digest, tuple[Damage, ...]]


def plan_repair(damages: Iterable[Damage]) -> RepairPlan:
    """Decide what to make and what to fetch, in the order of `damages`."""
    made: list[Damage] = []
    fetched: dict[Digest, list[Damage]] = {}
    for damage in damages:
        if damage.entry.content is not None:
            made.append(damage)
        else:
            fetched.setdefault(damage.entry.digest, []).append(damage)
    return RepairPlan(tuple(made), {digest: tuple(found) for digest, found in fetched.items()})


def wanted_of(damages: Iterable[Damage], whole: Inventory) -> Inventory:
    """Return the content that damages lack, as a part of `whole` without tags: what to ask for."""
    builder = InventoryBuilder()
    for entry in (damage.entry for damage in damages if damage.entry.content is None):
        node = whole.repository(entry.repository).manifests.get(entry.digest)
        if node is not None:
            builder.add_manifest(entry.repository, node, closed=False)
        else:
            builder.add_blob(entry.repository, entry.digest, entry.size)
    return builder.build()


@dataclass(frozen=True)
class RepairReport:
    """A repair and the verification behind it: bytes `given` by whom, bytes `written`, `files` that
    were taken as a whole, and the content that nobody had."""

    verified: BundleReport
    given: Mapping[str, int]
    written: int
    files: tuple[str, ...]
    lacking: Inventory = field(repr=False)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        counts = self.lacking.counts()
        lacking = {"manifests": counts["manifests"], "blobs": counts["blobs"]}
        own = {"given": dict(self.given), "written": self.written, "files": list(self.files)}
        return {**self.verified.to_document(), **own, "lacking": lacking}


def repair(
    folder: Path,
    copies: Sequence[Location] = (),
    sources: Sequence[Source] = (),
    *,
    key: bytes | None = None,
    run: Run | None = None,
) -> RepairReport:
    """Bring back what is damaged or missing in the bundle in `folder`, and verify all of it.

    `copies` are folders with all or some of the bundle's files, or other bundles that have some of
    its content; `sources` are registries' trees. Copies are asked first, in their order. `key` is
    who must have signed the bundle (PEM). What nobody has stays as it is, and is a finding.

    Raises:
        InputError: `folder` is not a bundle's, or one is being made there; or its seal is lost, and
            no copy has the one that `SHA256SUMS` names.
        SignatureError: with a `key`, its owner did not sign the seal; nothing was written.
        FileSystemError, NoSpaceError: it cannot be written to.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    with only_writer(folder) as held, ExitStack() as opened:
        run.on_event(PhaseStarted("looking for damage"))
        readers = [(path, _reader(path, opened)) for path in copies]
        for path, reader in readers:
            if reader is None:
                run.on_event(Warned(f"{path} has no archives of a bundle to repair from"))
            else:
                reader.follow(run)
        work = _Repair(held, readers, sources, key, run)
        work.carry_out()
    run.on_event(PhaseStarted("verifying what was repaired"))
    with BundleReader([folder]) as reader:
        verified = verify(reader, key=key, run=run)
    lacking = wanted_of(work.lost, work.seal.inventory)
    return RepairReport(verified, work.given, work.written, tuple(work.files), lacking)


def _reader(path: Location, opened: ExitStack) -> BundleReader | None:
    """Open a copy; None if it has no archives. Its own seal may be damaged."""
    for seal_name in (SEAL, ASIDE):
        with suppress(InputError, DamagedBundleError):
            reader = BundleReader([path], seal_name=seal_name, flattened=True)
            return opened.enter_context(reader)
    return None


# -- the work --------------------------------------------------------------------------------------


class _Repair(Restorer):
    _open: dict[str, WriteAt]
    _sound: dict[Digest, Damage]

    def carry_out(self) -> None:
        self._open, self._sound = {}, {}
        self.restore_files()
        found = {path.name: files for path, files in find_archives([self._folder.path]).items()}
        there = {file.name for files in found.values() for file in files}
        with ExitStack() as opened:
            for name, archive in sorted(self.seal.archives.items()):
                names = [file.name for file in found.get(name, ())]
                names = names or [one for one in self._stated if archive_named(one) == name]
                if any(whole_name(one).endswith(ZSTD_SUFFIX) for one in names):
                    stated = self._stated.items()
                    self.restore({one: d for one, d in stated if archive_named(one) == name})
                else:
                    self._open_archive(archive, names, opened)
            still_lost = self._mend(plan_repair(self._damages()), there)
            for file in self._open.values():
                file.sync()
        with os_errors(self._folder.path, "write to"):
            for name in still_lost:
                self._folder.unlink(name)
            self._folder.sync()

    def _open_archive(self, archive: Archive, names: Sequence[str], opened: ExitStack) -> None:
        """Open an archive's file or parts for reading and writing; lost ones are made empty."""
        size = 0
        if any(map(parse_part_name, names)):
            size = self.part_size()
            if not size:
                self._run.on_event(Warned(f"nothing tells how long parts of {archive.name} were"))
                self.lost += (Damage(archive.name, entry) for entry in archive.entries)
                return
        file = WriteAt(self._folder, archive.name, archive.size, size, keep=True)
        opened.callback(file.close)
        self._open[archive.name] = file

    def _damages(self) -> list[Damage]:
        """Look at every entry of the archives that are open, in parallel."""
        archives = [self.seal.archives[name] for name in self._open]
        every = [Damage(one.name, entry) for one in archives for entry in one.entries]
        size = sum(damage.entry.size for damage in every)
        self._run.on_event(TransferStarted(blobs=len(every), size=size, manifests=0, tags=0))
        damages: list[Damage] = []
        with closing(for_each(every, self._look, run=self._run)) as outcomes:
            for damage, sound in outcomes:
                if isinstance(sound, MirrorError):
                    raise sound
                if sound:
                    self._sound.setdefault(damage.entry.digest, damage)
                else:
                    damages.append(damage)
        return sorted(damages, key=lambda one: (one.archive, one.entry.offset))

    def _look(self, damage: Damage) -> bool:
        sound = self.is_sound(self._open[damage.archive].chunks, damage.entry)
        self._run.on_event(BytesMoved(damage.entry.digest, damage.entry.size))
        self._run.on_event(BlobDone(damage.entry.digest, damage.entry.size, damage.entry.size))
        return sound

    def _mend(self, plan: RepairPlan, there: set[str]) -> set[str]:
        """Carry out the plan. Return the files, beside those `there`, for which nobody else had
        anything: kept, they would make many findings of one, that a file is missing."""
        brought: set[str] = set()
        lacking: set[str] = set()
        done: list[tuple[set[str], tuple[str, int, int]]] = []
        run = self._run.with_jobs(self._run.jobs)  # each holds a piece of a blob
        with closing(for_each(plan.fetched.items(), self._fetch, run=run)) as outcomes:
            for (_, damages), outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    raise outcome
                files = {name for damage in damages for name in self._files(damage)}
                if outcome is None:
                    self.lost += damages
                    lacking |= files
                    continue
                done.append((files, outcome))
                if outcome[0] not in (IN_PLACE, str(self._folder.path)):
                    brought |= files
        still_lost = lacking - brought - there
        for files, (giver, given, written) in done:
            if not files <= still_lost:
                self.given[giver] += given
                self.written += written
        del self.given[IN_PLACE]
        for damage in plan.made:
            if still_lost.isdisjoint(self._files(damage)):
                self.written += self._put(damage, iter([damage.entry.content or b""]))
        for name, file in self._open.items():
            if file.parts[-1].name not in still_lost:
                trailer = self.seal.archives[name].trailer_offset
                self.written += _put_bytes(file, trailer, bytes(TRAILER_SIZE))
        return still_lost

    def _files(self, damage: Damage) -> Iterator[str]:
        """The names of the files that an entry lies in."""
        file, entry = self._open[damage.archive], damage.entry
        size = file.sizes[0]
        for part in file.parts[entry.offset // size : -(-entry.end // size)]:
            yield part.name

    def _fetch(self, item: tuple[Digest, tuple[Damage, ...]]) -> tuple[str, int, int] | None:
        """Bring content to where it belongs; return who gave how much of it, and what was written.
        None if nobody has it."""
        digest, damages = item
        size, path = damages[0].entry.size, self._folder.path
        for giver, chunks in self._givers(digest, damages):
            with (
                os_errors(path, "write to"),
                SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(path)) as staged,
            ):
                try:
                    if not self.passed(chunks, digest, size, staged.write):
                        continue
                except CancelledError:
                    raise
                except MirrorError:  # the next one may have it
                    continue
                written = 0
                for damage in damages:
                    staged.seek(0)
                    written += self._put(damage, iter(partial(staged.read, CHUNK), b""))
            return giver, size, written
        return None

    def _givers(
        self, digest: Digest, damages: Sequence[Damage]
    ) -> Iterator[tuple[str, Generator[bytes, None, None]]]:
        """Everybody who may have some content, with a stream of it; the nearest first."""
        size = damages[0].entry.size
        for damage in damages:  # where perhaps a header alone is damaged
            yield IN_PLACE, self._open[damage.archive].chunks(damage.entry.data_offset, size)
        here = self._sound.get(digest)
        if here is not None:
            file: Readable | WriteAt = self._open[here.archive]
            yield str(self._folder.path), file.chunks(here.entry.data_offset, size)
        for copy, reader in self._copies:
            for damage in damages if reader is not None else ():
                entry = damage.entry
                for archive in reader._archives if reader is not None else ():
                    if archive.name == damage.archive:
                        yield str(copy), archive.file.chunks(entry.data_offset, size)
                found = placed([reader] if reader else [], entry.repository, digest, size)
                if found is not None:
                    yield str(copy), found[0].file.chunks(found[1].offset, size)
        for source in self._sources:
            for repository in dict.fromkeys(damage.entry.repository for damage in damages):
                if digest in self.seal.inventory.repository(repository).manifests:
                    yield source.name, _manifest_bytes(source, repository, digest)
                else:
                    yield source.name, source.blob(repository, digest, size)

    def _put(self, damage: Damage, content: Iterator[bytes]) -> int:
        """Write an entry, whose content has been verified, to its place; return what that took."""
        entry, file = damage.entry, self._open[damage.archive]
        written = _put_bytes(file, entry.offset, entry.header)
        at = entry.data_offset
        for chunk in content:
            written += _put_bytes(file, at, chunk)
            at += len(chunk)
        return written + _put_bytes(file, at, bytes(entry.padding))


def _put_bytes(file: WriteAt, offset: int, data: bytes) -> int:
    """Write what differs from what is there; return how many bytes that were."""
    with suppress(IntegrityError, FileSystemError):
        if b"".join(file.chunks(offset, len(data))) == data:
            return 0
    file.write(offset, data)
    return len(data)


def _manifest_bytes(
    source: Source, repository: str, digest: Digest
) -> Generator[bytes, None, None]:
    yield source.manifest(repository, digest).raw
