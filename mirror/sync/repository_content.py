"""What one repository holds: manifests as the graph sees them, and their canonical form.

Equal values have equal bytes, so the digest of a document identifies its content; see
docs/inventory.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from mirror.errors import DamagedBundleError, InvalidDigestError, InvalidReferenceError
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.reference import check_repository, check_tag


@dataclass(frozen=True, slots=True)
class ManifestNode:
    """A manifest as the graph sees it: what it is, and what it needs beside it.

    `blobs` are its config and the layers that must be carried; `children` the manifests of an
    index. A `subject` is no child: a signature may arrive before, after or without what it signs.
    `artifact_type` is what an index says of an artifact; None for an image.
    """

    descriptor: Descriptor
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    artifact_type: str | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> ManifestNode:
        """The node of a manifest."""
        return cls(
            manifest.descriptor,
            manifest.blobs,
            tuple(child.descriptor for child in manifest.children),
            manifest.artifact_type,
        )


@dataclass(frozen=True, slots=True)
class RepositoryContent:
    """What one repository holds. `blobs` maps digests to sizes in bytes."""

    tags: Mapping[str, Digest] = field(default_factory=dict)
    manifests: Mapping[Digest, ManifestNode] = field(default_factory=dict)
    blobs: Mapping[Digest, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tags or self.manifests or self.blobs)

    def closure_size(self, digest: Digest) -> int:
        """Bytes of a manifest and all that it reaches here, each piece counted once."""
        sizes: dict[Digest, int] = {}
        pending = [digest]
        while pending:
            node = self.manifests.get(pending.pop())
            if node is None or node.descriptor.digest in sizes:
                continue
            sizes[node.descriptor.digest] = node.descriptor.size
            sizes.update((blob.digest, blob.size) for blob in node.blobs)
            pending.extend(child.digest for child in node.children)
        return sum(sizes.values())


NOTHING = RepositoryContent()


def read_nodes(manifests: Mapping[str, Any]) -> dict[Digest, ManifestNode]:
    """Read what `Inventory.manifests_document` wrote.

    Raises:
        DamagedBundleError: it is something else.
    """
    with _reading():
        nodes = {
            (digest := Digest.parse(text)): _node(digest, value)
            for text, value in manifests.items()
        }
        # No bytes have such digests; walks of the graph rely on coming to an end.
        TopologicalSorter(
            {digest: [c.digest for c in node.children] for digest, node in nodes.items()}
        ).prepare()
        return nodes


def read_contents(
    nodes: Mapping[Digest, ManifestNode], repositories: Mapping[str, Any]
) -> dict[str, RepositoryContent]:
    """Read what `Inventory.repositories_document` wrote; its manifests are among `nodes`.

    Raises:
        DamagedBundleError: it is something else.
    """
    with _reading():
        return {
            path_of(path): RepositoryContent(
                tags={tag_of(t): Digest.parse(d) for t, d in value["tags"].items()},
                manifests={(d := Digest.parse(text)): nodes[d] for text in value["manifests"]},
                blobs={Digest.parse(d): _size(size) for d, size in value["blobs"].items()},
            )
            for path, value in repositories.items()
        }


@contextmanager
def _reading() -> Iterator[None]:
    """Turn every error about a malformed document into DamagedBundleError."""
    try:
        yield
    except CycleError as err:
        raise DamagedBundleError(
            f"this is not an inventory: manifest {err.args[1][0]} lies below itself"
        ) from err
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        InvalidDigestError,
        InvalidReferenceError,
    ) as err:
        raise DamagedBundleError(f"this is not an inventory: {reason(err)}") from err


def canonical_json(document: Any) -> bytes:
    """The one serialisation of our own documents: UTF-8, keys sorted, no white space."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def members(documents: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    """The inside of a JSON object, member by member."""
    for number, (key, document) in enumerate(documents):
        yield (b"," if number else b"") + canonical_json(key) + b":" + canonical_json(document)


def content_document(content: RepositoryContent) -> dict[str, Any]:
    """What a repository holds, as JSON values; its manifests by digest only."""
    return {
        "blobs": {str(d): size for d, size in sorted(content.blobs.items())},
        "manifests": [str(d) for d in sorted(content.manifests)],
        "tags": {tag: str(d) for tag, d in sorted(content.tags.items())},
    }


def reason(err: Exception) -> str:
    """Which member a document does not have, or why it cannot be read."""
    return f"no {err.args[0]}" if isinstance(err, KeyError) else str(err)


def path_of(path: str) -> str:
    """Return a valid repository path; raises what `check_repository` raises."""
    if path:
        check_repository(path)
    return path


def tag_of(tag: str) -> str:
    """Return a valid tag; raises what `check_tag` raises."""
    check_tag(tag)
    return tag


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.50} is not a size in bytes")
    return value


def text_of(value: Any) -> str:
    """Return a text that UTF-8 can encode; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is not a text")
    value.encode()  # JSON can spell what UTF-8 cannot
    return value


def node_document(node: ManifestNode) -> dict[str, Any]:
    """A manifest, as JSON values."""
    document: dict[str, Any] = {
        "mediaType": node.descriptor.media_type,
        "size": node.descriptor.size,
    }
    if node.artifact_type is not None:
        document["artifactType"] = node.artifact_type
    for key, descriptors in (("blobs", node.blobs), ("children", node.children)):
        if descriptors:
            document[key] = [[d.media_type, str(d.digest), d.size] for d in descriptors]
    return document


def _node(digest: Digest, document: Mapping[str, Any]) -> ManifestNode:
    def descriptors(key: str) -> tuple[Descriptor, ...]:
        return tuple(
            Descriptor(text_of(media_type), Digest.parse(text), _size(size))
            for media_type, text, size in document.get(key, ())
        )

    artifact_type = document.get("artifactType")
    return ManifestNode(
        Descriptor(text_of(document["mediaType"]), digest, _size(document["size"])),
        descriptors("blobs"),
        descriptors("children"),
        None if artifact_type is None else text_of(artifact_type),
    )
