"""OCI artifacts of our own: a manifest that carries one document, or nothing but its type.

image-spec, "Guidelines for Artifact Usage": the config is the empty one, and an artifact without
content has the empty descriptor as its layer.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial

from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import descriptor_json
from mirror.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from mirror.registry import RegistryWriter

_EMPTY = b"{}"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact's manifest, and the bytes of its one layer."""

    manifest: Manifest
    layer: bytes = field(repr=False)


def make_artifact(
    artifact_type: str,
    *,
    layer: bytes = _EMPTY,
    layer_type: str = OCI_EMPTY,
    file_name: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Artifact:
    """The artifact with that layer; equal arguments make equal bytes.

    `file_name` is the name under which `oras pull` saves the layer.
    """
    described = descriptor_json(Descriptor(layer_type, Digest.of(layer), len(layer)))
    if file_name is not None:
        described["annotations"] = {"org.opencontainers.image.title": file_name}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor_json(Descriptor(OCI_EMPTY, Digest.of(_EMPTY), len(_EMPTY))),
        "layers": [described],
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return Artifact(Manifest.parse(json.dumps(document, separators=(",", ":")).encode()), layer)


def put_artifact(
    client: RegistryWriter, repository: str, artifact: Artifact, *references: str | Digest
) -> None:
    """Store an artifact under `references`, one after the other.

    Blobs that the repository has already are not sent again.
    """
    for data in dict.fromkeys((_EMPTY, artifact.layer)):
        digest = Digest.of(data)
        if client.blob_size(repository, digest) != len(data):
            client.upload(repository, digest, len(data), partial(_chunks, data))
    for reference in references:
        client.put_manifest(repository, reference, artifact.manifest)


def _chunks(data: bytes, offset: int) -> Generator[bytes, None, None]:
    for start in range(offset, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
