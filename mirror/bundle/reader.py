"""Reading a bundle where it lies: in a folder, alone, in parts, compressed, or unpacked.

It unpacks nothing: it reads blobs at their offsets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path

from mirror.bundle import sums
from mirror.bundle.archive import Archive, minus, missing_archives
from mirror.bundle.checks import UNLISTED, flattened
from mirror.bundle.contents import Contents, OpenArchive, read_contents
from mirror.bundle.files import open_file, open_parts
from mirror.bundle.format import (
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    blob_at,
    limits_for,
    parse_part_name,
    part_sizes,
)
from mirror.bundle.location import (
    Location,
    RemotePath,
    archive_at,
    size_of,
    stored_file,
    uncompressed_bytes,
)
from mirror.bundle.members import TarMember, TreeFile, is_tree
from mirror.bundle.seal import Seal, parse_seal, seal_bytes, try_seal
from mirror.bundle.seekable import SeekableFile, Unreadable
from mirror.documents import LargeJson, open_json
from mirror.durable import Extents, os_errors
from mirror.errors import (
    DamagedBundleError,
    FileSystemError,
    InputError,
    NotFoundError,
    StatementError,
)
from mirror.oci import Digest, Manifest
from mirror.run import Run
from mirror.sync import Finding, Inventory, union
from mirror.sync.observation import listed
from mirror.sync.statement import Statement

_MAX_INVENTORY_BYTES = 512 << 20


class BundleReader:
    """A bundle as the source of a transfer. Thread-safe.

    `paths` are folders of archives, or archives, here or elsewhere (`location.RemotePath`).
    The seal counts when one folder is given; it is the file `seal_name` there. A bundle in which
    another tool reduced multi-arch images to one platform has no `inventory` unless that is
    accepted with `flattened`. Attributes with an underscore are for this package alone.

    Raises:
        InputError: there is no bundle at a path, or an archive that needs its folder.
        DamagedBundleError: the seal cannot be read.
    """

    def __init__(
        self, paths: Sequence[Location], *, seal_name: str = SEAL, flattened: bool = False
    ) -> None:
        self._paths, self._flattened = tuple(paths), flattened
        found = find_archives(paths, seal_name)
        # A small bundle may not have what takes much memory.
        self._limits = limits_for(sum(map(uncompressed_bytes, found.values())))
        self._seals: dict[Location, Seal] = {}
        self._sealed: dict[Location, Digest] = {}  # of the very bytes that were read
        for folder in dict.fromkeys(path for path in paths if path.is_dir()):
            data = seal_bytes(folder / seal_name, self._limits)
            if data is not None:
                self._seals[folder] = parse_seal(data, str(folder / seal_name), self._limits)
                self._sealed[folder] = Digest.of(data)
        folders = {folder.absolute(): seal for folder, seal in self._seals.items()}
        check_loose(path for path in found if path.parent not in folders)
        self._archives = open_archives(found, folders)

    @property
    def folder(self) -> Location | None:
        """The bundle's folder; None where loose archives, or several folders, are read."""
        return self._paths[0] if len(self._paths) == 1 and self._paths[0].is_dir() else None

    @property
    def _seal(self) -> Seal | None:
        """What the bundle in `folder` must hold, if it is sealed."""
        return self._seals.get(self.folder) if self.folder is not None else None

    @property
    def name(self) -> str:
        return "bundle " + ", ".join(str(path) for path in self._paths)

    def follow(self, run: Run) -> None:
        """From now on all waiting for another machine ends when `run` does."""
        for path in self._paths:
            if isinstance(path, RemotePath):
                path.parent.run = run

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        for archive in self._archives:
            archive.file.close()
        self._archives = []

    @cached_property
    def contents(self) -> Contents:
        """Every index and manifest, read once; what cannot be read is a finding in it."""
        for archive in self._archives:
            archive.file.keep(archive.described())
        return read_contents(self._archives, self._limits)

    @property
    def bases(self) -> tuple[Digest, ...]:
        """The digests of the inventories that deltas among this were made against."""
        bases = (seal.coverage.base for seal in self._seals.values())
        return tuple(dict.fromkeys(base for base in bases if base is not None))

    @property
    def origin(self) -> str | None:
        """What the root of the tree was called at the source, host/path; None if no seal says."""
        roots: Counter[str] = Counter()
        for seal in self._seals.values():
            for archive in seal.archives.values():
                for path, origin in archive.origins.items():
                    if not path:
                        return origin
                    # Sources keep some repositories beside the root, installers for one.
                    roots[origin.removesuffix(f"/{path}")] += origin.endswith(f"/{path}")
        return max(roots, key=lambda one: roots[one], default=None)

    @property
    def needed(self) -> Inventory:
        """What a target must hold before a push: the part of its base that a delta needs."""
        return union(seal.coverage.needed for seal in self._seals.values())

    def findings(self) -> list[Finding]:
        """Return what seals, headers, indexes and manifests tell of damage; no layer is read."""
        findings = list(self.contents.findings)
        for folder, seal in self._seals.items():
            here = [one.name for one in self._archives if one.file.path.parent == folder.absolute()]
            findings += missing_archives(seal.archives, here)
            findings += (Finding(name, UNLISTED) for name in sorted(set(here) - set(seal.archives)))
        return findings

    def inventory(self) -> Inventory:
        """Return all that the bundle speaks of: what it carries, and what it leaves to its base.

        Raises:
            DamagedBundleError: something is missing, unreadable or flattened; the message lists
                what.
        """
        findings = self.findings()
        whole = None if findings else self._seal
        if whole is not None and whole.inventory != self.contents.inventory:
            findings.append(Finding(SEAL, "the archives hold other images than it lists"))
        if findings:
            raise DamagedBundleError(
                f"{self.name} is damaged or incomplete; copy it again from its origin "
                f"(`mirror verify` lists all that is wrong)"
                + "".join(f"; {hint}" for hint in self.hints())
                + f":{listed(findings)}"
            )
        if self._reduced and not self._flattened:
            raise DamagedBundleError(
                f"{self.name} has {len(self._reduced)} multi-arch images of which the tool that "
                "packed them kept one platform only, as d8 does: a cluster asks for them by the "
                "digest of the whole and does not find it. Pull them again with `mirror pull`, or "
                f"push what is there with --accept-flattened:{listed(self._reduced)}"
            )
        return self.contents.inventory

    @cached_property
    def _reduced(self) -> Sequence[Finding]:
        # A seal's tags are those of the source, whatever they look like.
        return () if self._seals else tuple(flattened(self.contents.archives))

    def warnings(self) -> Iterator[str]:
        """Yield what is odd about the bundle and harms no push."""
        if self._reduced:
            yield (
                f"{len(self._reduced)} multi-arch images are there for one platform only; who asks "
                "for them by the digest of the whole will not find them"
            )
        yield from self.contents.warnings()

    def hints(self) -> Iterator[str]:
        """Yield what, other than damage, may explain the findings in `contents`."""
        missing = (one.problem.endswith(" is missing") for one in self.contents.findings)
        if not self._seals and any(missing):
            kinds = "a delta or a deduplicated bundle"
            yield f"archives of {kinds} are complete only beside their {SEAL}"

    def carried(self) -> Inventory:
        """Return the part of `inventory` that lies in the archives, each piece where it lies."""
        return union(minus(self.contents.archives[a.name], a.left_out) for a in self._archives)

    # -- Source --------------------------------------------------------------------------------

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        found = self.contents.manifests.get(digest)
        if found is None:
            raise NotFoundError(f"{self.name}: no manifest {digest} in {repository or '/'}")
        return found

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        archive, member = self._place(repository, digest, size)
        yield from archive.file.chunks(member.offset + offset, size - offset)

    def extents(self, repository: str, digest: Digest, size: int, offset: int) -> Extents:
        archive, member = self._place(repository, digest, size)
        return archive.file.extents(member.offset + offset, size - offset)

    def _place(self, repository: str, digest: Digest, size: int) -> tuple[OpenArchive, TarMember]:
        holders = ((one, one.blob(repository, digest)) for one in self._archives)
        found = next(((a, m) for a, m in holders if m is not None and m.size == size), None)
        if found is None and any(
            digest in one.left_out.repository(repository).blobs for one in self._archives
        ):
            # A deduplicated bundle has it in one of the layouts that need it.
            found = self._anywhere.get(digest)
        if found is None or found[1].size != size:
            raise NotFoundError(f"{self.name}: no blob {digest} in {repository or '/'}")
        return found

    @cached_property
    def _anywhere(self) -> dict[Digest, tuple[OpenArchive, TarMember]]:
        """The first copy of everything that the archives carry, by digest."""
        found: dict[Digest, tuple[OpenArchive, TarMember]] = {}
        for archive in self._archives:
            for path, member in archive.members.items():
                digest = blob_at(path)[1]
                if digest is not None:
                    found.setdefault(digest, (archive, member))
        return found


