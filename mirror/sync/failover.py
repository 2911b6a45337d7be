"""Content that may be had in several places: the first that has it whole gives it.

Content goes by its digest, so it does not matter who gives it: whatever hashes right is right.
After any failure of one place the next one goes on, a blob from the byte that was reached.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from mirror.durable import Extents
from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    FileSystemError,
    IntegrityError,
    MirrorError,
    NoSoundCopyError,
    NotFoundError,
    SizeMismatchError,
    UnreachableError,
)
from mirror.events import OnEvent, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Manifest, Verifier
from mirror.run import Run
from mirror.sync.content import FileSource, Source, Target
from mirror.sync.inventory import Inventory
from mirror.sync.plan import CopyBlob

_log = logging.getLogger(__name__)

Candidate = TypeVar("Candidate")


def continued(
    places: Iterable[Candidate],
    open_at: Callable[[Candidate, int], Generator[bytes, None, None]],
    failed: Callable[[Candidate, int, MirrorError], None],
    verdict: Callable[[], MirrorError],
    *,
    size: int | None,
    offset: int = 0,
) -> Generator[bytes, None, None]:
    """The bytes of one blob from `offset` on; where one place breaks off, the next continues.

    `open_at` opens what a place has from an offset on. `failed` is called for each place that did
    not bring the blob to its end, with the position reached; it may raise to end the attempt. Only
    then the next place is taken from `places`. The bytes are not verified here.

    Raises:
        MirrorError: what `verdict` gives, when places run out.
    """
    position = offset
    for place in places:
        try:
            with closing(open_at(place, position)) as chunks:
                for chunk in chunks:
                    position += len(chunk)
                    yield chunk
            if size is None or position >= size:
                return
            error: MirrorError = SizeMismatchError(where=f"{place}", expected=size, actual=position)
        except CancelledError:
            raise
        except MirrorError as err:
            error = err
        failed(place, position, error)
    raise verdict()


@dataclass(frozen=True, slots=True)
class Holder:
    """A source whose blobs lie in the repositories of `held` and in no others.

    It is asked for a blob there, whichever repository the blob is wanted for.
    """

    source: Source
    held: Inventory


@dataclass(frozen=True, slots=True)
class _Copy:
    """A place, and the repository there in which some content should lie."""

    place: int
    source: Source
    repository: str

    def __str__(self) -> str:
        return f"{self.source.name}: {self.repository or 'the root repository'}"


@dataclass(slots=True)
class _Record:
    """What failed about one digest. Changed under the source's lock only."""

    errors: dict[int, MirrorError] = field(default_factory=dict)
    """Candidate → why it cannot be used; a reason that says more than absence is kept."""
    failed: set[_Copy] = field(default_factory=set)
    mixed: bool = False
    """Whether the bytes that proved wrong last came from several places."""


