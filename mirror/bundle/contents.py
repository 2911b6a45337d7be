"""An archive where it lies, and what archives hold, read from their indexes and manifests.

What is wrong with them becomes a finding, not an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mirror.bundle.archive import NOTHING, Archive
from mirror.bundle.format import (
    INDEX,
    MAX_FINDINGS,
    ORDINARY,
    REF_NAME,
    SHORT_TAG,
    Budget,
    BundleLimits,
    blob_path,
    inside,
    limits_for,
)
from mirror.bundle.location import Readable, Stretch
from mirror.bundle.members import TarMember, laid_out, members
from mirror.bundle.seal import has_long_media_type
from mirror.bundle.seekable import SeekableFile
from mirror.documents import open_json, value_count
from mirror.errors import (
    DamagedBundleError,
    DigestMismatchError,
    FileSystemError,
    IntegrityError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
    MirrorError,
)
from mirror.layout import PACKAGE_VERSIONS_ARCHIVE
from mirror.oci import Digest, Manifest, verified
from mirror.oci.manifest import MANIFESTS, MAX_MANIFEST_BYTES
from mirror.oci.reference import valid_tag
from mirror.sync import Dependents, Finding, Inventory, InventoryBuilder, ManifestNode, union
from mirror.sync.inventory import MALFORMED, path_of

# -- open archives ---------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """An archive's files by path, the problem that ended the list, where its end marker begins."""

    members: Mapping[str, TarMember]
    problem: MirrorError | None
    end: int


class OpenArchive:
    """One archive as it lies there. Its headers are read once, when they are asked for.

    `listing` yields its files, as `members` does; `broken` says why it cannot be read, if so.
    """

    def __init__(
        self,
        file: Readable,
        listing: Callable[[Readable], Generator[TarMember, None, int]] = members,
        *,
        broken: MirrorError | None = None,
        sealed: Archive | None = None,
    ) -> None:
        self.file = file
        self.left_out, self.absent = (sealed.left_out, sealed.absent) if sealed else (NOTHING, {})
        # On another machine each header would be a request of its own. Verifications read them all.
        there = not isinstance(file.path, Path) and sealed is not None and file.size == sealed.size
        self._sealed = sealed if there else None
        self._files = listing
        self.broken = broken

    @property
    def name(self) -> str:
        return self.file.path.name

    @cached_property
    def _listing(self) -> _Listing:
        found: dict[str, TarMember] = {}
        if self.broken is not None:
            return _Listing(found, self.broken, 0)
        try:
            listing = laid_out(self._sealed) if self._sealed else self._files(self.file)
            return _Listing(found, None, _collect(self.file, listing, found))
        except (DamagedBundleError, FileSystemError) as err:
            return _Listing(found, err, 0)

    @property
    def members(self) -> Mapping[str, TarMember]:
        """Its files by path; a `problem` ends the list."""
        return self._listing.members

    @property
    def problem(self) -> MirrorError | None:
        """A damaged header, or whatever else ended the list of files."""
        return self._listing.problem

    @property
    def end(self) -> int:
        """Where its end marker begins; 0 if a `problem` ended the list."""
        return self._listing.end

    def refuse(self, why: MirrorError) -> None:
        """Treat it as unreadable from now on, and release what is known of its files."""
        self.broken = why
        self.__dict__.pop("_listing", None)

    @cached_property
    def prefix(self) -> str:
        """Where its content belongs: a `module-<name>.tar` of the first format has no path inside.

        Any path below modules/ means the newer format, whatever the file was renamed to since.
        """
        module = self.name.removesuffix(".tar")
        paths = self.members
        if not module.startswith("module-") or not paths:
            return ""
        if any(path.startswith("modules/") for path in paths):
            return ""
        return f"modules/{module.removeprefix('module-')}"

    def layouts(self) -> dict[str, str]:
        """Repository path → path of its layout inside the archive; sorted."""
        inner = sorted(
            path.removesuffix(INDEX).rstrip("/")
            for path in self.members
            if path == INDEX or path.endswith("/" + INDEX)
        )
        return {"/".join(part for part in (self.prefix, path) if part): path for path in inner}

    def described(self) -> Iterator[Stretch]:
        """Yield where its indexes and manifests lie, if it is on another machine."""
        yield from self._sealed.described() if self._sealed is not None else ()

    def blob(self, repository: str, digest: Digest) -> TarMember | None:
        """Return where the layout of `repository` keeps a blob or manifest; None if nowhere."""
        layout = repository
        if self.prefix:
            if repository != self.prefix and not repository.startswith(f"{self.prefix}/"):
                return None
            layout = repository[len(self.prefix) + 1 :]
        return self.members.get(blob_path(layout, digest))


