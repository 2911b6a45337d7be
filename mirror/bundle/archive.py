"""What each archive of a bundle carries, and where every byte of it goes.

Manifests come first, so every blob's size is known, so the offset of every entry inside the tar is
known before any blob is fetched. An archive is a pure function of the inventory it holds and the
names that its repositories had at the source: no clock, no order of arrival. Hence workers may
write at final offsets in any order, equal selections give equal bytes, and a verifier knows each
byte that is not a blob's.

A bundle speaks of everything that its images need, and an ordinary one carries it in each layout
that needs it. A delta leaves out what its base holds, and a deduplicated bundle every copy of a
blob but one. What is left out follows from the inventory and the `Coverage`; nothing else is
written down.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from types import MappingProxyType
from typing import Any

from mirror.bundle.format import (
    INDEX,
    REF_NAME,
    SHORT_TAG,
    blob_path,
    inside,
    size_text,
    source_reference,
)
from mirror.documents import document
from mirror.errors import counted
from mirror.oci import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.sync import Dependents, Finding, Inventory, InventoryBuilder, RepositoryContent

# -- what is left out ------------------------------------------------------------------------------

NOTHING = Inventory()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a bundle carries its content.

    `base` is the digest of the inventory that a delta was made against, and `needed` the part of
    that inventory which it relies on. With `once` a blob lies in one layout of the whole bundle.
    """

    base: Digest | None = None
    needed: Inventory = field(default=NOTHING, repr=False)
    once: bool = False

    @property
    def is_ordinary(self) -> bool:
        return self.base is None and not self.once


COMPLETE = Coverage()


