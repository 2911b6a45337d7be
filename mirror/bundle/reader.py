"""Reading a bundle where it lies: nothing is unpacked, blobs are read at their offsets."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

from mirror.bundle.archive import Archive, minus
from mirror.bundle.contents import Contents, read_contents
from mirror.bundle.format import SEAL, blob_at
from mirror.bundle.members import Member
from mirror.bundle.opening import (
    OpenArchive,
    archive_at,
    check_loose,
    find_archives,
    open_archives,
)
from mirror.bundle.seal import Seal, read_seal
from mirror.documents import parse_json
from mirror.durable import os_errors
from mirror.errors import DamagedBundleError, InputError, NotFoundError, StatementError
from mirror.oci import Digest, Manifest
from mirror.sync import Finding, Inventory, union
from mirror.sync.observation import listed
from mirror.sync.statement import Statement


class BundleReader:
    """A bundle as the source of a transfer. Thread-safe.

    `paths` are folders of archives, or archives. The seal counts when one folder is given; it is
    the file `seal_name` there.

    Raises:
        InputError: there is no bundle at a path, or an archive that needs its folder.
        DamagedBundleError: the seal cannot be read.
    """

    def __init__(self, paths: Sequence[Path], *, seal_name: str = SEAL) -> None:
        self._paths = tuple(paths)
        found = find_archives(paths, seal_name)
        self.seals: Mapping[Path, Seal] = {
            folder: seal
            for folder in dict.fromkeys(path for path in paths if path.is_dir())
            if (seal := read_seal(folder / seal_name)) is not None
        }
        folders = {folder.absolute(): seal for folder, seal in self.seals.items()}
        check_loose(path for path in found if path.parent not in folders)
        self._archives = open_archives(found, folders)

    @property
    def folder(self) -> Path | None:
        """The bundle's folder; None where loose archives, or several folders, are read."""
        return self._paths[0] if len(self._paths) == 1 and self._paths[0].is_dir() else None

    @property
    def seal(self) -> Seal | None:
        """What the bundle in `folder` must hold, if it is sealed."""
        return self.seals.get(self.folder) if self.folder is not None else None

    @property
    def name(self) -> str:
        return "bundle " + ", ".join(str(path) for path in self._paths)

    @property
    def archives(self) -> Sequence[OpenArchive]:
        """The archives found, sorted by name."""
        return tuple(self._archives)

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the archives."""
        for archive in self._archives:
            archive.file.close()
        self._archives = []

    @cached_property
    def contents(self) -> Contents:
        """Every index and manifest, read once; what cannot be read is a finding in it."""
        return read_contents(self._archives)

    @property
    def bases(self) -> tuple[Digest, ...]:
        """The digests of the inventories that deltas among this were made against."""
        bases = (seal.coverage.base for seal in self.seals.values())
        return tuple(dict.fromkeys(base for base in bases if base is not None))

    @property
    def needed(self) -> Inventory:
        """What a target must hold before a push: the part of its base that a delta needs."""
        return union(seal.coverage.needed for seal in self.seals.values())

    def inventory(self) -> Inventory:
        """Return all that the bundle speaks of: what it carries, and what it leaves to its base.

        Raises:
            DamagedBundleError: something is missing or unreadable; the message lists what.
        """
        findings = list(self.contents.findings)
        for folder, seal in self.seals.items():
            here = [one.name for one in self._archives if one.file.path.parent == folder.absolute()]
            findings += missing_archives(seal, here)
            findings += (
                Finding(name, f"is not listed in {SEAL}; it does not belong to this bundle")
                for name in sorted(set(here) - set(seal.archives))
            )
        whole = None if findings else self.seal
        if whole is not None and whole.inventory != self.contents.inventory:
            findings.append(Finding(SEAL, "the archives hold other images than it lists"))
        if findings:
            raise DamagedBundleError(
                f"{self.name} is damaged or incomplete; copy it again from its origin "
                f"(`mirror verify` lists all that is wrong)"
                + "".join(f"; {hint}" for hint in self.hints())
                + f":{listed(findings)}"
            )
        return self.contents.inventory

    def hints(self) -> Iterator[str]:
        """Yield what, other than damage, may explain the findings in `contents`."""
        if not self.seals and any(
            one.problem.endswith(" is missing") for one in self.contents.findings
        ):
            kinds = "a delta or a deduplicated bundle"
            yield f"archives of {kinds} are complete only beside their {SEAL}"

    def carried(self) -> Inventory:
        """Return the part of `inventory` that lies in the archives, each piece where it lies."""
        spoken_of = self.contents.archives
        return union(minus(spoken_of[one.name], one.left_out) for one in self._archives)

    # -- Source --------------------------------------------------------------------------------

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        found = self.contents.manifests.get(digest)
        if found is None:
            raise NotFoundError(f"{self.name}: no manifest {digest} in {repository or '/'}")
        return found

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        for archive in self._archives:
            member = archive.blob(repository, digest)
            if member is not None and member.size == size:
                yield from archive.file.chunks(member.offset + offset, size - offset)
                return
        # A deduplicated bundle has it in one of the layouts that need it.
        elsewhere = any(
            digest in archive.left_out.repository(repository).blobs for archive in self._archives
        )
        found = self._anywhere.get(digest) if elsewhere else None
        if found is None or found[1].size != size:
            raise NotFoundError(f"{self.name}: no blob {digest} in {repository or '/'}")
        archive, member = found
        yield from archive.file.chunks(member.offset + offset, size - offset)

    @cached_property
    def _anywhere(self) -> dict[Digest, tuple[OpenArchive, Member]]:
        """The first copy of everything that the archives carry, by digest."""
        found: dict[Digest, tuple[OpenArchive, Member]] = {}
        for archive in self._archives:
            for path, member in archive.members.items():
                digest = blob_at(path)[1]
                if digest is not None:
                    found.setdefault(digest, (archive, member))
        return found


def read_inventory(path: Path) -> Inventory:
    """Read the inventory of a bundle's folder, or in a file: plain, a seal, or a statement.

    Raises:
        InputError: there is no such file, or it is something else, or of a newer schema.
        DamagedBundleError: it is damaged.
    """
    if path.is_dir():
        with BundleReader([path]) as reader:
            return reader.seal.inventory if reader.seal is not None else reader.inventory()
    if archive_at(path) is not None:
        raise InputError(f"{path} is an archive", advice=f"name the bundle's folder, or its {SEAL}")
    if not path.exists():
        raise InputError(
            f"{path} does not exist", advice="name a bundle's folder or the file of an inventory"
        )
    with os_errors(path, "read"):
        # The user may have named anything, of any size.
        data = path.read_bytes() if path.stat().st_size <= _MAX_INVENTORY_BYTES else b""
    try:
        document = parse_json(data)
        keys = set(document) if isinstance(document, dict) else set()
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


_MAX_INVENTORY_BYTES = 512 << 20


def missing_archives(seal: Seal, present: Iterable[str]) -> list[Finding]:
    """Report every repository of the archives that the seal lists and that are missing."""
    return [
        finding
        for name in sorted(set(seal.archives) - set(present))
        for finding in whole_archive(seal.archives[name], "the archive is missing")
    ]


def whole_archive(archive: Archive, problem: str) -> Iterator[Finding]:
    """Report what is wrong with all of an archive, for each repository with its tags."""
    for repository, content in sorted(archive.inventory.repositories.items()):
        tags = tuple(sorted(content.tags))
        digest = content.tags[tags[0]] if tags else None
        yield Finding(archive.name, problem, repository, tags, digest)
