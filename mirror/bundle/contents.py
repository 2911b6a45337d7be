"""What a bundle's archives hold: their indexes and manifests read, what is wrong noted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mirror.bundle.carriage import NOTHING
from mirror.bundle.files import Readable
from mirror.bundle.names import REF_NAME, SHORT_TAG, blob_path, inside
from mirror.bundle.tar import Member, members
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
from mirror.oci import Digest, Manifest, verified
from mirror.oci.manifest import MAX_MANIFEST_BYTES
from mirror.oci.media_types import MANIFESTS
from mirror.oci.reference import check_repository, valid_tag
from mirror.sync import Dependents, Finding, Inventory, InventoryBuilder, ManifestNode, union

_MAX_INDEX_BYTES = 8 << 20
"""A layout's index has some 400 bytes per tag: room for 20,000 tags in one repository."""

_INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class OpenArchive:
    """One archive as found: its files by path, up to the `problem` that ended the list.

    `end` is where its end marker begins, if nothing ended the list before. `prefix` is where its
    content belongs: archives of the first format lack their own path. `left_out` is what its seal
    says of it that lies elsewhere.
    """

    file: Readable
    members: Mapping[str, Member]
    problem: MirrorError | None
    end: int = 0
    prefix: str = ""
    left_out: Inventory = NOTHING

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.file.path.name

    def layouts(self) -> dict[str, str]:
        """Repository path → path of its layout inside the archive; sorted."""
        inner = sorted(
            path.removesuffix(_INDEX).rstrip("/")
            for path in self.members
            if path == _INDEX or path.endswith("/" + _INDEX)
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


def scan(file: Readable, left_out: Inventory = NOTHING) -> OpenArchive:
    """List an archive's files; a damaged header ends the list and is kept as the problem."""
    found: dict[str, Member] = {}
    problem: MirrorError | None = None
    end = 0
    try:
        end = _collect(file, found)
    except (DamagedBundleError, FileSystemError) as err:
        problem = err
    prefix = _legacy_prefix(file.path.name, found)
    return OpenArchive(file, found, problem, end, prefix, left_out)


def _collect(file: Readable, found: dict[str, Member]) -> int:
    """Put the archive's files into `found`; return where its end marker begins."""
    listing = members(file)
    while True:
        try:
            member = next(listing)
        except StopIteration as over:
            return int(over.value)
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


def read_contents(archives: Iterable[OpenArchive]) -> Contents:
    """Read every index and manifest. What cannot be read becomes a finding, never an exception."""
    total = InventoryBuilder()
    per_archive: dict[str, Inventory] = {}
    findings: list[Finding] = []
    notices: list[str] = []
    manifests: dict[Digest, Manifest] = {}
    for archive in archives:
        if archive.problem is not None:
            problem = str(archive.problem).removeprefix(f"{archive.name}: ")
            findings.append(Finding(archive.name, problem))
        parts = InventoryBuilder()
        for repository, layout in archive.layouts().items():
            try:
                if repository:
                    check_repository(repository)
            except InvalidReferenceError as err:
                findings.append(Finding(archive.name, f"{inside(layout, _INDEX)}: {err}"))
                continue
            reading = _LayoutReading(archive, repository, layout, manifests)
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
        manifests: dict[Digest, Manifest],
    ) -> None:
        self._archive, self._repository, self._layout = archive, repository, layout
        self._manifests = manifests
        self._left_out = archive.left_out.repository(repository)
        self._problems: dict[Digest | None, str] = {}
        self.notices: list[str] = []
        self.inventory = Inventory()

    def run(self) -> None:
        builder = InventoryBuilder()
        tags: dict[str, tuple[Digest, str]] = {}
        path = inside(self._layout, _INDEX)
        try:
            # Of two descriptors with one tag the later one counts.
            tags.update(self._tagged(self._archive.members[path]))
        except (IntegrityError, FileSystemError) as err:
            problem = str(err).removeprefix(f"{self._archive.name}: ")
            self._problems[None] = f"{path}: {problem}"
        for tag, (digest, _) in tags.items():
            builder.add_tag(self._repository, tag, digest)
        pending = list(tags.values())
        seen: set[Digest] = set()
        while pending:
            digest, media_type = pending.pop()
            if digest in seen:
                continue
            seen.add(digest)
            node = self._left_out.manifests.get(digest) or self._node(digest, media_type)
            if node is None:
                continue
            builder.add_manifest(self._repository, node, closed=False)
            for blob in node.blobs:
                size = self._size_of(blob.digest)
                if size is None:
                    self._problems[blob.digest] = f"blob {blob.digest} is missing"
                elif size != blob.size:
                    self._problems[blob.digest] = (
                        f"blob {blob.digest} has {size} bytes instead of {blob.size}"
                    )
                else:
                    builder.add_blob(self._repository, blob.digest, blob.size)
            pending.extend((child.digest, child.media_type) for child in node.children)
        self.inventory = builder.build()

    def _node(self, digest: Digest, media_type: str) -> ManifestNode | None:
        manifest = self._manifest(digest, media_type)
        return None if manifest is None else ManifestNode.of(manifest)

    def _size_of(self, digest: Digest) -> int | None:
        """Bytes of a blob that lies in this layout, or of which the seal says that it need not."""
        elsewhere = self._left_out.blobs.get(digest)
        if elsewhere is not None:
            return elsewhere
        there = self._archive.blob(self._repository, digest)
        return None if there is None else there.size

    def findings(self) -> Iterator[Finding]:
        """All that was wrong, each with the tags that suffer from it."""
        if self._problems:
            dependents = Dependents(self.inventory.repository(self._repository))
            for digest, problem in self._problems.items():
                tags = dependents.tags(digest) if digest else ()
                yield Finding(self._archive.name, problem, self._repository, tags, digest)

    def _tagged(self, member: Member) -> Iterator[tuple[str, tuple[Digest, str]]]:
        """(short tag, (digest, media type)) of each descriptor in the layout's index, in its order.

        The index's own media type is not looked at: archives of other writers have a wrong one.
        """
        if member.size > _MAX_INDEX_BYTES:
            raise DamagedBundleError(f"an index of {member.size} bytes is no layout's")
        try:
            document = json.loads(self._archive.file.read(member.offset, member.size))
            for descriptor in document["manifests"] or ():
                digest = Digest.parse(descriptor["digest"])
                annotations = descriptor.get("annotations") or {}
                tag, reference = annotations.get(SHORT_TAG), annotations.get(REF_NAME)
                if tag is None:
                    self.notices.append(
                        f"{self._archive.name}: {member.path}: {digest} has no annotation "
                        f"{SHORT_TAG}, so it has no tag to go by; left out"
                    )
                elif not isinstance(tag, str) or not valid_tag(tag):
                    raise DamagedBundleError(f"{tag!r} is no tag")
                elif isinstance(reference, str) and reference.rpartition(":")[2] != tag:
                    # Whoever writes archives derives the one from the other: one was changed.
                    raise DamagedBundleError(f"tag {tag} does not go with reference {reference}")
                else:
                    yield tag, (digest, str(descriptor.get("mediaType")))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise DamagedBundleError(f"not the index of a layout ({err!r})") from err
        except InvalidDigestError as err:
            raise DamagedBundleError(f"not the index of a layout ({err})") from err

    def _manifest(self, digest: Digest, media_type: str) -> Manifest | None:
        """The manifest, from this layout's own copy; None, and a problem, if it is not right.

        `media_type` is what its descriptor says: old documents do not say it themselves.
        """
        member = self._archive.blob(self._repository, digest)
        if member is None:
            self._problems[digest] = f"manifest {digest} is missing"
            return None
        where = f"manifest {digest}"
        if member.size > MAX_MANIFEST_BYTES:
            self._problems[digest] = f"{where} has {member.size} bytes, more than any has"
            return None
        chunks = self._archive.file.chunks(member.offset, member.size)
        try:
            raw = b"".join(verified(chunks, digest, member.size, where=where))
            said = media_type if media_type in MANIFESTS else None
            manifest = Manifest.parse(raw, said, algorithm=digest.algorithm)
        except DigestMismatchError as err:
            self._problems[digest] = f"{where} is damaged: its bytes hash to {err.actual}"
            return None
        except (IntegrityError, InvalidManifestError, FileSystemError) as err:
            self._problems[digest] = str(err).removeprefix(f"{self._archive.name}: ")
            return None
        return self._manifests.setdefault(digest, manifest)
