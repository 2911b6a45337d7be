"""What a registry has of an inventory, asked with as few questions as prove it.

A registry takes a manifest only together with its blobs, so where a manifest is there its blobs are
taken for there, unless the survey is to be `thorough`. A tag that names the right digest
answers for its manifest. That leaves one HEAD per tag, one per manifest that no tag names, and the
blobs of manifests that are absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from mirror.errors import MirrorError, SizeMismatchError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.nodes import RepositoryContent
from mirror.sync.registry import RegistryTarget
from mirror.sync.tolerance import Tolerant


@dataclass(frozen=True, slots=True)
class Item:
    """Something of one repository: a tag, or a manifest or a blob by its digest."""

    repository: str
    digest: Digest
    tag: str | None = None
    is_blob: bool = False

    def __str__(self) -> str:
        where = self.repository or "/"
        if self.tag is not None:
            return f"tag {where}:{self.tag}"
        return f"{'blob' if self.is_blob else 'manifest'} {where}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that could not be asked about, carried or removed: side, reference and reason."""

    place: str
    item: str
    error: MirrorError

    def __str__(self) -> str:
        return f"{self.place}: {self.item}: {self.error}"

    def to_document(self) -> dict[str, str]:
        """As JSON values, for `--json`."""
        return {
            "place": self.place,
            "item": self.item,
            "type": type(self.error).__name__,
            "message": str(self.error),
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. `held` is of the inventory asked about; a tag in it may name another digest.

    `listed` has all tags of every repository that was looked at. `unclear` are items that the
    registry gave no proper answer about: they are neither there nor absent. `unlisted` are
    repositories of which nothing was wanted, and whose tags the registry does not list.
    """

    held: Inventory
    listed: Mapping[str, frozenset[str]]
    unclear: Mapping[Item, MirrorError]
    unlisted: Mapping[str, MirrorError] = field(default_factory=dict)

    def untold(self, place: str) -> tuple[Failure, ...]:
        """`unlisted`, as what could not be asked about at `place`."""
        return tuple(
            Failure(place, f"the tags of {path or '/'}", error)
            for path, error in self.unlisted.items()
        )


def survey(
    wanted: Inventory,
    place: RegistryTarget,
    *,
    also: Iterable[str] = (),
    thorough: bool = False,
    run: Run | None = None,
) -> Survey:
    """Ask `place` what it has of `wanted`; `also` are further repositories to list the tags of.

    `thorough` asks about every blob, in each repository that should have it.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        CancelledError: `run` was stopped.
    """
    tolerant = Tolerant(place.client)

    paths = sorted({*wanted.repositories, *also})
    listings = tolerant.ask_all(paths, place.listed_tags, run=run)
    unclear: dict[Item, MirrorError] = {}
    unlisted: dict[str, MirrorError] = {}
    listed: dict[str, frozenset[str]] = {}
    for path, tags in zip(paths, listings, strict=True):
        if isinstance(tags, MirrorError) and path not in wanted.repositories:
            unlisted[path] = tags
        elif isinstance(tags, MirrorError):
            unclear.update((item, tags) for item in _all_of(path, wanted.repository(path)))
        else:
            listed[path] = tags

    def answers(items: list[Item]) -> list[tuple[Item, Digest | int | None]]:
        found = tolerant.ask_all(items, partial(_ask, place), run=run)
        clear: list[tuple[Item, Digest | int | None]] = []
        for item, answer in zip(items, found, strict=True):
            if isinstance(answer, MirrorError):
                unclear[item] = answer
            else:
                clear.append((item, answer))
        return clear

    builder = InventoryBuilder()
    asked = {path: wanted.repository(path) for path in listed}
    tag_items = [
        Item(path, digest, tag)
        for path, content in asked.items()
        for tag, digest in content.tags.items()
        if tag in listed[path]
    ]
    there: set[tuple[str, Digest]] = set()
    for item, answer in answers(tag_items):
        if isinstance(answer, Digest) and item.tag is not None:
            builder.add_tag(item.repository, item.tag, answer)
            there.add((item.repository, answer))
    loose = [
        Item(path, digest)
        for path, content in asked.items()
        for digest in content.manifests
        if (path, digest) not in there
    ]
    there.update((item.repository, item.digest) for item, answer in answers(loose) if answer)
    doubtful: list[Item] = []
    for path, content in asked.items():
        trusted: set[Digest] = set()
        for digest, node in content.manifests.items():
            if (path, digest) in there:
                builder.add_manifest(path, node, closed=False)
                if not thorough:
                    trusted.update(blob.digest for blob in node.blobs)
        for digest, size in content.blobs.items():
            if digest in trusted:
                builder.add_blob(path, digest, size)
            else:
                doubtful.append(Item(path, digest, is_blob=True))
    for item, answer in answers(doubtful):
        size = asked[item.repository].blobs[item.digest]
        if answer == size:
            builder.add_blob(item.repository, item.digest, size)
        elif isinstance(answer, int):  # other bytes, which an upload alone may not replace
            unclear[item] = SizeMismatchError(where=place.name, expected=size, actual=answer)
    return Survey(builder.build(), listed, unclear, unlisted)


def _ask(place: RegistryTarget, item: Item) -> Digest | int | None:
    """The digest that a tag or manifest has there, or a blob's size; None if it is absent."""
    repository = place.locate(item.repository)
    if item.is_blob:
        return place.client.blob_size(repository, item.digest)
    found = place.client.resolve(repository, item.digest if item.tag is None else item.tag)
    return found.digest if found else None


def _all_of(path: str, content: RepositoryContent) -> list[Item]:
    return [
        *(Item(path, digest, tag) for tag, digest in content.tags.items()),
        *(Item(path, digest) for digest in content.manifests),
    ]
