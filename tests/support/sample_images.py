"""Small images, as documents and bytes."""

from __future__ import annotations

import json
from typing import Any

import httpx

from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from mirror.serve import Store, put_blob

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = b"layer " * 1000


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """How a document refers to `data`."""
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(data)),
        "size": len(data),
        **more,
    }


def image(layers: tuple[bytes, ...] = (LAYER,), config: bytes = CONFIG, **more: Any) -> bytes:
    """An OCI image manifest; `more` are further fields."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER_GZIP, layer) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def index(*children: bytes) -> bytes:
    """An OCI index over image manifests."""
    entries = [
        descriptor(OCI_MANIFEST, child, platform={"os": "linux", "architecture": f"arch{number}"})
        for number, child in enumerate(children)
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def fill(store: Store, repository: str = "a/b", tag: str | None = "v1", **more: Any) -> Manifest:
    """Put one image into a store, without a server."""
    put_blob(store, repository, CONFIG)
    put_blob(store, repository, LAYER)
    manifest = Manifest.parse(image(**more))
    store.put_manifest(repository, manifest, tag)
    return manifest


def codes(response: httpx.Response) -> list[str]:
    """The error codes of an answer."""
    return [error["code"] for error in response.json()["errors"]]
