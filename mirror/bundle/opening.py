"""A bundle's archives where they lie: in a folder, alone, in parts, compressed, or unpacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mirror.bundle import sums
from mirror.bundle.archive import NOTHING, Archive
from mirror.bundle.files import PartedReader, Readable, ReadAt
from mirror.bundle.format import (
    INDEX,
    MAX_MEMBERS,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SUMS,
    ZSTD_SUFFIX,
    blob_path,
    parse_part_name,
    part_sizes,
)
from mirror.bundle.members import Member, TreeFile, is_tree, members
from mirror.bundle.seal import Seal, try_seal
from mirror.bundle.seekable import SeekableFile, Unreadable
from mirror.durable import os_errors
from mirror.errors import DamagedBundleError, FileSystemError, InputError, MirrorError
from mirror.oci import Digest
from mirror.sync import Inventory

# -- finding ---------------------------------------------------------------------------------------


def find_archives(paths: Iterable[Path], seal_name: str = SEAL) -> dict[Path, tuple[Path, ...]]:
    """Return the archives that `paths` name, sorted by name, each with its files.

    A path is a folder, an archive, or a part of one (`X.tar.0000.chunk`), which stands for all
    parts beside it. In a folder with a seal, archives may be missing; a verification reports that.

    Raises:
        InputError: a path does not exist, no archive is there, or one is there whole and in parts.
    """
    found: dict[Path, set[Path]] = {}
    for path in paths:
        if path.is_dir():
            files = [entry for entry in _listed(path) if archive_at(entry) is not None]
            if not files and is_tree(path):
                _check_tree(path)
                files = [path]
            else:
                _check_folder(path, files, sealed=(path / seal_name).is_file())
        elif path.is_file():
            files = [path]
            if parse_part_name(path.name) is not None:
                archive = archive_at(path)
                files = [one for one in _listed(path.parent) if archive_at(one) == archive]
        else:
            raise InputError(f"{path} does not exist; name a bundle's folder or its archives")
        for file in files:
            file = file.absolute()
            found.setdefault(archive_at(file) or file, set()).add(file)
    for archive, consists in found.items():
        if len({stored_file(file) for file in consists}) > 1:
            raise InputError(
                f"{archive} is there compressed and not compressed; remove the older one"
            )
        if len(consists) > 1 and any(stored_file(file) == file for file in consists):
            raise InputError(f"{archive} is there whole and in parts; remove the older one")
    ordered = sorted(found, key=lambda path: (path.name, path))
    return {archive: tuple(sorted(found[archive])) for archive in ordered}


def _listed(folder: Path) -> list[Path]:
    with os_errors(folder, "read"):
        return [entry for entry in folder.iterdir() if entry.is_file()]


def archive_at(path: Path) -> Path | None:
    """Return the archive that a file is, or is a part of, compressed or not; None for others."""
    stored = stored_file(path)
    archive = stored.with_name(stored.name.removesuffix(ZSTD_SUFFIX))
    return archive if archive.suffix == ".tar" else None


def stored_file(path: Path) -> Path:
    """Return the file that would hold an archive in one piece: without the name of the part."""
    part = parse_part_name(path.name)
    return path if part is None else path.with_name(part[0])


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, or becomes one, whatever archives are there."""
    return (folder / SEAL).is_file() or (folder / PARTIAL_SEAL).is_file()


def _check_tree(folder: Path) -> None:
    """Raise InputError if archives were unpacked beside their seal, which speaks of archives."""
    if _is_bundle(folder):
        raise InputError(
            f"{folder} holds the {SEAL} of a bundle, but instead of its archives the layouts that "
            "unpacking makes: put the archives back, or move the layouts into a folder of their "
            "own; a delta or a deduplicated bundle can only be read from its archives"
        )


def _check_folder(folder: Path, archives: Sequence[Path], *, sealed: bool) -> None:
    """Raise InputError unless there is a bundle in `folder`."""
    if not sealed and (folder / PARTIAL_SEAL).is_file():
        raise InputError(
            f"{folder} holds no bundle yet: a pull into it was not finished; run it again, "
            "or remove its *.partial files if other archives are there"
        )
    if not archives and not sealed:
        partial = any(entry.name.endswith(PARTIAL_SUFFIX) for entry in _listed(folder))
        hint = "; a pull into it was not finished, run it again" if partial else ""
        raise InputError(f"{folder} holds no bundle: it has no *.tar file{hint}")


