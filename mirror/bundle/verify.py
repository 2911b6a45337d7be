"""Verification of a bundle: every byte of every archive, in one parallel read.

A sealed bundle leaves no byte unchecked: each is a blob's or manifest's, which must hash to its
digest, or part of a header, index, padding or trailer, which follows from the seal. A bundle
without a seal, as other tools write them, is checked for structure, for every digest, and for
everything that its tags reach; only bytes that mean nothing to any reader could differ there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

from mirror.bundle import gost
from mirror.bundle.archive import NO_OMISSIONS, Omissions, missing_archives, whole_archive
from mirror.bundle.checks import (
    UNLISTED,
    Check,
    end_findings,
    file_findings,
    flattened,
    found_checks,
    gost_finding,
    lost_findings,
    once_each,
    part_findings,
    parts_of,
    sealed_checks,
    shift_findings,
    sums_of,
    unlisted,
)
from mirror.bundle.contents import OpenArchive
from mirror.bundle.files import beginning
from mirror.bundle.format import (
    GOST_SUFFIX,
    MAX_SIGNATURE_BYTES,
    SEAL,
    SIGNATURE,
    SUMS,
    Shard,
    owner,
    share,
)
from mirror.bundle.gost import gostsum_path
from mirror.bundle.location import Location, Readable, size_of
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal, check_limits, seal_bytes
from mirror.bundle.seekable import Forward, SeekableFile
from mirror.documents import document
from mirror.errors import (
    BundleLimitError,
    DamagedBundleError,
    FileSystemError,
    IntegrityError,
    MirrorError,
    SignatureError,
)
from mirror.events import BlobDone, BytesMoved, TransferStarted, Warned
from mirror.oci import Digest
from mirror.run import ArchiveTally, Run, for_each
from mirror.sync import Dependents, Finding, Inventory
from mirror.sync.observation import listed


@dataclass(frozen=True, slots=True)
class BundleReport:
    """The outcome of a verification. `size` is the bytes of the archives. Without findings all is
    right, except that a `quick` one did not read the bytes of blobs.

    Counts are of what the bundle speaks of; `omissions` says how much of that a delta or a
    deduplicated bundle leaves out. With `shard`, the findings are those of that share.
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
    shard: Shard | None = None

    def to_document(self) -> dict[str, Any]:
        return {
            "ok": not self.findings,
            **({} if self.shard is None else {"shard": str(self.shard)}),
            **document(self, "quick", "sealed", "archives", "bytes=size", "repositories"),
            **document(self, "tags", "manifests", "blobs"),
            **self.omissions.to_document(),
            **document(self, "findings", "notices"),
        }


def verify_bundle(
    reader: BundleReader,
    *,
    key: bytes | None = None,
    quick: bool = False,
    shard: Shard | None = None,
    run: Run | None = None,
) -> BundleReport:
    """Check every byte of the bundle; nothing is changed. `key` is who must have signed it (PEM).

    With `quick` the bytes of blobs are left unread: headers, indexes and manifests are checked, and
    the place and size of everything that they speak of. With `shard` only its share of all bytes is
    checked (`owner`); a compressed archive is in one share, and what is no stretch of an archive in
    the first.

    Raises:
        CancelledError: `run` was stopped.
    """
    return _BundleVerification(reader, Run.of(run), quick=quick, shard=shard).report(key)


def check_signature(reader: BundleReader, public_pem: bytes) -> None:
    """Check that the holder of a key signed the bundle's seal, and so every byte of the bundle.

    Raises:
        SignatureError: there is no signature, or it is somebody else's, or of another bundle.
        InputError: the public key is not usable.
    """
    from mirror import signing

    signing.public_key(public_pem)  # a certificate in its place says nothing of the bundle
    folder = reader.folder
    if folder is None or not (folder / SEAL).is_file() or not (folder / SIGNATURE).is_file():
        raise SignatureError(
            f"{reader.name} is not signed: it has no {SIGNATURE} beside its {SEAL}",
            advice="a pull with --sign-key makes one",
        )
    signature = beginning(folder / SIGNATURE, MAX_SIGNATURE_BYTES)
    sealed = seal_bytes(folder / SEAL) or b""
    signing.verify(sealed, signature, public_pem)
    if Digest.of(sealed) != reader._sealed[folder]:
        # All that follows goes by what was read first.
        raise SignatureError(
            f"{folder / SEAL} was exchanged while the bundle was read, and the signature is not "
            "that of the first one",
            advice="find out who may write there, and copy the bundle to where nobody else may",
        )


