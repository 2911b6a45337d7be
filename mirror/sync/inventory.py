"""Inventories: what a place holds, as pure data.

For each repository: which tags name which digest, which manifests are there, and which blobs.
Everything else is arithmetic on this: a selection, a bundle, a registry's state and a delta are
inventories; a plan is the difference of two.

An inventory may be *open*: a manifest in it may reach blobs or children that it does not have,
which is how a half-filled or damaged registry looks. `gaps` lists them; a *closed* one has none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from json.encoder import encode_basestring as quoted
from typing import Any

from mirror.errors import (
    DamagedBundleError,
    InputError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
)
from mirror.oci import Descriptor, Digest, ManifestNode
from mirror.oci.reference import check_repository, check_tag, digest_of, referrers_tag


@dataclass(frozen=True, slots=True)
class RepositoryContent:
    """What one repository holds. `blobs` maps digests to sizes in bytes."""

    tags: Mapping[str, Digest] = field(default_factory=dict)
    manifests: Mapping[Digest, ManifestNode] = field(default_factory=dict)
    blobs: Mapping[Digest, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tags or self.manifests or self.blobs)

    def __or__(self, more: RepositoryContent) -> RepositoryContent:
        """All content of both; where they name a tag differently, `more` wins."""
        return RepositoryContent(
            {**self.tags, **more.tags},
            {**self.manifests, **more.manifests},
            {**self.blobs, **more.blobs},
        )

    def reachable(self, roots: Iterable[Digest]) -> set[Digest]:
        """The manifests among `roots` that are here, and all below them."""
        found: set[Digest] = set()
        pending = list(roots)
        while pending:
            digest = pending.pop()
            if digest not in found and digest in self.manifests:
                found.add(digest)
                pending.extend(child.digest for child in self.manifests[digest].children)
        return found

    def referrers_tags(self) -> set[str]:
        """Tags under which a registry without the referrers API lists what refers to these.

        They follow from the manifests, so no statement names them and they are not extras.
        """
        return set(map(referrers_tag, self.manifests))

    def closure_size(self, digest: Digest) -> int:
        """Bytes of a manifest and all that it reaches here, each piece counted once."""
        nodes = [self.manifests[one] for one in self.reachable([digest])]
        foreign = (one for node in nodes for one in node.foreign if one.digest in self.blobs)
        pieces = (piece for node in nodes for piece in (node.descriptor, *node.blobs))
        return sum({piece.digest: piece.size for piece in (*pieces, *foreign)}.values())


_NOTHING = RepositoryContent()

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that an inventory promises and does not hold.

    `missing` is needed by the manifest `needed_by`, or by `tag` itself when `needed_by` is None.
    """

    repository: str
    missing: Digest
    needed_by: Digest | None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """Repository contents by path, relative to the root that a tree of repositories shares.

    The empty path is the root repository itself. Repositories without content are left out, so
    that equal content means equal inventories.
    """

    repositories: Mapping[str, RepositoryContent] = field(default_factory=dict)
    _digest: Digest | None = field(default=None, init=False, repr=False, compare=False)

    def repository(self, path: str) -> RepositoryContent:
        """What the repository `path` holds; nothing if the inventory does not know it."""
        return self.repositories.get(path, _NOTHING)

    def digest(self) -> Digest:
        """Identity of all content: equal for two places if and only if they hold the same.

        It is computed once and kept.
        """
        if self._digest is None:
            object.__setattr__(self, "_digest", digest_of(self.pieces()))
        assert self._digest is not None
        return self._digest

    def blob_sizes(self) -> dict[Digest, int]:
        """Every distinct blob with its size in bytes, in canonical order."""
        sizes: dict[Digest, int] = {}
        for _, content in sorted(self.repositories.items()):
            sizes.update(content.blobs)
        return {digest: sizes[digest] for digest in sorted(sizes)}

    def manifest_nodes(self) -> dict[Digest, ManifestNode]:
        """Every distinct manifest, in canonical order."""
        nodes: dict[Digest, ManifestNode] = {}
        for content in self.repositories.values():
            nodes.update(content.manifests)
        return {digest: nodes[digest] for digest in sorted(nodes)}

    def gaps(self) -> Iterator[Gap]:
        """What is promised and not there, in canonical order. A closed inventory has none."""
        for path, content in sorted(self.repositories.items()):
            for tag, digest in sorted(content.tags.items()):
                if digest not in content.manifests:
                    yield Gap(path, digest, None, tag)
            for digest, node in sorted(content.manifests.items()):
                # Once each: images often have the same (empty) layer several times.
                for blob in dict.fromkeys(blob.digest for blob in node.blobs):
                    if blob not in content.blobs:
                        yield Gap(path, blob, digest)
                for child in dict.fromkeys(child.digest for child in node.children):
                    if child not in content.manifests and child not in node.absent:
                        yield Gap(path, child, digest)

    def counts(self) -> dict[str, int]:
        """How many of each kind there are; each distinct manifest and blob counts once."""
        return {
            "repositories": len(self.repositories),
            "tags": sum(len(content.tags) for content in self.repositories.values()),
            "manifests": len(self.manifest_nodes()),
            "blobs": len(self.blob_sizes()),
        }

    def filtered(self, keep: Callable[[str], bool]) -> Inventory:
        """Only the repositories whose path `keep` accepts."""
        return Inventory({p: c for p, c in self.repositories.items() if keep(p)})

    # -- canonical form ------------------------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """The inventory as JSON values (schema version 1); see docs/inventory.md."""
        return dict(json.loads(self.to_json()))

    def to_json(self) -> bytes:
        """The one canonical serialisation: UTF-8, keys sorted, no white space."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The serialisation, one manifest or repository at a time, to bound its memory."""
        yield b'{"manifests":'
        yield from self.manifest_pieces()
        yield b',"repositories":'
        yield from self.repository_pieces()
        yield b',"schemaVersion":%d}' % SCHEMA_VERSION

    def manifest_pieces(self) -> Iterator[bytes]:
        """Serialise the table of manifests that all repositories share."""
        nodes = self.manifest_nodes()
        return json_object((str(digest), [_node_json(node)]) for digest, node in nodes.items())

    def repository_pieces(self) -> Iterator[bytes]:
        """Serialise what each repository holds; its manifests by digest only."""
        contents = sorted(self.repositories.items())
        return json_object((path, [_content_json(one)]) for path, one in contents if one)

    @classmethod
    def from_document(cls, document: Any) -> Inventory:
        """Read what `to_document` wrote.

        Raises:
            DamagedBundleError: the document is not an inventory.
            InputError: its schema is newer than this program.
        """
        with _reading():
            version = document["schemaVersion"]
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"the inventory has schema version {version}; this release of mirror reads "
                    f"version {SCHEMA_VERSION}: use a newer one"
                )
            table = ManifestTable(document["manifests"])
            return table.inventory(document["repositories"])


