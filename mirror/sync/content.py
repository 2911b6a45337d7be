"""Where content comes from and goes to: the two protocols between which every transfer runs.

A registry, a bundle and memory are sources; a registry, a bundle being written and memory are
targets. Repository paths are relative to the root that the inventory shares.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from mirror.errors import DigestMismatchError, MirrorError, SizeMismatchError
from mirror.oci import Digest, Manifest, Verifier
from mirror.run import Run

if TYPE_CHECKING:
    from mirror.sync.inventory import Inventory
    from mirror.sync.plan import CopyBlob


class Source(Protocol):
    """Something that content is read from. Thread-safe."""

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""
        ...

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        """The manifest with that digest.

        Raises:
            NotFoundError: `repository` has no such manifest.
            IntegrityError: what is there under that name is something else.
        """
        ...

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        """The bytes of a blob of `size` bytes, from `offset` to its end; not yet verified."""
        ...


class Target(Protocol):
    """Something that content is written to. Thread-safe; every call is idempotent."""

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""
        ...

    def held(self, wanted: Inventory) -> Inventory:
        """What of `wanted` is there already, as far as this target can tell."""
        ...

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        """Bring a blob into every repository of `step.into`; return the bytes that moved.

        Never leaves wrong bytes under a digest: `content` raises before its last chunk if they
        are, and a target completes a blob only with its last byte.
        """
        ...

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        """Store a manifest by its digest. All it reaches is there already."""
        ...

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Let `tag` name `manifest`, which is there already."""
        ...


class BlobContent:
    """The bytes of one blob on their way: verified, counted, and cut short on cancellation.

    One transfer owns one of these and reads it as often as it needs to, from any offset: bytes
    are hashed the first time they pass, so a continued upload is still verified as a whole.
    Not thread-safe.
    """

    def __init__(
        self,
        source: Source,
        repository: str,
        digest: Digest,
        size: int,
        *,
        on_bytes: Callable[[int], None] = lambda _count: None,
        run: Run | None = None,
    ) -> None:
        self.digest, self.size = digest, size
        self._source, self._repository = source, repository
        self._on_bytes, self._run = on_bytes, run or Run()
        self._where = f"{source.name}: blob {digest} of {repository or 'the root repository'}"
        self._verifier = Verifier(digest, size, self._where)
        self._judged = False
        self._reported = 0

    def chunks(self, offset: int = 0) -> Generator[bytes, None, None]:
        """The bytes from `offset` on, in the pieces in which the source gives them.

        The last piece comes only after the whole has proved right.

        Raises:
            SizeMismatchError, DigestMismatchError: the source has other bytes under this name.
            CancelledError: the run was stopped; nothing is complete.
        """
        if self._verifier.count > self.size:
            self._verifier.finish()  # too long before, so its first bytes look whole; raises
        position = min(offset, self._verifier.count)
        held: bytes | None = None
        with closing(
            self._source.blob(self._repository, self.digest, self.size, position)
        ) as stream:
            for piece in stream:
                self._run.check(self._where)
                end = position + len(piece)
                if end > self._verifier.count:  # a part that was read before is not hashed again
                    self._verifier.update(piece[self._verifier.count - position :])
                if end > offset:
                    if held is not None:
                        yield held
                        self._passed(position)
                    held = piece[max(0, offset - position) :]
                position = end
        if not self._judged:
            self._verifier.finish()
            self._judged = True
        if held is not None:
            yield held
            self._passed(position)

    def is_blamed_by(self, error: MirrorError) -> bool:
        """Whether `error` says that the source has other bytes under this digest."""
        return (
            isinstance(error, DigestMismatchError | SizeMismatchError)
            and error.where == self._where
        )

    def begin_with(self, chunks: Iterable[bytes]) -> None:
        """Take bytes that the target has from an earlier, broken transfer as the beginning.

        They are hashed like all others: `chunks` from behind them on prove the whole right, or
        wrong, in which case `restarted` gives another try without them.
        """
        for chunk in chunks:
            self._verifier.update(chunk)
            self._passed(self._verifier.count)

    def restarted(self) -> BlobContent:
        """The same blob, read from its beginning."""
        return BlobContent(
            self._source,
            self._repository,
            self.digest,
            self.size,
            on_bytes=lambda _count: None,  # what is read again was reported
            run=self._run,
        )

    def _passed(self, position: int) -> None:
        """Report progress once per byte, however often a broken attempt is begun again."""
        if position > self._reported:
            self._on_bytes(position - self._reported)
            self._reported = position
