"""Verification of a bundle: every byte of every archive, in one parallel read.

A sealed bundle leaves no byte open: each is a blob's or manifest's, which must hash to its digest,
or part of a header, index, padding or trailer, which follows from the seal. A bundle without a
seal, as other tools write them, is checked for structure, for every digest, and for everything
that its tags reach; only bytes that mean nothing to any reader could differ there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mirror.bundle.beside_checks import (
    file_findings,
    lost_findings,
    part_findings,
    read_sums,
    sums_findings,
)
from mirror.bundle.carriage import NO_OMISSIONS, Omissions
from mirror.bundle.checks import (
    Check,
    found_checks,
    sealed_checks,
    shift_findings,
    structure_checks,
)
from mirror.bundle.forward import Forward
from mirror.bundle.names import SEAL, SIGNATURE
from mirror.bundle.opened import OpenArchive
from mirror.bundle.parts import PartedReader
from mirror.bundle.reader import BundleReader, missing_archives, whole_archive
from mirror.bundle.seekable import SeekableFile
from mirror.bundle.signing import verify as verify_signature
from mirror.bundle.sums import SUMS
from mirror.durable import os_errors
from mirror.errors import (
    DamagedBundleError,
    FileSystemError,
    IntegrityError,
    MirrorError,
    SignatureError,
)
from mirror.events import BlobDone, BytesMoved, TransferStarted, Warned
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import Dependents, Finding, Inventory
from mirror.sync.workers import for_each


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a verification saw. `size` is the bytes of the archives; no findings means that all is
    right, apart from the bytes of blobs if it was `quick`, which were not read.

    Counts are of what the bundle speaks of; `omissions` says how much of that a delta or a
    deduplicated bundle leaves out.
    """

    sealed: bool
    archives: int
    size: int
    repositories: int
    tags: int
    manifests: int
    blobs: int
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]
    omissions: Omissions = NO_OMISSIONS
    quick: bool = False

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "ok": not self.findings,
            "quick": self.quick,
            "sealed": self.sealed,
            "archives": self.archives,
            "bytes": self.size,
            "repositories": self.repositories,
            "tags": self.tags,
            "manifests": self.manifests,
            "blobs": self.blobs,
            **self.omissions.to_document(),
            "findings": [finding.to_document() for finding in self.findings],
            "notices": list(self.notices),
        }


@dataclass(frozen=True, slots=True)
class _Work:
    """Checks that are done together: one, or all of a compressed archive, which is read once from
    its beginning to its end. `sums` are the digests that its files must have, by name."""

    checks: Iterable[Check]
    packed: SeekableFile | None = None
    sums: Mapping[str, Digest] = field(default_factory=dict)


