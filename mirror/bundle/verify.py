"""Verification of a bundle: every byte of every archive, in one parallel read.

A sealed bundle leaves no byte open: each is a blob's or manifest's, which must hash to its digest,
or part of a header, index, padding or trailer, which follows from the seal. A bundle without a
seal, as other tools write them, is checked for structure, for every digest, and for everything
that its tags reach; only bytes that mean nothing to any reader could differ there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.bundle.archive import BLOCK, TRAILER_SIZE, Archive, Entry
from mirror.bundle.contents import OpenArchive
from mirror.bundle.files import CHUNK, ReadAt
from mirror.bundle.names import SEAL
from mirror.bundle.reader import BundleReader, missing_archives
from mirror.bundle.seal import Seal
from mirror.errors import CancelledError, IntegrityError, InvalidDigestError, MirrorError
from mirror.events import BlobDone, BytesMoved, OnEvent, TransferStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Verifier
from mirror.sync import Dependents, Finding, Inventory
from mirror.sync.workers import DEFAULT_JOBS, for_each


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a verification saw. `size` is the bytes read; no findings means: all is right."""

    sealed: bool
    archives: int
    size: int
    repositories: int
    tags: int
    manifests: int
    blobs: int
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "ok": not self.findings,
            "sealed": self.sealed,
            "archives": self.archives,
            "bytes": self.size,
            "repositories": self.repositories,
            "tags": self.tags,
            "manifests": self.manifests,
            "blobs": self.blobs,
            "findings": [finding.to_document() for finding in self.findings],
            "notices": list(self.notices),
        }


@dataclass(frozen=True, slots=True)
class _Check:
    """A stretch of an archive and what it must be: `size` bytes at `offset` that hash to `digest`
    (if it is content) between `before` and `after`, which must be there to the letter."""

    file: ReadAt
    title: str
    offset: int
    size: int
    repository: str
    digest: Digest | None = None
    before: bytes = b""
    after: int = 0  # so many zero bytes

    @property
    def moved(self) -> Digest:
        """What progress is reported under."""
        return self.digest or _ANONYMOUS


_ANONYMOUS = Digest.of(b"")


