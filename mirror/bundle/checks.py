"""What a verification looks at: stretches of archives, and the files beside them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from mirror.bundle import sums
from mirror.bundle.archive import BLOCK, TRAILER_SIZE, Archive, Entry
from mirror.bundle.contents import OpenArchive
from mirror.bundle.files import beginning, open_file
from mirror.bundle.format import (
    GOST_SUFFIX,
    MAX_SIGNATURE_BYTES,
    SEAL,
    SIGNATURE,
    SUMS,
    archive_named,
    blob_at,
    whole_name,
)
from mirror.bundle.gost import check_gostsum
from mirror.bundle.location import Location, Readable, Stretch, archive_at
from mirror.bundle.place import belongs, is_leftover
from mirror.bundle.seal import Seal
from mirror.bundle.seekable import SeekableFile, Unreadable
from mirror.durable import os_errors
from mirror.errors import (
    DamagedBundleError,
    DigestMismatchError,
    FileSystemError,
    InputError,
    IntegrityError,
    SignatureError,
)
from mirror.layout import RELEASES_FILE, TOOL_FILE, digest_of_tag
from mirror.oci import Digest, Verifier, verified
from mirror.oci.reference import digest_of
from mirror.run import Run
from mirror.sync import Dependents, Finding, Inventory
from mirror.sync.inventory import canonical_json

# -- stretches of archives -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """A stretch of an archive and what it must be: `size` bytes at `offset` that hash to `digest`
    (unless that is None), behind the bytes `before` and in front of `after` zero bytes.

    `title` says what it is; `repository` is the one that it belongs to, if any.
    """

    file: Readable
    title: str
    offset: int
    size: int
    repository: str | None
    digest: Digest | None = None
    before: bytes = b""
    after: int = 0

    @property
    def stretch(self) -> Stretch:
        """All that is read for it: of what is not hashed, its header and what follows it."""
        start = self.offset - len(self.before)
        return start, self.offset + (self.size + self.after if self.digest or self.after else 0)

    def problem(self, file: Readable, run: Run, on_bytes: Callable[[int], None]) -> str | None:
        """Return what is wrong with it, to be read behind its title; None if nothing is.

        It is read from `file`, which has the bytes of its own.

        Raises:
            IntegrityError, FileSystemError: it cannot be read to its end.
            CancelledError: `run` was stopped.
        """
        start = self.offset - len(self.before)
        if self.before and file.read(start, len(self.before)) != self.before:
            return f"is damaged: the header at byte {start} is not the sealed one"
        if self.digest is not None:
            verifier = Verifier(self.digest, self.size, self.title)
            for chunk in file.chunks(self.offset, self.size):
                run.check()
                verifier.update(chunk)
                on_bytes(len(chunk))
            try:
                verifier.finish()
            except DigestMismatchError as err:
                behind = self.offset + self.size
                return f"is damaged: bytes {self.offset} to {behind} hash to {err.actual}"
        damaged = _first_nonzero(file, self.offset + self.size, self.after)
        return None if damaged is None else f"is damaged: the padding at byte {damaged} is not zero"


def _first_nonzero(file: Readable, offset: int, size: int) -> int | None:
    for chunk in file.chunks(offset, size):
        if chunk.count(0) != len(chunk):
            return offset + len(chunk) - len(chunk.lstrip(b"\0"))
        offset += len(chunk)
    return None


def sealed_checks(expected: Archive, archive: OpenArchive, *, quick: bool) -> Iterator[Check]:
    """Check an archive against the seal, in the order in which it lies there.

    A `quick` check leaves out the bytes of blobs: headers, indexes and manifests remain.
    """
    for entry in expected.entries:
        manifests = expected.inventory.repository(entry.repository).manifests
        whole = not quick or entry.content is not None or entry.digest in manifests
        yield Check(
            archive.file,
            _title(entry),
            entry.data_offset,
            entry.size,
            entry.repository,
            entry.digest if whole else None,
            before=entry.header,
            after=entry.padding if whole else 0,
        )
    yield _end_marker(archive, expected.trailer_offset, TRAILER_SIZE)


def _end_marker(archive: OpenArchive, offset: int, size: int) -> Check:
    return Check(archive.file, "the end marker", offset, 0, None, after=size)


def end_findings(seal: Seal, archives: Iterable[OpenArchive]) -> Iterator[Finding]:
    """Say which archives are longer or shorter than sealed, or have another end marker."""
    for archive in archives:
        expected = seal.archives.get(archive.name)
        if expected is None or archive.broken is not None:
            continue
        if archive.file.size != expected.size:
            yield _other_size(expected, archive)
            continue
        end = _end_marker(archive, expected.trailer_offset, TRAILER_SIZE)
        if problem := end.problem(archive.file, Run(1), lambda _count: None):
            yield Finding(archive.name, f"{end.title} {problem}")


def _other_size(expected: Archive, archive: OpenArchive) -> Finding:
    return Finding(archive.name, f"has {archive.file.size} bytes instead of {expected.size}")


def _title(entry: Entry) -> str:
    return entry.path if entry.content is not None else f"blob {entry.digest}"


def shift_findings(expected: Archive, archive: OpenArchive) -> Iterator[Finding]:
    """Report what an archive of another size than sealed is missing, or has besides."""
    yield _other_size(expected, archive)
    if archive.problem is not None:
        yield Finding(archive.name, archive.problem.seen_from(archive.name))
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
    """Check every byte of an archive without a seal, as far as it explains itself."""
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
        # GNU tar fills the last record of 10 KiB with zeros; nothing else may follow.
        yield _end_marker(archive, archive.end, archive.file.size - archive.end)


def flattened(archives: Mapping[str, Inventory]) -> Iterator[Finding]:
    """Find multi-arch images that have the image of one platform only.

    `d8 mirror pull` packs components like that. Each still goes by the digest of the whole, which
    a cluster asks for and no registry can give it any more.
    """
    for archive, inventory in archives.items():
        for path, content in inventory.repositories.items():
            for tag, digest in content.tags.items():
                whole = digest_of_tag(tag)
                if whole is None or whole == digest or whole in content.manifests:
                    continue
                problem = (
                    f"of the multi-arch image {whole} only the image for one platform is there, "
                    f"{digest}"
                )
                yield Finding(archive, problem, path, (tag,), digest)


UNLISTED = f"is not listed in {SEAL}; it does not belong to this bundle"

# -- files beside the archives ---------------------------------------------------------------------


def state_of(folder: Location) -> Digest:
    """Identity of a bundle's files as they are: names, sizes, and dates in seconds, or versions.

    Raises:
        InputError: it has no archives, as where layouts were unpacked.
    """

    def state(path: Location) -> tuple[str, int, str]:
        if isinstance(path, Path):
            return path.name, path.stat().st_size, str(int(path.stat().st_mtime))
        return (path.name, *path.state())

    with os_errors(folder, "examine"):
        paths: list[Location] = [path for path in folder.iterdir() if path.is_file()]
        archives = list(filter(archive_at, paths))
        if not archives:
            raise InputError(f"{folder} has no archives, so that nothing tells if its files change")
        named = (SEAL, SIGNATURE, SUMS, RELEASES_FILE, TOOL_FILE)
        beside = [one for one in paths if one.name in named or one.name.endswith(GOST_SUFFIX)]
        return Digest.of(canonical_json(sorted(map(state, (*archives, *beside)))))


def file_findings(seal: Seal, folder: Location) -> Iterator[Finding]:
    """Check the files that the seal lists beside the archives; they are small.

    A list of releases that the seal does not know is a finding too, since a cluster would get it.
    """
    if RELEASES_FILE not in seal.files and (folder / RELEASES_FILE).exists():
        yield Finding(RELEASES_FILE, UNLISTED)
    for name, sealed in seal.files.items():
        if not (folder / name).is_file():
            yield Finding(name, "the file is missing", digest=sealed.digest)
            continue
        with closing(open_file(folder / name)) as file:
            try:
                chunks = file.chunks(0, file.size)
                deque(verified(chunks, sealed.digest, sealed.size, where=name), maxlen=0)
            except IntegrityError as err:
                yield Finding(name, err.seen_from(name), digest=sealed.digest)


def sums_of(
    seal: Seal, folder: Location, archives: Iterable[OpenArchive]
) -> tuple[Mapping[str, Digest], list[Finding]]:
    """What `SHA256SUMS` states, and what is wrong with it or with what only it speaks for."""
    if not (folder / SUMS).is_file():
        return {}, [Finding(SUMS, "the file is missing")]
    try:
        stated = sums.parse_whole(sums.read(folder / SUMS))
    except DamagedBundleError as err:
        return {}, [Finding(SUMS, err.seen_from(SUMS))]
    packed = {one.name for one in archives if isinstance(one.file, SeekableFile | Unreadable)}
    return stated, list(_sums_findings(seal, folder, stated, packed))


def _sums_findings(
    seal: Seal, folder: Location, stated: Mapping[str, Digest], packed: Set[str]
) -> Iterator[Finding]:
    """Check the small files that only `SHA256SUMS` speaks for, and which files are missing.

    `stated` is what the file says; `packed` are the archives that are there compressed. What it
    says of other archives was written while they were; the seal judges those.
    """
    listed = set(map(archive_named, stated))
    for name in sorted({*seal.archives, *seal.files, SEAL} - listed):
        yield Finding(SUMS, f"it does not list {name}; copy the file again from its origin")
    for name in sorted(stated.keys() - seal.files.keys()):
        stored, archive, beside = whole_name(name), archive_named(name), folder / name
        if stored in seal.archives or (archive in seal.archives and archive not in packed):
            continue
        if name != beside.name or not beside.is_file():
            yield Finding(name, f"the file is missing, which {SUMS} lists", digest=stated[name])
        elif archive not in seal.archives and _digest_of(beside) != stated[name]:
            yield Finding(name, f"is damaged: {SUMS} has another digest", digest=stated[name])


def _digest_of(path: Location) -> Digest:
    """The SHA-256 of a file, however large it is."""
    with closing(open_file(path)) as file:
        return digest_of(file.chunks(0, file.size))


def unlisted(seal: Seal, folder: Location) -> tuple[str, ...]:
    """Say which files lie in a bundle's folder and are nothing that its seal speaks for."""
    with os_errors(folder, "read"):
        paths: list[Location] = sorted(folder.iterdir(), key=lambda path: path.name)
    # Archives and a list of releases that do not belong there are findings of their own.
    strange = [
        path.name
        for path in paths
        if not (belongs(path.name, seal) or is_leftover(path.name) or archive_at(path))
        and path.name not in (".tmp", RELEASES_FILE)
    ]
    if not strange:
        return ()
    most = 10
    shown = ", ".join(strange[:most]) + (", …" if strange[most:] else "")
    return (f"not listed in {SEAL}, so that no seal or signature speaks for it: {shown}",)