def _collect(
    file: Readable, listing: Generator[TarMember, None, int], found: dict[str, TarMember]
) -> int:
    """Put the archive's files into `found`; return where its end marker begins."""
    most = (ORDINARY if isinstance(file, SeekableFile) else limits_for(file.size)).members
    while True:
        try:
            member = next(listing)
        except StopIteration as over:
            return int(over.value)
        if len(found) == most:
            raise DamagedBundleError(
                f"it holds more than {most} files, which no bundle's archive does",
                where=file.path.name,
            )
        if member.path in found:
            raise DamagedBundleError(
                f"{member.path} is there twice",
                where=file.path.name,
                advice="this is not an archive of a bundle, or it was tampered with",
            )
        found[member.path] = member


# -- indexes and manifests -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contents:
    """What all archives hold together. `inventory` is open where findings say so.

    Layouts that several archives share are merged; of a tag that two of them name, the later
    archive's counts, but one of the package's own before `package-versions.tar`. `notices` are
    oddities that harm nothing.
    """

    inventory: Inventory
    archives: Mapping[str, Inventory]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]
    manifests: Mapping[Digest, Manifest] = field(repr=False)

    def warnings(self) -> Iterator[str]:
        """The first notices for a person, and how many there are beyond."""
        most = 20
        yield from self.notices[:most]
        if len(self.notices) > most:
            yield f"and {len(self.notices) - most} more oddities of that kind"


class _Manifests(Mapping[Digest, Manifest]):
    """The manifests of a bundle, each read again whenever it is asked for: a hostile archive could
    make all of them together fill the memory. Thread-safe once it is filled."""

    def __init__(self, limits: BundleLimits) -> None:
        self.budget = Budget(limits)
        self.places: dict[Digest, tuple[Readable, TarMember]] = {}
        self.nodes: dict[Digest, ManifestNode] = {}

    def __getitem__(self, digest: Digest) -> Manifest:
        media_type = self.nodes[digest].descriptor.media_type
        return _read_manifest(*self.places[digest], digest, media_type)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _read_manifest(file: Readable, member: TarMember, digest: Digest, media_type: str) -> Manifest:
    """Read a manifest. `media_type` is its descriptor's, since old documents do not state it.

    Raises:
        DigestMismatchError: its bytes have another digest.
        InvalidManifestError, IntegrityError, FileSystemError: it cannot be read.
    """
    where = f"manifest {digest}"
    if member.size > MAX_MANIFEST_BYTES:
        raise InvalidManifestError(f"{where} has {member.size} bytes, more than any manifest has")
    chunks = file.chunks(member.offset, member.size)
    raw = b"".join(verified(chunks, digest, member.size, where=where))
    said = media_type if media_type in MANIFESTS else None
    return Manifest.parse(raw, said, algorithm=digest.algorithm)


