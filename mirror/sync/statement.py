"""Statements: what a registry says that it holds, as pure data and as an OCI artifact.

Here too is how an artifact of our own is made and stored; `mirror.sync.publication_state` reads
statements from registries.

A statement is written when everything that it names is in place. It is numbered: generations only
ever rise, so of two replicas the one with the higher generation is ahead, whatever their clocks
say. It contains neither a time nor a host name: equal content makes equal bytes, on every replica.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

from mirror.documents import open_json, value_count
from mirror.errors import (
    DamagedBundleError,
    InputError,
    SignatureError,
    StatementError,
    UntrustedStatementError,
)
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import OCI_EMPTY, OCI_MANIFEST, descriptor_json
from mirror.registry import RegistryWriter
from mirror.sync.inventory import (
    MALFORMED,
    Inventory,
    RepositoryContent,
    canonical_json,
    json_object,
    path_of,
    tag_of,
    text_of,
)
from mirror.sync.plan import Tags, tags_of

SCHEMA_VERSION = 1

REPOSITORY = "mirror/inventory"
"""Where statements lie, below the root that they speak of. No statement speaks of it."""

ARTIFACT_TYPE = "application/vnd.deckhouse.mirror.inventory.v1"
LAYER_TYPE = "application/vnd.deckhouse.mirror.inventory.v1+json"
GENERATION = "io.deckhouse.mirror.generation"
INVENTORY = "io.deckhouse.mirror.inventory"
"""Annotations of the artifact: the generation's number, and the inventory's digest."""
SIGNATURE = "io.deckhouse.mirror.signature"
"""Annotation of a signed statement: the signature over its layer (`mirror.signing`)."""

MAX_STATEMENT_BYTES = 256 << 20
MAX_STATEMENT_VALUES = 10_000_000
"""Values of a statement (`documents.value_count`). Both limits are those of the largest bundle,
100,000 images of 10 layers. A usual statement has some 10 MB."""

MAX_GENERATION = 10**18 - 1
"""No registry gets there by publishing; a statement with a higher number is refused."""

_NAMED = re.compile(rb'"sha(?:256|512):[0-9a-f]{64}')
_FREE_BYTES, _BYTES_EACH = 32 << 20, 512
_GENERATION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Statement:
    """The registry holds all of `inventory`, as generation number `generation`, from 1 on.

    `former` are tags, with what they named right before this generation's tags were set, that no
    earlier generation accounts for: mostly the tags of other tools. With the inventories of the
    earlier generations they say what every tag named before. `restores` is the generation that a
    rollback put back; `tool` wrote the statement.

    Raises:
        ValueError: the generation is not positive, above `MAX_GENERATION`, or restores a later one;
            the inventory is open (it promises what it does not have), or it speaks of the
            statements' own repository.
    """

    inventory: Inventory
    generation: int
    former: Tags = field(default_factory=dict)
    restores: int | None = None
    tool: str = ""

    def __post_init__(self) -> None:
        if self.generation < 1:
            raise ValueError(f"generation {self.generation} is not positive")
        if self.generation > MAX_GENERATION:
            raise ValueError(f"the generation is above {MAX_GENERATION}")
        if self.restores is not None and not 0 <= self.restores < self.generation:
            raise ValueError(f"generation {self.generation} cannot restore {self.restores}")
        if REPOSITORY in self.inventory.repositories or REPOSITORY in self.former:
            raise ValueError(f"its inventory has {REPOSITORY}, where statements lie")
        if gap := next(self.inventory.gaps(), None):
            where = gap.repository or "the root repository"
            raise ValueError(f"its inventory promises {gap.missing} in {where} and lacks it")

    def to_json(self) -> bytes:
        """The canonical document, which is the artifact's one layer."""
        former = {
            path: {tag: str(digest) for tag, digest in tags.items()}
            for path, tags in self.former.items()
            if tags
        }
        members: dict[str, Iterable[bytes]] = {
            "former": [canonical_json(former)],
            "generation": [canonical_json(self.generation)],
            "inventory": self.inventory.pieces(),
            "schemaVersion": [canonical_json(SCHEMA_VERSION)],
            "tool": [canonical_json(self.tool)],
        }
        if self.restores is not None:
            members["restores"] = [canonical_json(self.restores)]
        return b"".join(json_object(sorted(members.items())))

    @classmethod
    def from_json(cls, data: bytes) -> Statement:
        """Read what `to_json` wrote.

        Raises:
            StatementError: this is not a statement.
            InputError: it is one of a newer schema.
        """
        if value_count(data) > MAX_STATEMENT_VALUES:
            raise StatementError(
                f"the published inventory has more than {MAX_STATEMENT_VALUES} values"
            )
        try:
            document = open_json(data)
            version = document["schemaVersion"]
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"the published inventory has schema version {version!s:.20}; this release of "
                    f"mirror reads version {SCHEMA_VERSION}: use a newer one"
                )
            return cls(
                Inventory.from_document(document["inventory"]),
                _generation(document["generation"]),
                {
                    path_of(path): {tag_of(tag): Digest.parse(d) for tag, d in tags.items()}
                    for path, tags in document["former"].items()
                },
                _generation(document["restores"]) if "restores" in document.places() else None,
                text_of(document["tool"]),
            )
        except (*MALFORMED, RecursionError, DamagedBundleError) as err:
            raise StatementError(f"it is not a published inventory: {str(err)[:300]}") from err

    def artifact(self, keys: StatementKeys | None = None) -> Artifact:
        """The statement as registries keep it, signed if `keys` can sign.

        The layer is serialised once; keep the result.
        """
        layer = self.to_json()
        annotations = {GENERATION: str(self.generation), INVENTORY: str(self.inventory.digest())}
        if keys is not None and keys.sign is not None:
            annotations[SIGNATURE] = keys.sign(layer).decode("ascii")
        return make_artifact(
            ARTIFACT_TYPE,
            layer=layer,
            layer_type=LAYER_TYPE,
            file_name="inventory.json",
            annotations=annotations,
        )