def verify_bundle(
    reader: BundleReader,
    *,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> BundleReport:
    """Check every byte of the bundle; nothing is changed.

    Raises:
        FileSystemError: an archive cannot be read at all.
        CancelledError: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    findings: list[Finding] = []
    checks: list[_Check] = []
    names = [archive.name for archive in reader.archives]
    seal = reader.seal
    if seal is None:
        findings += reader.contents.findings
        notices = reader.contents.notices
        inventories: Mapping[str, Inventory] = reader.contents.archives
        for archive in reader.archives:
            checks += _found_checks(archive)
    else:
        findings += missing_archives(seal, names)
        findings += _file_findings(seal, reader.folder)
        notices = ()
        inventories = {name: archive.inventory for name, archive in seal.archives.items()}
        for archive in reader.archives:
            checks += _sealed_checks(seal, archive, findings)
    total = sum(check.size for check in checks)
    on_event(TransferStarted(blobs=len(checks), size=total, manifests=0, tags=0))
    findings += _carry_out(checks, inventories, jobs, on_event, cancel)
    inventory = seal.inventory if seal is not None else reader.contents.inventory
    return BundleReport(
        sealed=seal is not None,
        archives=len(names),
        size=sum(archive.file.size for archive in reader.archives),
        repositories=len(inventory.repositories),
        tags=sum(len(content.tags) for content in inventory.repositories.values()),
        manifests=len(inventory.manifest_nodes()),
        blobs=len(inventory.blob_sizes()),
        findings=_once_each(findings),
        notices=tuple(notices),
    )


def _file_findings(seal: Seal, folder: Path | None) -> Iterator[Finding]:
    """What is wrong with the files beside the archives; they are small."""
    for name, sealed in seal.files.items():
        if folder is None or not (folder / name).is_file():
            yield Finding(name, "the file is missing", digest=sealed.digest)
            continue
        file = ReadAt(folder / name)
        try:
            verifier = Verifier(sealed.digest, sealed.size, name)
            for chunk in file.chunks(0, file.size):
                verifier.update(chunk)
            verifier.finish()
        except IntegrityError as err:
            yield Finding(name, str(err).removeprefix(f"{name}: "), digest=sealed.digest)
        finally:
            file.close()


def _once_each(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In a stable order. Content that is damaged and unreadable for it is one finding, not two."""
    kept: dict[tuple[str, str | None, object], Finding] = {}
    for finding in findings:
        kept.setdefault(
            (finding.place, finding.repository, finding.digest or finding.problem), finding
        )
    return tuple(
        sorted(kept.values(), key=lambda f: (f.place, f.repository or "", str(f.digest), f.problem))
    )


def _carry_out(
    checks: Iterable[_Check],
    inventories: Mapping[str, Inventory],
    jobs: int,
    on_event: OnEvent,
    cancel: threading.Event,
) -> Iterator[Finding]:
    dependents: dict[tuple[str, str], Dependents] = {}

    def run(check: _Check) -> str | None:
        problem = _problem(check, cancel, lambda n: on_event(BytesMoved(check.moved, n)))
        on_event(BlobDone(check.moved, check.size, check.size))
        return problem

    failure: MirrorError | None = None
    for check, outcome in for_each(checks, run, jobs=jobs, cancel=cancel):
        if outcome is None:
            continue
        if isinstance(outcome, MirrorError) and not isinstance(outcome, IntegrityError):
            failure = failure or outcome
            continue
        name = check.file.path.name
        key = (name, check.repository)
        if key not in dependents:
            content = inventories.get(name, Inventory()).repository(check.repository)
            dependents[key] = Dependents(content)
        problem = str(outcome).removeprefix(f"{name}: ")
        tags = dependents[key].tags(check.digest) if check.digest else ()
        yield Finding(name, f"{check.title}: {problem}", check.repository, tags, check.digest)
    if failure is not None:
        raise failure  # not inside the loop: leaving that early sets the caller's flag


def _problem(check: _Check, cancel: threading.Event, on_bytes: Callable[[int], None]) -> str | None:
    """What is wrong with a stretch, or None."""
    start = check.offset - len(check.before)
    end = check.offset + check.size + check.after
    if end > check.file.size:
        return f"is missing, the archive ends at byte {check.file.size} and not behind {end}"
    if check.before and check.file.read(start, len(check.before)) != check.before:
        return f"the header at byte {start} is damaged"
    if check.digest is not None:
        verifier = Verifier(
            check.digest, check.size, f"bytes {check.offset} to {end - check.after}"
        )
        for chunk in check.file.chunks(check.offset, check.size):
            if cancel.is_set():
                raise CancelledError("verification stopped on request")
            verifier.update(chunk)
            on_bytes(len(chunk))
        verifier.finish()
    return _nonzero(check.file, check.offset + check.size, check.after)


def _nonzero(file: ReadAt, offset: int, size: int) -> str | None:
    for chunk in file.chunks(offset, size):
        if chunk.count(0) != len(chunk):
            damaged = offset + len(chunk) - len(chunk.lstrip(b"\0"))
            return f"the padding at byte {damaged} is damaged"
        offset += len(chunk)
    return None


def _sealed_checks(seal: Seal, archive: OpenArchive, findings: list[Finding]) -> Iterator[_Check]:
    """Every byte of the archive as the seal has it."""
    expected = seal.archives.get(archive.name)
    if expected is None:
        findings.append(
            Finding(archive.name, f"is not listed in {SEAL}; it does not belong to this bundle")
        )
        return
    if archive.file.size != expected.size:
        findings.append(
            Finding(
                archive.name,
                f"has {archive.file.size} bytes instead of {expected.size}",
            )
        )
    for entry in expected.entries:
        yield _entry_check(archive.file, entry)
    yield _trailer_check(archive.file, expected)


def _entry_check(file: ReadAt, entry: Entry) -> _Check:
    header = entry.header
    return _Check(
        file,
        _title(entry),
        entry.offset + len(header),
        entry.size,
        entry.repository,
        entry.digest,
        before=header,
        after=entry.padding,
    )


def _trailer_check(file: ReadAt, archive: Archive) -> _Check:
    return _Check(file, "end of archive", archive.trailer_offset, 0, "", after=TRAILER_SIZE)


def _title(entry: Entry) -> str:
    return entry.path if entry.content is not None else f"{entry.digest}"


def _found_checks(archive: OpenArchive) -> Iterator[_Check]:
    """Every byte of an archive without a seal, as far as it explains itself."""
    layouts = {layout: repository for repository, layout in archive.layouts().items()}
    for path, member in archive.members.items():
        layout, digest = _blob_of(path)
        after = -member.size % BLOCK
        yield _Check(
            archive.file,
            str(digest) if digest else path,
            member.offset,
            member.size,
            layouts.get(layout, layout),
            digest,
            after=min(after, archive.file.size - member.offset - member.size),
        )
    if archive.problem is None:
        # GNU tar fills the last record of 10 KiB with zeros; anything else is not an archive's.
        size = archive.file.size - archive.end
        yield _Check(archive.file, "end of archive", archive.end, 0, "", after=min(size, CHUNK))


def _blob_of(path: str) -> tuple[str, Digest | None]:
    """(layout, digest) that a path of a layout's blob stands for."""
    *layout, kind, algorithm, encoded = ("", "", "", *path.split("/"))
    if kind != "blobs":
        return "", None
    try:
        digest = Digest.parse(f"{algorithm}:{encoded}")
    except InvalidDigestError:
        return "", None
    return "/".join(part for part in layout if part), digest
