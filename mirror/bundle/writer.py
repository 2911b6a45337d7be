"""Writing a bundle: every byte once, at its final place, in whatever order it arrives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mirror.bundle.archive import TRAILER_SIZE, Archive, Entry
from mirror.bundle.files import WriteAt, os_errors, sync_folder
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL
from mirror.bundle.reader import read_seal
from mirror.bundle.seal import Seal
from mirror.errors import InputError, IntegrityError, MirrorError, NoSpaceError, SizeMismatchError
from mirror.oci import Digest, Manifest
from mirror.sync import BlobContent, CopyBlob, Inventory


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one copy of some content goes."""

    file: WriteAt
    entry: Entry

    def write(self, position: int, chunk: bytes) -> None:
        """Put `chunk` of the content at `position`, with the header before the first byte and the
        padding behind the last."""
        entry = self.entry
        header = entry.header if position == 0 else b""
        ends = position + len(chunk) == entry.size
        padding = bytes(entry.padding) if ends else b""
        at = entry.offset if header else entry.data_offset + position
        self.file.write(at, header, chunk, padding)


class BundleWriter:
    """A bundle under construction, as the target of a transfer. Thread-safe.

    Archives carry `.partial` names until `finish`; leaving the context without it removes them.
    Content that several layouts hold is taken once and written to each.
    """

    def __init__(self, folder: Path, archives: Iterable[Archive]) -> None:
        self._folder = folder
        self._archives = tuple(sorted(archives, key=lambda archive: archive.name))
        self._files: dict[str, WriteAt] = {}
        self._places: dict[tuple[str, Digest], list[_Place]] = {}
        self._written: set[tuple[str, str]] = set()  # (archive, path), under the lock
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"bundle {self._folder}"

    @property
    def size(self) -> int:
        """Bytes that the finished archives take."""
        return sum(archive.size for archive in self._archives)

    def __enter__(self) -> BundleWriter:
        """Create the archives.

        Raises:
            NoSpaceError: the folder's disk has not enough room for all of them.
            FileSystemError: the folder cannot be written.
        """
        with os_errors(self._folder, "create"):
            self._folder.mkdir(parents=True, exist_ok=True)
        with os_errors(self._folder, "clear"):
            for path in _listed(self._folder):
                if path.name.endswith(PARTIAL_SUFFIX):
                    path.unlink()
        check_space(self._folder, self.size)
        try:
            for archive in self._archives:
                path = self._folder / (archive.name + PARTIAL_SUFFIX)
                self._files[archive.name] = file = WriteAt(path)
                for entry in archive.entries:
                    if entry.content is None:
                        key = (entry.repository, entry.digest)
                        self._places.setdefault(key, []).append(_Place(file, entry))
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        for file in self._files.values():
            file.close()
            file.path.unlink(missing_ok=True)

    # -- Target --------------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:  # noqa: ARG002 - a new bundle holds nothing
        return Inventory()

    def in_archive_order(self, blobs: Sequence[CopyBlob]) -> tuple[CopyBlob, ...]:
        """`blobs` in the order in which they lie in the archives.

        Writes then move through the disk from front to back, which spinning disks thank with
        speed, and file systems without holes (FAT) by not writing zeros that are overwritten.
        """
        order = {archive.name: number for number, archive in enumerate(self._archives)}

        def place(step: CopyBlob) -> tuple[int, int]:
            return min(
                (order[_archive_name(place.file)], place.entry.offset)
                for place in self._of(step.into, step.digest)
            )

        return tuple(sorted(blobs, key=place))

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        places = self._fitting(self._of(step.into, step.digest), f"blob {step.digest}", step.size)
        position = 0
        for chunk in content.chunks():
            for place in places:
                place.write(position, chunk)
            position += len(chunk)
        if step.size == 0:
            for place in places:
                place.write(0, b"")
        self._record(places)
        return position

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        places = self._of((repository,), manifest.digest)
        for place in self._fitting(places, f"manifest {manifest.digest}", len(manifest.raw)):
            place.write(0, manifest.raw)
        self._record(places)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Tags lie in the layouts' indexes, which `finish` writes."""

    def _of(self, repositories: Iterable[str], digest: Digest) -> list[_Place]:
        return [place for path in repositories for place in self._places[path, digest]]

    def _fitting(self, places: list[_Place], what: str, size: int) -> list[_Place]:
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

    def _record(self, places: Iterable[_Place]) -> None:
        with self._lock:
            for place in places:
                self._written.add((_archive_name(place.file), place.entry.path))

    # -- completion ----------------------------------------------------------------------------

    def finish(self, seal: Seal, files: Mapping[str, bytes] | None = None) -> None:
        """Write indexes and trailers, make all of it durable, and give it its final names.

        `files` lie beside the archives; the seal lists them.

        The seal comes last: a bundle with a seal is a complete one.

        Raises:
            IntegrityError: some entry was never written; no archive gets its name.
        """
        for archive in self._archives:
            file = self._files[archive.name]
            for entry in archive.entries:
                if entry.content is not None:
                    place = _Place(file, entry)
                    place.write(0, entry.content)
                    self._record([place])
            file.write(archive.trailer_offset, bytes(TRAILER_SIZE))
        for missing in self._missing():
            raise IntegrityError(f"{self.name}: {missing} was never written; nothing is sealed")
        for archive in self._archives:
            size = self._files[archive.name].sync()
            if size != archive.size:
                raise SizeMismatchError(where=archive.name, expected=archive.size, actual=size)
        self._replace_earlier_bundle()
        for name, data in (files or {}).items():
            write_durably(self._folder / name, data)
        write_durably(self._folder / SEAL, seal.to_json())

    def _replace_earlier_bundle(self) -> None:
        with os_errors(self._folder, "replace the bundle in"):
            earlier = _sealed_files(self._folder)
            # First, since it would speak for archives that are about to change.
            (self._folder / SEAL).unlink(missing_ok=True)
            for name in earlier:
                (self._folder / name).unlink(missing_ok=True)
            for archive in self._archives:
                file = self._files.pop(archive.name)
                file.close()
                file.path.replace(self._folder / archive.name)
            ours = {archive.name for archive in self._archives}
            for path in _listed(self._folder):
                if _of_a_bundle(path) and path.name not in ours:
                    path.unlink()

    def _missing(self) -> Iterator[str]:
        for archive in self._archives:
            for entry in archive.entries:
                if (archive.name, entry.path) not in self._written:
                    yield f"{archive.name}: {entry.path}"


