"""A bucket as the place in which a bundle is made (`mirror.bundle.multipart` has the archives)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from mirror.bundle import sums
from mirror.bundle.archive import TRAILER_SIZE, Archive, Entry
from mirror.bundle.bucket import Bucket
from mirror.bundle.follow import Follower
from mirror.bundle.format import LARGE, PARTIAL_SEAL, SEAL, SHARDS, SUMS
from mirror.bundle.multipart import BucketArchive, PassingArchive
from mirror.bundle.place import (
    AS_USUAL,
    OWN_FILES,
    BundlePlace,
    Packing,
    check_names,
    give_up,
    is_leftover,
    is_of_a_bundle,
)
from mirror.bundle.seal import Seal, parse_seal
from mirror.bundle.staging import JOURNAL, ArchiveFile, ArchiveStaging, BlobSlot, Claims, Follow
from mirror.bundle.uploads import PART, BucketFiles, Destination, PartMemory
from mirror.errors import ConflictError, DamagedBundleError, InputError
from mirror.layout import TOOL_FILE
from mirror.oci import Digest
from mirror.registry.downloads import FileState
from mirror.run import Run
from mirror.sync import Inventory, Plan


class _Arrived(Claims):
    """What has arrived of archives, as their uploads say."""

    def __init__(self, files: Mapping[str, BucketArchive]) -> None:
        self._files = files

    @property
    def begun(self) -> bool:
        return any(file.begun for file in self._files.values())

    def claims(self, archive: str, _entry: Entry) -> bool:
        return self._files[archive].reads_back

    def holds(self, archive: str, entry: Entry) -> bool:
        return self._files[archive].holds(entry)

    def forget(self, digests: Iterable[Digest]) -> None:
        wrong = frozenset(digests)
        for file in self._files.values():
            file.forget(wrong)

    def behind(self, place: BlobSlot) -> int:
        return self._files[place.archive].arrived(place.entry)

    def came_short(self, places: Iterable[BlobSlot], *, wrong: bool) -> bool:
        for place in places:
            self._files[place.archive].came_short(place.entry, wrong=wrong)
        return True


class BucketPlace(BundlePlace):
    """A place in a bucket in which a bundle is made. `run` is the work that its waiting belongs to.

    What is being made there is said by two small objects, as in a folder: the partial seal, and how
    archives are cut. Memory for parts is `PART` bytes for each of the run's jobs, and one part more
    for each archive under way. `alone`, it refuses to give up what several machines make there.
    """

    def __init__(self, bucket: Bucket, run: Run, *, alone: bool = False) -> None:
        self._bucket, self._run, self._alone, self.where = bucket, run, alone, bucket.where
        self._sealed, self._plan = b"", ""
        self.packing = AS_USUAL
        self._files: dict[str, BucketArchive] = {}
        self._packed: dict[str, BucketFiles] = {}
        self._former: frozenset[str] = frozenset()
        self._before: FileState | None = None  # the seal that was here

    def found_seal(self) -> Seal | None:
        return self._seal_in(self._states(), SEAL)

    def _seal_in(self, states: Mapping[str, FileState], name: str) -> Seal | None:
        try:
            return parse_seal(self._read(name, states), name)
        except DamagedBundleError:
            return None

    def _look(self, *, force: bool) -> dict[str, FileState]:
        states = self._states()
        if self._alone and SHARDS in states and SEAL not in states:
            raise InputError(
                f"several machines make a bundle in {self.where}; run this pull with --shard as "
                "before, or give that bundle up with `mirror clean`"
            )
        # Where it cannot be read, nothing there is known.
        known = self._seal_in(states, SEAL if SEAL in states else PARTIAL_SEAL)
        check_names(self.where, states, known, force=force)
        return states

    def _states(self) -> dict[str, FileState]:
        return self._bucket.states(self._run)

    def _read(self, name: str, states: Mapping[str, FileState]) -> bytes:
        """A small object; nothing where there is none, or one that is larger than any."""
        state = states.get(name)
        if state is None or state.size > LARGE.seal_bytes:
            return b""
        return self._bucket.read(name, state, self._run)

    def _write(self, name: str, data: bytes) -> None:
        self._bucket.put(name, data, self._run)

    def held(self) -> AbstractContextManager[None]:
        """Nothing keeps another from making the same bundle there: both make the same objects."""
        return nullcontext()

    def begin(self, _seal: Seal, sealed: bytes, packing: Packing, _needed: int) -> bool:
        self.packing, how = packing, " in zstd" if packing.compress else ""
        marks = {
            JOURNAL: f"parts {packing.part_size} of {PART}{how}\n".encode(),
            PARTIAL_SEAL: sealed,
        }
        self._sealed = sealed
        self._plan = plan_of(marks[JOURNAL], sealed)
        states = self._states()
        self._before = states.get(SEAL)
        if packing.resume and all(self._read(name, states) == data for name, data in marks.items()):
            return True
        left = self.leftovers() if packing.resume else {}
        give_up(left, self.where, "it cannot be read, and is removed", self._run.on_event)
        self.clear()
        for name, data in marks.items():
            self._bucket.put(name, data, self._run)
        return False

    def staging(self, seal: Seal, *, keep: bool, follow: Follow) -> ArchiveStaging:
        memory = PartMemory(self._run.jobs * PART, self._run)
        to = Destination(self._bucket, self._plan, memory, self._run)
        files = self._files
        for name, archive in sorted(seal.archives.items()):
            if self.packing.compress:
                packed = self._packed[name] = BucketFiles(to, archive, self.packing)
                files[name] = PassingArchive(packed, archive)
            else:
                files[name] = BucketArchive(to, archive, self.packing.part_size)
        self._resume(keep=keep)

        def followed(archive: Archive, file: ArchiveFile, claimed: list[Entry]) -> Follower:
            files[archive.name].follower = follower = follow(archive, file, claimed)
            if archive.name in self._packed and files[archive.name].begun:
                follower.done(0, archive.size)  # it has nothing to do
            return follower

        staging = ArchiveStaging(_Arrived(files), files, seal, followed)
        # What lies between blobs comes first, so that a part is whole when its blobs are.
        for place in staging.own:
            place.write(0, place.entry.content or b"")
        for archive in seal.archives.values():
            files[archive.name].write(archive.trailer_offset, bytes(TRAILER_SIZE))
        return staging

    def packed(self, archive: Archive) -> BucketFiles:
        return self._packed[archive.name]

    def _resume(self, *, keep: bool) -> None:
        states = self._states() if keep else {}
        uploads = dict(self._bucket.uploads(self._run)) if keep else {}
        for file in self._files.values():
            file.resume(states, uploads)

    def stages(self, plan: Plan, staging: ArchiveStaging) -> Iterator[Plan]:
        """Manifests, then blobs in the order of the archives, each once for every place it has."""
        yield replace(plan, blobs=(), tags=())
        for file in self._files.values():
            file.is_early = False
        blobs = (replace(step, into=(path,)) for step in plan.blobs for path in step.into)
        yield staging.in_archive_order(replace(plan, blobs=tuple(blobs), manifests=()))

    def brought(self, carried: Inventory, plan: Plan, staging: ArchiveStaging) -> int:
        lacking = {(path, step.digest) for step in plan.blobs for path in step.into}
        return sum(
            size
            for path, content in carried.repositories.items()
            for digest, size in content.blobs.items()
            if (path, digest) not in lacking
            and any(
                self._files[one.archive].is_own(one.entry) for one in staging.places[path, digest]
            )
        )

    def give_way(self) -> None:
        states = self._states()
        seal = states.get(SEAL)
        if seal is not None and seal == self._before:
            self._bucket.remove(SEAL, self._run)
        elif self._read(SEAL, states) not in (b"", self._sealed):
            raise self._overtaken()
        try:
            self._former = frozenset(sums.parse_whole(self._read(SUMS, states)))
        except DamagedBundleError:
            self._former = frozenset()

    def take(
        self, _archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str]
    ) -> None:
        for packed in self._packed.values():
            packed.complete()
        own = {*OWN_FILES, *({TOOL_FILE} & self._former)}
        for name in self._states():
            if name not in names and name not in files and (is_of_a_bundle(name) or name in own):
                self._bucket.remove(name, self._run)
        for name, data in files.items():
            self._bucket.put(name, data, self._run)
        # Whoever makes another bundle here says so first, and replaces our archives then.
        states = self._states()
        if self._sealed not in (self._read(PARTIAL_SEAL, states), self._read(SEAL, states)):
            raise self._overtaken()
        self._bucket.put(SEAL, self._sealed, self._run, only_new=True)
        if self._read(SEAL, self._states()) != self._sealed:
            raise self._overtaken()

    def _overtaken(self) -> ConflictError:
        return ConflictError(
            "another bundle was made here meanwhile",
            where=self.where,
            advice="let one pull at a time work there, and run it again with --force",
        )

    def leftovers(self) -> dict[str, int]:
        states = self._states()
        found = {name: states[name].size for name in self._left(states)}
        for name, upload in self._uploads():
            parts = self._bucket.parts(name, upload, self._run).values()
            found[name] = found.get(name, 0) + sum(part.size for part in parts)
        return found

    def clear(self) -> None:
        for name in self._left(self._states()):
            self._bucket.remove(name, self._run)
        for name, upload in self._uploads():
            self._bucket.abort(name, upload, self._run)

    def _uploads(self) -> list[tuple[str, str]]:
        return [one for one in self._bucket.uploads(self._run) if is_of_a_bundle(one[0])]

    def _left(self, states: Mapping[str, FileState]) -> list[str]:
        """The objects of interrupted runs, in the order in which to remove them.

        What says of an archive whose it is goes after it.
        """
        marks = sorted(filter(is_leftover, states), key=lambda name: name != PARTIAL_SEAL)
        if SEAL in states or PARTIAL_SEAL not in states:
            return marks
        sealed = self._read(PARTIAL_SEAL, states)
        plan = plan_of(self._read(JOURNAL, states), sealed)
        archives = [name for name in states if is_of_a_bundle(name)]
        plans = [self._bucket.plan_of(name, self._run) or (0, "") for name in archives]
        made = [name for name, (_, of) in zip(archives, plans, strict=True) if of == plan]
        # With the first of these, an interrupted run had removed those of an earlier bundle.
        own = OWN_FILES if made and len(made) == len(archives) else ()
        return [*made, *(name for name in own if name in states), *marks]


def plan_of(cuts: bytes, sealed: bytes) -> str:
    """What objects say of whose they are: a digest of how archives are cut, and of the seal."""
    return Digest.of(cuts + sealed).encoded