def check_loose(archives: Iterable[Path]) -> None:
    """Raise InputError if archives that are named without their folder need it."""
    for path in archives:
        seal = try_seal(path.parent / SEAL)
        sealed = seal.archives.get(path.name) if seal is not None else None
        if seal is not None and sealed is not None and sealed.left_out.repositories:
            kind = "a delta" if seal.coverage.base is not None else "a deduplicated bundle"
            raise InputError(
                f"{path.name} is an archive of {kind}: what it leaves out is known from the {SEAL} "
                f"beside it, and lies elsewhere; name the folder {path.parent} instead"
            )


# -- opening ---------------------------------------------------------------------------------------


def open_archives(
    found: Mapping[Path, Sequence[Path]], seals: Mapping[Path, Seal]
) -> list[OpenArchive]:
    """Open what `find_archives` found; `seals` are those of its folders, by absolute path.

    Raises:
        FileSystemError: a file in one piece cannot be opened. Other archives that cannot be are
            returned as broken ones.
    """
    archives: list[OpenArchive] = []
    part_sizes_by_folder = {
        folder: _part_size(folder, seal, found) for folder, seal in seals.items()
    }
    try:
        for path, files in found.items():
            seal = seals.get(path.parent)
            sealed = seal.archives.get(path.name) if seal is not None else None
            archives.append(_opened(path, files, sealed, part_sizes_by_folder.get(path.parent, 0)))
    except BaseException:
        for archive in archives:
            archive.file.close()
        raise
    return archives


def _opened(
    path: Path, files: Sequence[Path], sealed: Archive | None, part_size: int
) -> OpenArchive:
    """Open an archive, of one file or of parts of `part_size` bytes, and list what is in it."""
    left_out = sealed.left_out if sealed is not None else NOTHING
    if path.is_dir():
        tree = TreeFile(path)
        return OpenArchive(tree, tree.members)
    if files == (path,):
        return OpenArchive(ReadAt(path), left_out=left_out)
    try:
        if stored_file(files[0]) == path:
            stated = part_sizes(sealed.size, part_size) if sealed and part_size else None
            return OpenArchive(PartedReader(files, stated), left_out=left_out)
        part = parse_part_name(files[0].name) is not None
        packed: Readable = PartedReader(files) if part else ReadAt(files[0])
        try:
            return OpenArchive(SeekableFile(packed), left_out=left_out)
        except BaseException:
            packed.close()
            raise
    except (DamagedBundleError, FileSystemError) as err:
        # One finding of several, perhaps: who copies parts again wants to know all of them.
        return OpenArchive(Unreadable(path), broken=err)


def _part_size(folder: Path, seal: Seal, found: Mapping[Path, Sequence[Path]]) -> int:
    """Return how large the parts of a folder's archives were made; 0 if none is in parts.

    All but the last part of each archive have this size, and the last tells it from what is left.
    Damaged parts are outvoted. Only a size counts that gives each archive the number of parts that
    `SHA256SUMS` lists; without that file the largest part has the size.
    """
    counts: Counter[str] = Counter()
    if (folder / SUMS).is_file():
        try:
            stated = sums.parse(sums.read(folder / SUMS))
        except DamagedBundleError:
            stated = {}
        counts.update(part[0] for name in stated if (part := parse_part_name(name)) is not None)
    votes: Counter[int] = Counter()
    wholes: dict[str, int] = {}  # archive in parts → its size
    for archive, files in found.items():
        sealed = seal.archives.get(archive.name)
        for path in files:
            if sealed is None or path == archive or stored_file(path) != archive:
                continue
            wholes[archive.name] = sealed.size
            number = int(path.name.rsplit(".", 2)[1])
            with os_errors(path, "examine"):
                size = path.stat().st_size
            others = counts[archive.name] - 1
            if others < 1 or number < others:
                votes[size] += 1
            elif number == others:
                before, rest = divmod(sealed.size - size, others)
                votes[before] += rest == 0
    fitting = [
        size
        for size, count in votes.items()
        if count
        and size > 0
        and all(counts[name] in (0, len(part_sizes(whole, size))) for name, whole in wholes.items())
    ]
    if not any(counts[name] for name in wholes):
        return max(fitting, default=0)
    return max(fitting, key=lambda size: (votes[size], size), default=0)


