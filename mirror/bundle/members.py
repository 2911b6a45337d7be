"""The files in an archive: a tar's by one pass over its headers, a folder's by a walk.

Archives come on disks from elsewhere, so nothing in a header is believed before it is checked:
names stay inside, only regular files count, sizes fit the file, and no length that a header states
is allocated unseen (POSIX, GNU tar).

A folder of OCI layouts, as unpacking all archives of a bundle into one folder leaves them, is read
as one archive. Nothing outside the folder is ever read: a symbolic link that leads out of it ends
the reading, one that stays inside counts as the file.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mirror.bundle.archive import BLOCK, Archive
from mirror.bundle.files import CHUNK
from mirror.bundle.format import INDEX, ORDINARY, whole_name
from mirror.bundle.location import Location, Readable, windows
from mirror.durable import FileExtent, os_errors
from mirror.errors import DamagedBundleError, MirrorError

_MAX_EXTENDED_HEADER = 64 << 10
"""Bytes of a long name or pax header; real ones have a few hundred."""

_IMPLAUSIBLE = 1 << 40
"""Bytes that no member has."""

_MAX_NAME = 512
"""Bytes of a name as Python keeps it. A repository's path has 255 at most, and a digest 128."""

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX, _PAX_GLOBAL = tarfile.XHDTYPE, tarfile.XGLTYPE
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in an archive: `size` bytes at `offset`. `header_offset` is its header's."""

    path: str
    header_offset: int
    offset: int
    size: int


def members(file: Readable) -> Generator[TarMember, None, int]:
    """Yield every regular file of an archive, in order; return where its end marker begins.

    Folders are skipped.

    Raises:
        DamagedBundleError: a header does not check out, the archive is cut short, or it holds
            something that does not belong in a bundle (links, devices, names that lead outside).
    """
    offset = 0
    path: str | None = None
    pax_size: int | None = None
    start: int | None = None
    headers = _HeaderReader()
    while True:
        if offset + BLOCK > file.size:
            raise _cut(file, offset, "the archive ends without its end marker")
        block = file.read(offset, BLOCK)
        if not any(block):
            return offset
        try:
            own_name, own_size, kind = headers.read(block)
        except tarfile.HeaderError as err:
            raise _damaged(file, offset, f"this is not a header ({err})") from err
        start = offset if start is None else start
        offset += BLOCK
        size = own_size if pax_size is None or kind in (_PAX, _LONG_NAME) else pax_size
        if size < 0 or offset + size > file.size:
            beyond = f"{_shown(path or own_name)} of {size} bytes, beyond the archive's end"
            # A size that nothing has says more about the header than about the end.
            refusal = _cut if 0 <= size < _IMPLAUSIBLE else _damaged
            raise refusal(file, offset - BLOCK, beyond)
        end = offset + size + (-size % BLOCK)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > _MAX_EXTENDED_HEADER:
                raise _damaged(file, offset - BLOCK, f"an extended header of {size} bytes")
            data = file.read(offset, size)
            if kind == _LONG_NAME:
                path = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == _PAX_GLOBAL:
                # Comments, as version control writes them; what speaks of all files does not occur.
                if _pax_records(file, offset, data).keys() - {"comment"}:
                    raise _damaged(file, offset, "a pax header for all files, which bundles lack")
            elif kind == _PAX:
                records = _pax_records(file, offset, data)
                path = records.get("path", path)
                if "size" in records:
                    pax_size = _pax_size(file, offset, records["size"])
                if any(key.startswith("GNU.sparse") for key in records):
                    raise _damaged(file, offset, "a sparse file, which bundles do not have")
            offset = end
            continue
        name = path if path is not None else own_name
        if kind in _REGULAR:
            if not name.endswith("/"):  # a folder, as the oldest archives have them
                yield TarMember(_inside(file, start, name), start, offset, size)
        elif kind != tarfile.DIRTYPE:
            raise _damaged(
                file, start, f"{_shown(name)}, which is not a regular file; bundles have no others"
            )
        offset, path, pax_size, start = end, None, None, None


class _HeaderReader:
    """Reads the headers of one archive: a name, a size, and a type each.

    Most differ from the one before by name, size, and sum alone. Those are read here, in a fifth
    of the time that the tarfile module takes for one.
    """

    def __init__(self) -> None:
        self._rest: bytes | None = None  # all other fields of a regular file's header
        self._rest_sum = 0
        self._prefix = ""

    def read(self, block: bytes) -> tuple[str, int, bytes]:
        """Read one, or raise `tarfile.HeaderError`."""
        rest = block[100:124] + block[136:148] + block[156:]
        name, size, stated = block[:100], block[124:135], block[148:154]
        if rest == self._rest and block[135] == 0 and block[154:156] == b"\0 ":
            with suppress(ValueError):  # no octal number: let the tarfile module tell
                if int(stated, 8) == self._rest_sum + sum(name) + sum(size):
                    text = name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
                    return self._prefix + text, int(size, 8), tarfile.REGTYPE
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.type == tarfile.REGTYPE:
            prefix = block[345:500].partition(b"\0")[0].decode("utf-8", "surrogateescape")
            self._prefix = f"{prefix}/" if prefix else ""
            self._rest, self._rest_sum = rest, sum(rest) + 8 * ord(" ")
        return info.name, info.size, info.type


def laid_out(archive: Archive) -> Generator[TarMember, None, int]:
    """Yield the same of an archive that lies as its seal says, without reading a header."""
    for entry in archive.entries:
        yield TarMember(entry.path, entry.offset, entry.data_offset, entry.size)
    return archive.trailer_offset


