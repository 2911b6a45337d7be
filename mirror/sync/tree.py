"""A registry with one release tree in it: what every operation on a registry is about."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from mirror.errors import DeniedError, FileSystemError, IntegrityError, RegistryError
from mirror.events import Warned
from mirror.layout import MODULES, with_modules_suffix
from mirror.oci import Digest, Manifest, Repository
from mirror.oci.manifest import OCI_INDEX, referrer_json
from mirror.oci.reference import referrers_tag
from mirror.registry import OpenUpload, RegistryReader, RegistryWriter, UploadJournal
from mirror.registry.upload_sessions import DIGEST_INVALID
from mirror.run import Run, gather
from mirror.sync.content import AS_USUAL, ContentRules, referrers_list
from mirror.sync.failover import BlobContent
from mirror.sync.inventory import Inventory
from mirror.sync.observation import Depth
from mirror.sync.observe import listed_tags, observe
from mirror.sync.plan import CopyBlob, Plan, places_written
from mirror.sync.statement import UNSIGNED, StatementKeys


@dataclass(frozen=True, slots=True)
class RegistryTree:
    """The tree of repositories below `root` in the registry that `client` speaks with.

    The client belongs to the caller, who closes it.

    Attributes:
        modules_suffix: the path below `root` that takes the place of `modules`; "" is `root`.
        storage: the registry's data folder, where this machine can reach it. A repair replaces
            damaged files there.
        journal: writes unfinished uploads down, so that the next process continues them.
        rules: how much of an image must be there, for who copies what it finds in the tree.
        keys: how its statements are signed, and whose are believed.
    """

    client: RegistryWriter
    root: Repository
    modules_suffix: str = MODULES
    storage: Path | None = None
    journal: UploadJournal | None = None
    rules: ContentRules = AS_USUAL
    keys: StatementKeys = UNSIGNED

    @property
    def name(self) -> str:
        """What messages and reports call it: `host[:port]/path`."""
        return str(self.root)

    def locate(self, path: str) -> str:
        """The registry's repository for `path`, a repository path of an inventory."""
        if self.modules_suffix != MODULES:
            path = with_modules_suffix(path, self.modules_suffix)
        return "/".join(filter(None, (self.root.path, path)))

    def path_of(self, repository: str) -> str | None:
        """The path that `locate` maps to `repository`; None if no path is mapped to it."""
        for below, path in ((self.locate(MODULES), MODULES), (self.root.path, "")):
            if repository == below or repository.startswith(f"{below}/"):
                found = f"{path}{repository[len(below) :]}".lstrip("/")
                # With another suffix no path is mapped to where modules would lie without it.
                if self.locate(found) == repository:
                    return found
        return None

    def within(self, run: Run) -> RegistryTree:
        """The same tree for one run: every wait for the registry listens to it.

        Whoever made the client closes it; this view need not be closed.
        """
        return replace(self, client=self.client.within(run))

    def listed_tags(self, path: str) -> frozenset[str]:
        """All tags of the repository at `path`; see `mirror.sync.observe.listed_tags`."""
        return listed_tags(self.client, self.locate(path))

    def source(self) -> RegistrySource:
        """A reader of the tree, which keeps the manifests that it has read."""
        return RegistrySource(self.client, self.locate, self.name)

    def target(self, run: Run | None = None) -> RegistryTarget:
        """A writer to the tree for one operation: it learns whether mounts work, and so on."""
        return RegistryTarget(self.client, self.locate, self.name, run=run, journal=self.journal)


Locate = Callable[[str], str]
"""Repository path of an inventory → repository of the registry."""

_SMALL_BLOB = 256 << 10
_SMALL_BLOBS = 32 << 20
"""Bytes of a blob that is kept once it was read, and of all that are."""