@dataclass(frozen=True, slots=True)
class StatementKeys:
    """How a registry's statements are signed, and whose are believed.

    Attributes:
        sign: makes the signature over a statement's document (`mirror.signing.sign`); None leaves
            statements unsigned.
        trusted: public keys in PEM. With any of them given, a statement that the holder of none
            signed counts as unreadable, and a registry that states nothing leads nobody.
        allow_downgrade: lets a signed statement of an older generation, or an older release, take
            the place of a newer one, which `trusted` keys refuse otherwise.
        own: the public half of the key that signs; what that did not sign is stated anew.
    """

    sign: Callable[[bytes], bytes] | None = field(default=None, repr=False)
    trusted: tuple[bytes, ...] = field(default=(), repr=False)
    allow_downgrade: bool = False
    own: bytes | None = field(default=None, repr=False)

    @property
    def forbids_downgrade(self) -> bool:
        """Whether what is older is refused."""
        return bool(self.trusted) and not self.allow_downgrade

    def made(self, document: bytes, signature: str | None) -> bool:
        """Whether `signature` is one over `document`, by our own key as far as that is known."""
        if signature is None or self.own is None:
            return signature is not None
        try:
            StatementKeys(trusted=(self.own,)).check(document, signature)
        except UntrustedStatementError:
            return False
        return True

    def check(self, document: bytes, signature: str | None) -> None:
        """Check that the holder of a trusted key signed `document`; any does where none is given.

        Raises:
            UntrustedStatementError: nobody who is trusted did.
            InputError: a trusted key is not usable.
        """
        if not self.trusted:
            return None
        from mirror.signing import verify  # a tenth of a second, which few need

        if signature is None:
            raise UntrustedStatementError(
                "it is not signed, and trusted keys are given",
                advice="push with --sign-key to the registry that states it, and sync again",
            )
        for key in self.trusted:
            try:
                return verify(document, signature.encode(), key)
            except SignatureError:
                continue
        raise UntrustedStatementError(
            "none of the trusted keys made its signature: somebody else published it, or changed "
            "it",
            advice="find out who may write there; `mirror push --sign-key` states what is right",
        )


UNSIGNED = StatementKeys()
"""Statements are not signed, and whatever the tags of their registry confirm is believed."""


def generation_of(manifest: Manifest) -> int | None:
    """The generation that the annotation of a statement's manifest names.

    None if that annotation is missing or does not name a generation.
    """
    text = manifest.annotations.get(GENERATION, "")
    return int(text) if _GENERATION.fullmatch(text) else None


