"""Publication: statements written to and read from a registry, and the journal of a tag phase.

Below the root, in `mirror/inventory`, these tags name statements (`mirror.sync.statement`):

* `latest`: what the registry holds now;
* `pending`: what it is on its way to. It is set before the first tag of a release turns, and
  `latest` follows when the last one has; so whoever finds the two different knows of an
  interrupted phase, and of what it was to come to. It stays where it is afterwards, as many
  registries cannot delete a tag;
* `generation-<n>`: every state that was reached;
* `<hex>`: the last generation with the inventory of that digest.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

from mirror.errors import (
    IntegrityError,
    InvalidManifestError,
    RegistryNotFoundError,
    StatementError,
)
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.sync.registry import Locate
from mirror.sync.statement import EMPTY_CONFIG, REPOSITORY, Artifact, Statement, layer_of

LATEST = "latest"
PENDING = "pending"

_CHUNK = 1 << 20
_GENERATION_TAG = re.compile(r"generation-([1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Published:
    """A statement that a registry has. `digest` is that of its artifact: equal on all replicas."""

    digest: Digest
    statement: Statement


def generation_tag(generation: int) -> str:
    """The tag under which a generation is kept."""
    return f"generation-{generation}"


def statement_digest(client: RegistryClient, locate: Locate, tag: str = LATEST) -> Digest | None:
    """The digest of the artifact that `tag` names, by one request; None if there is none.

    Registries whose digests are equal state the same inventory, and the same generation of it.
    """
    found = client.resolve(locate(REPOSITORY), tag)
    return found.digest if found else None


def read_statement(
    client: RegistryClient, locate: Locate, reference: str | Digest = LATEST
) -> Published | None:
    """The statement that `reference` names, every byte of it checked; None if there is none.

    Raises:
        StatementError: what is there is no statement, or is damaged.
        InputError: it is of a newer schema.
    """
    repository = locate(REPOSITORY)
    where = f"{client.host}/{repository}:{reference}"
    try:
        manifest = client.manifest(repository, reference)
    except RegistryNotFoundError:
        return None
    except (IntegrityError, InvalidManifestError) as err:
        raise StatementError(f"{where} cannot be read: {err}") from err
    try:
        layer = layer_of(manifest)
        # With its size told, no more than that is ever taken in.
        data = b"".join(client.blob(repository, layer.digest, size=layer.size))
        return Published(manifest.digest, Statement.from_json(data))
    except (IntegrityError, RegistryNotFoundError) as err:
        raise StatementError(
            f"{where} cannot be read: {err}; push the bundle again to state anew what is there"
        ) from err


def generations(client: RegistryClient, locate: Locate) -> list[int]:
    """The generations that the registry keeps statements of, rising."""
    try:
        tags = client.tags(locate(REPOSITORY))
    except RegistryNotFoundError:
        return []
    return sorted(int(found[1]) for tag in tags if (found := _GENERATION_TAG.fullmatch(tag)))


def put_artifact(client: RegistryClient, locate: Locate, artifact: Artifact, *tags: str) -> None:
    """Store a statement by its digest, then under `tags`, one after the other.

    What is there already is not sent again.
    """
    repository = locate(REPOSITORY)
    for data in (EMPTY_CONFIG, artifact.layer):
        digest = Digest.of(data)
        if client.blob_size(repository, digest) != len(data):
            client.upload(repository, digest, len(data), partial(_chunks, data))
    references: list[str | Digest] = [artifact.manifest.digest, *tags]
    for reference in references:
        client.put_manifest(repository, reference, artifact.manifest)


def _chunks(data: bytes, offset: int) -> Generator[bytes, None, None]:
    for start in range(offset, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
