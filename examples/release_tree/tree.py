"""What was built: the ground truth that tests compare with, and the hand that fills the store."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from examples.release_tree.images import (
    AMD64,
    Content,
    Hardlink,
    Image,
    Layer,
    Symlink,
    artifact,
    layer,
)
from examples.release_tree.spec import TreeSpec
from mirror.oci import Digest, Manifest, Platform
from mirror.oci.manifest import OCI_CONFIG

DSSE_TYPE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"


class Store(Protocol):
    """What a tree is built into. Repositories are paths within one registry."""

    def add_blob(self, repository: str, data: bytes) -> Digest: ...

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest: ...


@dataclass
class PublishedRepository:
    """What a repository holds: tags, and all manifests including those under indexes."""

    tags: dict[str, Digest] = field(default_factory=dict)
    manifests: set[Digest] = field(default_factory=set)


@dataclass(frozen=True)
class PlatformVersion:
    """A release of the platform. `components` are in the root repository: `module/image` to digest,
    as the installer image lists them under `deckhouse/candi`."""

    version: str
    image: Digest
    install: Digest
    install_standalone: Digest
    release: Digest | None  # a build that no channel knows has none
    components: Mapping[str, Digest]


@dataclass(frozen=True)
class ModuleVersion:
    """A version of a module or package. `internal` images are in the module's own repository:
    name to digest. `extra` images are in `extra/<name>` under it: name to tag."""

    version: str
    image: Digest
    release: Digest
    internal: Mapping[str, Digest]
    extra: Mapping[str, str]


@dataclass(frozen=True)
class PublishedModule:
    """A module or package and the repository it is in."""

    repository: str
    release_repository: str
    channels: Mapping[str, str]
    versions: Mapping[str, ModuleVersion]


@dataclass(frozen=True)
class PublishedPlugin:
    """A plugin: its repository, and each version's digest and contract (None: it has none)."""

    repository: str
    versions: Mapping[str, Digest]
    contracts: Mapping[str, Mapping[str, object] | None]


@dataclass
class ReleaseTree:
    """All of a tree. Repository paths are within the registry; `attestations` maps a repository and
    the digest of an image in it to the tag of that image's VEX document in the same repository."""

    spec: TreeSpec
    repositories: dict[str, PublishedRepository] = field(default_factory=dict)
    platform: dict[str, PlatformVersion] = field(default_factory=dict)
    modules: dict[str, PublishedModule] = field(default_factory=dict)
    packages: dict[str, PublishedModule] = field(default_factory=dict)
    plugins: dict[str, PublishedPlugin] = field(default_factory=dict)
    databases: dict[str, Digest] = field(default_factory=dict)
    """Security databases, `trivy-db:2` and so on, under `<root>/security/`."""
    attestations: dict[tuple[str, Digest], str] = field(default_factory=dict)
    size: int = 0
    """Bytes of all blobs and manifests, each counted once."""

    @property
    def root(self) -> str:
        """The edition's path in the registry."""
        return self.spec.root

    @property
    def channels(self) -> Mapping[str, str]:
        """The platform's channels: name to version."""
        return self.spec.channels

    def tag(self, repository: str, tag: str) -> Digest:
        """The digest that `repository:tag` names.

        Raises:
            KeyError: there is no such tag.
        """
        return self.repositories[repository].tags[tag]


