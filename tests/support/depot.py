"""Release trees put straight into the storage of a registry, and small images to change them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.release_tree import ReleaseTree, TreeSpec, build
from examples.release_tree.images import Image, image, layer
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from mirror.serve import MemoryStorage, put_blob
from mirror.sync import MemoryStore
from mirror.testing import EmbeddedRegistry
from tests.support.program import Finished, call_mirror
from tests.support.sample_images import descriptor

References = dict[tuple[str, str, str], str]
"""(archive, repository, tag) → digest."""


class Depot:
    """A registry's storage as the generator of trees fills it, and as tests change it.

    `moved` renames the head of repository paths on the way in.
    """

    def __init__(self, moved: Mapping[str, str] | None = None) -> None:
        self.storage = MemoryStorage()
        self._moved = moved or {}

    def _at(self, repository: str) -> str:
        for old, new in self._moved.items():
            if repository == old or repository.startswith(f"{old}/"):
                return new + repository[len(old) :]
        return repository

    def add_blob(self, repository: str, data: bytes) -> Digest:
        return put_blob(self.storage, self._at(repository), data)

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest:
        manifest = Manifest.parse(raw, media_type)
        for tag in (None, *tags):
            self.storage.put_manifest(self._at(repository), manifest, tag)
        return manifest

    def put(self, repository: str, made: Image, *tags: str) -> Digest:
        """Put an image, and all it needs, into a repository."""
        for child in made.children:
            self.put(repository, child)
        for blob in made.blobs.values():
            self.add_blob(repository, blob)
        return self.add_manifest(repository, made.raw, made.media_type, tags=tags).digest

    def tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Let one more tag name a manifest that is there."""
        manifest = self.manifest(repository, digest)
        self.storage.put_manifest(self._at(repository), manifest, tag)

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        """A manifest that is there."""
        held = self.storage.manifest(self._at(repository), digest)
        assert held is not None, (repository, digest)
        return Manifest.parse(held.raw, held.media_type)

    def drop(self, repository: str, reference: str | Digest) -> None:
        """Remove a tag, or a manifest with its tags."""
        if isinstance(reference, Digest):
            assert self.storage.delete_manifest(self._at(repository), reference)
        else:
            assert self.storage.delete_tag(self._at(repository), reference)

    def refer(
        self,
        repository: str,
        subject: Digest,
        *tags: str,
        kind: str = "application/vnd.example.signature",
        native: bool = True,
        text: str = "signed",
    ) -> Digest:
        """Put a small artifact that speaks of `subject`; `native`: it says so itself (OCI 1.1)."""
        config, data = b"{}", f"{text} {subject}".encode()
        for blob in (config, data):
            self.add_blob(repository, blob)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": descriptor(OCI_CONFIG, config),
            "layers": [descriptor(kind, data)],
        }
        if native:
            held = self.manifest(repository, subject)
            document["subject"] = descriptor(held.media_type, held.raw)
        raw = json.dumps(document).encode()
        return self.add_manifest(repository, raw, OCI_MANIFEST, tags=tags).digest

    def list_referrers(self, repository: str, subject: Digest, *referrers: Digest) -> Digest:
        """Keep a list of referrers as clients do for registries without the referrers API."""
        children = [self.manifest(repository, one) for one in referrers]
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                descriptor(one.media_type, one.raw, artifactType=one.artifact_type)
                for one in children
            ],
        }
        raw = json.dumps(document).encode()
        return self.add_manifest(repository, raw, OCI_INDEX, tags=[cosign(subject)]).digest


def cosign(subject: Digest, suffix: str = "") -> str:
    """The tag under which cosign, or the referrers tag schema, keeps what speaks of an image."""
    return f"sha256-{subject.encoded}{suffix}"


def release_image(version: str, **more: object) -> Image:
    """An image that says which version a channel leads to."""
    return files_image({"version.json": json.dumps({"version": version, **more})})


def files_image(files: Mapping[str, str]) -> Image:
    """An image of one layer with these files."""
    return image([layer(files)])


@dataclass(frozen=True)
class Offer:
    """A tree that a registry of this process serves. `depot` is the storage behind it."""

    tree: ReleaseTree
    depot: Depot
    registry: EmbeddedRegistry

    @property
    def root(self) -> str:
        """What `--source` is to name."""
        return f"{self.registry.address}/{self.tree.root}"

    def at(self, path: str) -> str:
        """The registry's repository for a path below the edition."""
        return f"{self.tree.root}/{path}" if path else self.tree.root

    def plan(self, *flags: str | Path) -> Finished:
        """`mirror pull --dry-run --json`."""
        return dry_run(self.root, *flags)


def stocked(spec: TreeSpec, moved: Mapping[str, str] | None = None) -> tuple[ReleaseTree, Depot]:
    """The tree of `spec` in a storage."""
    depot = Depot(moved)
    return build(spec, depot), depot


def dry_run(root: str, *flags: str | Path) -> Finished:
    """`mirror pull --dry-run --json` from a registry without TLS."""
    return call_mirror(
        "pull", "never-written", "--source", root, "--insecure", "--dry-run", "--json", *flags
    )


def references(document: Mapping[str, Any]) -> References:
    """What a plan would give a name in the bundle."""
    found: References = {
        (one["archive"], one["repository"], one["tag"]): one["digest"]
        for one in document["references"]
    }
    assert len(found) == len(document["references"]), "something is listed twice"
    return found


def difference(found: References, expected: References) -> list[str]:
    """How two plans differ, in few lines."""
    lines = [
        *(f"not expected: {key}" for key in sorted(found.keys() - expected.keys())),
        *(f"not found: {key}" for key in sorted(expected.keys() - found.keys())),
        *(
            f"differs: {key}: {found[key]} instead of {expected[key]}"
            for key in sorted(found.keys() & expected.keys())
            if found[key] != expected[key]
        ),
    ]
    return lines[:12]


def lay_out_storage(store: MemoryStore, repositories: Sequence[str], root: Path) -> None:
    """Write what `store` has the way CNCF distribution keeps it, without asking it to take each.

    `root` is its storage folder. Pushing as much would take minutes.
    """
    folder = root / "docker/registry/v2"
    inventory = store.inventory()
    for repository in repositories:
        content = inventory.repository(repository)
        place = folder / "repositories" / repository
        for digest, size in content.blobs.items():
            _write(folder, digest, b"".join(store.blob(repository, digest, size)))
            _link(place / "_layers", digest)
        for digest in content.manifests:
            _write(folder, digest, store.manifest(repository, digest).raw)
            _link(place / "_manifests/revisions", digest)
        for tag, digest in content.tags.items():
            _link(place / f"_manifests/tags/{tag}/index", digest)
            current = place / f"_manifests/tags/{tag}/current/link"
            current.parent.mkdir(parents=True)
            current.write_text(str(digest))


def _write(folder: Path, digest: Digest, data: bytes) -> None:
    path = folder / "blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded / "data"
    if not path.exists():
        path.parent.mkdir(parents=True)
        path.write_bytes(data)


def _link(place: Path, digest: Digest) -> None:
    path = place / digest.algorithm / digest.encoded / "link"
    path.parent.mkdir(parents=True)
    path.write_text(str(digest))
