"""A registry as source and target: repository paths mapped into it, contents observed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from mirror.errors import DeniedError, RegistryNotFoundError
from mirror.events import Warned
from mirror.oci import Digest, Manifest
from mirror.registry import OpenUpload, RegistryReader, RegistryWriter, UploadJournal
from mirror.run import Run
from mirror.sync import glance
from mirror.sync.content import BlobContent
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.nodes import RepositoryContent
from mirror.sync.plan import CopyBlob, Plan, places_written
from mirror.sync.workers import gather

Locate = Callable[[str], str]
"""Repository path of an inventory → repository of the registry."""


def below(root: str) -> Locate:
    """Everything lies below repository `root`; the empty path is `root` itself."""
    return lambda path: f"{root}/{path}" if path else root


def listed_tags(client: RegistryReader, repository: str) -> frozenset[str]:
    """All tags of a repository, those that name nothing any more included.

    None also where the registry says that it knows no such repository, as CNCF distribution does
    of one that has content and no tag.
    """
    try:
        return frozenset(client.tags(repository))
    except RegistryNotFoundError:
        return frozenset()


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
        client: RegistryReader,
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

    def within(self, run: Run) -> RegistrySource:
        """The same source, every wait of which listens to `run`; what was read is shared."""
        view = copy.copy(self)
        view.client = self.client.within(run)
        return view

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


def _all_questions(
    wanted: Inventory, listings: Mapping[str, frozenset[str]]
) -> Iterator[_Question]:
    for path, content in wanted.repositories.items():
        yield from _questions(path, content, listings[path])


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


class _Mounting:
    """Whether mounting is worth asking for: what one registry's answers have told. Thread-safe."""

    PATIENCE = 3
    """Refusals in a row, with never a success, after which a registry is taken not to mount."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._succeeded, self._refusals = False, 0

    @property
    def hopeless(self) -> bool:
        with self._lock:
            return not self._succeeded and self._refusals >= self.PATIENCE

    def learn(self, *, mounted: bool) -> bool:
        """Take note of an answer; True when it is the one that ends all hope."""
        with self._lock:
            self._succeeded |= mounted
            self._refusals += not mounted
            return not self._succeeded and self._refusals == self.PATIENCE


class RegistryTarget:
    """Content written to a registry. Thread-safe.

    With a `journal` uploads that end with this process are continued by the next one.
    """

    def __init__(
        self,
        client: RegistryWriter,
        locate: Locate,
        name: str | None = None,
        *,
        run: Run | None = None,
        journal: UploadJournal | None = None,
    ) -> None:
        self.client = client
        self.locate = locate
        self._name = name or f"registry {client.host}"
        self._run = Run.of(run)
        self._journal = journal
        self._mounting = _Mounting()
        self._lock = threading.Lock()
        self._opened: dict[str, OpenUpload] = {}  # by repository; under the lock

    @property
    def name(self) -> str:
        return self._name

    # -- what is there -------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:
        """What of `wanted` the registry has: blobs and manifests by HEAD, tags by their digest.

        One tag listing per repository spares the questions for tags that are not there, and a tag
        that names the wanted digest answers for its manifest.
        """
        builder = InventoryBuilder()
        listings = self._listings(wanted)
        self._look(builder, wanted, _all_questions(wanted, listings))
        return builder.build()

    def glance(self, wanted: Inventory) -> Inventory:
        """The same by fewer questions, which is enough to plan with.

        It may miss what lies in repositories that have no tag, where few blobs are asked for: all
        others only if one of those is there. What is missed is carried again, and nothing worse.
        """
        builder = InventoryBuilder()
        listings = self._listings(wanted)
        untagged = {path for path, listed in listings.items() if not listed}
        tagged = wanted.filtered(lambda path: path not in untagged)
        self._look(builder, wanted, _all_questions(tagged, listings))
        tried = glance.sample(glance.suspects(wanted, untagged), self._run.jobs)
        questions = [_Question(one.path, blob=one.digest) for one in tried]
        if self._look(InventoryBuilder(), wanted, questions):
            rest = wanted.filtered(untagged.__contains__)
            self._look(builder, wanted, _all_questions(rest, listings))
        return builder.build()

    def listed_tags(self, path: str) -> frozenset[str]:
        """All tags of a repository of the tree; see the function of this name."""
        return listed_tags(self.client, self.locate(path))

    def _listings(self, wanted: Inventory) -> dict[str, frozenset[str]]:
        paths = list(wanted.repositories)
        found = gather(paths, self.listed_tags, run=self._run)
        return dict(zip(paths, found, strict=True))

    def _look(
        self, builder: InventoryBuilder, wanted: Inventory, questions: Iterable[_Question]
    ) -> bool:
        """Ask, add to `builder` what is there; whether anything is."""
        answered = self._answers(list(questions))
        # Of manifests whose tags turned out to name others nothing is known yet.
        answered += self._answers(_left_open(answered, wanted))
        for question, answer in answered:
            if answer is not None:
                _note(builder, question, answer, wanted.repository(question.path))
                if question.blob is not None:
                    self._over(question.path, question.blob)
        return any(answer is not None for _, answer in answered)

    def _answers(self, questions: Sequence[_Question]) -> list[tuple[_Question, _Answer]]:
        answers = gather(questions, self._ask, run=self._run)
        return list(zip(questions, answers, strict=True))

    def _ask(self, question: _Question) -> _Answer:
        repository = self.locate(question.path)
        if question.blob is not None:
            return self.client.blob_size(repository, question.blob)
        found = self.client.resolve(repository, question.manifest)
        return found.digest if found else None

    # -- access --------------------------------------------------------------------------------

    def check_access(self, plan: Plan, *also: str) -> None:
        """Prove that `plan` may be written, and into `also`, before its first byte moves.

        An upload is opened in one repository of each part of the tree that is written to. Where
        blobs go, the first of them uses it; elsewhere it is cancelled, and nothing is left behind.

        Raises:
            DeniedError: a repository may not be written to.
            RegistryError: or cannot be, in a registry that is read-only for one.
        """
        places = dict.fromkeys(also, False) | places_written(plan)
        gather(places.items(), self._probe, run=self._run)

    def _probe(self, place: tuple[str, bool]) -> None:
        path, uploads = place
        repository = self.locate(path)
        try:
            opened = self.client.open_upload(repository)
        except DeniedError as err:
            raise DeniedError(
                f"{repository} may not be written to, so nothing was sent: {err}",
                where=err.where,
                status=err.status,
                codes=err.codes,
            ) from err
        if uploads:
            with self._lock:
                self._opened[repository] = opened
        else:
            self.client.cancel_upload(repository, opened)

    def release(self) -> None:
        """Cancel the uploads that `check_access` opened and nobody came to use."""
        with self._lock:
            left, self._opened = self._opened, {}
        for repository, opened in left.items():
            self.client.cancel_upload(repository, opened)

    # -- writing -------------------------------------------------------------------------------

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        sent = 0
        holder = step.mount_from
        for path in step.into:
            repository = self.locate(path)
            answer = self._mount(repository, step.digest, holder)
            if answer is True:
                self._over(path, step.digest)
                continue
            opened = answer
            if opened is None:
                with self._lock:
                    opened = self._opened.pop(repository, None)
            sent += self.client.upload(
                repository,
                step.digest,
                step.size,
                content.chunks,
                cancelled=lambda: self._run.stopped,
                opened=opened,
                journal=self._journal,
            )
            holder = path
        return sent

    def _over(self, path: str, digest: Digest) -> None:
        """A blob that is there has no upload to be continued, whoever did not live to note it."""
        if self._journal is not None:
            self._journal.forget(self.locate(path), digest)

    def _mount(
        self, repository: str, digest: Digest, holder: str | None
    ) -> Literal[True] | OpenUpload | None:
        """True if the blob is there now; else the upload that was opened instead, if one was."""
        if holder is None or self._mounting.hopeless:
            return None
        answer = self.client.mount_or_open(repository, digest, self.locate(holder))
        if self._mounting.learn(mounted=answer is True):
            self._run.on_event(
                Warned(
                    f"{self._name} lets no repository have a blob of another; what several of them "
                    "share is sent to each"
                )
            )
        return answer or None

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), manifest.digest, manifest)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), tag, manifest)
