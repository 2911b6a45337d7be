"""The files beside the archives, and `SHA256SUMS` over all of them, for `sha256sum -c`.

Its format is that of GNU coreutils (manual, "md5sum invocation").

A line per file: the digest in hex, two spaces, the name. Names with a backslash, a line feed or a
carriage return have these written `\\\\`, `\\n`, `\\r`, and such a line begins with a backslash.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mirror.bundle.files import beginning
from mirror.bundle.format import (
    GOST_SUFFIX,
    MAX_SUMS_BYTES,
    SEAL,
    SIGNATURE,
    SUMS,
    parse_part_name,
    part_sizes,
)
from mirror.bundle.gost import gostsum
from mirror.bundle.location import Location, size_of
from mirror.bundle.seal import Seal
from mirror.errors import DamagedBundleError
from mirror.oci import Digest

_SELF = re.compile(rb"# SHA-256 of the lines below: ([0-9a-f]{64})")
_LINE = re.compile(
    # coreutils writes `*` for files read in binary mode, which is the same thing on Unix.
    rb"[ \t]*(?P<escaped>\\?)(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>[^\0]+)",
    re.DOTALL,
)
_TAGGED = re.compile(  # `sha256sum --tag`, and the BSDs
    rb"[ \t]*(?P<escaped>\\?)SHA256 ?\((?P<name>[^\0]+)\) = (?P<digest>[0-9A-Fa-f]{64})", re.DOTALL
)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_COPY_AGAIN = "copy the file again from its origin"
_ESCAPED = {escaped: plain for plain, escaped in _ESCAPES.items()}


def render(sums: Mapping[str, Digest]) -> bytes:
    """The file for `sums`, names mapped to SHA-256 digests, in the order of the names' bytes.

    Names that are not UTF-8 go by the system's encoding of file names.

    Raises:
        ValueError: a digest is of another algorithm, or a name is empty or not that of a file.
    """
    lines = sorted((os.fsencode(name), digest) for name, digest in sums.items())
    return b"".join(_line(name, digest) for name, digest in lines)


def render_sealed(sums: Mapping[str, Digest]) -> bytes:
    """The same behind a comment with its own digest, by which `is_whole` judges it later."""
    body = render(sums)
    return b"# SHA-256 of the lines below: " + Digest.of(body).encoded.encode() + b"\n" + body


def is_whole(data: bytes) -> bool:
    """Whether such a file is as it was written, if it states how that was.

    coreutils skips the comment in which `render_sealed` states it. A file with another comment was
    changed; one without was made anew by other tools.
    """
    first, _, body = data.partition(b"\n")
    if not first.startswith(b"#"):
        return True
    stated = _SELF.fullmatch(first)
    return stated is not None and stated[1].decode() == Digest.of(body).encoded


def is_ours(data: bytes) -> bool:
    """Whether `render_sealed` wrote such a file, so that a seal was beside it."""
    return _SELF.fullmatch(data.partition(b"\n")[0]) is not None


def _line(name: bytes, digest: Digest) -> bytes:
    if digest.algorithm != "sha256":
        raise ValueError(f"{digest} is not a SHA-256 digest")
    if not name or b"\0" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], name)
    mark = b"\\" if escaped != name else b""
    return mark + digest.encoded.encode() + b"  " + escaped + b"\n"


def parse(data: bytes) -> dict[str, Digest]:
    """Read such a file, however its lines are ordered: names mapped to digests.

    Read as well, as coreutils does: binary marks, upper-case hex, lines of `sha256sum --tag`,
    comments that begin with `#`. Names are as written and may lead anywhere; compare them with
    those of the files at hand, and never open a file only because it is named here.

    Raises:
        DamagedBundleError: a line is not a checksum, or two lines name one file; it says which.
    """
    sums: dict[str, Digest] = {}
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, 1):
        if line.startswith(b"#"):
            continue
        found = _LINE.fullmatch(line) or _TAGGED.fullmatch(line)
        name = found and _unescaped(found["name"], escaped=bool(found["escaped"]))
        if not found or not name:
            what = "is not a checksum, which is 64 hex digits, two spaces and a file name"
            raise DamagedBundleError(f"line {number} {what}", where=SUMS, advice=_COPY_AGAIN)
        text = os.fsdecode(name)
        if text in sums:
            raise DamagedBundleError(
                f"line {number} names {text!a} a second time", where=SUMS, advice=_COPY_AGAIN
            )
        sums[text] = Digest("sha256", found["digest"].decode().lower())
    return sums


def _unescaped(name: bytes, *, escaped: bool) -> bytes | None:
    """Return the name that a line means; None if it has an unknown escape."""
    if not escaped:
        return name
    if re.fullmatch(rb"(?:[^\\]|\\[\\nr])*", name, re.DOTALL) is None:
        return None
    return re.sub(rb"\\.", lambda found: _ESCAPED[found[0]], name)


def read(path: Location) -> bytes:
    """Read such a file; one that is larger than any counts as empty."""
    data = beginning(path, MAX_SUMS_BYTES + 1)
    return data if len(data) <= MAX_SUMS_BYTES else b""


def parse_whole(data: bytes) -> dict[str, Digest]:
    """Read such a file, which must be as it was written.

    Raises:
        DamagedBundleError: it was changed, or is something else.
    """
    sums = parse(data)
    if not is_whole(data):
        raise DamagedBundleError("its lines hash to another digest than it states", where=SUMS)
    return sums


def part_size_in(folder: Location, seal: Seal, found: Mapping[Location, Sequence[Location]]) -> int:
    """Return how large the parts of a folder's archives were made; 0 if none is in parts.

    `found` are the archives there, each with its files. All but the last part of each have this
    size, and the last tells it from what is left. Damaged parts are outvoted. Only a size counts
    that gives each archive the number of parts that `SHA256SUMS` lists; without that file the
    largest part has the size.
    """
    stated: Mapping[str, Digest] = {}
    if (folder / SUMS).is_file():
        with suppress(DamagedBundleError):
            stated = parse(read(folder / SUMS))
    counts = Counter(part[0] for name in stated if (part := parse_part_name(name)) is not None)
    votes: Counter[int] = Counter()
    wholes: dict[str, int] = {}  # archive in parts → its size
    for archive, files in found.items():
        sealed = seal.archives.get(archive.name)
        for path in files:
            part = parse_part_name(path.name)
            if sealed is None or part is None or part[0] != archive.name:
                continue
            wholes[archive.name] = sealed.size
            number, size = part[1], size_of(path)
            others = counts[archive.name] - 1
            if others < 1 or number < others:
                votes[size] += 1
            elif number == others:
                before, rest = divmod(sealed.size - size, others)
                votes[before] += rest == 0
    fitting = [
        size
        for size in +votes
        if size > 0
        and all(counts[name] in (0, len(part_sizes(whole, size))) for name, whole in wholes.items())
    ]
    if not any(counts[name] for name in wholes):
        return max(fitting, default=0)
    return max(fitting, key=lambda size: (votes[size], size), default=0)


# -- all files beside the archives -----------------------------------------------------------------

_GOST_SUM_BYTES = 64
_SIGNATURE_BYTES = 1024
"""At most: an RSA signature of 4096 bits has 684 in base64."""


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """The files beside the archives: `files`, which the seal lists, sums, and a signature.

    `sign` makes a signature over the seal. With `with_gost` each archive or part has a GOST digest.
    """

    files: Mapping[str, bytes]
    sign: Callable[[bytes], bytes] | None = None
    with_gost: bool = False

    def size(self, archives: Iterable[str]) -> int:
        """Bytes at most, the seal aside; `archives` are the names of all archives and parts."""
        size = sum(map(len, self.files.values()))
        listed = list(archives)
        names = [*self.files, SEAL, *listed]
        if self.with_gost:
            names += [name + GOST_SUFFIX for name in listed]
            size += len(listed) * _GOST_SUM_BYTES
        if self.sign is not None:
            names.append(SIGNATURE)
            size += _SIGNATURE_BYTES
        return size + len(render_sealed(dict.fromkeys(names, Digest.of(b""))))

    def render(self, sealed: bytes, digests: Mapping[str, Mapping[str, str]]) -> dict[str, bytes]:
        """All of them by name. `sealed` is the seal; `digests` has those of each archive or part in
        lower-case hex, by name and then by algorithm (`sha256`, `gost`)."""
        beside = dict(self.files)
        sums = {name: Digest.of(data) for name, data in (*beside.items(), (SEAL, sealed))}
        if self.sign is not None:
            beside[SIGNATURE] = self.sign(sealed)
            sums[SIGNATURE] = Digest.of(beside[SIGNATURE])
        for name, digest in digests.items():
            sums[name] = Digest("sha256", digest["sha256"])
            if self.with_gost:
                gost_sum = name + GOST_SUFFIX
                beside[gost_sum] = gostsum(digest["gost"])
                sums[gost_sum] = Digest.of(beside[gost_sum])
        beside[SUMS] = render_sealed(sums)
        return beside