def joined(pieces: Iterable[bytes]) -> bytes:
    """Join a statement, or a seal: ValueError as soon as it is too long for what it speaks of.

    Whatever they say, they say of a digest, in less than 512 bytes.
    """
    whole, most = BytesIO(), _FREE_BYTES
    for piece in pieces:
        whole.write(piece)
        most += _BYTES_EACH * len(_NAMED.findall(piece))
        if whole.tell() > most:
            raise ValueError(f"more than {_FREE_BYTES >> 20} MiB of it speak of no content")
    return whole.getvalue()


def layer_of(manifest: Manifest) -> Descriptor:
    """The layer of a statement's artifact.

    Raises:
        StatementError: `manifest` is that of something else, or its layer is too large.
    """
    if manifest.artifact_type != ARTIFACT_TYPE:
        raise StatementError(
            f"it is not a published inventory: its artifact type is "
            f"{manifest.artifact_type!s:.100}, not {ARTIFACT_TYPE}"
        )
    if [layer.media_type for layer in manifest.layers] != [LAYER_TYPE]:
        raise StatementError(
            f"it is not a published inventory: it needs one layer, of {LAYER_TYPE}"
        )
    (layer,) = manifest.layers
    if layer.size > MAX_STATEMENT_BYTES:
        raise StatementError(
            f"the published inventory has {layer.size} bytes; at most {MAX_STATEMENT_BYTES} are "
            "read"
        )
    return layer


# -- succession ------------------------------------------------------------------------------------


def succeed(previous: Inventory, pushed: Inventory) -> Inventory:
    """What a registry that published `previous` states when all of `pushed` has come.

    That is everything of both, except manifests (and their blobs) that only overridden tags led to:
    they stay in the registry, for a rollback, and are no longer promised. What no tag led to
    before, such as signatures, stays.
    """
    return Inventory(
        {
            path: _succeeded(previous.repository(path), pushed.repository(path))
            for path in sorted({*previous.repositories, *pushed.repositories})
        }
    )


def _succeeded(previous: RepositoryContent, pushed: RepositoryContent) -> RepositoryContent:
    if not pushed or not previous:
        return pushed or previous
    everything = previous | pushed
    overridden = {
        digest for tag, digest in previous.tags.items() if pushed.tags.get(tag, digest) != digest
    }
    if not overridden:
        return everything
    untagged = previous.manifests.keys() - previous.reachable(previous.tags.values())
    kept = everything.reachable({*everything.tags.values(), *pushed.manifests, *untagged})
    dropped = previous.reachable(overridden) - kept
    if not dropped:
        return everything
    needed, lost = (
        {blob.digest for digest in some for blob in everything.manifests[digest].blobs}
        for some in (kept, dropped)
    )
    lost -= needed | pushed.blobs.keys()
    return RepositoryContent(
        everything.tags,
        {d: node for d, node in everything.manifests.items() if d not in dropped},
        {d: size for d, size in everything.blobs.items() if d not in lost},
    )


def following(generation: int) -> int:
    """The number of the generation after `generation`.

    Raises:
        StatementError: no number is left; somebody wrote that one by hand.
    """
    if generation >= MAX_GENERATION:
        raise StatementError(
            f"a statement there says that it is generation {generation}, after which none is left; "
            "remove that statement from the registry, then push the bundle again"
        )
    return generation + 1


def state_before(reached: Inventory, later: Iterable[Statement]) -> Tags:
    """The tags that named something else than `reached` says when the first `later` one began.

    `later` are all statements that came after `reached`, in rising order. For a tag that neither
    `reached` nor an earlier statement mentions, the `former` tags of the first generation that
    mentions it decide; a tag that a later generation added was not there before.
    """
    found: dict[str, dict[str, Digest]] = {}
    spoken_of = {path: set(content.tags) for path, content in reached.repositories.items()}
    for number, statement in enumerate(later):
        for path, tags in statement.former.items():
            for tag, digest in tags.items():
                if number == 0 or tag not in spoken_of.get(path, ()):
                    found.setdefault(path, {}).setdefault(tag, digest)
        for path, tags in (*tags_of(statement.inventory).items(), *statement.former.items()):
            spoken_of.setdefault(path, set()).update(tags)
    return found


def _generation(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r:.50} is not a generation")
    return value


# -- artifacts of our own --------------------------------------------------------------------------

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