def lost_findings(folder: Location | None) -> Iterator[Finding]:
    """Say what is missing in a folder without a seal, as far as `SHA256SUMS` tells.

    Where that was written beside a seal, at least the seal itself is lost.
    """
    path = folder / SUMS if folder is not None else None
    if path is None or not path.is_file():
        return
    data = sums.read(path)
    if not sums.is_ours(data):
        return
    try:
        names = sorted(sums.parse(data))
    except DamagedBundleError as err:
        yield Finding(SUMS, err.seen_from(SUMS))
        return
    for name in names:
        if name == PurePath(name).name and not (path.parent / name).exists():
            problem = f"the file is missing, which {SUMS} lists; copy it again from its origin"
            yield Finding(name, problem)


def part_findings(suspects: Iterable[Location], stated: Mapping[str, Digest]) -> Iterator[Finding]:
    """Say which of the parts that damage was found in are not what `SHA256SUMS` says.

    Copy those again. They are read once more for that.
    """
    for path in sorted(suspects, key=lambda one: one.name):
        expected = stated.get(path.name)
        if expected is None:
            continue
        if _digest_of(path) != expected:
            problem = f"is damaged: {SUMS} has another digest; copy this part again"
            yield Finding(path.name, problem)


def gost_finding(path: Location, run: Run, on_bytes: Callable[[int], None]) -> Finding | None:
    """Compare a file with the `.gostsum` beside it; None if they agree, or there is none.

    Raises:
        GostUnavailableError: this machine cannot compute the digest.
        CancelledError: `run` was stopped.
    """

    def chunks() -> Iterator[bytes]:
        for chunk in file.chunks(0, file.size):
            run.check()
            yield chunk
            on_bytes(len(chunk))

    with closing(open_file(path)) as file:
        try:
            check_gostsum(path, chunks())
        except (IntegrityError, FileSystemError) as err:
            return Finding(err.where or path.name, err.explanation)
    return None


