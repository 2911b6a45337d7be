"""Observation: what a registry holds, found by looking: tags, what they name, what that needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mirror.errors import InvalidManifestError, RegistryNotFoundError
from mirror.events import OnEvent, PhaseAdvanced, PhaseStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Manifest
from mirror.registry import RegistryClient
from mirror.sync.inventory import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.registry import Locate
from mirror.sync.workers import DEFAULT_JOBS, Item, Result, gather


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen. `inventory` has only what is there, so it is open where content is missing.

    `requests` counts what was asked of the registry; `notices` say what could not be read.
    """

    inventory: Inventory
    requests: int
    notices: tuple[str, ...]


def observe(
    client: RegistryClient,
    locate: Locate,
    paths: Iterable[str],
    *,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> Observation:
    """Look at the repositories `paths`: follow every tag to its manifests, and ask for each blob
    that these need (HEAD). A path without a repository holds nothing.

    Manifests that no tag leads to are not seen, as no registry lists them.

    Raises:
        DeniedError, UnreachableError: the registry does not answer.
        CancelledError: `cancel` was set.
    """
    return _Observer(client, locate, jobs, on_event, cancel or threading.Event()).run(paths)


class _Observer:
    """One observation under way; each of its steps is done by several threads."""

    def __init__(
        self,
        client: RegistryClient,
        locate: Locate,
        jobs: int,
        on_event: OnEvent,
        cancel: threading.Event,
    ) -> None:
        self._client, self._locate = client, locate
        self._jobs, self._on_event, self._cancel = jobs, on_event, cancel
        self._builder = InventoryBuilder()
        self._nodes: dict[tuple[str, Digest], ManifestNode] = {}
        self._notices: list[str] = []
        self._requests = 0

    def run(self, paths: Iterable[str]) -> Observation:
        found = sorted(set(paths))
        tagged = [
            (path, tag)
            for path, tags in zip(found, self._each("tags", found, self._tags), strict=True)
            for tag in tags
        ]
        children = self._read("tagged images", tagged)
        while children:
            children = self._read("images of indexes", children)
        blobs = sorted(
            {
                (path, blob.digest, blob.size)
                for (path, _), node in self._nodes.items()
                for blob in node.blobs
            }
        )
        sizes = self._each("blobs", blobs, self._size)
        for (path, digest, size), there in zip(blobs, sizes, strict=True):
            if there == size:
                self._builder.add_blob(path, digest, size)
        return Observation(self._builder.build(), self._requests, tuple(self._notices))

    def _each(
        self, what: str, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> list[Result]:
        def one(item: Item) -> Result:
            result = work(item)
            self._on_event(PhaseAdvanced())
            return result

        self._requests += len(items)
        self._on_event(PhaseStarted(f"looking at the registry's {what}", len(items)))
        return gather(items, one, jobs=self._jobs, cancel=self._cancel)

    def _tags(self, path: str) -> list[str]:
        try:
            return sorted(self._client.tags(self._locate(path)))
        except RegistryNotFoundError:
            return []

    def _read(
        self, what: str, wanted: Sequence[tuple[str, str | Digest]]
    ) -> list[tuple[str, str | Digest]]:
        """Read manifests by tag or digest; return the children that have not been read."""
        answers = self._each(what, wanted, self._node)
        below: set[tuple[str, Digest]] = set()
        for (path, reference), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, str):
                self._notices.append(answer)
            elif answer is not None:
                digest = answer.descriptor.digest
                if isinstance(reference, str):
                    self._builder.add_tag(path, reference, digest)
                self._builder.add_manifest(path, answer, closed=False)
                self._nodes[path, digest] = answer
                below.update((path, child.digest) for child in answer.children)
        return sorted(below - self._nodes.keys() - set(wanted))

    def _node(self, item: tuple[str, str | Digest]) -> ManifestNode | str | None:
        """What is there; None if nothing is, a notice if it is nothing that can be carried."""
        path, reference = item
        try:
            manifest: Manifest = self._client.manifest(self._locate(path), reference)
        except RegistryNotFoundError:
            return None
        except InvalidManifestError as err:
            return f"{self._locate(path)}: {reference} is left out: {err}"
        return ManifestNode.of(manifest)

    def _size(self, item: tuple[str, Digest, int]) -> int | None:
        path, digest, _ = item
        return self._client.blob_size(self._locate(path), digest)
