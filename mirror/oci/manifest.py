"""Manifests and the descriptors that they are made of (image-spec, manifest.md and image-index.md).

A manifest travels with the exact bytes that it came from, since serialising it changes its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mirror.documents import problems, value_count
from mirror.errors import InvalidDigestError, InvalidManifestError
from mirror.oci.reference import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
IMAGE_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
MANIFESTS = INDEXES | IMAGE_MANIFESTS
IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

NONDISTRIBUTABLE_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
"""Layers that a registry need not hold: clients fetch them from the descriptor's `urls`."""

MAX_MANIFEST_BYTES = 4 << 20
"""Larger documents are refused; distribution-spec asks registries for this much at least."""

MAX_MANIFEST_VALUES = 250_000
"""The most values (`documents.value_count`): a parser makes up to 30 times the text of them."""


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """What an image of an index runs on (image-spec, image-index.md, `platform`)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, order=True)
class Descriptor:
    """Names some content by digest; `size` is its length in bytes."""

    media_type: str
    digest: Digest
    size: int


_LARGEST_SIZE = 2**63 - 1
"""What programs in Go, registries among them, can hold."""


class _WireModel(BaseModel):
    """A document as the wire has it: frozen, unknown fields kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class _WirePlatform(_WireModel):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _WireDescriptor(_WireModel):
    media_type: str = Field("", alias="mediaType")
    digest: str
    size: int = Field(ge=0, le=_LARGEST_SIZE)
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = Field(None, alias="artifactType")
    platform: _WirePlatform | None = None


