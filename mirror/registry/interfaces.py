"""What is asked of a registry, whoever answers: one host, or the replicas of a cluster's registry.

`RegistryClient` is the first of the two and says what each method promises. What reads or writes
content takes these types, so that it works over either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Protocol, Self

from mirror.oci import Child, Descriptor, Digest, Manifest
from mirror.registry.upload_sessions import OpenUpload, UploadJournal
from mirror.run import Run


class RegistryReader(Protocol):
    """Reads content; thread-safe. `host` is for messages."""

    @property
    def host(self) -> str: ...

    def within(self, run: Run) -> Self: ...

    def close(self) -> None: ...

    def ping(self) -> None: ...

    def manifest(self, repository: str, reference: str | Digest) -> Manifest: ...

    def resolve(self, repository: str, reference: str | Digest) -> Descriptor | None: ...

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
    """Reads and writes content; thread-safe."""

    def upload(
        self,
        repository: str,
        digest: Digest,
        size: int,
        content: Callable[[int], Generator[bytes, None, None]],
        *,
        opened: OpenUpload | None = ...,
        journal: UploadJournal | None = ...,
    ) -> int: ...

    def open_upload(self, repository: str) -> OpenUpload: ...

    def cancel_upload(self, repository: str, upload: OpenUpload) -> bool: ...

    def mount_or_open(
        self, repository: str, digest: Digest, from_repository: str
    ) -> bool | OpenUpload: ...

    def mount(self, repository: str, digest: Digest, from_repository: str) -> bool: ...

    def put_manifest(
        self, repository: str, reference: str | Digest, manifest: Manifest
    ) -> None: ...

    def delete_manifest(self, repository: str, digest: Digest) -> None: ...

    def delete_tag(self, repository: str, tag: str) -> None: ...

    def delete_blob(self, repository: str, digest: Digest) -> None: ...
