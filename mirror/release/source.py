"""Reading a release tree: manifests, tag lists and files inside images, each asked for once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from functools import partial

from mirror.errors import RegistryNotFoundError
from mirror.events import OnEvent, PhaseAdvanced, PhaseStarted, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Descriptor, Digest, Manifest, Platform, verified
from mirror.oci.layers import read_files
from mirror.registry import RegistryClient
from mirror.release.tree import SourceTree
from mirror.sync.registry import RegistrySource
from mirror.sync.workers import DEFAULT_JOBS, Item, Result, gather

_METADATA_PLATFORM = Platform("linux", "amd64")
"""Which image of an index is read for metadata; all of them carry the same."""


class ReleaseSource:
    """A source registry's release tree, as questions and answers. Thread-safe.

    Repository paths are those of the bundle. All of it is I/O: what follows from the answers is
    decided elsewhere.
    """

    def __init__(
        self,
        client: RegistryClient,
        tree: SourceTree,
        *,
        jobs: int = DEFAULT_JOBS,
        on_event: OnEvent = ignore_events,
        cancel: threading.Event | None = None,
    ) -> None:
        self.tree = tree
        self.content = RegistrySource(client, tree.locate, f"source {tree.root}")
        self.cancel = cancel or threading.Event()
        self._jobs, self._on_event = jobs, on_event

    def warn(self, message: str) -> None:
        """Tell the user something that does not stop the work."""
        self._on_event(Warned(message))

    def each(
        self, phase: str, items: Collection[Item], work: Callable[[Item], Result]
    ) -> list[Result]:
        """`work` on all items in parallel, results in their order; the first failure is raised."""

        def one(item: Item) -> Result:
            result = work(item)
            self._on_event(PhaseAdvanced())
            return result

        self._on_event(PhaseStarted(phase, len(items)))
        return gather(items, one, jobs=self._jobs, cancel=self.cancel)

    def tags(self, repository: str) -> list[str] | None:
        """All tags of a repository; None if there is no such repository."""
        try:
            return self.content.client.tags(self.tree.locate(repository))
        except RegistryNotFoundError:
            return None

    def manifest(self, repository: str, reference: str | Digest) -> Manifest | None:
        """The manifest, or None if it is not there. Any other failure is raised."""
        try:
            if isinstance(reference, Digest):
                return self.content.manifest(repository, reference)
            return self.content.fetch(repository, reference)
        except RegistryNotFoundError:
            return None

    def files(self, repository: str, manifest: Manifest, paths: Sequence[str]) -> dict[str, bytes]:
        """Those of `paths` that the image has, with their bytes.

        Of an index the image for linux/amd64 is read, or its first.
        """
        where = f"{self.tree.origin(repository)}@{manifest.digest}"
        image = manifest
        while image.is_index and image.children:
            children = [child for child in image.children if child.platform == _METADATA_PLATFORM]
            chosen = (children or image.children)[0].descriptor.digest
            image = self.content.manifest(repository, chosen)
        layers = [partial(self._layer, repository, layer) for layer in image.layers]
        return read_files(layers, paths, where=where)

    def _layer(self, repository: str, layer: Descriptor) -> Iterator[bytes]:
        where = f"{self.tree.origin(repository)}: layer {layer.digest}"
        with closing(self.content.blob(repository, layer.digest, layer.size)) as chunks:
            yield from verified(chunks, layer.digest, layer.size, where=where)