# -- documents -------------------------------------------------------------------------------------


def canonical_json(document: Any) -> bytes:
    """The one serialisation of our own documents: UTF-8, keys sorted, no white space."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def json_object(members: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """A JSON object, piece by piece, of keys and of values that are rendered already."""
    yield b"{"
    for number, (key, value) in enumerate(members):
        yield f"{',' if number else ''}{quoted(key)}:".encode()
        yield from value
    yield b"}"


def _node_json(node: ManifestNode) -> bytes:
    members = []
    if node.absent:
        members.append(f'"absent":{_digests_json(node.absent)}')
    if node.artifact_type is not None:
        members.append(f'"artifactType":{quoted(node.artifact_type)}')
    for key in ("blobs", "children", "foreign"):
        descriptors: tuple[Descriptor, ...] = getattr(node, key)
        if descriptors:
            texts = [f'[{quoted(d.media_type)},"{d.digest}",{d.size}]' for d in descriptors]
            members.append(f'"{key}":[{",".join(texts)}]')
    members.append(f'"mediaType":{quoted(node.descriptor.media_type)}')
    members.append(f'"size":{node.descriptor.size}')
    if node.subject is not None:
        members.append(f'"subject":"{node.subject}"')
    return f"{{{','.join(members)}}}".encode()


def _content_json(content: RepositoryContent) -> bytes:
    blobs = ",".join([f'"{one}":{content.blobs[one]}' for one in sorted(content.blobs)])
    tags = ",".join([f'{quoted(t)}:"{content.tags[t]}"' for t in sorted(content.tags)])
    manifests = _digests_json(content.manifests)
    return f'{{"blobs":{{{blobs}}},"manifests":{manifests},"tags":{{{tags}}}}}'.encode()


def _digests_json(digests: Iterable[Digest]) -> str:
    texts = ",".join([f'"{digest}"' for digest in sorted(digests)])
    return f"[{texts}]"


class ManifestTable:
    """The table of manifests that inventories of one document share.

    Raises:
        DamagedBundleError: `manifests` is not what `Inventory.manifest_pieces` made.
    """

    def __init__(self, manifests: Any) -> None:
        # One object of each, however often a document names it.
        self._digests: dict[Digest, Digest] = {}
        self._descriptors: dict[Digest, Descriptor] = {}
        with _reading():
            self._nodes = {self._digest(text): self._node(text, v) for text, v in manifests.items()}
            # No bytes have such digests; walks of the graph rely on coming to an end.
            above = [node for node in self._nodes.values() if node.children]
            graph = {one.descriptor.digest: [c.digest for c in one.children] for one in above}
            TopologicalSorter(graph).prepare()

    def inventory(self, repositories: Any) -> Inventory:
        """Read what `Inventory.repository_pieces` made.

        Raises:
            DamagedBundleError: `repositories` is something else.
        """
        digest, nodes = self._digest, self._nodes
        with _reading():
            contents = {
                path_of(path): RepositoryContent(
                    tags={tag_of(tag): digest(text) for tag, text in value["tags"].items()},
                    manifests={(one := digest(text)): nodes[one] for text in value["manifests"]},
                    blobs={digest(text): _size(size) for text, size in value["blobs"].items()},
                )
                for path, value in repositories.items()
            }
        return Inventory({path: content for path, content in contents.items() if content})

    def _digest(self, text: Any) -> Digest:
        found = Digest.parse(text)
        known = self._descriptors.get(found)
        return self._digests.setdefault(found, found) if known is None else known.digest

    def _node(self, text: Any, document: Any) -> ManifestNode:
        artifact_type, subject = document.get("artifactType"), document.get("subject")
        return ManifestNode(
            self._descriptor(document["mediaType"], text, document["size"]),
            self._named(document, "blobs"),
            self._named(document, "children"),
            None if artifact_type is None else text_of(artifact_type),
            self._named(document, "foreign"),
            frozenset(map(self._digest, document.get("absent", ()))),
            None if subject is None else self._digest(subject),
        )

    def _named(self, document: Any, key: str) -> tuple[Descriptor, ...]:
        return tuple([self._descriptor(*one) for one in document.get(key, ())])

    def _descriptor(self, media_type: Any, text: Any, size: Any) -> Descriptor:
        digest = Digest.parse(text)
        known = self._descriptors.get(digest)
        if known is None or known.media_type != media_type or known.size != _size(size):
            digest = self._digests.pop(digest, digest) if known is None else known.digest
            known = Descriptor(sys.intern(text_of(media_type)), digest, _size(size))
            self._descriptors[digest] = known
        return known


_INVALID = (InvalidDigestError, InvalidReferenceError)
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, *_INVALID)
"""What reading a document of another shape raises."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn every error about a malformed document into DamagedBundleError."""
    try:
        yield
    except MALFORMED as err:
        problem = str(err)
        if isinstance(err, KeyError):
            problem = f"no {err.args[0]}"
        elif isinstance(err, CycleError):
            problem = f"manifest {err.args[1][0]} lies below itself"
        raise DamagedBundleError(f"this is not an inventory: {problem}") from err