def check_signed(reader: BundleReader, public_pem: bytes, run: Run) -> None:
    """Check the signature, and all that it covers and no digest of a blob will tell: the files
    beside the archives, and how archives end. Warn of what it does not cover: sums that are not
    what the pull wrote, and files for which no seal speaks.

    Raises:
        SignatureError, InputError: as `check_signature`.
        DamagedBundleError: a file is missing or changed, or an archive has another end.
    """
    check_signature(reader, public_pem)
    folder, seal = reader.folder, reader._seal
    assert folder is not None, "a signed bundle is a folder"
    assert seal is not None, "its seal is signed"
    findings = [*file_findings(seal, folder), *end_findings(seal, reader._archives)]
    if findings:
        raise DamagedBundleError(
            f"{reader.name} is not what was signed: copy it again from its origin"
            + listed(findings)
        )
    if other := sums_of(seal, folder, reader._archives)[1]:
        run.on_event(
            Warned(
                "the signature does not cover sums, and these are not what the pull wrote; what "
                f"follows goes by the signed seal:{listed(other)}"
            )
        )
    for notice in unlisted(seal, folder):
        run.on_event(Warned(notice))


@dataclass(frozen=True, slots=True)
class _Task:
    """What one thread does at a time: a few checks, or all of a compressed archive, which is read
    once from its beginning to its end, or a GOST digest of a file. `archive` is whose checks."""

    checks: Iterable[Check] = ()
    packed: SeekableFile | None = None
    gost: Location | None = None
    archive: str = ""


_TOGETHER, _TOGETHER_BYTES = 64, 4 << 20
"""Handing work to a thread costs as much as checking some ten kilobytes."""
_ANONYMOUS = Digest.of(b"")
"""What progress is reported under where there is no content."""


def _together(checks: Iterable[Check]) -> Iterator[list[Check]]:
    """Several small checks at a time."""
    some: list[Check] = []
    size = 0
    for check in checks:
        some.append(check)
        size += check.size
        if size >= _TOGETHER_BYTES or len(some) >= _TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