def _inside(file: Readable, offset: int, name: str) -> str:
    """Return `name` without `./` parts, if it stays inside the archive."""
    if len(name) * (1 if name.isascii() else 4) > _MAX_NAME:
        raise _damaged(file, offset, f"a name of {len(name)} characters, {_shown(name)}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    printable = name.isprintable() and "\\" not in name
    if name.startswith("/") or ".." in parts or not parts or not printable:
        raise _damaged(
            file, offset, f"the name {_shown(name)}, which leads outside or is not a name"
        )
    return "/".join(parts)


def _pax_records(file: Readable, offset: int, data: bytes) -> dict[str, str]:
    """Read the `length key=value` records of a pax header (POSIX pax, "Extended Header")."""
    records: dict[str, str] = {}
    while data:
        length_text, space, _ = data.partition(b" ")
        if not space or not length_text.isdigit() or len(length_text) > 6:
            raise _damaged(file, offset, "this is not a pax header")
        length = int(length_text)
        record, data = data[len(length_text) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged(file, offset, "this is not a pax header")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return records


def _pax_size(file: Readable, offset: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _damaged(file, offset, f"a pax size {_shown(text)}")
    return int(text)


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 200 else name[:200] + "…")


def _damaged(file: Readable, offset: int, found: str, advice: str = "") -> DamagedBundleError:
    return DamagedBundleError(
        f"at byte {offset}: {found}",
        where=file.path.name,
        advice=advice
        or "the archive is damaged or not part of a bundle, copy it again from its origin",
    )


def _cut(file: Readable, offset: int, found: str) -> DamagedBundleError:
    advice = "the archive was cut short, copy it again from its origin"
    last = file.parts[-1].name if file.parts else ""
    if last != file.path.name == whole_name(last):
        advice = f"the part behind {last} seems to be missing, copy it too, or else {last} again"
    return _damaged(file, offset, found, advice)


# -- folders ---------------------------------------------------------------------------------------

_LAYOUT_FILES = frozenset({INDEX, "oci-layout"})
_MOST_FOLDERS = 5000
"""The search for a layout ends here, so that naming the root of a disk soon gives an answer."""


def is_tree(folder: Path) -> bool:
    """Whether there are OCI layouts in a folder, or below it."""
    with os_errors(folder, "read"):
        for number, (_, folders, files) in enumerate(os.walk(folder)):
            folders.sort()
            if INDEX in files and ("blobs" in folders or "oci-layout" in files):
                return True
            if number >= _MOST_FOLDERS:
                return False
    return False


class TreeFile(Readable):
    """The files of a tree as one stretch of bytes, each at a multiple of 512. Thread-safe.

    Files that no layout has are skipped. `problem` is what ended the search for files, if anything
    did.
    """

    def __init__(self, folder: Path) -> None:
        self.path: Location = folder
        self.problem: MirrorError | None = None
        self._root = os.path.realpath(folder)
        self._members: list[TarMember] = []
        self._files: list[str] = []  # where each of them lies, below the folder or absolute
        self.size = 0
        try:
            for name, file, size in self._files_below(self._root, ""):
                if len(self._members) > ORDINARY.members:
                    break  # one more than the reader takes, which then says so
                self._members.append(TarMember(name, self.size, self.size, size))
                self._files.append(file)
                self.size += size + (-size % BLOCK)
        except MirrorError as err:
            self.problem = err
        self._starts = [*(member.offset for member in self._members), self.size]

    def members(self, _file: object = None) -> Generator[TarMember, None, int]:
        """Yield every file, in order; raise the `problem` behind the last one."""
        yield from self._members
        if self.problem is not None:
            raise self.problem
        return self.size

    def _files_below(self, folder: str, below: str) -> Iterator[tuple[str, str, int]]:
        """Yield (name, path, size) of the files of layouts in a folder and below, sorted."""
        path = Path(folder)
        with os_errors(path, "read"), os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            name = below + entry.name
            if len(name) > _MAX_NAME:
                raise self._hostile(name, "is longer than any name in a bundle")
            with os_errors(Path(entry.path), "examine"):
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if os.path.commonpath([real, self._root]) != self._root:
                        raise self._hostile(name, "is a symbolic link that leads out of the folder")
                    if not Path(real).is_file():
                        raise self._hostile(name, "is a symbolic link to no file")
                    file, status = real, Path(real).lstat()
                else:
                    file, status = entry.path, entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from self._files_below(entry.path, name + "/")
            elif entry.name in _LAYOUT_FILES or _is_blob(name):
                if not stat.S_ISREG(status.st_mode):
                    raise self._hostile(name, "is not a regular file")
                yield name, file, status.st_size

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most `files.CHUNK` bytes.

        Raises:
            DamagedBundleError: the file there is not what it was when the folder was listed.
            FileSystemError: it cannot be read.
        """
        inside = min(size, self.size - offset)
        for number, start, length in windows(self._starts, offset, inside):
            content = max(0, min(length, self._members[number].size - start))
            if content:
                yield from self._from_file(number, start, content)
            if padding := length - content:
                yield bytes(padding)
        if inside < size:
            raise DamagedBundleError(f"ends at byte {self.size}", where=self.path.name)

    def _from_file(self, number: int, offset: int, size: int) -> Iterator[bytes]:
        member, path = self._members[number], Path(self._files[number])
        with os_errors(path, "read"):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
                    raise self._hostile(member.path, "was changed while the folder was read")
                cut_short = self._hostile(member.path, "was cut short while the folder was read")
                yield from FileExtent(fd, path, offset, size, lambda *_: cut_short).pieces(CHUNK)
            finally:
                os.close(fd)

    def _hostile(self, name: str, what: str) -> DamagedBundleError:
        return DamagedBundleError(f"{name!a:.200} {what}", where=self.path.name)


def _is_blob(name: str) -> bool:
    *_, kind, _algorithm, _encoded = ("", "", *name.split("/"))
    return kind == "blobs"