@dataclass(frozen=True, slots=True)
class Omissions:
    """What a bundle leaves out, in numbers; each piece of content is counted once, sizes are bytes.

    `base`, `manifests`, `blobs` and `size` (of the blobs) speak of a delta; `repeats` of the copies
    that a deduplicated bundle does without, and is None for others.
    """

    base: Digest | None = None
    manifests: int = 0
    blobs: int = 0
    size: int = 0
    repeats: int | None = None

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`: `delta` and `dedupe`, each only where it applies."""
        delta = document(self, "base", "manifests", "blobs", "saved=size")
        return {
            **({} if self.base is None else {"delta": delta}),
            **({} if self.repeats is None else {"dedupe": {"saved": self.repeats}}),
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        if self.base is not None:
            left = f"{counted(self.manifests, 'manifest')} and {counted(self.blobs, 'blob')}"
            yield "Delta", f"leaves {left} ({size_text(self.size)}) to its base"
            yield "Base", f"inventory {self.base}"
        if self.repeats is not None:
            saved = size_text(self.repeats)
            yield "Deduplicated", f"each blob once, {saved} less; only mirror reads it"


NO_OMISSIONS = Omissions()


@dataclass(frozen=True, slots=True)
class Compressed:
    """What compressing saved: by archive the bytes before (`sizes`) and on the disk (`stored`)."""

    sizes: Mapping[str, int]
    stored: Mapping[str, int]

    def __post_init__(self) -> None:
        for name in ("sizes", "stored"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def size(self) -> int:
        return sum(self.stored.values())

    @property
    def before(self) -> int:
        return sum(self.sizes.values())

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`. `saved` is below zero where the frames cost more."""
        return {**document(self, "archives=stored", "bytes=size"), "saved": self.before - self.size}

    def rows(self) -> Iterator[tuple[str, str]]:
        saved = max(0, self.before - self.size)
        share = f"{100 * saved / self.before:.1f}" if self.before else "0"
        saves = f"which saves {size_text(saved)} ({share} %)"
        yield "Compressed", f"to {size_text(self.size)}, {saves}"


def against(base: Inventory, wanted: Inventory, *, once: bool = False) -> Coverage:
    """Leave to `base` whatever it holds of `wanted`.

    If it holds nothing of that, the outcome is a complete bundle, which needs no base.
    """
    needed = needed_from(base, wanted)
    return Coverage(base.digest() if needed.repositories else None, needed, once)


def needed_from(base: Inventory, wanted: Inventory) -> Inventory:
    """Return the part of `base` that a delta for `wanted` relies on.

    A manifest counts where the same repository holds it: manifests are small, and a registry
    cannot mount them. A blob counts wherever it is held, since a target mounts it from there: in
    all repositories that want it, or else in the first that holds it.
    """
    builder = InventoryBuilder()
    holders: dict[Digest, str] = {}
    sizes = wanted.blob_sizes()
    for path, held in sorted(base.repositories.items()):
        content = wanted.repository(path)
        for digest, node in content.manifests.items():
            if digest in held.manifests:
                builder.add_manifest(path, node, closed=False)
        for digest, size in held.blobs.items():
            if sizes.get(digest) == size:
                holders.setdefault(digest, path)
    found: set[Digest] = set()
    for path, content in sorted(wanted.repositories.items()):
        there = base.repository(path).blobs
        for digest, size in content.blobs.items():
            if there.get(digest) == size:
                builder.add_blob(path, digest, size)
                found.add(digest)
    for digest, path in holders.items():
        if digest not in found:
            builder.add_blob(path, digest, sizes[digest])
    return builder.build()


def left_out(parts: Mapping[str, Inventory], coverage: Coverage) -> dict[str, Inventory]:
    """Return what each archive leaves out of what it speaks of, which is `parts`.

    A blob that is carried once stays where it comes first, by archive and repository.
    """
    at_base = coverage.needed.blob_sizes()
    carried: set[Digest] = set()
    result: dict[str, Inventory] = {}
    for name, part in sorted(parts.items()):
        builder = InventoryBuilder()
        for path, content in sorted(part.repositories.items()):
            there = coverage.needed.repository(path).manifests
            for digest, node in content.manifests.items():
                if digest in there:
                    builder.add_manifest(path, node, closed=False)
            for digest, size in content.blobs.items():
                if at_base.get(digest) == size or digest in carried:
                    builder.add_blob(path, digest, size)
                elif coverage.once:
                    carried.add(digest)
        result[name] = builder.build()
    return result


def minus(whole: Inventory, part: Inventory) -> Inventory:
    """Return `whole` without the manifests and blobs of `part`; all tags stay."""
    if not part.repositories:
        return whole
    repositories = {}
    for path, content in whole.repositories.items():
        gone = part.repository(path)
        repositories[path] = RepositoryContent(
            content.tags,
            {d: node for d, node in content.manifests.items() if d not in gone.manifests},
            {d: size for d, size in content.blobs.items() if d not in gone.blobs},
        )
    return Inventory({path: content for path, content in repositories.items() if content})


def missing_findings(
    wanted: Inventory, needed: Inventory, held: Inventory, place: str
) -> tuple[Finding, ...]:
    """Report each piece of `needed` that `place`, which holds `held`, does not have.

    A finding names the part of `wanted` that needs the piece. A manifest must be in its repository,
    a blob in any. Findings about images with a name come first, since a person knows none of the
    thousands that go by their digests; otherwise the order is canonical.
    """
    missing = set(needed.blob_sizes()) - set(held.blob_sizes())
    findings: list[Finding] = []
    for path, content in sorted(wanted.repositories.items()):
        manifests = set(needed.repository(path).manifests) - set(held.repository(path).manifests)
        lost = [
            *(("manifest", digest) for digest in sorted(manifests & set(content.manifests))),
            *(("blob", digest) for digest in sorted(missing & set(content.blobs))),
        ]
        if lost:
            dependents = Dependents(content)
            findings += (
                Finding(place, f"{kind} {digest} is missing", path, dependents.tags(digest), digest)
                for kind, digest in lost
            )
    return tuple(sorted(findings, key=lambda finding: not finding.is_named))


# -- where bytes go --------------------------------------------------------------------------------

BLOCK = 512
TRAILER_SIZE = 2 * BLOCK
"""End of archive: two blocks of zeros (POSIX ustar); no padding to a record of 20."""

OCI_LAYOUT = b'{\n    "imageLayoutVersion": "1.0.0"\n}'


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive: a header at `offset`, `size` bytes at `data_offset`, then zeros.

    `digest` is what its bytes hash to; `content` the bytes themselves where they are not carried
    from elsewhere; they have a `name` in the layout `repository`.
    """

    repository: str
    offset: int
    data_offset: int
    size: int
    digest: Digest
    name: str = ""
    content: bytes | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        """Where it lies in the archive; a large bundle has too many of these to keep them."""
        if self.name:
            return inside(self.repository, self.name)
        return blob_path(self.repository, self.digest)

    @property
    def header(self) -> bytes:
        """The tar header: 512 bytes, or a multiple of that for long names."""
        return tar_header(self.path, self.size)

    @property
    def padding(self) -> int:
        """How many zero bytes follow its own."""
        return -self.size % BLOCK

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.data_offset + self.size + self.padding


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive of a bundle, laid out: entries in order and without gaps. Sizes in bytes.

    `left_out` is the part of its `inventory` that lies elsewhere (`mirror.bundle.archive`).
    """

    name: str
    inventory: Inventory
    origins: Mapping[str, str]
    entries: tuple[Entry, ...] = field(repr=False)
    size: int
    left_out: Inventory = field(default=NOTHING, repr=False)

    @property
    def carried(self) -> Inventory:
        """The part of its inventory that has a place in it, with all tags."""
        return minus(self.inventory, self.left_out)

    def described(self) -> Iterator[tuple[int, int]]:
        """Yield where each index and manifest in it begins and ends."""
        for entry in self.entries:
            manifests = self.inventory.repository(entry.repository).manifests
            if entry.name == INDEX or entry.digest in manifests:
                yield entry.data_offset, entry.data_offset + entry.size

    @property
    def absent(self) -> dict[Digest, frozenset[Digest]]:
        """The sparse indexes in it, each with the images that nobody had."""
        nodes = self.inventory.manifest_nodes().items()
        return {digest: node.absent for digest, node in nodes if node.absent}

    @property
    def trailer_offset(self) -> int:
        """Where the end-of-archive blocks begin."""
        return self.size - TRAILER_SIZE


def lay_out(
    name: str, inventory: Inventory, origins: Mapping[str, str], left_out: Inventory = NOTHING
) -> Archive:
    """Give every file of archive `name` its place.

    `origins` maps each repository path to what it was called at the source, `host/path`. Indexes
    name all tags; what these reach has a place, except for `left_out`.
    """
    # The order of a directory walk, in which each folder's names are sorted: \0 for each slash.
    files: list[tuple[str, str, int, Digest, str, bytes | None]] = []
    carried = minus(inventory, left_out)
    for layout, spoken_of in inventory.repositories.items():
        for file_name, own in (
            (INDEX, index_json(spoken_of, origins[layout])),
            ("oci-layout", OCI_LAYOUT),
        ):
            order = inside(layout, file_name).replace("/", "\0")
            files.append((order, layout, len(own), Digest.of(own), file_name, own))
        held = carried.repository(layout)
        sizes = {digest: node.descriptor.size for digest, node in held.manifests.items()}
        folder = inside(layout, "blobs/").replace("/", "\0")
        for digest, size in {**held.blobs, **sizes}.items():
            files.append((folder + str(digest).replace(":", "\0"), layout, size, digest, "", None))
    files.sort()
    offset = 0
    entries: list[Entry] = []
    for order, layout, size, digest, file_name, content in files:
        entry = Entry(layout, offset, offset + header_size(order), size, digest, file_name, content)
        entries.append(entry)
        offset = entry.end
    size = offset + TRAILER_SIZE
    return Archive(name, inventory, dict(origins), tuple(entries), size, left_out)


def header_size(path: str) -> int:
    """Return the length of `tar_header` for a file of any size at `path`."""
    length = len(path.encode())
    # A longer name comes first, in a member of its own: header, name, and its end.
    return BLOCK if length <= 100 else 2 * BLOCK + length + 1 + -(length + 1) % BLOCK


def tar_header(path: str, size: int) -> bytes:
    """Return the header of a regular file: GNU format, mode 0777, owner 0, time 0."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, 0o777, 0
    return info.tobuf(tarfile.GNU_FORMAT, encoding="utf-8", errors="strict")