def _archive_name(file: WriteAt) -> str:
    return file.path.name.removesuffix(PARTIAL_SUFFIX)


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees all of it or nothing, power cuts included."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    file = WriteAt(partial)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    with os_errors(path, "rename"):
        partial.replace(path)
    sync_folder(path.parent)


def check_space(folder: Path, needed: int) -> None:
    """Raise NoSpaceError unless the disk of `folder` has `needed` bytes free for us."""
    with os_errors(folder, "examine"):
        stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise NoSpaceError(
            f"the bundle needs {needed} bytes and the disk of {folder} has {free} free: "
            f"{needed - free} too few; nothing was fetched"
        )


def check_folder(folder: Path, *, force: bool) -> None:
    """Check that a new bundle may go into `folder`; nothing is changed.

    A folder may be missing, be empty, or hold only the leavings of an interrupted pull (`*.partial`
    files) and a folder `.tmp`. With `force` anything else may be there; once the new bundle is
    complete it takes the place of an earlier one, of which nothing stays behind.

    Raises:
        InputError: it is not a folder, or other files are there and `force` is not given.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a new or empty one for the bundle")
    others = [
        path.name
        for path in _listed(folder)
        if not path.name.endswith(PARTIAL_SUFFIX) and path.name != ".tmp"
    ]
    if others and not force:
        raise InputError(
            f"{folder} is not empty (it has {others[0]}); name an empty folder, or add --force "
            "to replace the bundle that is there"
        )


def _listed(folder: Path) -> list[Path]:
    with os_errors(folder, "read"):
        return sorted(folder.iterdir())


def _sealed_files(folder: Path) -> Iterable[str]:
    """The files beside the archives that belong to the bundle in `folder`."""
    try:
        seal = read_seal(folder)
    except MirrorError:
        return ()  # damaged: it cannot tell, and its archives go in any case
    return seal.files if seal is not None else ()


def _of_a_bundle(path: Path) -> bool:
    """Whether a push would read this file as part of the bundle, or it belongs to one that is."""
    return path.is_file() and (path.name == SEAL or path.suffix in {".tar", ".chunk", ".gostsum"})