def once_each(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings. Content that is damaged, and unreadable for it, is one finding, not two."""
    kept: dict[tuple[str, str | None, object], Finding] = {}
    for finding in findings:
        kept.setdefault(
            (finding.place, finding.repository, finding.digest or finding.problem), finding
        )
    return tuple(
        sorted(kept.values(), key=lambda f: (f.place, f.repository or "", str(f.digest), f.problem))
    )


def parts_of(check: Check) -> tuple[Location, ...]:
    """Return the parts in which a stretch of an archive lies; none if that is in one piece."""
    file = check.file
    if len(file.ends) == 1:
        return ()
    first = bisect_right(file.ends, check.offset - len(check.before))
    last = bisect_left(file.ends, check.offset + check.size + check.after)
    return file.parts[first : last + 1]


def check_signed_by(sealed: bytes, public_pem: bytes, folders: Sequence[Location]) -> None:
    """Check that one of `folders` has the key owner's signature over a seal.

    Raises:
        SignatureError: none has.
    """
    from mirror import signing

    failure = SignatureError(f"{folders[0]} is not signed: nobody has its {SIGNATURE}")
    for folder in folders:
        with suppress(FileSystemError):
            signature = beginning(folder / SIGNATURE, MAX_SIGNATURE_BYTES)
            try:
                return signing.verify(sealed, signature, public_pem)
            except SignatureError as err:
                failure = err
    raise failure