def read_contents(archives: Iterable[OpenArchive], limits: BundleLimits = ORDINARY) -> Contents:
    total: list[Inventory] = []
    per_archive: dict[str, Inventory] = {}
    findings: list[Finding] = []
    notices: list[str] = []
    manifests = _Manifests(limits)
    # Of a tag that two archives name, the later one's counts.
    for archive in sorted(archives, key=lambda one: one.name != PACKAGE_VERSIONS_ARCHIVE):
        try:
            manifests.budget.take_files(archive.members)
        except DamagedBundleError as err:
            findings.append(Finding(archive.name, err.seen_from(archive.name)))
            archive.refuse(err)
            continue
        if archive.problem is not None:
            findings.append(Finding(archive.name, archive.problem.seen_from(archive.name)))
        parts: list[Inventory] = []
        for repository, layout in archive.layouts().items():
            index = inside(layout, INDEX)
            try:
                path_of(repository)
            except InvalidReferenceError as err:
                findings.append(Finding(archive.name, f"{index}: {err}"))
                continue
            reading = _LayoutReading(archive, repository, index, manifests)
            parts.append(reading.inventory)
            findings.extend(reading.findings())
            notices.extend(reading.notices)
        found = union(parts)
        total.append(found)
        # Folders may each have an archive of that name.
        per_archive[archive.name] = union([per_archive.get(archive.name, Inventory()), found])
    notices += _disputes(per_archive)
    return Contents(union(total), per_archive, tuple(findings), tuple(notices), manifests)


def _disputes(archives: Mapping[str, Inventory]) -> Iterator[str]:
    """Say of each tag that several archives give to different images whose image counts.

    That is the last one's, in the order of `archives`.
    """
    holders: dict[str, list[str]] = {}
    for name, inventory in archives.items():
        for path in inventory.repositories:
            holders.setdefault(path, []).append(name)
    for path, names in holders.items():
        known: dict[str, tuple[str, Digest]] = {}
        for name in names if len(names) > 1 else ():
            for tag, digest in sorted(archives[name].repositories[path].tags.items()):
                other, before = known.get(tag, (name, digest))
                if before != digest:
                    yield (
                        f"{path or '/'}:{tag} is {before} in {other} and {digest} in {name}; "
                        f"that of {name} counts"
                    )
                known[tag] = (name, digest)