class FailoverSource:
    """Several sources as one, asked in their order. Thread-safe.

    A place that gave wrong bytes, or none, is not asked for the same content again, and one that
    does not answer is asked last from then on. `on_event` gets a `Warned` about both, but not about
    mere absence. `wanted` says in which other repositories of each source the same content should
    be, for a registry that lost it in one of them.

    Where no place has the content, reading it raises:
        UnreachableError, DeniedError: no place answers, or every place refuses.
        FileSystemError: it cannot be read from disk, and no other place has it.
        NoSoundCopyError: the content is missing or damaged; names each place with its reason.
    """

    def __init__(
        self,
        sources: Sequence[Source | Holder],
        wanted: Inventory | None = None,
        *,
        name: str | None = None,
        on_event: OnEvent = ignore_events,
    ) -> None:
        if not sources:
            raise ValueError("there is nothing to read from")
        self._sources = tuple(one.source if isinstance(one, Holder) else one for one in sources)
        self._holders = {
            place: _paths(one.held, manifests=False)
            for place, one in enumerate(sources)
            if isinstance(one, Holder)
        }
        self._alike = _paths(wanted) if wanted is not None else {}
        self._name, self._on_event = name, on_event
        self._lock = threading.Lock()
        self._records: dict[Digest, _Record] = {}  # under the lock, like the next two
        # Whose bytes are out and not yet judged. Threads may read one blob for several places.
        self._givers: dict[tuple[int, Digest], frozenset[int]] = {}
        self._down: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        return self._name or self._sources[0].name

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        for copy in self._copies(repository, digest, is_blob=False):
            try:
                return copy.source.manifest(copy.repository, digest)
            except CancelledError:
                raise
            except MirrorError as err:
                self._failed(copy, digest, err)
        raise self._verdict(f"manifest {digest}", digest)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        def open_at(copy: _Copy, position: int) -> Generator[bytes, None, None]:
            with self._lock:
                key = threading.get_ident(), digest
                self._givers[key] = self._givers.get(key, frozenset()) | {copy.place}
            return copy.source.blob(copy.repository, digest, size, position)

        return continued(
            self._copies(repository, digest, is_blob=True),
            open_at,
            lambda copy, _position, error: self._failed(copy, digest, error),
            lambda: self._verdict(f"blob {digest}", digest),
            size=size,
            offset=offset,
        )

    def extents(self, repository: str, digest: Digest, size: int, offset: int) -> Extents:
        copy = next(self._copies(repository, digest, is_blob=True), None)
        if copy is not None and isinstance(copy.source, FileSource):
            # Whoever reads the blob meets it, and asks the next place.
            with suppress(NotFoundError, FileSystemError, IntegrityError):
                yield from copy.source.extents(copy.repository, digest, size, offset)

    def reject(self, digest: Digest, error: MirrorError) -> None:
        """Record that the bytes read last as the blob `digest` are wrong, as `error` says.

        Returns if it is worth reading the blob once more, from its beginning.

        Raises:
            NoSoundCopyError, UnreachableError, DeniedError, FileSystemError: no place is left to
                read it from.
        """
        with self._lock:
            record = self._records.setdefault(digest, _Record())
            givers = self._givers.pop((threading.get_ident(), digest), frozenset())
            # If several gave parts, nobody knows who was wrong: one of them gives all next time.
            blamed = givers - record.errors.keys() if len(givers) == 1 or record.mixed else ()
            record.mixed = not blamed
        for place in blamed:
            copy = _Copy(place, self._sources[place], "")
            self._failed(copy, digest, _said_of(copy.source.name, digest, error))
        if next(iter(self._copies("", digest, is_blob=True)), None) is None:
            raise self._verdict(f"blob {digest}", digest)

    # -- which place ---------------------------------------------------------------------------

    def _copies(self, repository: str, digest: Digest, *, is_blob: bool) -> Iterator[_Copy]:
        """Where to look, in order. Each copy is chosen when it is needed."""
        seen: set[_Copy] = set()
        while True:
            with self._lock:
                record = self._records.get(digest)
                useless = frozenset(record.failed) if record else frozenset()
                barred, down = _barred(record), self._down
            every = [
                copy
                for copy in self._all(repository, digest, is_blob=is_blob)
                if copy not in seen and copy not in useless and copy.place not in barred
            ]
            if not every:
                return
            copy = min(every, key=lambda one: one.place in down)  # the first of equals
            seen.add(copy)
            yield copy

    def _all(self, repository: str, digest: Digest, *, is_blob: bool) -> Iterator[_Copy]:
        alike = self._alike.get(digest, ())
        usual = [repository, *(path for path in alike if path != repository)]
        if alike and repository not in alike:
            usual = list(alike)
        for place, source in enumerate(self._sources):
            holders = self._holders.get(place) if is_blob else None
            paths = usual if holders is None else holders.get(digest, ())
            yield from (_Copy(place, source, path) for path in paths)

    def _failed(self, copy: _Copy, digest: Digest, error: MirrorError) -> None:
        """Remember that `copy` is of no use for `digest`."""
        is_absence = isinstance(error, NotFoundError)
        with self._lock:
            record = self._records.setdefault(digest, _Record())
            record.failed.add(copy)
            known = record.errors.get(copy.place)
            if known is None or isinstance(known, NotFoundError):
                record.errors[copy.place] = error
            is_news = not is_absence and copy.place not in self._down
            if isinstance(error, UnreachableError):
                self._down |= {copy.place}
        _log.debug("%s: no %s: %s", copy, digest, error)
        if is_news and len(self._sources) > 1:
            self._on_event(Warned(f"{copy.source.name} does not give {digest}: {error}"))

    def _verdict(self, what: str, digest: Digest) -> MirrorError:
        with self._lock:
            record = self._records.get(digest)
            errors = dict(record.errors) if record else {}
        reasons = [
            (source.name, errors.get(place) or NotFoundError("it is not there"))
            for place, source in enumerate(self._sources)
        ]
        lines = [f"{what} cannot be had anywhere:"]
        for name, error in reasons:
            text = str(error)
            lines.append(f"  {text}" if text.startswith(f"{name}: ") else f"  {name}: {text}")
        message = "\n".join(lines)
        for kind in (UnreachableError, DeniedError):
            if all(isinstance(error, kind) for _, error in reasons):
                return kind(message, where=what)
        told = [error for _, error in reasons if not isinstance(error, NotFoundError)]
        if told and all(isinstance(error, FileSystemError) for error in told):
            return FileSystemError(message)
        return NoSoundCopyError(message, reasons)