class RegistrySource:
    """Content read from a registry. Thread-safe.

    It keeps the manifests that it has read, so that a transfer does not ask for them again; they
    are small beside the inventory that is made from them. With `keep_small` it also keeps small
    blobs, up to a limit, for a pull that reads files in images before it carries them.
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
        kept = self._small.get(digest)
        if kept is not None:
            return (piece for piece in [kept[offset:]])
        chunks = self.client.blob(
            self.locate(repository), digest, size=size, offset=offset, verify=False
        )
        if size > _SMALL_BLOB or offset or size > self._room:
            return chunks
        return self._keeping(digest, chunks)

    def _keeping(
        self, digest: Digest, chunks: Generator[bytes, None, None]
    ) -> Generator[bytes, None, None]:
        """Pass a small blob on, and keep it if it is what it should be and there is room."""
        with closing(chunks):
            data = b"".join(chunks)
        if Digest.of(data, digest.algorithm) == digest:
            with self._lock:
                if digest not in self._small and len(data) <= self._room:
                    self._room -= len(data)
                    self._small[digest] = data
        yield data


_MOUNT_REFUSALS = 3
"""After this many refusals without a success, no more mounts are asked for."""


_WORTH_PROOF = 64 << 20
"""Bytes of files to be sent, from which on it is worth to find out whether a registry proves them.
"""


class RegistryTarget:
    """Content written to a registry. Thread-safe.

    Of files on this machine a registry that has been seen to refuse wrong bytes proves the digest;
    everything else is hashed on its way.

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
        self._lock = threading.Lock()  # guards the next three
        self._opened: dict[str, OpenUpload] = {}  # by repository
        self._mounted, self._refusals = False, 0
        self._proof = threading.Lock()  # guards the next two, and is held while they are found out
        self._unread = 0
        self._proves: bool | None = None
        self._referrers = threading.Lock()  # held while an index of referrers is read and written
        self._has_referrers_api: bool | None = None

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

    # -- access --------------------------------------------------------------------------------

    def check_access(self, plan: Plan, *also: str) -> None:
        """Prove that `plan` and the repositories `also` may be written, before a byte moves.

        An upload is opened in one repository of each part of the tree that is written to. The first
        blob that goes there uses it; where none goes it is cancelled, and nothing is left behind.

        Raises:
            DeniedError: a repository may not be written to.
            RegistryError: the registry takes no uploads, for example because it is read-only.
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
                f"you may not push to {self._name}: {repository} may not be written to, so nothing "
                f"was sent: {err}",
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
        sent, holder, paths = 0, step.mount_from, list(step.into)
        if holder is None:
            holder = paths.pop(0)
            sent = self._upload(holder, step, content, None)
        for path, opened in self._mount_all(paths, step.digest, holder):
            sent += self._upload(path, step, content, opened)
        return sent

    def _upload(
        self, path: str, step: CopyBlob, content: BlobContent, opened: OpenUpload | None
    ) -> int:
        repository = self.locate(path)
        if opened is None:
            with self._lock:
                opened = self._opened.pop(repository, None)
        send = partial(
            self.client.upload, repository, step.digest, step.size, journal=self._journal
        )
        if not self._leaves_proof(repository, step, content):
            return send(content.chunks, opened=opened)
        try:
            return send(content.unproved, opened=opened, hashed=False)
        except (IntegrityError, FileSystemError, RegistryError) as err:
            if isinstance(err, RegistryError) and DIGEST_INVALID not in err.codes:
                raise
            # Hashing tells a damaged file from a line that damages, and another place may help.
            sent = send(content.chunks)
            if isinstance(err, RegistryError) and err.status is None:
                self._proves = False  # it wants another form, of which it has proved nothing
                return sent
            self._run.on_event(
                Warned(
                    f"{step.digest} was sent to {self._name} twice, as the first time it arrived "
                    f"damaged or could not be read ({err}); look at the disk, the memory and the "
                    "network of this machine"
                )
            )
            return sent

    def _leaves_proof(self, repository: str, step: CopyBlob, content: BlobContent) -> bool:
        """Whether the blob goes out unread, for the registry to prove its digest.

        That it does is found out where it is worth a few requests.
        """
        with closing(content.unproved()) as pieces:
            if step.digest.algorithm != "sha256" or next(pieces, None) is None:
                return False
        with self._proof:
            self._unread += step.size
            if self._proves is None and self._unread > _WORTH_PROOF:
                self._proves = self.client.proves_digests(repository)
            return bool(self._proves)

    def _mount_all(
        self, paths: Sequence[str], digest: Digest, holder: str
    ) -> list[tuple[str, OpenUpload | None]]:
        """Let `paths` have the blob of `holder`; return those where it must be uploaded instead.

        With each goes the upload that the registry opened in place of the mount, if it did. Until
        one mount succeeds they are asked for one by one, since many registries refuse them all.
        """
        answers: list[Literal[True] | OpenUpload | None] = []
        while len(answers) < len(paths) and True not in answers:
            answers.append(self._mount(paths[len(answers)], digest, holder))
        answers += gather(
            paths[len(answers) :],
            lambda path: self._mount(path, digest, holder),
            run=Run.of(self._run).with_jobs(self._run.jobs),
        )
        return [
            (path, answer)
            for path, answer in zip(paths, answers, strict=True)
            if answer is not True
        ]

    def _over(self, path: str, digest: Digest) -> None:
        """Forget the journal's upload of a blob that is there: nothing is left to continue."""
        if self._journal is not None:
            self._journal.forget(self.locate(path), digest)

    def _mount(self, path: str, digest: Digest, holder: str) -> Literal[True] | OpenUpload | None:
        """True if the blob is there now; else the upload that was opened instead, if one was."""
        if not self._mounted and self._refusals >= _MOUNT_REFUSALS:
            return None
        answer = self.client.mount_or_open(self.locate(path), digest, self.locate(holder))
        if answer is True:
            self._mounted = True  # only ever set
            self._over(path, digest)
            return True
        with self._lock:
            self._refusals += 1
            hopeless = not self._mounted and self._refusals == _MOUNT_REFUSALS
        if hopeless:
            self._run.on_event(
                Warned(
                    f"{self._name} lets no repository have a blob of another; what several of them "
                    "share is sent to each"
                )
            )
        return answer or None

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), manifest.digest, manifest)

    def list_referrer(self, repository: str, manifest: Manifest) -> None:
        """List `manifest` under its subject's tag, if the registry has no referrers API.

        Distribution-spec, "Pushing Manifests with Subject".
        """
        path, subject = self.locate(repository), manifest.subject
        if subject is None or self._has_referrers_api:
            return
        with self._referrers:
            if self._has_referrers_api is None:
                api = self.client.referrers_api(path, subject.digest)
                self._has_referrers_api = api is not None
            if self._has_referrers_api:
                return
            tag, entry = referrers_tag(subject.digest), referrer_json(manifest)
            index = referrers_list(self.client, path, subject.digest)
            if index is None:
                self._run.on_event(
                    Warned(
                        f"{self._name}: {path}:{tag} is not a list of what refers to the image "
                        f"{subject.digest}; it stays as it is, so nobody finds {manifest.digest} "
                        "from that image; remove the tag and run this again"
                    )
                )
                return
            if all(one["digest"] != entry["digest"] for one in index["manifests"]):
                index["manifests"].append(entry)
                new = Manifest.parse(json.dumps(index, separators=(",", ":")).encode(), OCI_INDEX)
                self.client.put_manifest(path, tag, new)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        self.client.put_manifest(self.locate(repository), tag, manifest)
