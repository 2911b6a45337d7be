"""Reading a bundle where it lies: nothing is unpacked, blobs are read at their offsets."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

from mirror.bundle.contents import Contents, OpenArchive, read_contents, scan
from mirror.bundle.files import ReadAt, os_errors
from mirror.bundle.folder import PARTIAL_SEAL, read_seal
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL
from mirror.bundle.seal import Seal
from mirror.errors import DamagedBundleError, InputError, NotFoundError
from mirror.oci import Digest, Manifest
from mirror.sync import Finding, Inventory
from mirror.sync.findings import listed


class BundleReader:
    """A bundle as the source of a transfer. Thread-safe.

    `paths` are folders of archives, or archives. The seal counts when one folder is given.

    Raises:
        InputError: there is no bundle at a path.
        DamagedBundleError: the seal cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        files = find_archives(paths)
        self.folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        self.seal = read_seal(self.folder / SEAL) if self.folder is not None else None
        self._archives: list[OpenArchive] = []
        try:
            for path in files:
                self._archives.append(_opened(path))
        except BaseException:
            self.close()
            raise

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

    def inventory(self) -> Inventory:
        """All that the bundle holds, provided that its structure is whole.

        Raises:
            DamagedBundleError: something is missing or unreadable; it lists what.
        """
        findings = list(self.contents.findings)
        if self.seal is not None:
            findings += missing_archives(self.seal, [archive.name for archive in self._archives])
            if not findings and self.seal.inventory != self.contents.inventory:
                findings.append(Finding(SEAL, "the archives hold other images than it lists"))
        if findings:
            raise DamagedBundleError(
                f"{self.name} is damaged or incomplete; copy it again from its origin "
                f"(`mirror verify` tells all that is wrong):{listed(findings)}"
            )
        return self.contents.inventory

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
        raise NotFoundError(f"{self.name}: no blob {digest} in {repository or '/'}")


def _opened(path: Path) -> OpenArchive:
    file = ReadAt(path)
    try:
        return scan(file)
    except BaseException:
        file.close()
        raise


def find_archives(paths: Iterable[Path]) -> list[Path]:
    """The archives that `paths` name: files themselves, and `*.tar` of folders; sorted by name.

    A folder with a seal may lack archives, which is for a verification to say.

    Raises:
        InputError: a path does not exist, or no archive is there.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            with os_errors(path, "read"):
                inside = [entry for entry in path.iterdir() if entry.is_file()]
            archives = [entry for entry in inside if entry.suffix == ".tar"]
            sealed = (path / SEAL).is_file()
            if not sealed and (path / PARTIAL_SEAL).is_file():
                raise InputError(
                    f"{path} holds no bundle yet: a pull into it was not finished; run it again, "
                    "or remove its *.partial files if other archives are there"
                )
            if not archives and not sealed:
                names = [entry.name for entry in inside]
                hint = ""
                if any(name.endswith(".chunk") for name in names):
                    hint = "; join its chunks first: cat X.tar.*.chunk > X.tar"
                elif any(name.endswith(PARTIAL_SUFFIX) for name in names):
                    hint = "; a pull into it was not finished, run it again"
                raise InputError(f"{path} holds no bundle: no *.tar file is there{hint}")
            found.update(archive.absolute() for archive in archives)
        elif path.is_file():
            found.add(path.absolute())
        else:
            raise InputError(f"{path} does not exist; name a bundle's folder or its archives")
    return sorted(found, key=lambda path: (path.name, path))


def read_base(path: Path) -> Inventory:
    """The inventory of a bundle's folder, of its seal, or of an inventory's own file.

    Raises:
        InputError: the path is none of these, or of a newer schema.
        DamagedBundleError: it is damaged.
    """
    if path.is_dir():
        with BundleReader([path]) as reader:
            return reader.seal.inventory if reader.seal is not None else reader.inventory()
    with os_errors(path, "read"):
        data = path.read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path} is neither a bundle's folder nor an inventory: {err}") from err
    if isinstance(document, dict) and "archives" in document:
        return Seal.from_json(data).inventory
    return Inventory.from_document(document)


def missing_archives(seal: Seal, present: Iterable[str]) -> list[Finding]:
    """A finding for every archive that the seal lists and that is not there."""
    findings = []
    for name in sorted(set(seal.archives) - set(present)):
        for repository, content in sorted(seal.archives[name].inventory.repositories.items()):
            tags = tuple(sorted(content.tags))
            digest = content.tags[tags[0]] if tags else None
            findings.append(Finding(name, "the archive is missing", repository, tags, digest))
    return findings