def index_json(content: RepositoryContent, origin: str) -> bytes:
    """Render a layout's index, two spaces deep: one descriptor per tag, by source reference."""
    tags = ",\n".join(_tag_descriptors(content, origin))
    manifests = f"[\n{tags}\n  ]" if tags else "[]"
    head = f'"schemaVersion": 2,\n  "mediaType": "{OCI_INDEX}"'
    return f'{{\n  {head},\n  "manifests": {manifests}\n}}'.encode()


def _tag_descriptors(content: RepositoryContent, origin: str) -> Iterator[str]:
    named = sorted(
        (source_reference(origin, tag, digest), tag, digest) for tag, digest in content.tags.items()
    )
    for reference, tag, digest in named:
        node = content.manifests[digest]
        kind = node.artifact_type
        # By hand: the library's own encoder takes ten times as long when it indents.
        yield (
            f'    {{\n      "mediaType": {quoted(node.descriptor.media_type)},\n'
            f'      "size": {node.descriptor.size},\n      "digest": "{digest}",\n'
            f'      "annotations": {{\n        "{SHORT_TAG}": {quoted(tag)},\n'
            f'        "{REF_NAME}": {quoted(reference)}\n      }}'
            + ("" if kind is None else f',\n      "artifactType": {quoted(kind)}')
            + "\n    }"
        )


# -- whole archives --------------------------------------------------------------------------------


def missing_archives(archives: Mapping[str, Archive], present: Iterable[str]) -> list[Finding]:
    """Report every repository of `archives` that is missing."""
    return [
        finding
        for name in sorted(set(archives) - set(present))
        for finding in whole_archive(archives[name], "the archive is missing")
    ]


def whole_archive(archive: Archive, problem: str) -> Iterator[Finding]:
    """Report what is wrong with all of an archive, for each repository with its tags."""
    for repository, content in sorted(archive.inventory.repositories.items()):
        tags = tuple(sorted(content.tags))
        digest = content.tags[tags[0]] if tags else None
        yield Finding(archive.name, problem, repository, tags, digest)
