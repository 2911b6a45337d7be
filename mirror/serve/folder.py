"""A store in a folder; what it acknowledged survives a power cut.

    blobs/<algorithm>/<hex>                                  the bytes, once for all repositories
    repositories/<name>/_blobs/<algorithm>/<hex>             empty: this repository holds the blob
    repositories/<name>/_manifests/<algorithm>/<hex>         the manifest's media type
    repositories/<name>/_tags/<tag>                          the digest that the tag names
    repositories/<name>/_referrers/<subject>/<algorithm>/<hex>   empty; <subject> as two parts
    staging/                                                 unfinished files

No component of a repository name starts with `_`, so names never collide with our folders. The
order of writing keeps the folder consistent: bytes before links, links before tags.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from mirror.durable import make_folder, sync_file, sync_folder, write_at
from mirror.errors import InvalidDigestError
from mirror.oci import Digest, Manifest
from mirror.oci.reference import check_repository, check_tag, valid_tag
from mirror.serve.store import FilePiece, RunningDigest, StoredManifest

_T = TypeVar("_T")

_REREAD_BYTES = 1 << 20


class _Access:
    """Many threads may add to a folder at a time; one that removes does so alone.

    That holds among processes too: those of one that adds hold the folder's lock (`flock`)
    together, and one that removes holds it alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Condition()  # guards the next two
        self._adding = 0
        self._held = contextlib.ExitStack()

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        with self._lock:
            if not self._adding:
                self._held.enter_context(self._locked(fcntl.LOCK_SH))
            self._adding += 1
        try:
            yield
        finally:
            with self._lock:
                self._adding -= 1
                if not self._adding:
                    self._held.close()
                self._lock.notify_all()

    @contextlib.contextmanager
    def removing(self) -> Iterator[None]:
        with self._lock:
            self._lock.wait_for(lambda: not self._adding)
            with self._locked(fcntl.LOCK_EX):
                yield

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # NFS locks no folders; there one process may remove
                fcntl.flock(folder, how)
            yield
        finally:
            os.close(folder)


class FolderStorage:
    """A `Store` in the folder `path`, which is created if it is missing.

    Several processes may use it at once. On file systems that lock no folders (NFS) only one may
    delete, and only while no other uses it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._staging = StagingFolder(self.path / "staging")
        for part in ("blobs", "repositories", "staging"):
            make_folder(self.path / part)
        self._access = _Access(self.path / "blobs")  # no bytes go while a link to them is made
        self._staging.sweep()

    # -- reading ---------------------------------------------------------------------------------

    def repositories(self) -> Sequence[str]:
        root = self.path / "repositories"
        names = [folder.relative_to(root).as_posix() for folder in self._walk("_manifests")]
        return sorted(filter(self.has_repository, names))

    def has_repository(self, repository: str) -> bool:
        return any(True for _ in self._digests(self._folder(repository) / "_manifests"))

    def tags(self, repository: str) -> Sequence[str]:
        return sorted(filter(valid_tag, _names(self._folder(repository) / "_tags")))

    def resolve(self, repository: str, tag: str) -> Digest | None:
        path = self._tag(repository, tag)
        try:
            return Digest.parse(path.read_text())
        except FileNotFoundError:
            return None
        except (InvalidDigestError, UnicodeDecodeError) as err:
            raise OSError(f"{path} is damaged") from err

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        try:
            media_type = self._link(repository, "_manifests", digest).read_text()
            return StoredManifest(media_type, self._content(digest).read_bytes())
        except FileNotFoundError:
            return None

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        return self._blob(repository, digest, lambda path: path.stat().st_size)

    def open_blob(self, repository: str, digest: Digest) -> _FileReader | None:
        return self._blob(repository, digest, _FileReader)

    def _blob(self, repository: str, digest: Digest, do: Callable[[Path], _T]) -> _T | None:
        """What `do` makes of a blob's file; None if the repository does not hold it."""
        if self._link(repository, "_blobs", digest).exists():
            with contextlib.suppress(FileNotFoundError):
                return do(self._content(digest))
        return None

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        return sorted(self._digests(self._referrers(repository, subject)))

    # -- writing ---------------------------------------------------------------------------------

    def stage(self, algorithm: str = "sha256") -> _FileStaging:
        return _FileStaging(self, self._staging.create(), algorithm)

    def mount_blob(self, source: str, target: str, digest: Digest) -> bool:
        with self._access.adding():
            if self.blob_size(source, digest) is None:
                return False
            self._staging.write(self._link(target, "_blobs", digest), b"")
            return True

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        digest = manifest.digest
        with self._access.adding():
            self._staging.write(self._content(digest), manifest.raw)
            if manifest.subject:
                subject = manifest.subject.digest
                link = _digest_path(self._referrers(repository, subject), digest)
                self._staging.write(link, b"")
            link = self._link(repository, "_manifests", digest)
            self._staging.write(link, manifest.media_type.encode())
            if tag is not None:  # last, so that a tag never names a missing manifest
                self._staging.write(self._tag(repository, tag), str(digest).encode())

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        with self._access.removing():
            held = self.manifest(repository, digest)
            if held is None:
                return False
            for tag in self.tags(repository):  # first: a tag never outlives its manifest
                if self.resolve(repository, tag) == digest:
                    _remove(self._tag(repository, tag))
            subject = Manifest.parse(held.raw, held.media_type).subject
            if subject:
                _remove(_digest_path(self._referrers(repository, subject.digest), digest))
            _remove(self._link(repository, "_manifests", digest))
            self._forget(digest)
            return True

    def delete_tag(self, repository: str, tag: str) -> bool:
        with self._access.removing():
            return _remove(self._tag(repository, tag))

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        with self._access.removing():
            if not _remove(self._link(repository, "_blobs", digest)):
                return False
            self._forget(digest)
            return True

    def _adopt(self, staged: Path, repository: str, digest: Digest) -> None:
        """Give a finished file its final name, then link `repository` to it."""
        content = self._content(digest)
        with self._access.adding():
            make_folder(content.parent)
            staged.rename(content)
            sync_folder(content.parent)
            self._staging.write(self._link(repository, "_blobs", digest), b"")

    def _forget(self, digest: Digest) -> None:
        """Remove bytes that no repository links to; call it while nobody adds."""
        for kind in ("_blobs", "_manifests"):
            if any(_digest_path(folder / kind, digest).exists() for folder in self._walk(kind)):
                return
        _remove(self._content(digest))

    def _walk(self, kind: str) -> Iterator[Path]:
        """The folders of the repositories that have `kind`."""
        for folder, children, _files in os.walk(self.path / "repositories"):
            if kind in children:
                yield Path(folder)
            children[:] = [child for child in children if not child.startswith("_")]

    # -- paths -----------------------------------------------------------------------------------

    def _content(self, digest: Digest) -> Path:
        return _digest_path(self.path / "blobs", digest)

    def _folder(self, repository: str) -> Path:
        check_repository(repository)  # again, so that no caller's name leads out of the folder
        return self.path / "repositories" / repository

    def _link(self, repository: str, kind: str, digest: Digest) -> Path:
        return _digest_path(self._folder(repository) / kind, digest)

    def _tag(self, repository: str, tag: str) -> Path:
        check_tag(tag)
        return self._folder(repository) / "_tags" / tag

    def _referrers(self, repository: str, subject: Digest) -> Path:
        return _digest_path(self._folder(repository) / "_referrers", subject)

    @staticmethod
    def _digests(folder: Path) -> Iterator[Digest]:
        for algorithm in _names(folder):
            for encoded in _names(folder / algorithm):
                with contextlib.suppress(InvalidDigestError):  # not a file of ours
                    yield Digest.parse(f"{algorithm}:{encoded}")


