"""Successive releases as bundles, and a reader that polls a registry while they are published."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from examples.release_tree import ModuleSpec, ReleaseTree, TreeSpec, spread
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, serve
from tests.support.wire import Wire, joined, reached, sealed_repositories, sha256

STATEMENTS = "mirror/inventory"
CHANNELS = ("alpha", "beta", "early-access", "stable", "rock-solid")


def _release(*versions: str, modules: tuple[str, ...]) -> TreeSpec:
    return replace(
        TINY,
        versions=versions,
        channels=spread(versions),
        components=1,
        modules=(ModuleSpec("console", modules, spread(modules)),),
        packages=(),
    )


SPECS = (
    _release("v1.69.1", "v1.70.0", modules=("v1.0.0", "v1.1.0")),
    _release("v1.70.0", "v1.71.0", modules=("v1.1.0", "v1.2.0")),
    _release("v1.71.0", "v1.72.0", modules=("v1.2.0", "v1.3.0")),
)
"""Each turns all channels and brings one version more."""


@dataclass(frozen=True)
class Release:
    """A bundle, and what is true about it."""

    bundle: Path
    tree: ReleaseTree

    def tags(self) -> dict[str, dict[str, str]]:
        """Repository → tag → digest, as sealed."""
        return {path: content.tags for path, content in sealed_repositories(self.bundle).items()}


def pull_releases(folder: Path) -> tuple[Release, ...]:
    """A bundle of each of `SPECS`."""
    made = []
    for number, spec in enumerate(SPECS):
        bundle = folder / f"release-{number}"
        with EmbeddedRegistry(MemoryStorage()) as registry:
            source = serve(spec, registry)
            call_mirror("pull", bundle, "--source", source.root, "--insecure").succeeded()
        made.append(Release(bundle, source.tree))
    return tuple(made)


def snapshot(wire: Wire, root: str) -> dict[str, dict[str, str]]:
    """Every tag below `root` and the digest it names, without the statements'."""
    found: dict[str, dict[str, str]] = {}
    for repository in wire.repositories():
        path = repository.removeprefix(root).removeprefix("/")
        if path != STATEMENTS and (repository == root or repository.startswith(f"{root}/")):
            digests = {tag: digest_of(wire, repository, tag) for tag in wire.tags(repository)}
            found[path] = {tag: digest for tag, digest in digests.items() if digest}
    return {path: tags for path, tags in found.items() if tags}


def digest_of(wire: Wire, repository: str, reference: str) -> str | None:
    """The digest that a tag names, computed from the bytes; None if there is none."""
    raw = wire.manifest(repository, reference)
    return None if raw is None else sha256(raw)


class PatientWire(Wire):
    """Asks again where a registry stumbles over itself.

    `docker-registry` on a file system empties a tag's file before it writes it anew, and answers
    500 to who reads it in between; all its clients try again. And it lists a new tag a moment
    before that names anything.
    """

    def named(self, repository: str, tag: str) -> bytes | None:
        """The manifest of a tag that was listed."""
        for _ in range(50):
            raw = self.manifest(repository, tag)
            if raw is not None:
                return raw
            time.sleep(0.01)
        return None

    def _get(self, path: str) -> bytes | None:
        for _ in range(50):
            with suppress(AssertionError):
                return super()._get(path)
            time.sleep(0.01)
        return super()._get(path)

    def _head(self, path: str) -> bool:
        for _ in range(50):
            with suppress(AssertionError):
                return super()._head(path)
            time.sleep(0.01)
        return super()._head(path)


@dataclass
class Reader:
    """Polls every tag of the releases below `root` in a thread, as a cluster would.

    `wrong` lists all that was seen incomplete, `polls` counts the rounds over all tags, and
    `channels` is every state that a channel was seen in.
    """

    url: str
    root: str
    releases: tuple[Release, ...]
    wrong: list[str] = field(default_factory=list)
    channels: set[tuple[str, str]] = field(default_factory=set)
    polls: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")
        self._whole: set[tuple[str, str]] = set()
        self._tags: dict[str, set[str]] = {}
        self._versions: dict[str, str] = {}
        self._promised: dict[str, dict[str, str]] = {}
        for release in self.releases:
            tags = release.tags()
            for path, digests in tags.items():
                self._tags.setdefault(path, set()).update(digests)
            for channel, version in release.tree.channels.items():
                self._versions[tags["release-channel"][channel]] = version
            for version, one in release.tree.platform.items():
                components = {str(digest): str(digest) for digest in one.components.values()}
                self._promised[version] = components

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with httpx.Client(base_url=self.url) as http:
                wire = PatientWire(http)
                while not self._stop.is_set():
                    self.poll(wire)
                    time.sleep(0.02)  # lets the others have the processor
        except BaseException as error:
            self.wrong.append(f"the reader broke: {error!r}")
            raise

    def poll(self, wire: PatientWire) -> None:
        """One look at everything."""
        for path in self._tags:
            repository = joined(self.root, path)
            for tag in wire.tags(repository):
                raw = wire.named(repository, tag)
                if raw is None:
                    self.wrong.append(f"{path}:{tag} is listed and names nothing")
                    continue
                self._check_graph(wire, path, tag, raw)
                if path == "release-channel" and tag in CHANNELS:
                    self._check_channel(wire, tag, raw)
        self.polls += 1

    def _check_graph(self, wire: Wire, path: str, name: str, raw: bytes) -> None:
        """Everything that a manifest reaches is there. What was there once stays, so ask once."""
        repository = joined(self.root, path)
        if (path, sha256(raw)) in self._whole:
            return
        for kind, digest in reached(raw):
            if not wire.has(repository, kind, digest):
                self.wrong.append(f"{path}:{name} is there without {kind} {digest}")
            elif kind == "manifests":
                child = wire.manifest(repository, digest)
                assert child is not None
                self._check_graph(wire, path, name, child)
        self._whole.add((path, sha256(raw)))

    def _check_channel(self, wire: Wire, channel: str, raw: bytes) -> None:
        """All images of the version that a channel leads to are there."""
        version = self._versions[sha256(raw)]
        self.channels.add((channel, version))
        wanted: Mapping[str, str] = self._promised[version]
        for path in ("", "install", "install-standalone", "release-channel"):
            if digest_of(wire, joined(self.root, path), version) is None:
                self.wrong.append(f"{channel} leads to {version}, and {path}:{version} is missing")
        for digest in wanted:
            if not wire.has(self.root, "manifests", digest):
                self.wrong.append(f"{channel} leads to {version} without component {digest}")
