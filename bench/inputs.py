"""What is carried: a release tree of a wanted shape, laid down as `docker-registry` keeps it.

Writing its folder is faster than pushing, and owes nothing to any of the tools that are compared.
Layers are noise in valid gzip that does not compress. Equal shapes make equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.release_tree.images import Image, image, layer
from mirror.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST

MIB = 1 << 20
ROOT = "deckhouse/ee"
VERSION = "v1.70.0"


@dataclass(frozen=True)
class Shape:
    """How many images, and what each consists of."""

    images: int
    layers: int
    """Layers of an image's own."""
    layer_bytes: int
    shared: bool = False
    """Whether all images have one more layer in common."""

    @property
    def size(self) -> int:
        """Bytes of all distinct layers, about."""
        return self.layer_bytes * (self.images * self.layers + self.shared)


@dataclass
class Depot:
    """The data folder of a `docker-registry`, written without one."""

    folder: Path
    references: list[str] = field(default_factory=list)
    """All that was published: `repository:tag`."""

    def add_blob(self, repository: str, pieces: Iterator[bytes]) -> tuple[str, int]:
        """Keep a blob and let `repository` have it. Returns its digest and its size."""
        summed, size = hashlib.sha256(), 0
        staged = self.folder / "staged"
        staged.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("wb") as file:
            for piece in pieces:
                summed.update(piece)
                size += file.write(piece)
        encoded = summed.hexdigest()
        path = self._root / "blobs/sha256" / encoded[:2] / encoded / "data"
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(path)
        self._link(f"{repository}/_layers/sha256/{encoded}", encoded)
        return f"sha256:{encoded}", size

    def add_manifest(self, repository: str, raw: bytes, tag: str) -> str:
        """Publish a manifest whose blobs are there. Returns its digest."""
        digest, _ = self.add_blob(repository, iter([raw]))
        encoded = digest.removeprefix("sha256:")
        self._link(f"{repository}/_manifests/revisions/sha256/{encoded}", encoded)
        self._link(f"{repository}/_manifests/tags/{tag}/current", encoded)
        self._link(f"{repository}/_manifests/tags/{tag}/index/sha256/{encoded}", encoded)
        self.references.append(f"{repository}:{tag}")
        return digest

    @property
    def _root(self) -> Path:
        return self.folder / "docker/registry/v2"

    def _link(self, place: str, encoded: str) -> None:
        path = self._root / "repositories" / place / "link"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"sha256:{encoded}")


def build(shape: Shape, folder: Path, *, changed: Sequence[int] = ()) -> Depot:
    """Lay a release tree with one version of the platform down, whose components have `shape`.

    The components whose numbers are in `changed` differ from those of a tree without it.
    """
    depot = Depot(folder)
    common = _Layer.add(depot, "shared", shape.layer_bytes) if shape.shared else None
    components = {}
    for number in range(shape.images):
        age = "new" if number in changed else "old"
        own = [
            _Layer.add(depot, f"{age} {number} {place}", shape.layer_bytes)
            for place in range(shape.layers)
        ]
        layers = [common, *own] if common else own
        components[f"component{number}"] = _publish_component(depot, number, layers)
    listed = json.dumps({"bench": components})
    release = json.dumps({"version": VERSION})
    for repository, files in (
        (ROOT, {"deckhouse/version": VERSION}),
        (f"{ROOT}/install", {"deckhouse/candi/images_digests.json": listed}),
        (f"{ROOT}/release-channel", {"version.json": release, "changelog.yaml": "{}"}),
    ):
        _publish(depot, repository, image([layer(dict(files))]), VERSION)
    for channel in ("alpha", "beta", "early-access", "stable", "rock-solid"):
        files = {"version.json": release, "changelog.yaml": "{}"}
        _publish(depot, f"{ROOT}/release-channel", image([layer(dict(files))]), channel)
    return depot


@dataclass(frozen=True)
class _Layer:
    digest: str
    size: int
    diff_id: str

    @classmethod
    def add(cls, depot: Depot, seed: str, size: int) -> _Layer:
        """Noise in a repository, as gzip that stores what it is given."""
        bare = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            noise = random.Random(seed)
            packer = zlib.compressobj(0, wbits=31)
            for start in range(0, size, MIB):
                piece = noise.randbytes(min(MIB, size - start))
                bare.update(piece)
                yield packer.compress(piece)
            yield packer.flush()

        digest, stored = depot.add_blob(ROOT, pieces())
        return cls(digest, stored, f"sha256:{bare.hexdigest()}")


def _publish_component(depot: Depot, number: int, layers: Sequence[_Layer]) -> str:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"component": str(number)}},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
    }
    digest, size = depot.add_blob(ROOT, iter([json.dumps(config).encode()]))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": size},
        "layers": [
            {"mediaType": OCI_LAYER_GZIP, "digest": one.digest, "size": one.size} for one in layers
        ],
    }
    return depot.add_manifest(ROOT, json.dumps(manifest).encode(), f"component-{number}")


def _publish(depot: Depot, repository: str, made: Image, tag: str) -> None:
    for blob in made.blobs.values():
        depot.add_blob(repository, iter([blob]))
    depot.add_manifest(repository, made.raw, tag)
