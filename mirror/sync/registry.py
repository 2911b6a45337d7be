"""A registry as source and target: repository paths mapped into it, contents observed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from mirror.errors import RegistryNotFoundError
from mirror.oci import Digest, Manifest
from mirror.registry import RegistryClient
from mirror.sync.content import BlobContent
from mirror.sync.inventory import Inventory, InventoryBuilder, RepositoryContent
from mirror.sync.plan import CopyBlob
from mirror.sync.workers import DEFAULT_JOBS, gather

Locate = Callable[[str], str]
"""Repository path of an inventory → repository of the registry."""


def below(root: str) -> Locate:
    """Everything lies below repository `root`; the empty path is `root` itself."""
    return lambda path: f"{root}/{path}" if path else root


_SMALL_BLOB = 256 << 10
_SMALL_BLOBS = 32 << 20
"""Bytes of a blob that is kept once it was read, and of all that are."""


class RegistrySource:
    """Content read from a registry. Thread-safe.

    Manifests are kept once they were read: an inventory is made from them, so they are small
    beside it, and a transfer that carries them asks for none a second time. With `keep_small` so
    are small blobs, up to a limit: whoever reads files in images to decide what to carry needs
    them twice.
    """

    def __init__(
        self,
        client: RegistryClient,
        locate: Locate,
        name: str | None = None,
        *,
        keep_small: bool = False,
    ) -> None:
        self.client = client
        self.locate = locate
        self._name = name or f"registry {client.host}"
        self._room = _SMALL_BLOBS if keep_small else 0
        self._lock = threading.Lock()
        self._manifests: dict[Digest, Manifest] = {}  # under the lock, like the next
        self._small: dict[Digest, bytes] = {}

    @property
    def name(self) -> str:
        return self._name

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        with self._lock:
            kept = self._manifests.get(digest)
        return kept or self.fetch(repository, digest)

    def fetch(self, repository: str, reference: str | Digest) -> Manifest:
        """Read a manifest by tag or digest from the registry.

        Raises:
            RegistryNotFoundError: `repository` has no such manifest.
        """
        return self.remember(self.client.manifest(self.locate(repository), reference))

    def remember(self, manifest: Manifest) -> Manifest:
        """Offer `manifest` from now on without asking the registry; also one it does not have."""
        with self._lock:
            return self._manifests.setdefault(manifest.digest, manifest)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        with self._lock:
            kept = self._small.get(digest)
        if kept is not None:
            yield kept[offset:]
            return
        chunks = self.client.blob(
            self.locate(repository), digest, size=size, offset=offset, verify=False
        )
        with closing(chunks):
            if size > _SMALL_BLOB or offset or size > self._room:
                yield from chunks
                return
            data = b"".join(chunks)
        self._keep(digest, data)
        yield data

    def _keep(self, digest: Digest, data: bytes) -> None:
        """Keep a small blob, if it is what it should be and there is room."""
        if Digest.of(data, digest.algorithm) != digest:
            return
        with self._lock:
            if digest not in self._small and len(data) <= self._room:
                self._room -= len(data)
                self._small[digest] = data


@dataclass(frozen=True, slots=True)
class _Question:
    """Is this blob, or this manifest (by tag or digest), in repository `path`?"""

    path: str
    manifest: str | Digest = ""
    blob: Digest | None = None


def _questions(
    path: str, content: RepositoryContent, listed: frozenset[str]
) -> Iterator[_Question]:
    present = [tag for tag in content.tags if tag in listed]
    answered = {content.tags[tag] for tag in present}
    yield from (_Question(path, tag) for tag in present)
    yield from (_Question(path, digest) for digest in content.manifests if digest not in answered)
    yield from (_Question(path, blob=digest) for digest in content.blobs)


_Answer = Digest | int | None
"""The digest that a tag or manifest has there, or a blob's size; None if it is absent."""


def _left_open(answered: Sequence[tuple[_Question, _Answer]], wanted: Inventory) -> list[_Question]:
    """Wanted manifests for which a tag was to answer, where none of their tags names them."""
    proved = {(question.path, answer) for question, answer in answered}
    found = {}
    for question, _ in answered:
        if isinstance(question.manifest, str) and question.blob is None:
            content = wanted.repository(question.path)
            digest = content.tags[question.manifest]
            if digest in content.manifests and (question.path, digest) not in proved:
                found[question.path, digest] = _Question(question.path, digest)
    return list(found.values())


def _note(
    builder: InventoryBuilder,
    question: _Question,
    answer: Digest | int,
    wanted: RepositoryContent,
) -> None:
    """Add what an answer proves to be there."""
    if isinstance(answer, int):
        # Another size means other bytes: to be replaced, hence not held.
        if question.blob is not None and wanted.blobs[question.blob] == answer:
            builder.add_blob(question.path, question.blob, answer)
        return
    if isinstance(question.manifest, str):
        builder.add_tag(question.path, question.manifest, answer)
    node = wanted.manifests.get(answer)
    if node is not None:
        builder.add_manifest(question.path, node, closed=False)


class RegistryTarget:
    """Content written to a registry. Thread-safe."""

    def __init__(
        self,
        client: RegistryClient,
        locate: Locate,
        name: str | None = None,
        *,
        jobs: int = DEFAULT_JOBS,
        cancel: threading.Event | None = None,
    ) -> None:
        self.client = client
        self.locate = locate
        self._name = name or f"registry {client.host}"
        self._jobs, self._cancel = jobs, cancel or threading.Event()

    @property
    def name(self) -> str:
        return self._name

    def held(self, wanted: Inventory) -> Inventory:
        """What of `wanted` the registry has: blobs and manifests by HEAD, tags by their digest.

        One tag listing per repository spares the questions for tags that are not there, and a tag
        that names the wanted digest answers for its manifest.
        """
        listings = gather(
            wanted.repositories, self._listed_tags, jobs=self._jobs, cancel=self._cancel
        )
        questions = [
            question
            for (path, content), listed in zip(wanted.repositories.items(), listings, strict=True)
            for question in _questions(path, content, listed)
        ]
        builder = InventoryBuilder()
        answered = self._answers(questions)
        for question, answer in answered:
            if answer is not None:
                _note(builder, question, answer, wanted.repository(question.path))
        # Of manifests whose tags turned out to name others nothing is known yet.
        for question, answer in self._answers(_left_open(answered, wanted)):
            if answer is not None:
                _note(builder, question, answer, wanted.repository(question.path))
        return builder.build()

    def _answers(self, questions: Sequence[_Question]) -> list[tuple[_Question, _Answer]]:
        answers = gather(questions, self._ask, jobs=self._jobs, cancel=self._cancel)
        return list(zip(questions, answers, strict=True))

    def _ask(self, question: _Question) -> _Answer:
        repository = self.locate(question.path)
        if question.blob is not None:
            return self.client.blob_size(repository, question.blob)
        found = self.client.resolve(repository, question.manifest)
        return found.digest if found else None

    def _listed_tags(self, path: str) -> frozenset[str]:
        try:
            return frozenset(self.client.tags(self.locate(path)))
        except RegistryNotFoundError:
            return frozenset()

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        sent = 0
        holder = step.mount_from
        for path in step.into:
            repository = self.locate(path)
            if holder is not None and self.client.mount(
                repository, step.digest, self.locate(holder)
            ):
                continue
            sent += self.client.upload(
                repository,
                step.digest,
                step.size,
                content.chunks,
                cancelled=self._cancel.is_set,
            )
            holder = path
        return sent

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), manifest.digest, manifest)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), tag, manifest)