class _WireManifest(_WireModel):
    schema_version: int = Field(alias="schemaVersion", le=_LARGEST_SIZE)
    media_type: str | None = Field(None, alias="mediaType")
    artifact_type: str | None = Field(None, alias="artifactType")
    config: _WireDescriptor | None = None
    layers: list[_WireDescriptor] | None = None
    manifests: list[_WireDescriptor] | None = None
    subject: _WireDescriptor | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """One manifest of an index, with what the index says about it."""

    descriptor: Descriptor
    platform: Platform | None
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image, artifact or index, with the bytes that give it its digest.

    `layers` runs from the base upwards, as in the document. Layers that registries need not hold
    (`NONDISTRIBUTABLE_LAYERS` with `urls`) are `foreign` and not among `blobs`, which a registry
    must hold.
    """

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    children: tuple[Child, ...]
    blobs: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: Mapping[str, str] = field(repr=False)
    artifact_type: str | None
    foreign: tuple[Descriptor, ...] = ()

    @property
    def descriptor(self) -> Descriptor:
        """How others refer to this manifest."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    @property
    def is_index(self) -> bool:
        """Whether this is an index (Docker: manifest list) and not an image."""
        return self.media_type in INDEXES

    @classmethod
    def parse(
        cls, raw: bytes, media_type: str | None = None, *, algorithm: str = "sha256"
    ) -> Manifest:
        """Read a manifest from its exact bytes.

        `media_type` is what the carrier says (`Content-Type`, or the descriptor that led here). The
        document's own `mediaType` takes precedence, since a client that has only the bytes knows
        nothing else. Without either, the document's shape decides.

        Raises:
            InvalidManifestError: it is not JSON, not of schema version 2, of an unknown media type,
                or has an invalid descriptor.
        """
        digest = Digest.of(raw, algorithm)

        def refuse(problem: str, cause: Exception | None = None) -> NoReturn:
            raise InvalidManifestError(f"manifest {digest} {problem}") from cause

        if len(raw) > MAX_MANIFEST_BYTES:
            refuse(f"has {len(raw)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        if value_count(raw) > MAX_MANIFEST_VALUES:
            refuse("has more values than any manifest has")
        try:
            wire = _WireManifest.model_validate_json(raw)
        except ValidationError as err:
            refuse(f"cannot be read: {problems(err)[0]}", err)
        if wire.schema_version != 2:
            refuse(f"has schemaVersion {wire.schema_version}; only 2 is carried")
        kind = wire.media_type or media_type
        if not kind or kind not in MANIFESTS:
            if wire.media_type or (kind and kind.startswith("application/vnd.")):
                refuse(
                    f"has media type {kind}; known are OCI image manifests and indexes, and Docker "
                    "schema 2 manifests and manifest lists"
                )
            kind = OCI_INDEX if wire.manifests is not None else OCI_MANIFEST
        index = kind in INDEXES
        if index and (wire.config or wire.layers):
            # The specification forbids it, because the same bytes would mean two things.
            refuse("is an index with a config or layers")
        if not index and wire.manifests:
            refuse("is an image with a list of manifests")
        if not index and wire.config is None:
            refuse("is an image without a config")
        try:
            config = _descriptor(wire.config) if wire.config else None
            written = wire.layers or ()
            layers = tuple(map(_descriptor, written))
            may_lack = [one.urls and one.media_type in NONDISTRIBUTABLE_LAYERS for one in written]
            blobs = tuple(one for one, may in zip(layers, may_lack, strict=True) if not may)
            required = {one.digest for one in blobs} if any(may_lack) else set()
            foreign = tuple(
                one
                for one, may in zip(layers, may_lack, strict=True)
                if may and one.digest not in required
            )
            return cls(
                raw=raw,
                media_type=kind,
                digest=digest,
                config=config,
                layers=layers,
                children=tuple(_child(child) for child in wire.manifests or ()),
                blobs=((config, *blobs) if config else blobs),
                subject=_descriptor(wire.subject) if wire.subject else None,
                annotations=MappingProxyType(wire.annotations or {}),
                artifact_type=wire.artifact_type or _config_artifact_type(wire.config),
                foreign=foreign,
            )
        except InvalidDigestError as err:
            refuse(f"cannot be read: {err}", err)


@dataclass(frozen=True, slots=True)
class ManifestNode:
    """A manifest as the graph sees it: what it is, and what it needs beside it.

    A `subject` is not a child: a signature may come before, after or without its image.

    Attributes:
        blobs: its config and the layers that must be there.
        children: the manifests that an index names.
        artifact_type: what an index says of an artifact; None for an image.
        foreign: layers that may be there, and need not (`Manifest.foreign`).
        absent: those of `children` without which the index was taken: a sparse index.
        subject: what it refers to. Documents of earlier releases do not say so.
    """

    descriptor: Descriptor
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    artifact_type: str | None = None
    foreign: tuple[Descriptor, ...] = ()
    absent: frozenset[Digest] = frozenset()
    subject: Digest | None = field(default=None, compare=False)

    @property
    def named(self) -> tuple[Descriptor, ...]:
        """All that it names: blobs, foreign layers, children."""
        return (*self.blobs, *self.foreign, *self.children)

    @classmethod
    def of(cls, manifest: Manifest) -> ManifestNode:
        """The node of a manifest."""
        return cls(
            manifest.descriptor,
            manifest.blobs,
            tuple(child.descriptor for child in manifest.children),
            manifest.artifact_type,
            manifest.foreign,
            subject=manifest.subject.digest if manifest.subject else None,
        )


def _descriptor(wire: _WireDescriptor) -> Descriptor:
    return Descriptor(wire.media_type, Digest.parse(wire.digest), wire.size)


def _child(wire: _WireDescriptor) -> Child:
    stated = wire.platform
    platform = Platform(stated.os, stated.architecture, stated.variant) if stated else None
    annotations = MappingProxyType(wire.annotations or {})
    return Child(_descriptor(wire), platform, annotations, wire.artifact_type)


def _config_artifact_type(config: _WireDescriptor | None) -> str | None:
    """Artifacts older than `artifactType` have their type in their config's media type."""
    if config is None or config.media_type in IMAGE_CONFIGS:
        return None
    return config.media_type or None


def referrer_json(manifest: Manifest) -> dict[str, Any]:
    """What an index of referrers says of `manifest`, which refers to something as its subject."""
    kind = manifest.artifact_type or (manifest.config and manifest.config.media_type) or None
    return descriptor_json(manifest.descriptor, kind, manifest.annotations)


def descriptor_json(
    descriptor: Descriptor,
    artifact_type: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`descriptor` as a JSON object, keys in the specification's order."""
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if artifact_type is not None:
        document["artifactType"] = artifact_type
    if annotations:
        document["annotations"] = dict(annotations)
    return document
