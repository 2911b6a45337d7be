"""Registries as bare HTTP shows them: what tests compare, read without any code under test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.content_kinds import ACCEPT


@dataclass(frozen=True)
class Wire:
    """One registry, by plain requests. Repositories are paths within it."""

    http: httpx.Client

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """A manifest's bytes by tag or digest; None if it is not there."""
        return self._get(f"/v2/{repository}/manifests/{reference}")

    def blob(self, repository: str, digest: str) -> bytes | None:
        """A blob's bytes; None if it is not there."""
        return self._get(f"/v2/{repository}/blobs/{digest}")

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted; none if there is no such repository."""
        found = self._get(f"/v2/{repository}/tags/list")
        return sorted(json.loads(found)["tags"] or ()) if found is not None else []

    def repositories(self) -> list[str]:
        """All repositories, sorted."""
        found = self._get("/v2/_catalog?n=1000")
        return sorted(json.loads(found or b"")["repositories"])

    def has(self, repository: str, kind: str, digest: str) -> bool:
        """Whether one of the `blobs` or `manifests` of a repository is there."""
        return self._head(f"/v2/{repository}/{kind}/{digest}")

    def dangling(self, repository: str) -> list[str]:
        """What a tag of the repository reaches and the repository does not have."""
        missing = []
        for tag in self.tags(repository):
            for kind, digest in self._reached(repository, tag):
                there = self._head(f"/v2/{repository}/{kind}/{digest}")
                if not there:
                    missing.append(f"{repository}:{tag} → {kind} {digest}")
        return missing

    def _reached(self, repository: str, reference: str) -> Iterator[tuple[str, str]]:
        raw = self.manifest(repository, reference)
        if raw is None:
            yield "manifests", reference
            return
        for kind, digest in reached(raw):
            yield kind, digest
            if kind == "manifests":
                yield from self._reached(repository, digest)

    def _get(self, path: str) -> bytes | None:
        answer = self.http.get(path, headers={"Accept": ACCEPT})
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.content

    def _head(self, path: str) -> bool:
        answer = self.http.head(path, headers={"Accept": ACCEPT})
        assert answer.status_code in (200, 404), (path, answer.status_code)
        return answer.status_code == 200


def reached(raw: bytes) -> Iterator[tuple[str, str]]:
    """(`blobs` or `manifests`, digest) of all that a manifest or index names."""
    document: dict[str, Any] = json.loads(raw)
    for child in document.get("manifests", ()):
        yield "manifests", child["digest"]
    if "config" in document:
        for blob in (document["config"], *document["layers"]):
            yield "blobs", blob["digest"]


@dataclass(frozen=True)
class Sealed:
    """A repository as a bundle's seal has it. `origin` is its name at the source, with the host."""

    origin: str
    tags: dict[str, str] = field(default_factory=dict)
    manifests: set[str] = field(default_factory=set)
    blobs: dict[str, int] = field(default_factory=dict)


def sha256(data: bytes) -> str:
    """A digest as the wire spells it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def joined(root: str, path: str) -> str:
    """The repository at `path` below `root`; the empty path is `root` itself."""
    return f"{root}/{path}" if path else root


def sealed_repositories(bundle: Path) -> dict[str, Sealed]:
    """Path → what a bundle has of that repository, whichever archives it lies in."""
    seal = json.loads((bundle / "inventory.json").read_bytes())
    found: dict[str, Sealed] = {}
    for archive in seal["archives"].values():
        for path, content in archive["repositories"].items():
            one = found.setdefault(path, Sealed(archive["origins"][path]))
            one.tags.update(content["tags"])
            one.manifests.update(content["manifests"])
            one.blobs.update(content["blobs"])
    return found