class Workshop:
    """Makes content and puts it into a store, keeping the tree's books.

    All that looks random comes from the seed and from what the content is for, never from the
    order of making: one more component leaves all others as they were.
    """

    def __init__(self, spec: TreeSpec, store: Store) -> None:
        self.spec, self.tree = spec, ReleaseTree(spec)
        self._store = store
        self._placed: set[tuple[str, Digest]] = set()
        self._counted: set[Digest] = set()
        self._manifests: dict[Digest, tuple[bytes, str]] = {}
        self._bases: dict[tuple[str, Platform], Layer] = {}

    def random(self, *key: object) -> random.Random:
        """A source of randomness that depends on nothing but the seed and `key`."""
        return random.Random("/".join(map(str, (self.spec.seed, *key))))

    def noise(self, size: int, *key: object) -> bytes:
        """Bytes that do not compress, as of a stripped binary."""
        return self.random("noise", *key).randbytes(size)

    def size(self, *key: object) -> int:
        """A layer's size in bytes: many about the typical one, some small, few big."""
        scale = self.random("size", *key).choice((0.2, 0.4, 0.6, 0.8, 1, 1, 1.2, 1.5, 2, 8))
        return int(self.spec.layer_bytes * scale) + 64

    def base(self, name: str, platform: Platform = AMD64) -> Layer:
        """A base layer that many images share: `distroless` (gzip) or `python` (zstd)."""
        made = self._bases.get((name, platform))
        if made is None:
            files: dict[str, Content] = {
                "etc/os-release": f"ID={name}\nPRETTY_NAME={name.capitalize()}\n",
                "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\ndeckhouse:x:64535:64535::/:\n",
                "etc/localtime": Symlink("../usr/share/zoneinfo/Etc/UTC"),
                "usr/share/zoneinfo/Etc/UTC": b"TZif2" + bytes(110),
                "usr/share/zoneinfo/Etc/GMT": Hardlink("usr/share/zoneinfo/Etc/UTC"),
                "usr/lib/libc.so.6": self.noise(self.spec.layer_bytes, name, "libc", platform),
            }
            if name == "python":
                interpreter = self.noise(3 * self.spec.layer_bytes, name, platform)
                files["usr/bin/python3.12"] = interpreter
                files["usr/bin/python3"] = Symlink("python3.12")
            made = layer(
                files,
                compression="zstd" if name == "python" else "gzip",
                comment=f"FROM {name}",
            )
            self._bases[name, platform] = made
        return made

    def publish(self, repository: str, image: Image, *tags: str) -> Digest:
        """Put an image or index, and all it needs, into `repository` under `tags`."""
        books = self.tree.repositories.setdefault(repository, PublishedRepository())
        for child in image.children:
            self.publish(repository, child)
        for digest, blob in image.blobs.items():
            if (repository, digest) not in self._placed:
                self._placed.add((repository, digest))
                self._store.add_blob(repository, blob)
                self._count(digest, len(blob))
        self._store.add_manifest(repository, image.raw, image.media_type, tags=tags)
        self._count(image.digest, len(image.raw))
        self._manifests[image.digest] = image.raw, image.media_type
        books.manifests.add(image.digest)
        books.tags.update(dict.fromkeys(tags, image.digest))
        return image.digest

    def retag(self, repository: str, digest: Digest, tag: str) -> None:
        """Let one more tag of `repository` name an image that is there."""
        raw, media_type = self._manifests[digest]
        self._store.add_manifest(repository, raw, media_type, tags=[tag])
        self.tree.repositories[repository].tags[tag] = digest

    def attest(self, repository: str, subject: Digest) -> None:
        """Publish a VEX document about an image, under the tag that cosign derives for it."""
        statement = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://openvex.dev/ns",
            "subject": [{"name": repository, "digest": {subject.algorithm: subject.encoded}}],
            "predicate": {"statements": [{"vulnerability": "CVE-2024-0001", "status": "fixed"}]},
        }
        envelope = {
            "payloadType": "application/vnd.in-toto+json",
            "payload": base64.b64encode(json.dumps(statement).encode()).decode(),
            "signatures": [{"keyid": "", "sig": ""}],
        }
        self._cosign(repository, subject, "att", DSSE_TYPE, json.dumps(envelope).encode())
        self.tree.attestations[repository, subject] = f"{_cosign_tag(subject)}.att"

    def sign(self, repository: str, subject: Digest) -> None:
        """Publish a signature of an image; mirrors of a release leave those behind."""
        payload = {"critical": {"image": {"docker-manifest-digest": str(subject)}}}
        self._cosign(repository, subject, "sig", SIGNATURE_TYPE, json.dumps(payload).encode())

    def _cosign(
        self, repository: str, subject: Digest, kind: str, media_type: str, data: bytes
    ) -> None:
        # cosign makes images of what are no images: with an image's config, as of one plain layer.
        config = {
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"}],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(data))]},
            "config": {},
        }
        document = artifact(
            OCI_CONFIG, [(media_type, "", data)], config=json.dumps(config).encode()
        )
        self.publish(repository, document, f"{_cosign_tag(subject)}.{kind}")

    def _count(self, digest: Digest, size: int) -> None:
        if digest not in self._counted:
            self._counted.add(digest)
            self.tree.size += size


def _cosign_tag(subject: Digest) -> str:
    return f"{subject.algorithm}-{subject.encoded}"
