"""Content that may be had in several places: the first that has it whole gives it.

Content goes by its digest, so it does not matter who gives it: whatever hashes right is right.
After any failure of one place the next one goes on, a blob from the byte that was reached.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    MirrorError,
    NoSoundCopyError,
    NotFoundError,
    SizeMismatchError,
    UnreachableError,
)
from mirror.events import OnEvent, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Manifest
from mirror.sync.content import Source
from mirror.sync.inventory import Inventory

_log = logging.getLogger(__name__)

Place = TypeVar("Place")


def continued(
    places: Iterable[Place],
    open_at: Callable[[Place, int], Generator[bytes, None, None]],
    failed: Callable[[Place, int, MirrorError], None],
    *,
    size: int | None,
    offset: int = 0,
) -> Generator[bytes, None, None]:
    """The bytes of one blob from `offset` on; where one place breaks off, the next continues.

    `open_at` opens what a place has from an offset on. `failed` hears of each place that did not
    bring the blob to its end, with the position reached, and may raise to end the attempt; places
    are taken from `places` only then. Ends early when they run out, which `failed` can tell.
    Bytes are not verified here.
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


@dataclass(frozen=True, slots=True)
class Holder:
    """A source of which it is known where its blobs lie: in the repositories of `held`, no other.

    It is asked for a blob there, whatever repository the blob is wanted for.
    """

    source: Source
    held: Inventory


@dataclass(frozen=True, slots=True)
class _Copy:
    """Where one copy of some content should lie."""

    place: int
    source: Source
    repository: str

    def __str__(self) -> str:
        return f"{self.source.name}: {self.repository or 'the root repository'}"


@dataclass(slots=True)
class _Record:
    """What is known about one digest. Changed under the source's lock only."""

    errors: dict[int, MirrorError] = field(default_factory=dict)
    """Place → why it is of no use; the first reason that is more than absence."""
    failed: set[_Copy] = field(default_factory=set)
    givers: set[int] = field(default_factory=set)
    """The places whose bytes are out and have not been judged."""
    mixed: bool = False


class FailoverSource:
    """Several sources as one, asked in their order. Thread-safe.

    A place that gave wrong bytes, or none, is not asked for the same content again, and one that
    does not answer is asked last from then on. Of that, `on_event` hears (`Warned`), but not of
    mere absence. `wanted` tells in which other repositories of each source the same content should
    lie, for a registry that lost it in one of them.

    What no place has raises:
        UnreachableError, DeniedError: none of them answers, or all of them refuse.
        NoSoundCopyError: it is missing or damaged everywhere; names each place and its reason.
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
        self._records: dict[Digest, _Record] = {}  # under the lock, like the next
        self._down: set[int] = set()

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
                self._records.setdefault(digest, _Record()).givers.add(copy.place)
            return copy.source.blob(copy.repository, digest, size, position)

        done = False

        def copies() -> Iterator[_Copy]:
            nonlocal done
            yield from self._copies(repository, digest, is_blob=True)
            done = True

        yield from continued(
            copies(),
            open_at,
            lambda copy, _position, error: self._failed(copy, digest, error),
            size=size,
            offset=offset,
        )
        if done:
            raise self._verdict(f"blob {digest}", digest)

    def reject(self, digest: Digest, error: MirrorError) -> None:
        """What was read last as the blob `digest` proved wrong, as `error` says.

        Returns if it is worth being read once more, from its beginning.

        Raises:
            NoSoundCopyError, UnreachableError, DeniedError: no place is left to read it from.
        """
        with self._lock:
            record = self._records.setdefault(digest, _Record())
            givers = {place for place in record.givers if place not in record.errors}
            # Of several that gave parts nobody knows who was wrong: one of them gives all next.
            blamed = givers if len(record.givers) == 1 or record.mixed else set()
            record.mixed = not blamed
            record.givers.clear()
        for place in blamed:
            copy = _Copy(place, self._sources[place], "")
            self._failed(copy, digest, _said_of(copy.source.name, digest, error))
        if next(iter(self._copies("", digest, is_blob=True)), None) is None:
            raise self._verdict(f"blob {digest}", digest)

    # -- which place ---------------------------------------------------------------------------

    def _copies(self, repository: str, digest: Digest, *, is_blob: bool) -> Iterator[_Copy]:
        """Where to look, in order; each is chosen when it is needed."""
        seen: set[_Copy] = set()
        while True:
            with self._lock:
                record = self._records.get(digest)
                useless = record.failed if record else set()
                barred = _barred(record)
                down = set(self._down)
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
        """Remember that `copy` is of no use."""
        is_absence = isinstance(error, NotFoundError)
        with self._lock:
            record = self._records.setdefault(digest, _Record())
            record.failed.add(copy)
            known = record.errors.get(copy.place)
            if known is None or isinstance(known, NotFoundError):
                record.errors[copy.place] = error
            is_news = not is_absence and copy.place not in self._down
            if isinstance(error, UnreachableError):
                self._down.add(copy.place)
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
        return no_sound_copy(what, reasons)


def _said_of(place: str, digest: Digest, error: MirrorError) -> MirrorError:
    """`error`, which was found when the bytes of several places had been put together."""
    where = f"{place}: blob {digest}"
    match error:
        case DigestMismatchError():
            return DigestMismatchError(where=where, expected=error.expected, actual=error.actual)
        case SizeMismatchError():
            return SizeMismatchError(where=where, expected=error.expected, actual=error.actual)
        case _:
            return error


def no_sound_copy(what: str, reasons: Sequence[tuple[str, MirrorError]]) -> MirrorError:
    """The one error about content that no place gives; `reasons` are (place, its error)."""
    lines = [f"{what} cannot be had anywhere:"]
    for place, error in reasons:
        text = str(error)
        lines.append(f"  {text}" if text.startswith(f"{place}: ") else f"  {place}: {text}")
    message = "\n".join(lines)
    for kind in (UnreachableError, DeniedError):
        if all(isinstance(error, kind) for _, error in reasons):
            return kind(message, where=what)
    return NoSoundCopyError(message, reasons)


def _barred(record: _Record | None) -> set[int]:
    """Places that have nothing sound under this digest in any repository.

    Where it is absent from one repository, or access to that one is refused, another may have it;
    equal bytes are stored once, so damage in one is damage in all.
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