def path_of(path: str) -> str:
    """Return a valid repository path; raises what `check_repository` raises."""
    if path:
        check_repository(path)
    return path


def tag_of(tag: str) -> str:
    """Return a valid tag; raises what `check_tag` raises."""
    check_tag(tag)
    return tag


def text_of(value: Any) -> str:
    """Return a text that UTF-8 can encode; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is not a text")
    value.encode()  # JSON can spell what UTF-8 cannot
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.50} is not a size in bytes")
    return value


# -- making them -----------------------------------------------------------------------------------


def union(inventories: Iterable[Inventory]) -> Inventory:
    """All content of all of them; where two name a tag differently, the later one wins."""
    repositories: dict[str, RepositoryContent] = {}
    for inventory in inventories:
        for path, more in inventory.repositories.items():
            held = repositories.get(path)
            repositories[path] = more if held is None else held | more
    return Inventory(dict(sorted(repositories.items())))


def size_conflict(
    repository: str, node: ManifestNode, blob: Descriptor, known: int
) -> InvalidManifestError:
    """The error about a manifest that gives `blob` another size than the `known` one, in bytes."""
    return InvalidManifestError(
        f"manifest {node.descriptor.digest} of {repository or 'the root repository'} says that "
        f"blob {blob.digest} has {blob.size} bytes, and another manifest that it has {known}"
    )


_Parts = tuple[dict[str, Digest], dict[Digest, ManifestNode], dict[Digest, int]]
"""Tags, manifests and blobs of one repository."""


class InventoryBuilder:
    """Collects an inventory piece by piece. Not thread-safe."""

    def __init__(self) -> None:
        self._repositories: dict[str, _Parts] = {}

    def _parts(self, path: str) -> _Parts:
        return self._repositories.setdefault(path, ({}, {}, {}))

    def add_tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Let `repository:tag` name `digest`."""
        self._parts(repository)[0][tag] = digest

    def add_manifest(self, repository: str, node: ManifestNode, *, closed: bool = True) -> None:
        """Add a manifest to `repository` and, if `closed`, the blobs that it needs.

        Raises:
            InvalidManifestError: another manifest there gives another size for one of these blobs;
                nothing of this one was added.
        """
        _, manifests, blobs = self._parts(repository)
        fresh: dict[Digest, int] = {}
        for blob in node.blobs if closed else ():
            known = blobs.get(blob.digest, fresh.setdefault(blob.digest, blob.size))
            if known != blob.size:
                raise size_conflict(repository, node, blob, known)
        blobs.update(fresh)
        manifests[node.descriptor.digest] = node

    def add_blob(self, repository: str, digest: Digest, size: int) -> None:
        """Add a blob of `size` bytes to `repository`."""
        self._parts(repository)[2][digest] = size

    def add_inventory(self, inventory: Inventory) -> None:
        """Add everything in `inventory`."""
        for path, content in inventory.repositories.items():
            tags, manifests, blobs = self._parts(path)
            tags.update(content.tags)
            manifests.update(content.manifests)
            blobs.update(content.blobs)

    def build(self) -> Inventory:
        """What was collected so far."""
        return Inventory(
            {
                path: RepositoryContent(dict(tags), dict(manifests), dict(blobs))
                for path, (tags, manifests, blobs) in sorted(self._repositories.items())
                if tags or manifests or blobs
            }
        )
