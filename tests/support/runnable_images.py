"""Small images that a containerd can unpack, and how they get into a real registry."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

from examples.release_tree.images import Image, layer
from examples.release_tree.images import image as image_of
from mirror.modes.client import ModeClient
from mirror.modes.settings import Account
from mirror.oci import Manifest
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RetryPolicy
from mirror.sync import MemoryStore
from tests.support.bundles import pack_store


def image(content: str) -> Image:
    """An image with one file."""
    return image_of([layer({"hello": content})])


def client(address: str, ca: Path, account: Account | None) -> RegistryClient:
    """A client that trusts `ca` and tries once."""
    login = None
    if account is not None:
        login = Credentials(account.name, account.password.get_secret_value())
    options = ConnectionOptions(ca_file=ca, retries=RetryPolicy(attempts=1))
    return RegistryClient(address, options=options, credentials=login)


def push(to: RegistryClient | ModeClient, repository: str, tag: str, one: Image) -> None:
    """Upload an image and give it a tag."""
    for digest, blob in one.blobs.items():

        def content(offset: int, blob: bytes = blob) -> Generator[bytes, None, None]:
            yield blob[offset:]

        to.upload(repository, digest, len(blob), content)
    to.put_manifest(repository, tag, Manifest.parse(one.raw))


def pack_images(folder: Path, images: Mapping[str, Image], tag: str = "v1.70.0") -> Path:
    """A bundle in `folder` with one image in each of these repositories."""
    store = MemoryStore()
    for repository, one in images.items():
        for blob in one.blobs.values():
            store.add_blob(repository, blob)
        store.add_manifest(repository, one.raw, one.media_type, tags=[tag])
    pack_store(store, folder)
    return folder
