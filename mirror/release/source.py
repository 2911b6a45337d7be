"""Reading a source's release tree: tags, manifests, files inside images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from semver import Version

from mirror.errors import (
    InvalidManifestError,
    RegistryError,
    RegistryNotFoundError,
    SourceContentError,
    same,
)
from mirror.events import PhaseAdvanced, PhaseStarted, Warned
from mirror.layout import (
    EDITIONS,
    INSTALLER,
    MODULES,
    PLUGINS,
    join_path,
    version_tag,
    with_modules_suffix,
)
from mirror.oci import Descriptor, Digest, Manifest, Platform, Repository, verified
from mirror.oci.layers import read_files
from mirror.oci.manifest import descriptor_json
from mirror.registry import RegistryReader
from mirror.release.constraints import Constraint, find_by_probing
from mirror.run import Item, Result, Run, gather
from mirror.sync.tree import RegistrySource

_METADATA_PLATFORM = Platform("linux", "amd64")
"""The image of an index whose files are read; the others hold the same files."""

_CANNOT_LIST = frozenset({400, 405, 501})
"""The statuses, besides 404, by which registries say that they cannot list tags."""

_SMALL_LAYER = 256 << 10
"""Bytes of a layer that one thread reads at a time, so that the others find it kept."""


@dataclass(frozen=True, slots=True)
class SourceTree:
    """Where a source registry keeps its release tree. `root` is what `--source` names.

    Most repositories lie below the edition (`deckhouse/ee`), a few beside it
    (`deckhouse/installer`).
    """

    root: Repository
    modules_suffix: str = MODULES

    @property
    def edition(self) -> str | None:
        """The edition that the root's last part names, or None where it names none."""
        last = self.root.path.rpartition("/")[2]
        return last if last in EDITIONS else None

    @property
    def bare(self) -> str:
        """The path that editions share: the root's without its edition."""
        return self.root.path.removesuffix(self.edition or "").removesuffix("/")

    def locate(self, path: str) -> str:
        """Return the registry's repository for a path of the tree."""
        shared = path in (INSTALLER, PLUGINS) or path.startswith(f"{PLUGINS}/")
        root = self.bare if shared else self.root.path
        return join_path(root, with_modules_suffix(path, self.modules_suffix))

    def origin(self, path: str) -> str:
        """Return the same with the registry's host: what images of that path are called there."""
        return f"{self.root.host}/{self.locate(path)}"


