"""The files of a registry beside which we run: the one way to replace a blob that is damaged there.

CNCF distribution never writes a blob whose file exists, whatever is in it, and deletes links only,
so through its API an overwritten blob stays as it is. Where its data root can be reached, the file
is removed, after proof that it is damaged, and then uploaded like any other.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import FileSystemError, InputError, IntegrityError
from mirror.oci import Digest, Verifier

_LAYOUT = Path("docker/registry/v2")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Storage:
    """The data root of a `distribution` registry with the file-system driver."""

    root: Path

    def check(self) -> None:
        """See that this is such a root; a new registry makes it with the first blob.

        Raises:
            InputError: it is none.
        """
        if not self.root.exists() and self.root.parent.is_dir():
            return
        if not self.root.is_dir():
            raise InputError(f"--storage {self.root}: there is no such folder")
        if any(self.root.iterdir()) and not (self.root / _LAYOUT).is_dir():
            raise InputError(
                f"--storage {self.root}: this is no registry's data root, it has no {_LAYOUT}; "
                "name what the registry's configuration has as storage.filesystem.rootdirectory"
            )

    def path_of(self, digest: Digest) -> Path:
        """Where the registry keeps the bytes of `digest`, blob or manifest."""
        return self.root / relative_path(digest)

    def discard_damaged(self, digest: Digest) -> bool:
        """Remove the file of `digest` if what is in it has another digest; say whether it did.

        False where there is no file, a sound one, or one that is being written.

        Raises:
            FileSystemError: it cannot be read or removed.
        """
        path = self.path_of(digest)
        try:
            # Never through a link: only the registry's own file may go.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise FileSystemError(f"{path} cannot be read: {err.strerror}") from err
        try:
            with os.fdopen(handle, "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise FileSystemError(f"{path} is no regular file; it is left alone")
                verifier = Verifier(digest, before.st_size, str(path))
                try:
                    while chunk := file.read(_CHUNK):
                        verifier.update(chunk)
                    verifier.finish()
                except IntegrityError:
                    pass
                else:
                    return False
            now = path.lstat()
            if _state(now) != _state(before):
                return False  # the registry wrote it meanwhile, so this reading proves nothing
            path.unlink()
        except OSError as err:
            raise FileSystemError(f"{path} cannot be replaced: {err.strerror}") from err
        return True


def _state(of: os.stat_result) -> tuple[int, int, int]:
    return of.st_ino, of.st_mtime_ns, of.st_size


def relative_path(digest: Digest) -> Path:
    """The file of `digest` below the data root of any `distribution` registry."""
    encoded = digest.encoded
    return _LAYOUT / "blobs" / digest.algorithm / encoded[:2] / encoded / "data"