def verify_bundle(
    reader: BundleReader,
    *,
    key: bytes | None = None,
    quick: bool = False,
    run: Run | None = None,
) -> BundleReport:
    """Check every byte of the bundle; nothing is changed. `key` is who must have signed it (PEM).

    With `quick` the bytes of blobs are left unread: headers, indexes and manifests are checked, and
    the place and size of everything that they speak of.

    Raises:
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    findings: list[Finding] = []
    works: list[Iterable[_Work]] = []
    count = total = 0
    names = [archive.name for archive in reader.archives]
    seal = reader.seal
    sums: Mapping[str, Digest] = {}
    if seal is None:
        findings += reader.contents.findings
        findings += lost_findings(reader)
        notices = (*reader.hints(), *reader.contents.notices)
        for notice in (*reader.hints(), *reader.contents.warnings()):
            run.on_event(Warned(notice))
        inventories: Mapping[str, Inventory] = reader.contents.archives
    else:
        findings += missing_archives(seal, names)
        findings += file_findings(seal, reader.folder)
        try:
            sums = read_sums(reader)
            findings += sums_findings(seal, reader, sums)
        except DamagedBundleError as err:
            findings.append(Finding(SUMS, str(err).removeprefix(f"{SUMS}: ")))
        notices = ()
        inventories = {name: archive.inventory for name, archive in seal.archives.items()}
    for archive in reader.archives:
        expected = seal.archives.get(archive.name) if seal is not None else None
        if seal is not None and expected is None:
            problem = f"is not listed in {SEAL}; it does not belong to this bundle"
            findings.append(Finding(archive.name, problem))
        elif archive.broken is not None:
            if expected is not None:
                problem = str(archive.broken).removeprefix(f"{archive.name}: ")
                findings.append(Finding(archive.name, problem))
                findings += whole_archive(expected, "the archive cannot be read")
        elif expected is not None and archive.file.size == expected.size:
            make = structure_checks if quick else sealed_checks
            works.append(_works(make(expected, archive), archive, sums, quick=quick))
            count += len(expected.entries) + 1
            total += sum(entry.size for entry in expected.entries)
        else:
            if expected is not None:
                findings += shift_findings(expected, archive)
            if not quick:
                works.append(_works(found_checks(archive), archive, sums))
                count += len(archive.members) + (archive.problem is None)
                total += sum(member.size for member in archive.members.values())
    if key is not None:
        try:
            check_signature(reader, key)
        except SignatureError as err:
            findings.append(Finding(SIGNATURE, str(err)))
    run.on_event(TransferStarted(blobs=count, size=total, manifests=0, tags=0))
    suspects: set[Path] = set()
    findings += _carry_out(chain.from_iterable(works), inventories, suspects, run)
    if not quick:
        findings += part_findings(suspects, sums)
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
        omissions=seal.omissions if seal is not None else NO_OMISSIONS,
        quick=quick,
    )


def _works(
    checks: Iterator[Check],
    archive: OpenArchive,
    sums: Mapping[str, Digest],
    *,
    quick: bool = False,
) -> Iterator[_Work]:
    """The checks of an archive, as they are to be done: small ones several at a time."""
    if isinstance(archive.file, SeekableFile) and not quick:
        yield _Work(checks, archive.file, sums)
        return
    together: list[Check] = []
    size = 0
    for check in checks:
        together.append(check)
        size += check.size
        if size >= _TOGETHER_BYTES or len(together) >= _TOGETHER:
            yield _Work(together)
            together, size = [], 0
    if together:
        yield _Work(together)


_TOGETHER, _TOGETHER_BYTES = 64, 4 << 20
"""To hand work to a thread costs as much as to check some ten kilobytes."""


def check_signature(reader: BundleReader, public_pem: bytes) -> None:
    """See that the holder of a key signed the bundle's seal, and so every byte of the bundle.

    Raises:
        SignatureError: there is no signature, or it is not theirs, or of another bundle.
        InputError: no usable public key.
    """
    folder = reader.folder
    if folder is None or not (folder / SEAL).is_file() or not (folder / SIGNATURE).is_file():
        raise SignatureError(
            f"{reader.name} is not signed: it has no {SIGNATURE} beside its {SEAL}; a pull with "
            "--sign-key makes one"
        )
    with os_errors(folder / SIGNATURE, "read"):
        verify_signature(
            (folder / SEAL).read_bytes(), (folder / SIGNATURE).read_bytes(), public_pem
        )


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


def _parts_of(check: Check) -> tuple[Path, ...]:
    """The parts in which a stretch of an archive lies; none if that is in one piece."""
    file = check.file
    if not isinstance(file, PartedReader) or len(file.parts) == 1:
        return ()
    first = bisect_right(file.ends, check.offset - len(check.before))
    last = bisect_left(file.ends, check.offset + check.size + check.after)
    return file.parts[first : last + 1]


def _carry_out(
    works: Iterable[_Work],
    inventories: Mapping[str, Inventory],
    suspects: set[Path],
    run: Run,
) -> Iterator[Finding]:
    """Do all checks. `suspects` gets the parts in which damage lies."""
    dependents: dict[tuple[str, str], Dependents] = {}

    def problem(check: Check) -> str | None:
        what = check.digest or _ANONYMOUS
        try:
            return check.problem(run, lambda count: run.on_event(BytesMoved(what, count)))
        except (IntegrityError, FileSystemError) as err:
            # A bad sector is a finding like any other: the rest of the medium is read on.
            return str(err)
        finally:
            run.on_event(BlobDone(what, check.size, check.size))

    def problems_of(work: _Work) -> list[tuple[Check | str, str]]:
        """(what it is about, what is wrong) of each problem."""
        if work.packed is None:
            return [(check, told) for check in work.checks if (told := problem(check)) is not None]
        with Forward(work.packed) as file:
            checks = (replace(check, file=file) for check in work.checks)
            problems: list[tuple[Check | str, str]] = [
                (check, told) for check in checks if (told := problem(check)) is not None
            ]
            for name, digest in file.finish().items():
                if isinstance(digest, MirrorError):
                    problems.append((name, str(digest)))
                elif work.sums and name not in work.sums:
                    problems.append((name, f"is not listed in {SUMS}"))
                elif work.sums and digest != work.sums[name]:
                    problems.append((name, f"is damaged: {SUMS} has another digest"))
        return problems

    failure: MirrorError | None = None
    with closing(for_each(works, problems_of, run=run)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, MirrorError):
                failure = failure or outcome
                continue
            for what, told in outcome:
                if isinstance(what, Check):
                    suspects.update(_parts_of(what))
                    yield _finding(what, told, inventories, dependents)
                else:
                    yield Finding(what, told.removeprefix(f"{what}: "))
    if failure is not None:
        raise failure  # not inside the loop: leaving that early cancels the run


_ANONYMOUS = Digest.of(b"")
"""What progress is reported under where there is no content."""


def _finding(
    check: Check,
    problem: str,
    inventories: Mapping[str, Inventory],
    dependents: dict[tuple[str, str], Dependents],
) -> Finding:
    name = check.file.path.name
    tags: tuple[str, ...] = ()
    if check.repository is not None and check.digest is not None:
        key = (name, check.repository)
        if key not in dependents:
            content = inventories.get(name, Inventory()).repository(check.repository)
            dependents[key] = Dependents(content)
        tags = dependents[key].tags(check.digest)
    told = f"{check.title} {problem.removeprefix(f'{name}: ')}"
    parts = [path.name for path in _parts_of(check)]
    if parts:
        told += f" (in {parts[0]}{f' to {parts[-1]}' if parts[1:] else ''})"
    return Finding(name, told, check.repository, tags, check.digest)