class ReleaseSource:
    """Asks a source registry about its release tree. Thread-safe.

    Repository paths are those of the bundle. The registry hears each question once, however many
    threads ask it. This class only asks; other modules decide what follows from the answers.
    """

    def __init__(self, client: RegistryReader, tree: SourceTree, *, run: Run | None = None) -> None:
        self.tree = tree
        self.content = RegistrySource(client, tree.locate, f"source {tree.root}", keep_small=True)
        self._run = Run.of(run)
        self._lock = threading.Lock()
        self._answers: dict[Hashable, Future[Any]] = {}  # under the lock, like the next
        self._turns: dict[Digest, threading.Lock] = {}

    # -- for the user --------------------------------------------------------------------------

    def warn(self, message: str) -> None:
        """Warn the user; the work goes on."""
        self._run.on_event(Warned(message))

    def each(
        self, phase: str, items: Collection[Item], work: Callable[[Item], Result]
    ) -> list[Result]:
        """Do `work` on all items in parallel; return the results in order, or raise a failure."""

        def one(item: Item) -> Result:
            result = work(item)
            self._run.on_event(PhaseAdvanced())
            return result

        if not items:
            return []
        self._run.on_event(PhaseStarted(phase, len(items)))
        return gather(items, one, run=self._run)

    # -- questions -----------------------------------------------------------------------------

    def tags(self, repository: str) -> frozenset[str] | None:
        """Return all tags of a repository, or None if it does not exist."""

        def ask() -> frozenset[str] | None:
            try:
                return frozenset(self.content.client.tags(self.tree.locate(repository)))
            except RegistryNotFoundError:
                return None
            except RegistryError as err:
                if err.status not in _CANNOT_LIST:
                    raise
                raise RegistryError(
                    f"{err}; a source that cannot list tags, such as a proxy, takes "
                    "--proxy-registry",
                    where=err.where,
                    status=err.status,
                    codes=err.codes,
                ) from err

        return self._once(("tags", repository), ask)

    def manifest(self, repository: str, reference: str | Digest) -> Manifest | None:
        """Return a manifest, or None if the source does not have it. Other failures are raised."""

        def ask() -> Manifest | None:
            try:
                if isinstance(reference, Digest):
                    return self.content.manifest(repository, reference)
                return self.content.fetch(repository, reference)
            except RegistryNotFoundError:
                return None
            except InvalidManifestError as err:
                raise SourceContentError(f"{self.where(repository, reference)}: {err}") from err

        return self._once(("manifest", repository, reference), ask)

    def required(self, repository: str, reference: str | Digest, needed_by: str) -> Manifest:
        """Return a manifest that `needed_by` leads to; SourceContentError if it is not there."""
        manifest = self.manifest(repository, reference)
        if manifest is None:
            raise self.missing(repository, reference, needed_by)
        return manifest

    def files(self, repository: str, manifest: Manifest, paths: Sequence[str]) -> dict[str, bytes]:
        """Return those of `paths` that the image has, with their bytes.

        In an index, the image for linux/amd64 is read, or else the first.
        """

        def ask() -> dict[str, bytes]:
            image = self._image(repository, manifest)
            layers = [partial(self._layer, repository, layer) for layer in image.layers]
            where = self.where(repository, manifest.digest)
            return read_files(layers, paths, where=where, check=self._run.check)

        return self._once(("files", repository, manifest.digest, *paths), ask)

    def referrers(self, repository: str, digest: Digest) -> list[dict[str, Any]] | None:
        """Return what refers to an image: descriptors as JSON values, sorted by digest.

        None if the source does not have the referrers API.
        """

        def ask() -> list[dict[str, Any]] | None:
            found = self.content.client.referrers_api(self.tree.locate(repository), digest)
            if found is None:
                return None
            return [
                descriptor_json(child.descriptor, child.artifact_type, child.annotations)
                for child in sorted(found, key=lambda child: child.descriptor.digest)
            ]

        return self._once(("referrers", repository, digest), ask)

    def _image(self, repository: str, manifest: Manifest) -> Manifest:
        image = manifest
        while image.is_index and image.children:
            children = [child for child in image.children if child.platform == _METADATA_PLATFORM]
            chosen = (children or image.children)[0].descriptor.digest
            image = self.required(repository, chosen, f"index {image.digest}")
        return image

    def _layer(self, repository: str, layer: Descriptor) -> Iterator[bytes]:
        """Read a layer and verify it. Images that are read at the same time share layers."""
        if layer.size > _SMALL_LAYER:
            yield from self._read_layer(repository, layer)
            return
        with self._lock:
            turn = self._turns.setdefault(layer.digest, threading.Lock())
        with turn:
            chunks = list(self._read_layer(repository, layer))
        yield from chunks

    def _read_layer(self, repository: str, layer: Descriptor) -> Iterator[bytes]:
        where = f"{self.tree.origin(repository)}: layer {layer.digest}"
        with closing(self.content.blob(repository, layer.digest, layer.size)) as chunks:
            yield from verified(chunks, layer.digest, layer.size, where=where)

    def _once(self, question: Hashable, ask: Callable[[], Result]) -> Result:
        """Return the answer to `question`. The first thread asks, the others wait for it."""
        with self._lock:
            future: Future[Result] | None = self._answers.get(question)
            first = future is None
            if future is None:
                future = self._answers[question] = Future()
        if first:
            try:
                future.set_result(ask())
            except BaseException as err:
                future.set_exception(err)
                raise
        error = future.exception()
        if error is not None:
            raise same(error) from error
        return future.result()

    # -- words ---------------------------------------------------------------------------------

    def where(self, repository: str, reference: str | Digest) -> str:
        """Return the name of an image at the source."""
        separator = "@" if isinstance(reference, Digest) else ":"
        return f"{self.tree.origin(repository)}{separator}{reference}"

    def missing(
        self, repository: str, reference: str | Digest, needed_by: str, way_out: str = ""
    ) -> SourceContentError:
        """Return the error for an image that `needed_by` leads to and the source does not have."""
        return SourceContentError(
            f"{self.where(repository, reference)} is not there, though {needed_by} leads to it; "
            f"the source is incomplete: ask its owner, or select other releases{way_out}"
        )


def answers(
    source: ReleaseSource, phase: str, questions: Iterable[Item], ask: Callable[[Item], Result]
) -> dict[Item, Result]:
    """Ask each question once, in parallel; return question → answer, in the order of questions."""
    asked = list(dict.fromkeys(questions))
    return dict(zip(asked, source.each(phase, asked, ask), strict=True))


def probed_tags(source: ReleaseSource, repository: str, constraint: Constraint) -> list[str]:
    """Find the tags of the versions that `constraint` accepts by trying them."""

    def exists(version: Version) -> bool:
        return source.manifest(repository, version_tag(version)) is not None

    return [version_tag(version) for version in find_by_probing(constraint, exists)]
