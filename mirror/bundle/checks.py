"""Stretches of archives, and what each must be, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mirror.bundle.archive import BLOCK, TRAILER_SIZE, Archive, Entry
from mirror.bundle.files import Readable
from mirror.bundle.names import blob_at
from mirror.bundle.opened import OpenArchive
from mirror.errors import DigestMismatchError
from mirror.oci import Digest, Verifier
from mirror.run import Run
from mirror.sync import Dependents, Finding


@dataclass(frozen=True, slots=True)
class Check:
    """A stretch of an archive and what it must be: `size` bytes at `offset` that hash to `digest`
    (unless that is None), behind the bytes `before` and in front of `after` zero bytes.

    `title` says what it is; `repository` is the one that it belongs to, if it does to one.
    """

    file: Readable
    title: str
    offset: int
    size: int
    repository: str | None
    digest: Digest | None = None
    before: bytes = b""
    after: int = 0

    def problem(self, run: Run, on_bytes: Callable[[int], None]) -> str | None:
        """What is wrong with it, to be read behind its title; None if nothing is.

        Raises:
            IntegrityError, FileSystemError: it cannot be read to its end.
            CancelledError: `run` was stopped.
        """
        start = self.offset - len(self.before)
        end = self.offset + self.size + self.after
        if end > self.file.size:
            return f"is missing: the archive ends at byte {self.file.size}"
        if self.before and self.file.read(start, len(self.before)) != self.before:
            return f"is damaged: the header at byte {start} is another"
        if self.digest is not None:
            verifier = Verifier(self.digest, self.size, self.title)
            for chunk in self.file.chunks(self.offset, self.size):
                run.check()
                verifier.update(chunk)
                on_bytes(len(chunk))
            try:
                verifier.finish()
            except DigestMismatchError as err:
                behind = self.offset + self.size
                return f"is damaged: bytes {self.offset} to {behind} hash to {err.actual}"
        damaged = _first_nonzero(self.file, self.offset + self.size, self.after)
        return None if damaged is None else f"is damaged: the padding at byte {damaged} is not zero"


def _first_nonzero(file: Readable, offset: int, size: int) -> int | None:
    for chunk in file.chunks(offset, size):
        if chunk.count(0) != len(chunk):
            return offset + len(chunk) - len(chunk.lstrip(b"\0"))
        offset += len(chunk)
    return None


def sealed_checks(expected: Archive, archive: OpenArchive) -> Iterator[Check]:
    """Every byte of an archive as the seal has it, in the order in which it lies there."""
    for entry in expected.entries:
        header = entry.header
        yield Check(
            archive.file,
            _title(entry),
            entry.offset + len(header),
            entry.size,
            entry.repository,
            entry.digest,
            before=header,
            after=entry.padding,
        )
    yield Check(
        archive.file, "the end marker", expected.trailer_offset, 0, None, after=TRAILER_SIZE
    )


def structure_checks(expected: Archive, archive: OpenArchive) -> Iterator[Check]:
    """The same without the bytes of blobs: headers, and what indexes and manifests say."""
    for check, entry in zip(sealed_checks(expected, archive), expected.entries, strict=False):
        manifests = expected.inventory.repository(entry.repository).manifests
        if entry.content is not None or entry.digest in manifests:
            yield check
        else:
            yield replace(check, digest=None, after=0)
    yield Check(
        archive.file, "the end marker", expected.trailer_offset, 0, None, after=TRAILER_SIZE
    )


def _title(entry: Entry) -> str:
    return entry.path if entry.content is not None else f"blob {entry.digest}"


def shift_findings(expected: Archive, archive: OpenArchive) -> Iterator[Finding]:
    """What an archive of another size than sealed lacks, or has beside what it should have."""
    yield Finding(archive.name, f"has {archive.file.size} bytes instead of {expected.size}")
    if archive.problem is not None:
        told = str(archive.problem).removeprefix(f"{archive.name}: ")
        yield Finding(archive.name, told)
    dependents: dict[str, Dependents] = {}
    for entry in expected.entries:
        found = archive.members.get(entry.path)
        if found is not None and found.size == entry.size:
            continue
        content = expected.inventory.repository(entry.repository)
        if entry.repository not in dependents:
            dependents[entry.repository] = Dependents(content)
        tags = dependents[entry.repository].tags(entry.digest)
        lack = "is missing" if found is None else f"has {found.size} bytes instead of {entry.size}"
        yield Finding(archive.name, f"{_title(entry)} {lack}", entry.repository, tags, entry.digest)
    for path in sorted(archive.members.keys() - {entry.path for entry in expected.entries}):
        yield Finding(archive.name, f"{path} does not belong to this bundle")


def found_checks(archive: OpenArchive) -> Iterator[Check]:
    """Every byte of an archive as far as it explains itself."""
    layouts = {layout: repository for repository, layout in archive.layouts().items()}
    for path, member in archive.members.items():
        layout, digest = blob_at(path)
        yield Check(
            archive.file,
            f"blob {digest}" if digest else path,
            member.offset,
            member.size,
            layouts.get(layout, layout),
            digest,
            after=min(-member.size % BLOCK, archive.file.size - member.offset - member.size),
        )
    if archive.problem is None:
        # GNU tar fills the last record of 10 KiB with zeros; anything else is not an archive's.
        size = archive.file.size - archive.end
        yield Check(archive.file, "the end marker", archive.end, 0, None, after=size)
