"""Where content comes from and goes to: the two protocols of a transfer, and content in memory.

A registry, a bundle and memory are sources; a registry, a bundle being written and memory are
targets. Repository paths are relative to the root that the inventory shares.
"""

from __future__ import annotations

import threading
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from mirror.documents import parse_json
from mirror.durable import Extents
from mirror.errors import (
    CancelledError,
    DeniedError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import PhaseAdvanced, PhaseStarted
from mirror.oci import Digest, Manifest, ManifestNode
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import referrers_tag
from mirror.registry import RegistryReader
from mirror.run import Run, gather
from mirror.sync.inventory import Inventory, InventoryBuilder, RepositoryContent
from mirror.sync.plan import CopyBlob

if TYPE_CHECKING:
    from mirror.sync.failover import BlobContent


class ReadableTree(Protocol):
    """A tree of repositories in a registry, which can be looked at."""

    @property
    def name(self) -> str: ...
    @property
    def client(self) -> RegistryReader: ...
    @property
    def locate(self) -> Callable[[str], str]: ...


class ForeignLayers(StrEnum):
    """What to do with layers that registries need not hold (`ManifestNode.foreign`)."""

    CARRY = "carry"
    """Carry those that the source holds."""
    LEAVE_OUT = "leave-out"


class SparseIndexes(StrEnum):
    """What to do with an index if the source does not have all of its images."""

    REFUSE = "refuse"
    CARRY = "carry"
    """Carry it with those that are there."""


@dataclass(frozen=True, slots=True)
class ContentRules:
    """How much of an image must be there."""

    foreign_layers: ForeignLayers = ForeignLayers.CARRY
    sparse_indexes: SparseIndexes = SparseIndexes.REFUSE


AS_USUAL = ContentRules()
"""Carry foreign layers that are there, and refuse sparse indexes."""


def foreign_notice(place: str, count: int, rules: ContentRules) -> str:
    """What to tell of foreign layers that are not carried from `place`."""
    kinds = f"{count} non-distributable layers" if count > 1 else "a non-distributable layer"
    if rules.foreign_layers is ForeignLayers.LEAVE_OUT:
        return f"{place}: {kinds}: left out, as --foreign-layers says"
    return (
        f"{place} does not hold {kinds} of the images: left out; whoever runs these images "
        "fetches them from the addresses that the images name"
    )


def sparse_notice(place: str, absent: Mapping[Digest, Collection[Digest]]) -> str:
    """What to tell of sparse indexes: index → its images that are not at `place`."""
    lacking, first = sum(map(len, absent.values())), min(absent)
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return (
        f"{place} does not have all images of sparse indexes: {first}{more} (images that are not "
        f"there: {lacking}); carried without these; many registries refuse such an index"
    )


class Source(Protocol):
    """Something that content is read from. Thread-safe."""

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        """The manifest with that digest.

        Raises:
            NotFoundError: `repository` has no such manifest.
            IntegrityError: what is there under that name is something else.
        """

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        """The bytes of a blob of `size` bytes, from `offset` to its end; not yet verified."""


@runtime_checkable
class FileSource(Protocol):
    """A source that may have blobs in files of this machine. Thread-safe."""

    def extents(self, repository: str, digest: Digest, size: int, offset: int) -> Extents:
        """As `Source.blob`, but not read; nothing of what does not lie in such files."""


class Target(Protocol):
    """Something that content is written to. Thread-safe; every call is idempotent."""

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""

    def held(self, wanted: Inventory) -> Inventory:
        """What of `wanted` is there already, as far as this target can tell."""

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        """Bring a blob into every repository of `step.into`; return the bytes that moved.

        Never leaves wrong bytes under a digest: `content` raises before its last chunk if they
        are, and a target completes a blob only with its last byte.
        """

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        """Store a manifest by its digest. All it reaches is there already."""

    def list_referrer(self, repository: str, manifest: Manifest) -> None:
        """List `manifest`, which has a subject, where others look for what refers to that.

        Called when it is stored, unless a tag that is about to turn holds the list.
        """

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Let `tag` name `manifest`, which is there already."""


def graph(root: Manifest, fetch: Callable[[Digest], Manifest | None]) -> Iterator[Manifest]:
    """`root` and all manifests below it, each once: what `fetch` gives of those that it names."""
    left, seen = [root], {root.digest}
    while left:
        manifest = left.pop()
        yield manifest
        fresh = {child.descriptor.digest for child in manifest.children} - seen
        seen |= fresh
        left += filter(None, map(fetch, sorted(fresh)))


_CHUNK = 1 << 20


class MemoryStore:
    """Repositories in memory, both `Source` and `Target`. Thread-safe.

    Equal blobs of several repositories are stored once.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._data: dict[Digest, bytes] = {}
        self._blobs: dict[str, set[Digest]] = {}
        self._manifests: dict[str, dict[Digest, Manifest]] = {}
        self._tags: dict[str, dict[str, Digest]] = {}

    @property
    def name(self) -> str:
        return self._name

    # -- filling it by hand --------------------------------------------------------------------

    def add_blob(self, repository: str, data: bytes, *, algorithm: str = "sha256") -> Digest:
        """Put `data` into `repository`; return its digest."""
        digest = Digest.of(data, algorithm)
        with self._lock:
            self._data.setdefault(digest, data)
            self._blobs.setdefault(repository, set()).add(digest)
        return digest

    def add_manifest(
        self,
        repository: str,
        raw: bytes,
        media_type: str,
        *,
        tags: Iterable[str] = (),
        algorithm: str = "sha256",
    ) -> Manifest:
        """Put a manifest into `repository`, under its digest and `tags`."""
        manifest = Manifest.parse(raw, media_type, algorithm=algorithm)
        self.put_manifest(repository, manifest)
        for tag in tags:
            self.put_tag(repository, tag, manifest)
        return manifest

    # -- Source --------------------------------------------------------------------------------

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        with self._lock:
            found = self._manifests.get(repository, {}).get(digest)
        if found is None:
            raise NotFoundError(f"{self.name}: no manifest {digest} in {repository!r}")
        return found

    def blob(
        self,
        repository: str,
        digest: Digest,
        size: int,  # noqa: ARG002 - the protocol's
        offset: int = 0,
    ) -> Generator[bytes, None, None]:
        with self._lock:
            there = digest in self._blobs.get(repository, ())
        if not there:
            raise NotFoundError(f"{self.name}: no blob {digest} in {repository or '/'}")
        data = self._data[digest]
        for start in range(offset, len(data), _CHUNK):
            yield data[start : start + _CHUNK]

    def inventory(self) -> Inventory:
        """All it holds."""
        builder = InventoryBuilder()
        with self._lock:
            for path, blobs in self._blobs.items():
                for digest in blobs:
                    builder.add_blob(path, digest, len(self._data[digest]))
            for path, manifests in self._manifests.items():
                for manifest in manifests.values():
                    builder.add_manifest(path, ManifestNode.of(manifest), closed=False)
            for path, tags in self._tags.items():
                for tag, digest in tags.items():
                    builder.add_tag(path, tag, digest)
        return builder.build()

    # -- Target --------------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:  # noqa: ARG002 - it knows all it holds
        return self.inventory()

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        sent = 0
        if step.mount_from is None:
            data = b"".join(content.chunks())
            sent = len(data)
            with self._lock:
                self._data[step.digest] = data
        with self._lock:
            for repository in step.into:
                self._blobs.setdefault(repository, set()).add(step.digest)
        return sent

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        with self._lock:
            self._manifests.setdefault(repository, {})[manifest.digest] = manifest

    def list_referrer(self, repository: str, manifest: Manifest) -> None:
        """Do nothing: the manifests themselves say what they refer to."""

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        with self._lock:
            self._tags.setdefault(repository, {})[tag] = manifest.digest


# -- many questions to one registry ----------------------------------------------------------------

Item = TypeVar("Item")
Result = TypeVar("Result")

_REFUSALS = 32
"""After this many refusals without a good answer, the registry is at fault and not the items."""


class PerItemErrors:
    """Asks one registry about many items. Thread-safe.

    An error that belongs to its item is returned as a value. One that the next item would only
    repeat is raised: the registry does not answer `ping` either, or refuses everything.
    `asked` counts the questions.
    """

    def __init__(self, ping: Callable[[], None], run: Run) -> None:
        self._ping, self._run = ping, run
        self._lock = threading.Lock()  # guards the next two
        self._refused = 0
        self.asked = 0
        self._answered = False  # only ever set, so it needs no lock; so is the next
        self._last: RegistryError | None = None

    def ask(self, question: Callable[[], Result]) -> Result | MirrorError:
        """The answer, or the error that belongs to this question alone.

        Raises:
            RegistryError: of the registry as a whole.
            CancelledError: the run was stopped.
        """
        with self._lock:
            self.asked += 1
        return self._ask(lambda _: question(), None)

    def ask_all(
        self,
        items: Sequence[Item],
        question: Callable[[Item], Result],
        *,
        title: str | None = None,
        wide: bool = True,
    ) -> list[Result | MirrorError]:
        """`ask` about every item, in `run.jobs` threads; the answers are in the items' order.

        With a `title` the questions are reported as a phase of this name. Those that hold pieces of
        blobs are not `wide`: no more than `run.jobs` are asked at once, however far the way.
        """
        if not items:
            return []
        with self._lock:
            self.asked += len(items)
        on_event = self._run.on_event
        if title is not None:
            on_event(PhaseStarted(title, len(items)))
        answers: list[Result | MirrorError | None] = [None] * len(items)

        def ask(number: int) -> None:
            answers[number] = self._ask(question, items[number])
            if title is not None:
                on_event(PhaseAdvanced())

        run = self._run if wide else self._run.with_jobs(self._run.jobs)
        gather(range(len(items)), ask, run=run)
        if self._last is not None:
            raise self._last
        return cast("list[Result | MirrorError]", answers)

    def _ask(self, question: Callable[[Item], Result], item: Item) -> Result | MirrorError:
        if self._last is not None:
            return self._last
        try:
            answer = question(item)
        except CancelledError:
            raise
        except (UnreachableError, DeniedError) as err:
            if isinstance(err, UnreachableError):
                self._ping()
            with self._lock:
                self._refused += 1
                if self._refused >= _REFUSALS and not self._answered:
                    raise
            return err
        except MirrorError as err:
            if isinstance(err, RegistryError) and err.of_all:
                self._last = err
            return err
        self._answered = True
        return answer


# -- where a registry without the referrers API lists what refers to an image: under a tag ---------
# Distribution-spec, "Referrers Tag Schema" and "Pushing Manifests with Subject". Whoever pushes
# keeps the list, so a push that is killed between a manifest and its entry leaves it as it was.

Held = tuple[str, Digest | None]
"""A manifest in a repository."""


def referrers_list(client: RegistryReader, repository: str, subject: Digest) -> Any:
    """The index in which a registry without the referrers API lists what refers to `subject`.

    As JSON values (distribution-spec, "Referrers Tag Schema"); an empty one where there is none,
    and None where its tag names something else, which somebody set for a purpose of his own.
    """
    try:
        found = client.manifest(repository, referrers_tag(subject))
    except RegistryNotFoundError:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    except InvalidManifestError:
        return None
    if not found.is_index:
        return None
    index = parse_json(found.raw)
    index["manifests"] = index.get("manifests") or []  # Go writes an empty list as null
    return index


def unlisted(
    place: ReadableTree,
    questions: PerItemErrors,
    asked: Mapping[str, RepositoryContent],
    there: Set[Held],
) -> set[Held]:
    """Those `there` that have a subject and that nobody finds from it: put them again.

    Where the list is one of the wanted tags of `asked`, it turns with them.
    """
    referring: dict[tuple[str, Digest], list[Digest]] = {}
    for path, content in asked.items():
        for digest, node in content.manifests.items():
            subject = node.subject
            if subject is None or (path, digest) not in there:
                continue
            if referrers_tag(subject) not in content.tags:
                referring.setdefault((path, subject), []).append(digest)
    if not referring:
        return set()
    client, locate = place.client, place.locate
    path, image = next(iter(referring))
    if questions.ask(lambda: client.referrers_api(locate(path), image)) is not None:
        return set()
    lists = questions.ask_all(
        list(referring), lambda one: referrers_list(client, locate(one[0]), one[1])
    )
    found: set[Held] = set()
    for ((path, _), digests), index in zip(referring.items(), lists, strict=True):
        if index is not None and not isinstance(index, MirrorError):
            entries = {one["digest"] for one in index["manifests"]}
            found.update((path, one) for one in digests if str(one) not in entries)
    return found