class _LayoutReading:
    """What the layout of `repository` holds, whose index lies at the path `index` in `archive`."""

    def __init__(
        self, archive: OpenArchive, repository: str, index: str, manifests: _Manifests
    ) -> None:
        self._archive, self._repository = archive, repository
        self._manifests, self._budget = manifests, manifests.budget
        self._left_out = archive.left_out.repository(repository)
        self._problems: dict[Digest | None, str] = {}
        self._beyond = 0
        self.notices: list[str] = []
        self.inventory = self._read(index)

    def _read(self, index: str) -> Inventory:
        builder = InventoryBuilder()
        tags: dict[str, tuple[Digest, str]] = {}
        try:
            # Of two descriptors with one tag the later one counts.
            tags.update(self._tagged(self._archive.members[index]))
        except (IntegrityError, FileSystemError) as err:
            self._note(None, f"{index}: {err.seen_from(self._archive.name)}")
        for tag, (digest, _) in tags.items():
            builder.add_tag(self._repository, tag, digest)
        pending = list(tags.values())
        seen: set[Digest] = set()
        while pending:
            digest, media_type = pending.pop()
            if digest in seen:
                continue
            seen.add(digest)
            node = self._left_out.manifests.get(digest) or self._manifest(digest, media_type)
            if node is None:
                continue
            try:
                self._budget.take_names(1 + len(node.named))
            except DamagedBundleError as err:
                self._note(None, str(err))
                break
            builder.add_manifest(self._repository, node, closed=False)
            for position, blob in enumerate((*node.blobs, *node.foreign)):
                size = self._size_of(blob.digest)
                if size == blob.size:
                    builder.add_blob(self._repository, blob.digest, blob.size)
                elif size is not None:
                    wrong = f"blob {blob.digest} has {size} bytes instead of {blob.size}"
                    self._note(blob.digest, wrong)
                elif position < len(node.blobs):
                    self._note(blob.digest, f"blob {blob.digest} is missing")
            pending.extend(
                (child.digest, child.media_type)
                for child in node.children
                if child.digest not in node.absent
                or child.digest in self._left_out.manifests
                or self._archive.blob(self._repository, child.digest)
            )
        return builder.build()

    def _size_of(self, digest: Digest) -> int | None:
        """Return the size of a blob that this layout has, or that its seal says it leaves out."""
        elsewhere = self._left_out.blobs.get(digest)
        if elsewhere is not None:
            return elsewhere
        there = self._archive.blob(self._repository, digest)
        return None if there is None else there.size

    def _note(self, digest: Digest | None, problem: str) -> None:
        if digest is None or digest in self._problems or len(self._problems) < MAX_FINDINGS:
            self._problems[digest] = problem
        else:
            self._beyond += 1

    def findings(self) -> Iterator[Finding]:
        if not self._problems:
            return
        dependents = Dependents(self.inventory.repository(self._repository))
        alike: dict[tuple[str, ...], tuple[str, ...]] = {}
        # What is wrong with the layout as a whole comes first: lists are cut at their ends.
        for digest, problem in sorted(self._problems.items(), key=lambda one: one[0] is not None):
            tags = dependents.tags(digest) if digest else ()
            tags = alike.setdefault(tags, tags)
            yield Finding(self._archive.name, problem, self._repository, tags, digest)
        if self._beyond:
            more = f"{self._beyond} more are missing or damaged"
            yield Finding(self._archive.name, more, self._repository)

    def _tagged(self, member: TarMember) -> Iterator[tuple[str, tuple[Digest, str]]]:
        """(short tag, (digest, media type)) of each descriptor in the layout's index, in its order.

        The index's own media type is not looked at: archives of other writers have a wrong one.
        """
        if member.size > self._budget.limits.index_bytes:
            raise DamagedBundleError(f"an index of {member.size} bytes is larger than any layout's")
        try:
            data = self._archive.file.read(member.offset, member.size)
            if value_count(data) > self._budget.limits.index_values:
                raise DamagedBundleError("it has more values than the index of any layout")
            for descriptor in open_json(data)["manifests"] or ():
                self._budget.take_names(1)
                digest = Digest.parse(descriptor["digest"])
                annotations = descriptor.get("annotations") or {}
                tag, reference = annotations.get(SHORT_TAG), annotations.get(REF_NAME)
                if tag is None:
                    self.notices.append(
                        f"{self._archive.name}: {member.path}: {digest} has no annotation "
                        f"{SHORT_TAG}, so it has no tag to go by; left out"
                    )
                elif not isinstance(tag, str) or not valid_tag(tag):
                    raise DamagedBundleError(f"{tag!r} is not a tag")
                elif isinstance(reference, str) and reference.rpartition(":")[2] != tag:
                    # Writers derive the one from the other, so somebody changed one.
                    raise DamagedBundleError(f"tag {tag} does not match reference {reference}")
                else:
                    yield tag, (digest, str(descriptor.get("mediaType")))
        except (*MALFORMED, RecursionError) as err:
            what = str(err) if isinstance(err, InvalidDigestError) else repr(err)
            raise DamagedBundleError(f"not the index of a layout ({what})") from err

    def _manifest(self, digest: Digest, media_type: str) -> ManifestNode | None:
        """Read this layout's own copy of a manifest; None, with a note, if it is damaged."""
        member = self._archive.blob(self._repository, digest)
        if member is None:
            self._note(digest, f"manifest {digest} is missing")
            return None
        where = f"manifest {digest}"
        try:
            node = ManifestNode.of(_read_manifest(self._archive.file, member, digest, media_type))
            node = replace(node, absent=self._archive.absent.get(digest, node.absent))
            if has_long_media_type(node):
                raise InvalidManifestError(f"{where} has a media type longer than any")
        except DigestMismatchError as err:
            self._note(digest, f"{where} is damaged: its bytes hash to {err.actual}")
            return None
        except (IntegrityError, InvalidManifestError, FileSystemError) as err:
            self._note(digest, err.seen_from(self._archive.name))
            return None
        known = self._manifests.nodes.get(digest)
        if known == node:
            return known  # of equal ones a single copy is kept
        self._manifests.places[digest] = (self._archive.file, member)
        self._manifests.nodes[digest] = node
        return node
