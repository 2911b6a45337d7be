"""Images made from scratch: layers, configs, manifests, indexes (image-spec; Docker schema 2).

All of it is reproducible: the same input gives the same bytes. Layers are ordinary tar archives
that container runtimes unpack; this module is not tied to Deckhouse.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import zstandard

from mirror.oci import Digest, Platform
from mirror.oci import manifest as types

CREATED = "2025-02-03T04:05:06Z"
_MTIME = 1738555506  # the same moment
_BIG = 64 << 10

Compression: TypeAlias = Literal["gzip", "zstd", "plain"]
Family: TypeAlias = Literal["oci", "docker"]

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64", "v8")
DARWIN = Platform("darwin", "arm64")


@dataclass(frozen=True)
class Symlink:
    """A symbolic link in a layer."""

    target: str


@dataclass(frozen=True)
class Hardlink:
    """A hard link to an earlier file of the same layer."""

    target: str


Content: TypeAlias = bytes | str | Symlink | Hardlink


@dataclass(frozen=True)
class Layer:
    """A layer: `blob` is what registries hold; `diff_id` is the digest of the bare tar in it."""

    blob: bytes = field(repr=False)
    digest: Digest
    diff_id: Digest
    compression: Compression
    comment: str


def layer(
    files: Mapping[str, Content],
    *,
    compression: Compression = "gzip",
    dotted: bool = False,
    comment: str = "COPY . /",
) -> Layer:
    """Make a layer of `files`: path to content. Text is written as UTF-8.

    The directories above them are entries of their own, as builders write them. Files in a `bin`
    directory are executable. `dotted` names start with `./`, as those of `tar -C dir -c .` do.
    """
    out = io.BytesIO()
    seen: set[str] = set()
    prefix = "./" if dotted else ""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in seen:
                    seen.add(directory)
                    tar.addfile(_entry(prefix + directory, tarfile.DIRTYPE, 0o755))
            mode = 0o755 if "bin" in parts[:-1] else 0o644
            if isinstance(content, Symlink):
                tar.addfile(_entry(prefix + path, tarfile.SYMTYPE, 0o777, content.target))
            elif isinstance(content, Hardlink):
                tar.addfile(_entry(prefix + path, tarfile.LNKTYPE, mode, prefix + content.target))
            else:
                data = content.encode() if isinstance(content, str) else content
                entry = _entry(prefix + path, tarfile.REGTYPE, mode)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    bare = out.getvalue()
    blob = _packed(bare, compression)
    return Layer(blob, Digest.of(blob), Digest.of(bare), compression, comment)


def _entry(name: str, kind: bytes, mode: int, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, target, _MTIME
    return entry


def _packed(bare: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        # Big layers are mostly noise, in which a search for repetitions would only take time.
        strategy = zlib.Z_HUFFMAN_ONLY if len(bare) > _BIG else zlib.Z_DEFAULT_STRATEGY
        packer = zlib.compressobj(1, wbits=31, strategy=strategy)  # its header has no time
        return packer.compress(bare) + packer.flush()
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bare)
    return bare


@dataclass(frozen=True)
class Image:
    """A manifest with the blobs that it needs, or an index with the images that it needs."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    blobs: Mapping[Digest, bytes] = field(default_factory=dict, repr=False)
    children: tuple[Image, ...] = ()


_LAYER_TYPES: Mapping[tuple[Family, Compression], str] = {
    ("oci", "gzip"): types.OCI_LAYER_GZIP,
    ("oci", "zstd"): types.OCI_LAYER_ZSTD,
    ("oci", "plain"): types.OCI_LAYER,
    ("docker", "gzip"): types.DOCKER_LAYER_GZIP,
    ("docker", "plain"): types.DOCKER_LAYER,
}


def image(
    layers: Sequence[Layer],
    *,
    family: Family = "oci",
    platform: Platform = AMD64,
    entrypoint: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Make an image of `layers`, from the base upwards.

    Raises:
        ValueError: a zstd layer in a Docker image, for which there is no media type.
    """
    names = [_LAYER_TYPES.get((family, one.compression)) for one in layers]
    if None in names:
        raise ValueError("Docker schema 2 has no zstd layers")
    config = {
        "created": CREATED,
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            **({"Entrypoint": list(entrypoint)} if entrypoint else {}),
            **({"Labels": dict(labels)} if labels else {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [str(one.diff_id) for one in layers]},
        "history": [
            *({"created": CREATED, "created_by": one.comment} for one in layers),
            {"created": CREATED, "created_by": "ENTRYPOINT", "empty_layer": True},
        ],
    }
    return _manifest(
        _json(config),
        types.OCI_CONFIG if family == "oci" else types.DOCKER_CONFIG,
        [(str(name), one.digest, one.blob, None) for name, one in zip(names, layers, strict=True)],
        media_type=types.OCI_MANIFEST if family == "oci" else types.DOCKER_MANIFEST,
        annotations=annotations,
    )


def artifact(
    config_type: str,
    files: Sequence[tuple[str, str, bytes]],
    *,
    config: bytes = b"{}",
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Make an OCI artifact that tells its type by its config.

    `files` are its layers: media type, title or "", data.
    """
    return _manifest(
        config,
        config_type,
        [(kind, Digest.of(data), data, title) for kind, title, data in files],
        media_type=types.OCI_MANIFEST,
        annotations=annotations,
    )


def _manifest(
    config: bytes,
    config_type: str,
    layers: Sequence[tuple[str, Digest, bytes, str | None]],
    *,
    media_type: str,
    annotations: Mapping[str, str] | None,
) -> Image:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(config_type, Digest.of(config), len(config)),
        "layers": [
            _descriptor(kind, digest, len(blob))
            | ({"annotations": {"org.opencontainers.image.title": title}} if title else {})
            for kind, digest, blob, title in layers
        ],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    raw = _json(document)
    blobs = {Digest.of(config): config} | {digest: blob for _, digest, blob, _ in layers}
    return Image(raw, media_type, Digest.of(raw), blobs)


def index(
    children: Sequence[tuple[Platform, Image]], *, annotations: Mapping[str, str] | None = None
) -> Image:
    """Make an index of images, in this order.

    It is Docker's if all of those are, unless there are annotations, which Docker's cannot have.
    """
    docker = not annotations and all(
        child.media_type == types.DOCKER_MANIFEST for _, child in children
    )
    media_type = types.DOCKER_INDEX if docker else types.OCI_INDEX
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [
            _descriptor(child.media_type, child.digest, len(child.raw))
            | {
                "platform": {"architecture": platform.architecture, "os": platform.os}
                | ({"variant": platform.variant} if platform.variant else {})
            }
            for platform, child in children
        ],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    raw = _json(document)
    return Image(raw, media_type, Digest.of(raw), children=tuple(child for _, child in children))


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
