"""The journal of a pull under way: how much of which blob lies in the archives already.

One line per statement, `<digest> <bytes>`, appended after the bytes were written. What a process
wrote outlives it, but not a power cut before the system has put it on the disk; so the first line
names the boot of the system, and what an earlier boot claims is proved before it is believed. What
this boot claims is looked at when sums are computed (`mirror.bundle.recheck`). It also
names the size of the archives' parts (0: they are whole), without which their bytes would
not be found.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from mirror.durable import os_errors, write_durably
from mirror.errors import InvalidDigestError
from mirror.oci import Digest

_MOST_LINES = 5000
"""A longer journal is rewritten with what still counts: it stays below some 400 KB, or 80 bytes
per blob."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """Says what of each blob is in place, in bytes from its beginning. Thread-safe."""

    def __init__(self, path: Path, part_size: int = 0) -> None:
        """Go on with the journal at `path`, or begin one for archives in parts of `part_size`."""
        self._path = path
        self._lock = threading.Lock()
        boot, known_size, self._progress = _read(path)
        self.part_size = part_size if boot is None else known_size
        self._lines = len(self._progress)
        self.trusted = boot in (None, _this_boot())
        """Whether all in it was written in this boot of the system: true without proof then."""
        with os_errors(path, "write"):
            self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if boot is None:
            self._append(self._header())

    @property
    def progress(self) -> Mapping[Digest, int]:
        """Digest → bytes in place, of every blob that was begun."""
        with self._lock:
            return dict(self._progress)

    def note(self, digest: Digest, count: int) -> None:
        """The first `count` bytes of a blob are written, wherever it belongs."""
        with self._lock:
            self._progress[digest] = count
            self._append(f"{digest} {count}\n")
            self._lines += 1
            if self._lines > max(_MOST_LINES, 2 * len(self._progress)):
                self._rewrite()

    def restart(self, progress: Mapping[Digest, int]) -> None:
        """Begin anew with what was proved to be in place."""
        with self._lock:
            self._progress = dict(progress)
            self._rewrite()
        self.trusted = True

    def close(self) -> None:
        """Release the file, which stays."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _rewrite(self) -> None:
        """One line per blob, in place of all that was said; readers see the one or the other."""
        lines = [self._header(), *(f"{d} {n}\n" for d, n in self._progress.items())]
        write_durably(self._path, "".join(lines).encode("ascii"), staged=f"fresh.{self._path.name}")
        self._close()
        with os_errors(self._path, "write"):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._lines = len(self._progress)

    def _header(self) -> str:
        return f"boot {_this_boot()} parts {self.part_size}\n"

    def _append(self, line: str) -> None:
        assert self._fd is not None
        with os_errors(self._path, "write"):
            os.write(self._fd, line.encode("ascii"))  # one call: a line is there or is not


def part_size_of(path: Path) -> int:
    """The size of the parts that a journal speaks of; 0 for whole archives, or if it is none."""
    return _read(path)[1]


def progress_of(path: Path) -> Mapping[Digest, int]:
    """What a journal claims, without going on with it: digest → bytes in place."""
    return _read(path)[2]


_FIRST = re.compile(r"boot (?P<boot>.+) parts (?P<size>[0-9]{1,18})")


def _read(path: Path) -> tuple[str | None, int, dict[Digest, int]]:
    """(boot, part size, claims) of a journal; no boot where there is none that can be read."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeError):
        return None, 0, {}
    first, newline, rest = text.partition("\n")
    match = _FIRST.fullmatch(first)
    if not newline or match is None:
        return None, 0, {}
    claims: dict[Digest, int] = {}
    for line in rest.splitlines(keepends=True):
        digest, _, count = line.partition(" ")
        if line.endswith("\n") and count.strip().isdigit():
            try:
                claims[Digest.parse(digest)] = int(count)
            except InvalidDigestError:
                continue
    return match["boot"], int(match["size"]), claims


def _this_boot() -> str:
    """Identity of this run of the system; elsewhere than on Linux none, so nothing is trusted."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown {os.getpid()}"
