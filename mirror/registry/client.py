"""The client of one registry: the Distribution API as methods."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, Self

from mirror.errors import RegistryError, RegistryNotFoundError, UnreachableError
from mirror.events import OnEvent, ignore
from mirror.oci import Child, Descriptor, Digest, Manifest
from mirror.registry import answers, downloads, manifests, upload_sessions, uploads
from mirror.registry.answers import reworded
from mirror.registry.auth import PUSH
from mirror.registry.options import ConnectionOptions, Credentials
from mirror.registry.transport import Transport, Wire
from mirror.registry.upload_journal import UploadJournal
from mirror.registry.upload_sessions import Content, OpenUpload
from mirror.run import Run

_MOST_TAGS = 1_000_000


def too_much(where: str, what: str) -> RegistryError:
    """The error about a registry that has more than `what`."""
    error = RegistryError(
        f"{where}: the registry has more than {what}; check that it is the right one", where=where
    )
    error.of_all = True
    return error


class _TagLists:
    """The lists of one registry, the newest of each repository: together they have a limit too."""

    def __init__(self, host: str) -> None:
        self._host, self._sizes, self._all = host, dict[str, int](), 0
        self._lock = threading.Lock()

    def counted(self, repository: str, tags: list[str]) -> list[str]:
        """`tags`, or RegistryError if all lists have too many."""
        size = max(1, len(tags))
        with self._lock:
            held = self._all + size - self._sizes.get(repository, 0)
            if held <= _MOST_TAGS:
                self._all, self._sizes[repository] = held, size
                return tags
        tags.clear()  # or the error's traceback would keep them
        raise too_much(f"{self._host}/{repository}", f"{_MOST_TAGS} tags in all repositories")


class RegistryReader(Protocol):
    """Reads content; thread-safe. `host` is for messages.

    One host answers, or the replicas of a cluster's registry; `RegistryClient` says what each
    method promises.
    """

    @property
    def host(self) -> str: ...
    def within(self, run: Run) -> Self: ...
    def close(self) -> None: ...
    def ping(self) -> None: ...
    def manifest(self, repository: str, reference: str | Digest) -> Manifest: ...
    def resolve(
        self, repository: str, reference: str | Digest, *, known: Descriptor | None = None
    ) -> Descriptor | None: ...
    def blob_size(self, repository: str, digest: Digest) -> int | None: ...
    def blob(
        self,
        repository: str,
        digest: Digest,
        *,
        size: int | None = None,
        offset: int = 0,
        verify: bool = True,
    ) -> Generator[bytes, None, None]: ...
    def tags(self, repository: str) -> list[str]: ...
    def catalogue(self) -> Iterator[str]: ...
    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child]: ...
    def referrers_api(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child] | None: ...


class RegistryWriter(RegistryReader, Protocol):
    """Reads and writes content; thread-safe. Writing is the same wherever the registry lies."""

    def _writing(self, repository: str, action: str = "push") -> tuple[Transport, str]:
        """What sends requests to the registry that takes writes, and what that calls `repository`.

        `action` is `push` or `delete`, for a mode that refuses it.
        """

    def upload(
        self,
        repository: str,
        digest: Digest,
        size: int,
        content: Content,
        *,
        opened: OpenUpload | None = None,
        journal: UploadJournal | None = None,
        hashed: bool = True,
    ) -> int:
        """Send a blob (POST and PUT, end-4 and end-6; large ones by PATCH, end-5, in chunks).

        `content(offset)` opens its bytes from there on; it is called anew for each attempt, and
        what it raises ends the upload. A cut upload is continued where the registry says it got
        to, else it starts anew. `opened` is a session to begin with. A session that fails is
        cancelled at the registry, best effort; with a `journal` one that only was interrupted
        stays, and a later call goes on with it. Unless the bytes were `hashed`, a registry that
        finds them wrong is believed at once, and not asked again in another form. Returns the bytes
        sent, repeated ones included.

        Raises:
            SizeMismatchError: `content` is longer or shorter than `size`.
            StalledError: too little moved for too long, in every attempt.
        """
        at = self._writing(repository)
        return uploads.Upload(
            *at, digest, size, content, opened=opened, journal=journal, hashed=hashed
        ).run()

    def proves_digests(self, repository: str) -> bool:
        """Whether the registry refuses an upload whose bytes do not hash to its digest.

        A few bytes are sent under another digest, in both forms in which blobs go, with DELETE for
        what is left. Only a refusal as DIGEST_INVALID is proof, and nothing is asked twice.
        """
        return upload_sessions.proves_digests(*self._writing(repository))

    def open_upload(self, repository: str) -> OpenUpload:
        """Open an upload session (POST, end-4a), which proves that pushing is allowed.

        Hand it to `upload`, or to `cancel_upload` so that nothing stays behind.
        """
        return upload_sessions.open_upload(*self._writing(repository))

    def cancel_upload(self, repository: str, upload: OpenUpload) -> bool:
        """Let the registry forget a session (DELETE), and say whether it answered.

        It raises nothing: the registry also forgets by itself.
        """
        transport, path = self._writing(repository)
        return upload_sessions.cancel(transport, upload.location, (PUSH.format(path),))

    def mount(self, repository: str, digest: Digest, from_repository: str) -> bool:
        """Make a blob of `from_repository` one of `repository` too, without sending it (end-11).

        False where the registry does not: upload it then.
        """
        answer = self.mount_or_open(repository, digest, from_repository)
        if isinstance(answer, OpenUpload):
            self.cancel_upload(repository, answer)
            return False
        return answer

    def mount_or_open(
        self, repository: str, digest: Digest, from_repository: str
    ) -> bool | OpenUpload:
        """As `mount`, but hands out the upload session that most registries open instead."""
        transport, path = self._writing(repository)
        _, source = self._writing(from_repository)
        return upload_sessions.mount_or_open(transport, path, digest, source)

    def put_manifest(self, repository: str, reference: str | Digest, manifest: Manifest) -> None:
        """Put `manifest` under a tag or its own digest, byte for byte (end-7).

        Raises:
            ValueError: `reference` is the digest of something else.
            DigestMismatchError: the registry says that it stored other bytes.
        """
        manifests.put(*self._writing(repository), reference, manifest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Delete a manifest and with it all tags that name it (end-9).

        Raises:
            RegistryNotFoundError: there is none.
        """
        manifests.delete(*self._writing(repository, "delete"), digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag and keep its manifest (end-9); many registries cannot, and refuse.

        Raises:
            RegistryNotFoundError: there is none.
        """
        manifests.delete(*self._writing(repository, "delete"), tag)

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Delete a blob from a repository (end-10).

        Raises:
            RegistryNotFoundError: there is none.
        """
        transport, path = self._writing(repository, "delete")
        manifests.delete_at(transport, path, transport.at(path, f"blobs/{digest}"))


class RegistryClient(RegistryWriter):
    """Speaks the OCI Distribution API v1.1 with one registry host (`host[:port]`).

    A context manager, safe to use from many threads; the constructor touches no network. One
    client per host is enough and best: its threads share connections, tokens and what it learnt
    about the host.

    Every method raises, besides what it names itself:

    * DeniedError: 401 or 403.
    * UnreachableError: no usable answer, after the retries of `options.retries`.
    * RegistryError: an answer that the specification does not have, with `status` and `codes`.
    * CancelledError: the client was closed, or the run of this view was stopped (`within`).
    * InvalidReferenceError, InvalidDigestError: an argument is not a repository, tag or digest.

    Repositories are paths without the host. Sizes and offsets are bytes.

    Raises:
        InvalidReferenceError: `host` is not a registry host.
        InputError: the CA file or the environment's proxy cannot be used.
    """

    def __init__(
        self,
        host: str,
        *,
        options: ConnectionOptions | None = None,
        credentials: Credentials | None = None,
        on_event: OnEvent = ignore,
    ) -> None:
        self._wire = Wire(host, options=options or ConnectionOptions(), credentials=credentials)
        self._close: Callable[[], None] = self._wire.close
        self._transport = Transport(self._wire, Run(on_event=on_event))
        self._lists = _TagLists(self._wire.host)

    @property
    def host(self) -> str:
        """The registry, `host[:port]`."""
        return self._wire.host

    def within(self, run: Run) -> RegistryClient:
        """A view of this client for one run: every wait listens to it, events go to its listener.

        Connections, login and what is known of the host are shared. Stopping the run leaves the
        client usable, for other runs too. Closing the view does nothing: whoever made the client
        closes it.
        """
        view = copy.copy(self)
        view._transport = self._transport.within(run)
        view._close = lambda: None
        return view

    def _writing(self, repository: str, action: str = "push") -> tuple[Transport, str]:  # noqa: ARG002
        return self._transport, repository

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self.host!r})"

    def close(self) -> None:
        """End all connections; what is under way in other threads fails with CancelledError."""
        self._close()

    @property
    def certificate_end(self) -> float | None:
        """When the registry's certificate ends, in seconds since 1970.

        It is that of the newest connection; None before the first, and where none is verified.
        """
        return self._wire.connections.certificate_end

    def ping(self) -> None:
        """Check that a registry answers and accepts the login (`GET /v2/`, end-1).

        Some registries let everybody do this and ask for a login at a repository only.

        Raises:
            UnreachableError: also where something else than a registry answers.
        """
        url = self._transport.url("/v2/")
        try:
            self._transport.call("GET", url, accept=answers.READ, limit=1 << 20)
        except RegistryNotFoundError as err:
            text = f"{self.host} is not a registry (HTTP 404 for /v2/); check host and port"
            raise reworded(err, text, UnreachableError) from err

    # -- manifests -----------------------------------------------------------------------------

    def manifest(self, repository: str, reference: str | Digest) -> Manifest:
        """Fetch a manifest by tag or digest (end-3).

        By digest its bytes are checked against that; by tag against `Docker-Content-Digest`,
        where the registry sends it.

        Raises:
            RegistryNotFoundError: there is no such manifest or repository.
            DigestMismatchError: these are other bytes.
            InvalidManifestError: they are not a manifest, or more than `MAX_MANIFEST_BYTES`.
        """
        return manifests.get(self._transport, repository, reference)

    def resolve(
        self, repository: str, reference: str | Digest, *, known: Descriptor | None = None
    ) -> Descriptor | None:
        """The descriptor of what a tag or digest names (HEAD, end-3); None if it names nothing.

        Where the registry refuses HEAD, or answers it without digest or length, the manifest is
        fetched instead. Only a real 404 gives None. `known` is what a tag named before: the request
        is conditional then (`If-None-Match`), and a registry that answers 304 reads no manifest.

        Raises:
            DigestMismatchError, InvalidManifestError: as `manifest`, where that was needed.
        """
        return manifests.resolve(self._transport, repository, reference, known)

    # -- blobs ---------------------------------------------------------------------------------

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The length of a blob in bytes (HEAD, end-2); None if the repository does not have it."""
        return downloads.blob_size(self._transport, repository, digest)

    def blob(
        self,
        repository: str,
        digest: Digest,
        *,
        size: int | None = None,
        offset: int = 0,
        verify: bool = True,
    ) -> Generator[bytes, None, None]:
        """A blob's bytes from `offset` on, in order, as they arrive (GET, end-2).

        A connection that breaks or stalls is replaced by another that continues at the byte
        reached, until several attempts in a row bring nothing. From offset 0 on the bytes are
        checked against digest and `size`, and the last chunk is held back until that has
        succeeded; from elsewhere only the length is, and likewise for a caller that hashes the
        bytes itself and says so by `verify=False`. Closing the generator ends the connection.

        Raises:
            RegistryNotFoundError: the repository has no such blob.
            DigestMismatchError, SizeMismatchError: these are other bytes.
            StalledError: too little moved for too long, in every attempt.
            ValueError: `offset` lies outside of the blob.
        """
        return downloads.Download(
            self._transport, repository, digest, size, offset, verify=verify
        ).chunks()

    # -- listings ------------------------------------------------------------------------------

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, in the registry's order, each once (end-8).

        Names that are not tags are left out, with a warning.

        Raises:
            RegistryNotFoundError: the registry does not know the repository.
        """
        return self._lists.counted(repository, manifests.tags(self._transport, repository))

    def catalogue(self) -> Iterator[str]:
        """All repositories of the registry, in its order, page by page (`GET /v2/_catalog`).

        Not part of the specification: many registries lack it or keep it to administrators.
        Names that are not repositories are left out, with a warning.
        """
        return manifests.catalogue(self._transport)

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child]:
        """What refers to the manifest `digest` as its subject (end-12), such as signatures.

        Registries without that API are asked for the tag schema's index in its place
        ("Unavailable Referrers API"). Empty if there is nothing, the manifest itself included.
        """
        return manifests.referrers(self._transport, repository, digest, artifact_type)

    def referrers_api(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child] | None:
        """The same as the registry's own API has it; None from a registry without that API."""
        return manifests.referrers_api(self._transport, repository, digest, artifact_type)
