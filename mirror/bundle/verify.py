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

from mirror.bundle.carriage import NO_OMISSIONS, Omissions
from mirror.bundle.checks import Check, found_checks, sealed_checks, shift_findings
from mirror.bundle.files import ReadAt, os_errors
from mirror.bundle.names import SEAL, SIGNATURE
from mirror.bundle.parts import parse_part_name
from mirror.bundle.reader import BundleReader, missing_archives
from mirror.bundle.seal import Seal
from mirror.bundle.signing import verify as verify_signature
from mirror.bundle.sums import SUMS, is_whole
from mirror.bundle.sums import parse as parse_sums
from mirror.errors import (
    DamagedBundleError,
    FileSystemError,
    IntegrityError,
    MirrorError,
    SignatureError,
)
from mirror.events import BlobDone, BytesMoved, OnEvent, TransferStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Verifier
from mirror.sync import Dependents, Finding, Inventory
from mirror.sync.workers import DEFAULT_JOBS, for_each


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a verification saw. `size` is the bytes read; no findings means: all is right.

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
            **self.omissions.to_document(),
            "findings": [finding.to_document() for finding in self.findings],
            "notices": list(self.notices),
        }


def verify_bundle(
    reader: BundleReader,
    *,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
    key: bytes | None = None,
) -> BundleReport:
    """Check every byte of the bundle; nothing is changed. `key` is who must have signed it (PEM).

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
        findings += _sums_findings(seal, reader)
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
    if key is not None:
        try:
            check_signature(reader, key)
        except SignatureError as err:
            findings.append(Finding(SIGNATURE, str(err)))
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
        omissions=seal.omissions if seal is not None else NO_OMISSIONS,
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


def _sums_findings(seal: Seal, reader: BundleReader) -> Iterator[Finding]:
    """What is wrong with `SHA256SUMS`, and with the small files that it alone speaks for.

    What it says of archives was written while they were, and they are judged by the seal.
    """
    path = reader.folder / SUMS if reader.folder is not None else None
    if path is None or not path.is_file():
        yield Finding(SUMS, "the file is missing")
        return
    with os_errors(path, "read"):
        data = path.read_bytes() if path.stat().st_size <= _MAX_SUMS_BYTES else b""
    try:
        sums = parse_sums(data)
        if not is_whole(data):
            raise DamagedBundleError("its lines hash to another digest than it states")
    except DamagedBundleError as err:
        yield Finding(SUMS, str(err).removeprefix(f"{SUMS}: "))
        return
    for name in sorted(sums.keys() - seal.files.keys()):
        part = parse_part_name(name)
        if (part[0] if part else name) in seal.archives:
            continue
        beside = path.with_name(name)
        if name != beside.name or not beside.is_file():
            yield Finding(name, f"the file is missing, which {SUMS} lists", digest=sums[name])
        elif Digest.of(beside.read_bytes()) != sums[name]:
            yield Finding(name, f"is damaged: {SUMS} has another digest", digest=sums[name])


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


_MAX_SUMS_BYTES = 16 << 20


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