def _digest_path(folder: Path, digest: Digest) -> Path:
    return folder / digest.algorithm / digest.encoded


class _FileReader:
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def pieces(self, offset: int, length: int) -> Sequence[FilePiece]:
        return (FilePiece(Path(self._file.name), offset, length),)

    def close(self) -> None:
        self._file.close()


class _FileStaging:
    def __init__(self, storage: FolderStorage, file: IO[bytes], algorithm: str) -> None:
        self._storage, self._file = storage, file
        self._digest = RunningDigest(algorithm)

    @property
    def size(self) -> int:
        return self._digest.size

    def write(self, data: bytes) -> None:
        # The disk comes first: when it is full, the count must not run ahead of the bytes.
        write_at(self._file.fileno(), self._digest.size, data)
        self._digest.update(data)

    def commit(self, repository: str, digest: Digest) -> None:
        try:
            self._digest.check(digest, self._again)
            sync_file(self._file.fileno())
            self._storage._adopt(Path(self._file.name), repository, digest)
        finally:
            self.discard()

    def discard(self) -> None:
        Path(self._file.name).unlink(missing_ok=True)  # it has another name after `commit`
        self._file.close()

    def _again(self) -> Iterator[bytes]:
        with Path(self._file.name).open("rb") as file:
            while chunk := file.read(_REREAD_BYTES):
                yield chunk


class StagingFolder:
    """A folder of unfinished files, on the file system of the finished ones.

    A writer holds a lock (`flock`) on its file. So `sweep` can remove the files of killed
    processes and leave those of running ones alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> IO[bytes]:
        """A new file, open for writing and locked; its path is `.name`."""
        while True:
            # Unbuffered, so that closing writes nothing again after a failed write.
            file = (self._path / secrets.token_hex(16)).open("xb", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A process that started meanwhile may have swept the file before it was locked.
                if os.fstat(file.fileno()).st_nlink:
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def sweep(self) -> None:
        """Remove the files of processes that ended."""
        for path in self._path.iterdir():
            # Fails for files that are being written, and for what is not ours.
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def write(self, target: Path, data: bytes) -> None:
        """Give `target` the content `data` at once; on return it is on the disk."""
        with self.create() as file:
            try:
                write_at(file.fileno(), 0, data)
                sync_file(file.fileno())
                make_folder(target.parent)
                Path(file.name).rename(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        sync_folder(target.parent)


def _names(path: Path) -> Iterator[str]:
    """The names in a folder, unordered; none if the folder does not exist."""
    try:
        with os.scandir(path) as entries:
            yield from (entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return


def _remove(path: Path) -> bool:
    """Remove a file, and return whether it existed."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
