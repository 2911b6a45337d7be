"""A registry as source and target: repository paths mapped into it, contents observed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Literal

from mirror.errors import DeniedError
from mirror.events import Warned
from mirror.oci import Digest, Manifest
from mirror.registry import OpenUpload, RegistryReader, RegistryWriter, UploadJournal
from mirror.run import Run
from mirror.sync.content import BlobContent
from mirror.sync.inventory import Inventory
from mirror.sync.observation import Depth
from mirror.sync.observe import listed_tags, observe
from mirror.sync.plan import CopyBlob, Plan, places_written
from mirror.sync.workers import gather

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

    def held(self, wanted: Inventory, depth: Depth = Depth.AUDIT) -> Inventory:
        """What of `wanted` the registry has. `Depth.PROBE` is enough to plan with.

        Raises:
            MirrorError: the registry gives no clear answer about something.
        """
        held = observe(self, wanted, depth, run=self._run).certain()
        for path, content in held.repositories.items():
            for digest in content.blobs:
                self._over(path, digest)
        return held

    def listed_tags(self, path: str) -> frozenset[str]:
        """All tags of a repository of the tree; see the function of this name."""
        return listed_tags(self.client, self.locate(path))

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
            if not self.client.cancel_upload(repository, opened):
                return  # a dead registry would be waited for once per session

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