def placed(
    readers: Iterable[BundleReader], repository: str, digest: Digest, size: int
) -> tuple[OpenArchive, TarMember] | None:
    """Return the first archive that has a blob of `size` bytes, whichever layout keeps it, and the
    blob's file there. None if no bundle has it."""
    for reader in readers:
        with suppress(NotFoundError):
            return reader._place(repository, digest, size)
        found = reader._anywhere.get(digest)
        if found is not None and found[1].size == size:
            return found
    return None


def read_inventory(path: Location) -> Inventory:
    """Read the inventory of a bundle's folder, or in a file: plain, a seal, or a statement.

    Raises:
        InputError: there is no such file, or it is something else, or of a newer schema.
        DamagedBundleError: it is damaged.
    """
    if path.is_dir():
        with BundleReader([path], flattened=True) as reader:
            return reader._seal.inventory if reader._seal is not None else reader.inventory()
    if archive_at(path) is not None:
        raise InputError(f"{path} is an archive", advice=f"name the bundle's folder, or its {SEAL}")
    if not path.exists():
        raise InputError(
            f"{path} does not exist", advice="name a bundle's folder or the file of an inventory"
        )
    with os_errors(path, "read"):
        # The user may have named anything, of any size.
        data = path.read_bytes() if size_of(path) <= _MAX_INVENTORY_BYTES else b""
    try:
        document = open_json(data)
        keys = document.places() if isinstance(document, LargeJson) else ()
    except (ValueError, RecursionError) as err:
        raise InputError(
            f"{path} is neither a bundle's folder nor an inventory, which is JSON"
        ) from err
    try:
        if "archives" in keys:
            return Seal.from_json(data).inventory
        if "generation" in keys:
            return Statement.from_json(data).inventory
        return Inventory.from_document(document)
    except (DamagedBundleError, StatementError) as err:
        raise DamagedBundleError(
            err.problem, where=str(path), advice="copy it again from its origin"
        ) from err


