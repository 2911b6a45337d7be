"""Verification of a bundle: every byte of every archive, in one parallel read.

A sealed bundle leaves no byte open: each is a blob's or manifest's, which must hash to its digest,
or part of a header, index, padding or trailer, which follows from the seal. A bundle without a
seal, as other tools write them, is checked for structure, for every digest, and for everything
that its tags reach; only bytes that mean nothing to any reader could differ there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.bundle.checks import Check, found_checks, sealed_checks, shift_findings
from mirror.bundle.files import ReadAt
from mirror.bundle.names import SEAL
from mirror.bundle.reader import BundleReader, missing_archives
from mirror.bundle.seal import Seal
from mirror.errors import FileSystemError, IntegrityError, MirrorError
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


def verify_bundle(
    reader: BundleReader,
    *,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> BundleReport:
    """Check every byte of the bundle; nothing is changed.

    Raises:
        CancelledError: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    findings: list[Finding] = []
    checks: list[Check] = []
    names = [archive.name for archive in reader.archives]
    seal = reader.seal
    if seal is None:
        findings += reader.contents.findings
        notices = reader.contents.notices
        inventories: Mapping[str, Inventory] = reader.contents.archives
        for archive in reader.archives:
            checks += found_checks(archive)
    else:
        findings += missing_archives(seal, names)
        findings += _file_findings(seal, reader.folder)
        notices = ()
        inventories = {name: archive.inventory for name, archive in seal.archives.items()}
        for archive in reader.archives:
            expected = seal.archives.get(archive.name)
            if expected is None:
                problem = f"is not listed in {SEAL}; it does not belong to this bundle"
                findings.append(Finding(archive.name, problem))
            elif archive.file.size == expected.size:
                checks += sealed_checks(expected, archive)
            else:
                findings += shift_findings(expected, archive)
                checks += found_checks(archive)
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
    checks: Iterable[Check],
    inventories: Mapping[str, Inventory],
    jobs: int,
    on_event: OnEvent,
    cancel: threading.Event,
) -> Iterator[Finding]:
    dependents: dict[tuple[str, str], Dependents] = {}

    def run(check: Check) -> str | None:
        what = check.digest or _ANONYMOUS
        try:
            return check.problem(cancel, lambda count: on_event(BytesMoved(what, count)))
        except (IntegrityError, FileSystemError) as err:
            # A bad sector is a finding like any other: the rest of the medium is read on.
            return str(err)
        finally:
            on_event(BlobDone(what, check.size, check.size))

    failure: MirrorError | None = None
    with closing(for_each(checks, run, jobs=jobs, cancel=cancel)) as outcomes:
        for check, outcome in outcomes:
            if isinstance(outcome, MirrorError):
                failure = failure or outcome
            elif outcome is not None:
                yield _finding(check, outcome, inventories, dependents)
    if failure is not None:
        raise failure  # not inside the loop: leaving that early sets the caller's flag


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
    return Finding(name, told, check.repository, tags, check.digest)