class _BundleVerification:
    """One run over a bundle: first it lists the checks, then it runs them in parallel."""

    def __init__(self, reader: BundleReader, run: Run, *, quick: bool, shard: Shard | None) -> None:
        self._reader, self._run, self._quick, self._shard = reader, run, quick, shard
        reader.follow(run)
        self._seal = reader._seal
        self._findings: list[Finding] = []
        self._notices: list[str] = []
        self._sums: Mapping[str, Digest] = {}
        self._inventories: Mapping[str, Inventory]
        self._tasks: list[Iterable[_Task]] = []
        self._archives = ArchiveTally(run.on_event)
        self._count = self._size = 0
        self._suspects: set[Location] = set()  # parts in which damage lies
        self._dependents: dict[tuple[str, str], Dependents] = {}
        sizes = [one.file.size for one in reader._archives]
        *starts, self._total = accumulate(sizes, initial=0)
        self._starts = dict(zip((one.name for one in reader._archives), starts, strict=True))

    def report(self, key: bytes | None) -> BundleReport:
        reader, seal, run = self._reader, self._seal, self._run
        if seal is None:
            self._judge_contents()
        else:
            self._judge_companions(seal)
        for archive in reader._archives:
            self._plan_archive(archive)
        if key is not None:
            try:
                check_signature(reader, key)
            except SignatureError as err:
                self._findings.append(Finding(SIGNATURE, str(err)))
        if self._shard is not None and self._shard.number != 1:
            self._findings.clear()  # the first shard tells them
        if not self._quick:
            self._plan_gost()
        started = TransferStarted(blobs=self._count, size=self._size, manifests=0, tags=0)
        run.on_event(started)
        self._carry_out()
        if not self._quick:
            self._findings += part_findings(self._suspects, self._sums)
        inventory = seal.inventory if seal is not None else reader.contents.inventory
        return BundleReport(
            sealed=seal is not None,
            archives=len(reader._archives),
            size=sum(archive.file.size for archive in reader._archives),
            **inventory.counts(),
            findings=once_each(self._findings),
            notices=tuple(self._notices),
            omissions=seal.omissions if seal is not None else NO_OMISSIONS,
            quick=self._quick,
            shard=self._shard,
        )

    # -- what is to be checked -----------------------------------------------------------------

    def _judge_contents(self) -> None:
        """Without a seal, indexes and manifests say what must be there."""
        contents, hints = self._reader.contents, tuple(self._reader.hints())
        self._findings += contents.findings
        self._findings += flattened(contents.archives)
        self._findings += lost_findings(self._reader.folder)
        self._notices += (*hints, *contents.notices)
        for notice in (*hints, *contents.warnings()):
            self._run.on_event(Warned(notice))
        self._inventories = contents.archives

    def _judge_companions(self, seal: Seal) -> None:
        """With a seal, look at what is small: limits, missing archives, files beside them."""
        folder, archives = self._reader.folder, self._reader._archives
        assert folder is not None, "the seal counts for one folder"
        self._inventories = {name: one.inventory for name, one in seal.archives.items()}
        try:
            compressed = any(isinstance(one.file, SeekableFile) for one in archives)
            check_limits(seal, compressed=compressed)
        except BundleLimitError as err:
            self._findings.append(Finding(SEAL, str(err)))
        self._findings += missing_archives(seal.archives, [archive.name for archive in archives])
        self._findings += file_findings(seal, folder)
        self._notices += unlisted(seal, folder)
        self._sums, findings = sums_of(seal, folder, archives)
        self._findings += findings

    def _plan_archive(self, archive: OpenArchive) -> None:
        """Note the checks of an archive, and what is wrong with it as a whole."""
        name = archive.name
        expected = self._seal.archives.get(name) if self._seal is not None else None
        if self._seal is not None and expected is None:
            self._findings.append(Finding(name, UNLISTED))
        elif archive.broken is not None:
            if expected is not None:
                self._findings.append(Finding(name, archive.broken.seen_from(name)))
                self._findings += whole_archive(expected, "the archive cannot be read")
        elif expected is not None and archive.file.size == expected.size:
            checks = sealed_checks(expected, archive, quick=self._quick)
            stretches = ((entry.data_offset, entry.size) for entry in expected.entries)
            self._plan_tasks(checks, archive, chain(stretches, [(expected.trailer_offset, 0)]))
        else:
            if expected is not None:
                self._findings += shift_findings(expected, archive)
            if not self._quick:
                stretches = ((member.offset, member.size) for member in archive.members.values())
                end = [(archive.end, 0)] if archive.problem is None else []
                self._plan_tasks(found_checks(archive), archive, chain(stretches, end))

    def _plan_tasks(
        self, checks: Iterable[Check], archive: OpenArchive, stretches: Iterable[tuple[int, int]]
    ) -> None:
        """Let this shard's part of `checks` be done; they are of these `stretches`."""
        own = [size for start, size in stretches if self._is_own(archive, start, size)]
        if not own:
            return
        if self._shard is not None:
            checks = (one for one in checks if self._is_own(archive, one.offset, one.size))
        self._tasks.append(self._tasks_of(checks, archive))
        self._archives.expect(archive.name, sum(own))  # until its last work has begun
        self._count, self._size = self._count + len(own), self._size + sum(own)

    def _is_own(self, archive: OpenArchive, start: int, size: int) -> bool:
        if self._shard is None:
            return True
        if self._packed(archive) is not None:
            start, size = 0, archive.file.size
        start, count = start + self._starts[archive.name], self._shard.count
        return owner(start, size, self._total, count) == self._shard.number

    def _tasks_of(self, checks: Iterable[Check], archive: OpenArchive) -> Iterator[_Task]:
        packed = self._packed(archive)
        for some in [checks] if packed is not None else _together(checks):
            self._archives.expect(archive.name)
            yield _Task(some, packed, archive=archive.name)
        self._archives.done(archive.name)

    def _packed(self, archive: OpenArchive) -> SeekableFile | None:
        """The file of an archive that is to be read in one piece."""
        file = archive.file
        return file if isinstance(file, SeekableFile) and not self._quick else None

    def _plan_gost(self) -> None:
        """Note the files that have a `.gostsum` beside them, d8's too."""
        paths = [
            path
            for archive in self._reader._archives
            for path in archive.file.parts
            if gostsum_path(path).is_file()
        ]
        if self._shard is not None:
            paths = [paths[one] for one in share(list(map(size_of, paths)), self._shard)]
        if paths and gost.available() is None:
            notice = (
                f"{len(paths)} files ending in {GOST_SUFFIX} were not checked: this machine's "
                f"OpenSSL has no GOST R 34.11-2012 (on Debian: apt-get install {gost.PACKAGE})"
            )
            self._notices.append(notice)
            self._run.on_event(Warned(notice))
            return
        self._tasks.append([_Task(gost=path) for path in paths])
        self._count += len(paths)
        self._size += sum(map(size_of, paths))

    # -- the checks ----------------------------------------------------------------------------

    def _carry_out(self) -> None:
        failure: MirrorError | None = None
        tasks = chain.from_iterable(self._tasks)
        run = self._run.with_jobs(self._run.jobs)  # each holds pieces of files
        with closing(for_each(tasks, self._do, run=run)) as outcomes:
            for task, outcome in outcomes:
                self._archives.done(task.archive)
                if isinstance(outcome, MirrorError):
                    failure = failure or outcome
                    continue
                self._findings += (
                    one if isinstance(one, Finding) else self._finding(*one) for one in outcome
                )
        if failure is not None:
            raise failure  # not inside the loop: leaving that early cancels the run

    def _do(self, task: _Task) -> list[Finding | tuple[Check, str]]:
        """Do a task, in a thread; return what is wrong, of a check with its problem."""
        problems: list[Finding | tuple[Check, str]] = []
        if task.gost is not None:
            size = size_of(task.gost)
            found = gost_finding(task.gost, self._run, partial(self._moved, None))
            self._run.on_event(BlobDone(_ANONYMOUS, size, size))
            return problems if found is None else [found]
        if task.packed is None:
            checks = tuple(task.checks)
            with checks[0].file.in_order(check.stretch for check in checks) as lying:
                problems += self._problems(checks, lying)
            return problems
        with Forward(task.packed) as file:
            problems += self._problems(task.checks, file)
            for name, digest in file.finish().items():
                if isinstance(digest, MirrorError):
                    problems.append(Finding(name, digest.seen_from(name)))
                elif self._sums and name not in self._sums:
                    problems.append(Finding(name, f"is not listed in {SUMS}"))
                elif self._sums and digest != self._sums[name]:
                    problems.append(Finding(name, f"is damaged: {SUMS} has another digest"))
        return problems

    def _problems(self, checks: Iterable[Check], file: Readable) -> Iterator[tuple[Check, str]]:
        for check in checks:
            try:
                problem = check.problem(file, self._run, partial(self._moved, check.digest))
            except (IntegrityError, FileSystemError) as err:
                # A bad sector is a finding like any other: the rest of the medium is read on.
                problem = err.seen_from(check.file.path.name)
            finally:
                done = BlobDone(check.digest or _ANONYMOUS, check.size, check.size)
                self._run.on_event(done)
            if problem is not None:
                yield check, problem

    def _moved(self, digest: Digest | None, count: int) -> None:
        self._run.on_event(BytesMoved(digest or _ANONYMOUS, count))

    def _finding(self, check: Check, problem: str) -> Finding:
        name = check.file.path.name
        tags: tuple[str, ...] = ()
        if check.repository is not None and check.digest is not None:
            key = (name, check.repository)
            if key not in self._dependents:
                content = self._inventories.get(name, Inventory()).repository(check.repository)
                self._dependents[key] = Dependents(content)
            tags = self._dependents[key].tags(check.digest)
        text = f"{check.title} {problem}"
        parts = parts_of(check)
        self._suspects.update(parts)
        if parts:
            text += f" (in {parts[0].name}{f' to {parts[-1].name}' if parts[1:] else ''})"
        return Finding(name, text, check.repository, tags, check.digest)