# -- open archives ---------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """An archive's files by path, the problem that ended the list, where its end marker begins."""

    members: Mapping[str, Member]
    problem: MirrorError | None
    end: int


class OpenArchive:
    """One archive as it lies there. Its headers are read once, when they are asked for.

    `listing` yields its files, as `members` does. `broken` says why it could not be opened at
    all, if that is so. `left_out` is the part of it that lies elsewhere, as its seal says.
    """

    def __init__(
        self,
        file: Readable,
        listing: Callable[[Readable], Generator[Member, None, int]] = members,
        *,
        broken: MirrorError | None = None,
        left_out: Inventory = NOTHING,
    ) -> None:
        self.file, self.left_out = file, left_out
        self._files = listing
        self._broken = broken

    @property
    def broken(self) -> MirrorError | None:
        """Why nothing of it can be read, if that is so."""
        return self._broken

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.file.path.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of; none for a folder, or what cannot be opened."""
        file = self.file.packed if isinstance(self.file, SeekableFile) else self.file
        if isinstance(file, PartedReader):
            return file.parts
        return (file.path,) if isinstance(file, ReadAt) else ()

    @cached_property
    def _listing(self) -> _Listing:
        found: dict[str, Member] = {}
        if self._broken is not None:
            return _Listing(found, self._broken, 0)
        try:
            return _Listing(found, None, _collect(self.file, self._files(self.file), found))
        except (DamagedBundleError, FileSystemError) as err:
            return _Listing(found, err, 0)

    @property
    def members(self) -> Mapping[str, Member]:
        """Its files by path; a `problem` ends the list."""
        return self._listing.members

    @property
    def problem(self) -> MirrorError | None:
        """A damaged header, or whatever else ended the list of files."""
        return self._listing.problem

    @property
    def end(self) -> int:
        """Where its end marker begins; 0 if a `problem` ended the list."""
        return self._listing.end

    def refuse(self, why: MirrorError) -> None:
        """Treat it as unreadable from now on, and release what is known of its files."""
        self._broken = why
        self.__dict__.pop("_listing", None)

    @cached_property
    def prefix(self) -> str:
        """Where its content belongs: archives of the first format lack their own path."""
        return _legacy_prefix(self.name, self.members)

    def layouts(self) -> dict[str, str]:
        """Repository path → path of its layout inside the archive; sorted."""
        inner = sorted(
            path.removesuffix(INDEX).rstrip("/")
            for path in self.members
            if path == INDEX or path.endswith("/" + INDEX)
        )
        return {"/".join(part for part in (self.prefix, path) if part): path for path in inner}

    def blob(self, repository: str, digest: Digest) -> Member | None:
        """Return where the layout of `repository` keeps a blob or manifest; None if nowhere."""
        layout = repository
        if self.prefix:
            if repository != self.prefix and not repository.startswith(f"{self.prefix}/"):
                return None
            layout = repository[len(self.prefix) + 1 :]
        return self.members.get(blob_path(layout, digest))


def _collect(
    file: Readable, listing: Generator[Member, None, int], found: dict[str, Member]
) -> int:
    """Put the archive's files into `found`; return where its end marker begins."""
    while True:
        try:
            member = next(listing)
        except StopIteration as over:
            return int(over.value)
        if len(found) == MAX_MEMBERS:
            raise DamagedBundleError(
                f"it holds more than {MAX_MEMBERS} files, which no bundle's archive does",
                where=file.path.name,
            )
        if member.path in found:
            raise DamagedBundleError(
                f"{member.path} is there twice",
                where=file.path.name,
                advice="this is not an archive of a bundle, or it was tampered with",
            )
        found[member.path] = member


def _legacy_prefix(name: str, found: Mapping[str, Member]) -> str:
    """Return where a first-format `module-<name>.tar` belongs, which has no path inside."""
    stem = name.removesuffix(".tar")
    if not stem.startswith("module-") or not found:
        return ""
    # Any path below modules/ means the newer format, whatever the file was renamed to since.
    if any(path.startswith("modules/") for path in found):
        return ""
    return f"modules/{stem.removeprefix('module-')}"
