"""What an interrupted pull left in the archives, proved before it counts.

The journal's claims are believed within one boot of the system (`mirror.bundle.journal`). Yet a
disk that was pulled out, or a folder that was copied in between, loses what had not reached it, and
nothing but the bytes tells. They are read for the sums anyway, from the first to the last, and
`Recheck` looks at them as they pass. What is known to be amiss `prove` reads before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mirror.bundle.archive import Entry
from mirror.bundle.workplace import Place, Workplace
from mirror.errors import IntegrityError
from mirror.oci import Digest


class Recheck:
    """Compares some entries of an archive, whose bytes from `start` on it takes in their order.

    Header, content and padding count. Not thread-safe.
    """

    def __init__(self, entries: Iterable[Entry], start: int = 0) -> None:
        self._entries = iter(sorted(entries, key=lambda entry: entry.offset))
        self._position = start
        self._wrong: list[Digest] = []
        self._next()

    @property
    def wrong(self) -> tuple[Digest, ...]:
        """What of the bytes so far is not what it must be."""
        return tuple(self._wrong)

    def update(self, data: bytes) -> None:
        """Take the bytes that follow those before."""
        view, start = memoryview(data), self._position
        self._position = end = start + len(data)
        while (entry := self._entry) is not None:
            content = entry.offset + len(self._header)
            padding = content + entry.size
            behind = padding + entry.padding
            self._around += _cut(view, start, entry.offset, content)
            self._hash.update(_cut(view, start, content, padding))
            self._around += _cut(view, start, padding, behind)
            if behind > end:
                return
            right = self._around == self._header + bytes(entry.padding)
            if not right or self._hash.hexdigest() != entry.digest.encoded:
                self._wrong.append(entry.digest)
            self._next()

    def _next(self) -> None:
        self._entry = next(self._entries, None)
        self._header = self._entry.header if self._entry is not None else b""
        self._around = b""
        self._hash = hashlib.new(self._entry.digest.algorithm if self._entry else "sha256")


def _cut(view: memoryview, start: int, first: int, last: int) -> memoryview:
    """Of a file's bytes `first` to `last` those that are in `view`, which begins at `start`."""
    return view[max(first - start, 0) : max(last - start, 0)]


def is_amiss(leavings: Workplace) -> bool:
    """Whether an archive is too short for what the journal says of it, as a copy may be that was
    cut off. A byte of each blob is read."""
    progress = leavings.journal.progress
    for (_, digest), places in leavings.places.items():
        count = min(progress.get(digest, 0), places[0].entry.size)
        if not count:
            continue
        try:
            for place in places:
                for _ in place.file.chunks(place.entry.data_offset + count - 1, 1):
                    pass
        except IntegrityError:
            return True
    return False


def prove(leavings: Workplace) -> None:
    """Keep of the journal's claims those that the bytes bear out, wherever a blob belongs."""
    progress = leavings.journal.progress
    proved: dict[Digest, int] = {}
    wrong: set[Digest] = set()
    for (_, digest), places in leavings.places.items():
        size = places[0].entry.size
        if progress.get(digest) != size or digest in wrong:
            continue
        if all(_is_whole(place) for place in places):
            proved[digest] = size
        else:
            wrong.add(digest)
    leavings.journal.restart({d: n for d, n in proved.items() if d not in wrong})


def _is_whole(place: Place) -> bool:
    """Whether an entry is all there and right, with what is around its content."""
    entry = place.entry
    check = Recheck([entry], entry.offset)
    try:
        size = len(entry.header) + entry.size + entry.padding
        for chunk in place.file.chunks(entry.offset, size):
            check.update(chunk)
    except IntegrityError:
        return False
    return not check.wrong