# -- finding ---------------------------------------------------------------------------------------


def find_archives(
    paths: Iterable[Location], seal_name: str = SEAL
) -> dict[Location, tuple[Location, ...]]:
    """Return the archives that `paths` name, sorted by name, each with its files.

    A path is a folder, an archive, or a part of one (`X.tar.0000.chunk`), which stands for all
    parts beside it. In a folder with a seal, archives may be missing; a verification reports that.

    Raises:
        InputError: a path does not exist, no archive is there, or one is there whole and in parts.
    """
    found: dict[Location, set[Location]] = {}
    for path in paths:
        if path.is_dir():
            files = [entry for entry in _listed(path) if archive_at(entry) is not None]
            if not files and isinstance(path, Path) and is_tree(path):
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
    ordered = sorted(found, key=lambda path: (path.name, str(path)))
    return {archive: tuple(sorted(found[archive], key=str)) for archive in ordered}


def _listed(folder: Location) -> list[Location]:
    with os_errors(folder, "read"):
        return [entry for entry in folder.iterdir() if entry.is_file()]


_AGAIN = "run it again, or give it up with `mirror clean`"


def _check_tree(folder: Path) -> None:
    """Raise InputError if archives were unpacked beside their seal, which speaks of archives."""
    if (folder / SEAL).is_file() or (folder / PARTIAL_SEAL).is_file():  # or it becomes one
        raise InputError(
            f"{folder} holds the {SEAL} of a bundle, but instead of its archives the layouts that "
            "unpacking makes: put the archives back, or move the layouts into a folder of their "
            "own; a delta or a deduplicated bundle can only be read from its archives"
        )


def _check_folder(folder: Location, archives: Sequence[Location], *, sealed: bool) -> None:
    if not sealed and (folder / PARTIAL_SEAL).is_file():
        raise InputError(f"{folder} holds no bundle yet: a pull into it was not finished; {_AGAIN}")
    if not archives and not sealed:
        partial = any(entry.name.endswith(PARTIAL_SUFFIX) for entry in _listed(folder))
        hint = f"; a pull into it was not finished, {_AGAIN}" if partial else _near(folder)
        raise InputError(f"{folder} holds no bundle: it has no *.tar file{hint}")


def _near(folder: Location) -> str:
    """The folders in `folder` that hold bundles, for whoever named one too few."""
    found = sorted(folder.glob(f"*/{SEAL}"))[:5] if isinstance(folder, Path) else ()
    return f"; bundles lie in {', '.join(str(one.parent) for one in found)}" if found else ""


def check_loose(archives: Iterable[Location]) -> None:
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
    found: Mapping[Location, Sequence[Location]], seals: Mapping[Location, Seal]
) -> list[OpenArchive]:
    """Open what `find_archives` found; `seals` are those of its folders, by absolute path.

    Raises:
        FileSystemError: a file in one piece cannot be opened. Other archives that cannot be are
            returned as broken ones.
    """
    sizes = {folder: sums.part_size_in(folder, seal, found) for folder, seal in seals.items()}
    archives: list[OpenArchive] = []
    with ExitStack() as failed:
        for path, files in found.items():
            seal = seals.get(path.parent)
            sealed = seal.archives.get(path.name) if seal is not None else None
            archives.append(_opened(path, files, sealed, sizes.get(path.parent, 0)))
            failed.callback(archives[-1].file.close)
        failed.pop_all()
    return archives


def _opened(
    path: Location, files: Sequence[Location], sealed: Archive | None, part_size: int
) -> OpenArchive:
    """Open an archive, of one file or of parts of `part_size` bytes, and list what is in it."""
    if isinstance(path, Path) and path.is_dir():
        tree = TreeFile(path)
        return OpenArchive(tree, tree.members)
    if files == (path,):
        return OpenArchive(open_file(path), sealed=sealed)
    try:
        if stored_file(files[0]) == path:
            stated = part_sizes(sealed.size, part_size) if sealed and part_size else None
            return OpenArchive(open_parts(files, stated), sealed=sealed)
        part = parse_part_name(files[0].name) is not None
        packed = open_parts(files) if part else open_file(files[0])
        try:
            return OpenArchive(SeekableFile(packed), sealed=sealed)
        except BaseException:
            packed.close()
            raise
    except (DamagedBundleError, FileSystemError) as err:
        # One finding of several, perhaps: who copies parts again wants to know all of them.
        return OpenArchive(Unreadable(path), broken=err)
