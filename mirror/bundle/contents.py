"""What a bundle's archives hold, read from their indexes and manifests; errors become findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mirror.bundle.files import Readable
from mirror.bundle.format import (
    INDEX,
    MAX_FINDINGS,
    MAX_INDEX_BYTES,
    MAX_INDEX_MARKS,
    MAX_MANIFEST_MARKS,
    REF_NAME,
    SHORT_TAG,
    Budget,
    inside,
    marks,
)
from mirror.bundle.members import Member
from mirror.bundle.opening import OpenArchive
from mirror.bundle.seal import has_long_media_type
from mirror.documents import parse_json
from mirror.errors import (
    DamagedBundleError,
    DigestMismatchError,
    FileSystemError,
    IntegrityError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
)
from mirror.oci import Digest, Manifest, verified
from mirror.oci.manifest import MANIFESTS, MAX_MANIFEST_BYTES
from mirror.oci.reference import check_repository, valid_tag
from mirror.sync import Dependents, Finding, Inventory, InventoryBuilder, ManifestNode, union


@dataclass(frozen=True, slots=True)
class Contents:
    """What all archives hold together. `inventory` is open where findings say so.

    Layouts that several archives share are merged; of a tag that two of them name, the later
    archive's counts. `notices` are oddities that harm nothing.
    """

    inventory: Inventory
    archives: Mapping[str, Inventory]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]
    manifests: Mapping[Digest, Manifest] = field(repr=False)

    def warnings(self, most: int = 20) -> Iterator[str]:
        """The first `most` notices for a person, and how many there are beyond."""
        yield from self.notices[:most]
        if len(self.notices) > most:
            yield f"and {len(self.notices) - most} more oddities of that kind"


class _Manifests(Mapping[Digest, Manifest]):
    """The manifests of a bundle, each read again whenever it is asked for: a hostile archive could
    make all of them together fill the memory. Thread-safe once it is filled."""

    def __init__(self) -> None:
        self._places: dict[Digest, tuple[Readable, Member, str]] = {}
        self._nodes: dict[Digest, ManifestNode] = {}

    def node(self, digest: Digest) -> ManifestNode | None:
        """Return what is known of a manifest; None if it was not added."""
        return self._nodes.get(digest)

    def add(self, file: Readable, member: Member, node: ManifestNode) -> None:
        """Remember where a manifest lies."""
        digest = node.descriptor.digest
        self._places[digest] = (file, member, node.descriptor.media_type)
        self._nodes[digest] = node

    def __getitem__(self, digest: Digest) -> Manifest:
        return read_manifest(*self._places[digest][:2], digest, self._places[digest][2])

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_manifest(file: Readable, member: Member, digest: Digest, media_type: str) -> Manifest:
    """Read a manifest. `media_type` is its descriptor's, since old documents do not state it.

    Raises:
        DigestMismatchError: its bytes have another digest.
        InvalidManifestError, IntegrityError, FileSystemError: it cannot be read.
    """
    where = f"manifest {digest}"
    chunks = file.chunks(member.offset, member.size)
    raw = b"".join(verified(chunks, digest, member.size, where=where))
    if marks(raw) > MAX_MANIFEST_MARKS:
        raise InvalidManifestError(f"{where} has more values than any manifest has")
    said = media_type if media_type in MANIFESTS else None
    return Manifest.parse(raw, said, algorithm=digest.algorithm)


def read_contents(archives: Iterable[OpenArchive]) -> Contents:
    """Read every index and manifest. What cannot be read becomes a finding, never an exception."""
    total = InventoryBuilder()
    per_archive: dict[str, Inventory] = {}
    findings: list[Finding] = []
    notices: list[str] = []
    manifests = _Manifests()
    budget = Budget()
    for archive in archives:
        try:
            budget.take_files(archive.members)
        except DamagedBundleError as err:
            findings.append(Finding(archive.name, err.seen_from(archive.name)))
            archive.refuse(err)
            continue
        if archive.problem is not None:
            findings.append(Finding(archive.name, archive.problem.seen_from(archive.name)))
        parts = InventoryBuilder()
        for repository, layout in archive.layouts().items():
            try:
                if repository:
                    check_repository(repository)
            except InvalidReferenceError as err:
                findings.append(Finding(archive.name, f"{inside(layout, INDEX)}: {err}"))
                continue
            reading = _LayoutReading(archive, repository, layout, manifests, budget)
            reading.run()
            parts.add_inventory(reading.inventory)
            findings.extend(reading.findings())
            notices.extend(reading.notices)
        found = parts.build()
        # Folders may each have an archive of that name.
        per_archive[archive.name] = union([per_archive.get(archive.name, Inventory()), found])
        total.add_inventory(found)
    return Contents(total.build(), per_archive, tuple(findings), tuple(notices), manifests)


class _LayoutReading:
    """Follows one layout's tags to everything they reach."""

    def __init__(
        self,
        archive: OpenArchive,
        repository: str,
        layout: str,
        manifests: _Manifests,
        budget: Budget,
    ) -> None:
        self._archive, self._repository, self._layout = archive, repository, layout
        self._manifests, self._budget = manifests, budget
        self._left_out = archive.left_out.repository(repository)
        self._problems: dict[Digest | None, str] = {}
        self._beyond = 0
        self.notices: list[str] = []
        self.inventory = Inventory()

    def run(self) -> None:
        builder = InventoryBuilder()
        tags: dict[str, tuple[Digest, str]] = {}
        path = inside(self._layout, INDEX)
        try:
            # Of two descriptors with one tag the later one counts.
            tags.update(self._tagged(self._archive.members[path]))
        except (IntegrityError, FileSystemError) as err:
            self._note(None, f"{path}: {err.seen_from(self._archive.name)}")
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
                self._budget.take_names(1 + len(node.blobs) + len(node.children))
            except DamagedBundleError as err:
                self._note(None, str(err))
                break
            builder.add_manifest(self._repository, node, closed=False)
            for blob in node.blobs:
                size = self._size_of(blob.digest)
                if size is None:
                    self._note(blob.digest, f"blob {blob.digest} is missing")
                elif size != blob.size:
                    self._note(
                        blob.digest,
                        f"blob {blob.digest} has {size} bytes instead of {blob.size}",
                    )
                else:
                    builder.add_blob(self._repository, blob.digest, blob.size)
            pending.extend((child.digest, child.media_type) for child in node.children)
        self.inventory = builder.build()

    def _size_of(self, digest: Digest) -> int | None:
        """Return the size of a blob that this layout has, or that its seal says it leaves out."""
        elsewhere = self._left_out.blobs.get(digest)
        if elsewhere is not None:
            return elsewhere
        there = self._archive.blob(self._repository, digest)
        return None if there is None else there.size

    def _note(self, digest: Digest | None, problem: str) -> None:
        """Note what is wrong with `digest`, or with the layout as a whole."""
        if digest is None or digest in self._problems or len(self._problems) < MAX_FINDINGS:
            self._problems[digest] = problem
        else:
            self._beyond += 1

    def findings(self) -> Iterator[Finding]:
        """Yield all that is wrong, each with the tags that need it."""
        if self._problems:
            dependents = Dependents(self.inventory.repository(self._repository))
            alike: dict[tuple[str, ...], tuple[str, ...]] = {}
            # What is wrong with the layout as a whole comes first: lists are cut at their ends.
            for digest, problem in sorted(
                self._problems.items(), key=lambda item: item[0] is not None
            ):
                tags = dependents.tags(digest) if digest else ()
                tags = alike.setdefault(tags, tags)
                yield Finding(self._archive.name, problem, self._repository, tags, digest)
            if self._beyond:
                more = f"{self._beyond} more are missing or damaged"
                yield Finding(self._archive.name, more, self._repository)

    def _tagged(self, member: Member) -> Iterator[tuple[str, tuple[Digest, str]]]:
        """(short tag, (digest, media type)) of each descriptor in the layout's index, in its order.

        The index's own media type is not looked at: archives of other writers have a wrong one.
        """
        if member.size > MAX_INDEX_BYTES:
            raise DamagedBundleError(f"an index of {member.size} bytes is larger than any layout's")
        try:
            data = self._archive.file.read(member.offset, member.size)
            if marks(data) > MAX_INDEX_MARKS:
                raise DamagedBundleError("it has more values than the index of any layout")
            document = parse_json(data)
            del data
            for descriptor in document["manifests"] or ():
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
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise DamagedBundleError(f"not the index of a layout ({err!r})") from err
        except InvalidDigestError as err:
            raise DamagedBundleError(f"not the index of a layout ({err})") from err

    def _manifest(self, digest: Digest, media_type: str) -> ManifestNode | None:
        """Read this layout's own copy of a manifest; None, and a noted problem, if it is damaged.

        `media_type` is what its descriptor says, since old documents do not state it.
        """
        member = self._archive.blob(self._repository, digest)
        if member is None:
            self._note(digest, f"manifest {digest} is missing")
            return None
        where = f"manifest {digest}"
        if member.size > MAX_MANIFEST_BYTES:
            self._note(digest, f"{where} has {member.size} bytes, more than any manifest has")
            return None
        try:
            node = ManifestNode.of(read_manifest(self._archive.file, member, digest, media_type))
            if has_long_media_type(node):
                raise InvalidManifestError(f"{where} has a media type longer than any")
        except DigestMismatchError as err:
            self._note(digest, f"{where} is damaged: its bytes hash to {err.actual}")
            return None
        except (IntegrityError, InvalidManifestError, FileSystemError) as err:
            self._note(digest, err.seen_from(self._archive.name))
            return None
        known = self._manifests.node(digest)
        if known == node:
            return known  # of equal ones a single copy is kept
        self._manifests.add(self._archive.file, member, node)
        return node