def _said_of(place: str, digest: Digest, error: MirrorError) -> MirrorError:
    """`error`, which the whole of the bytes revealed, as one about the place that gave them."""
    where = f"{place}: blob {digest}"
    match error:
        case DigestMismatchError():
            return DigestMismatchError(where=where, expected=error.expected, actual=error.actual)
        case SizeMismatchError():
            return SizeMismatchError(where=where, expected=error.expected, actual=error.actual)
        case _:
            return error


def _barred(record: _Record | None) -> set[int]:
    """Places that have nothing sound under a digest in any of their repositories.

    Absence from one repository and refused access to it say nothing about the others. A registry
    stores equal bytes once, so damage in one repository is damage in all.
    """
    if record is None:
        return set()
    return {
        place
        for place, error in record.errors.items()
        if not isinstance(error, NotFoundError | DeniedError)
    }


def _paths(inventory: Inventory, *, manifests: bool = True) -> dict[Digest, list[str]]:
    """The repositories in which an inventory has each blob, and each manifest."""
    found: dict[Digest, list[str]] = {}
    for path, content in sorted(inventory.repositories.items()):
        for digest in (*content.blobs, *(content.manifests if manifests else ())):
            found.setdefault(digest, []).append(path)
    return found


_STEP = 1 << 20
"""Bytes between two reports of progress, and two questions whether the run goes on."""


class BlobContent:
    """The bytes of one blob on their way: verified, counted, and cut short on cancellation.

    One transfer owns one of these and reads it as often as it needs to, from any offset. Bytes are
    hashed the first time they pass, so a continued upload is still verified as a whole.
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
        self._reported = self._behind = 0

    def chunks(self, offset: int = 0) -> Generator[bytes, None, None]:
        """The bytes from `offset` on, in the pieces in which the source gives them.

        The last piece comes only after the whole has proved right.

        Raises:
            SizeMismatchError, DigestMismatchError: the source has other bytes under this name.
            CancelledError: the run was stopped; nothing is complete.
        """
        if self._verifier.count > self.size:
            self._verifier.finish()  # too long before, so its first bytes look whole; raises
        if self._behind == self.size > 0:
            return
        position = min(offset, self._behind or self._verifier.count)
        with closing(
            self._source.blob(self._repository, self.digest, self.size, position)
        ) as stream:
            for piece in stream if self._behind else self._verifier.passing(stream, position):
                self._run.check(self._where)
                position += len(piece)
                if offset < position <= self.size:
                    yield piece[max(0, offset - position + len(piece)) :]
                    self._passed(position)
        if position != self.size:
            raise SizeMismatchError(where=self._where, expected=self.size, actual=position)

    def unproved(self, offset: int = 0) -> Extents:
        """As `chunks`, in files of this machine that nobody reads: the receiver proves the bytes.

        Nothing comes where they do not lie in such files.
        """
        if isinstance(self._source, FileSource):
            position = offset
            for extent in self._source.extents(self._repository, self.digest, self.size, offset):
                for start in range(0, len(extent), _STEP):
                    self._run.check(self._where)
                    yield extent[start : start + _STEP]
                    position += min(_STEP, len(extent) - start)
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

    def begin_behind(self, count: int) -> BlobContent:
        """Take `count` bytes that the target has, and cannot read now, as the beginning. `chunks`
        from there on check only their number: the target proves the whole when it can."""
        self._behind = count
        self._passed(count)
        return self

    def restarted(self) -> BlobContent:
        """The same blob, read from its beginning. What is read again was reported before."""
        return BlobContent(self._source, self._repository, self.digest, self.size, run=self._run)

    def _passed(self, position: int) -> None:
        """Report progress once per byte, however often a broken attempt is begun again."""
        if position > self._reported:
            self._on_bytes(position - self._reported)
            self._reported = position


def copy_blob(
    step: CopyBlob,
    source: Source,
    target: Target,
    *,
    on_bytes: Callable[[int], None] = lambda _count: None,
    run: Run,
) -> int:
    """Bring one blob; return the bytes that moved.

    If what `source`, a `FailoverSource`, gave first proves wrong, its next place gives the blob. A
    client of several replicas says itself which of them is damaged, and then asks the others first.
    """
    content = BlobContent(source, step.source, step.digest, step.size, on_bytes=on_bytes, run=run)
    damaged: set[str] = set()
    while True:
        try:
            return target.put_blob(step, content)
        except IntegrityError as err:
            mismatch = isinstance(err, DigestMismatchError | SizeMismatchError)
            if content.is_blamed_by(err) and isinstance(source, FailoverSource):
                source.reject(step.digest, err)
            elif not mismatch or content.is_blamed_by(err) or err.where in damaged:
                raise
            damaged.add(err.where)
        content = content.restarted()
