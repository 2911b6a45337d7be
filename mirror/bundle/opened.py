"""One archive of a bundle as it was found: its files, and the layouts that they make."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import cached_property
from typing import NamedTuple

from mirror.bundle.carriage import NOTHING
from mirror.bundle.files import Readable
from mirror.bundle.limits import MAX_MEMBERS
from mirror.bundle.names import INDEX, blob_path
from mirror.bundle.tar import Member, members
from mirror.errors import DamagedBundleError, FileSystemError, MirrorError
from mirror.oci import Digest
from mirror.sync import Inventory


class _Listing(NamedTuple):
    """An archive's files by path, the problem that ended the list, where its end marker begins."""

    members: Mapping[str, Member]
    problem: MirrorError | None
    end: int


class OpenArchive:
    """One archive as found. Its headers are read when they are asked for, once.

    `listing` finds its files, as `tar.members` does. `broken` says why it could not be opened at
    all, if that is so. `left_out` is what its seal says of it that lies elsewhere.
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
        """Its files by path, up to the `problem` that ended the list."""
        return self._listing.members

    @property
    def problem(self) -> MirrorError | None:
        """A damaged header, or whatever else ended the list of files."""
        return self._listing.problem

    @property
    def end(self) -> int:
        """Where its end marker begins, if nothing ended the list before."""
        return self._listing.end

    def refuse(self, why: MirrorError) -> None:
        """From now on it cannot be read; what was known of its files is let go."""
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
        """Where the layout of `repository` keeps a blob or manifest; None if it does not."""
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
                f"{file.path.name}: it holds more than {MAX_MEMBERS} files, which no bundle's "
                "archive does"
            )
        if member.path in found:
            raise DamagedBundleError(
                f"{file.path.name}: {member.path} is there twice; this is not an archive of a "
                "bundle, or it was tampered with"
            )
        found[member.path] = member


def _legacy_prefix(name: str, found: Mapping[str, Member]) -> str:
    """Where a first-format `module-<name>.tar` belongs: it was archived without its path."""
    stem = name.removesuffix(".tar")
    if not stem.startswith("module-") or not found:
        return ""
    # Any path below modules/ means the newer format, whatever the file was renamed to since.
    if any(path.startswith("modules/") for path in found):
        return ""
    return f"modules/{stem.removeprefix('module-')}"
