"""Small images that a containerd can unpack, and how they get into a real registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mirror.modes.client import ModeClient
from mirror.modes.settings import Account
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RetryPolicy
from mirror.sync import MemoryStore
from tests.support.bundles import pack_store


@dataclass(frozen=True)
class Image:
    """Manifest, config and one layer."""

    manifest: bytes
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


def image(content: str) -> Image:
    """An image with one file."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        member = tarfile.TarInfo("hello")
        member.size = len(content)
        out.addfile(member, io.BytesIO(content.encode()))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    diff_id = f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar+gzip", layer)],
        }
    ).encode()
    return Image(manifest, (config, layer))


def _descriptor(kind: str, content: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": kind, "digest": digest, "size": len(content)}


def client(address: str, ca: Path, account: Account | None) -> RegistryClient:
    """A client that trusts `ca` and tries once."""
    login = None
    if account is not None:
        login = Credentials(account.name, account.password.get_secret_value())
    options = ConnectionOptions(ca_file=ca, retries=RetryPolicy(attempts=1))
    return RegistryClient(address, options=options, credentials=login)


def push(to: RegistryClient | ModeClient, repository: str, tag: str, one: Image) -> None:
    """Upload an image and give it a tag."""
    for blob in one.blobs:
        digest = Digest.parse(f"sha256:{hashlib.sha256(blob).hexdigest()}")

        def content(offset: int, blob: bytes = blob) -> Generator[bytes, None, None]:
            yield blob[offset:]

        to.upload(repository, digest, len(blob), content)
    manifest = Manifest.parse(one.manifest)
    to.put_manifest(repository, tag, manifest)


def pack_images(folder: Path, images: Mapping[str, Image], tag: str = "v1.70.0") -> Path:
    """A bundle in `folder` with one image in each of these repositories."""
    store = MemoryStore()
    for repository, one in images.items():
        for blob in one.blobs:
            store.add_blob(repository, blob)
        store.add_manifest(repository, one.manifest, OCI_MANIFEST, tags=[tag])
    pack_store(store, folder)
    return folder
