"""A cluster's replicas on this machine: each on an address of its own, with TLS and a login."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from mirror.modes import REGISTRY_PORT, RegistryUser
from mirror.modes.settings import Account, ClusterAccess
from mirror.oci import Digest, Manifest
from mirror.registry import ConnectionOptions, RetryPolicy
from mirror.serve import put_blob
from mirror.testing import EmbeddedRegistry, TlsFiles
from tests.support import sample_images
from tests.support.places import storage_of
from tests.support.real_registry import ACCOUNT
from tests.support.tls import Authority

ACCOUNTS = {user: Account(user, SecretStr(f"{user}-password")) for user in RegistryUser}
READER = {RegistryUser.RO: Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))}
"""The login that `RealRegistry` knows, as the user that reads."""


def hasty(attempts: int = 1, **options: Any) -> ConnectionOptions:
    """Connections that do not wait."""
    retries = RetryPolicy(attempts=attempts, base_delay_s=0.0)
    return ConnectionOptions(retries=retries, connect_timeout_s=5.0, **options)


def certificate(authority: Authority, host: str) -> TlsFiles:
    """What the replica at `host` shows."""
    return authority.issue(f"replica-{host}", (host,))


def sites(
    authority: Authority,
    masters: tuple[str, ...],
    accounts: Mapping[RegistryUser, Account] = ACCOUNTS,
) -> ClusterAccess:
    """Replicas on these addresses."""
    return ClusterAccess(
        masters=masters, ca=authority.certificate.read_text(), accounts=dict(accounts)
    )


def at(host: str) -> str:
    """`host` with the port of replicas."""
    return f"{host}:{REGISTRY_PORT}"


@dataclass(frozen=True)
class Image:
    """An image of one layer. `manifest` is what its tag names."""

    manifest: Manifest
    config: bytes
    layer: bytes

    @property
    def layer_digest(self) -> Digest:
        """The digest of its layer."""
        return Digest.of(self.layer)

    @property
    def blobs(self) -> tuple[bytes, bytes]:
        """All that it needs."""
        return self.config, self.layer


def image(seed: int = 1, layer_bytes: int = 1000) -> Image:
    """An image made of nothing but a seed."""
    layer = random.Random(seed).randbytes(layer_bytes)
    config = json.dumps({"seed": seed}).encode()
    return Image(Manifest.parse(sample_images.image((layer,), config)), config, layer)


def put(registry: EmbeddedRegistry, repository: str, one: Image, *tags: str) -> None:
    """Put an image into a registry behind its server's back."""
    storage = storage_of(registry)
    for data in one.blobs:
        put_blob(storage, repository, data)
    storage.put_manifest(repository, one.manifest)
    for tag in tags:
        storage.put_manifest(repository, one.manifest, tag)
