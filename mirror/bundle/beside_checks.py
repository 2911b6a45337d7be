"""What is wrong with the files beside a bundle's archives, and what `SHA256SUMS` says of parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mirror.bundle.files import ReadAt
from mirror.bundle.names import SEAL, ZSTD_SUFFIX
from mirror.bundle.parts import parse_part_name
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.seekable import SeekableFile, Unreadable
from mirror.bundle.sums import SUMS, is_ours, is_whole
from mirror.bundle.sums import parse as parse_sums
from mirror.durable import os_errors
from mirror.errors import DamagedBundleError, IntegrityError
from mirror.layout import RELEASES_FILE
from mirror.oci import Digest, Verifier
from mirror.sync import Finding


def file_findings(seal: Seal, folder: Path | None) -> Iterator[Finding]:
    """What is wrong with the files beside the archives; they are small.

    A list of releases that is not the bundle's own is: a cluster would be given it.
    """
    if folder is not None and RELEASES_FILE not in seal.files and (folder / RELEASES_FILE).exists():
        yield Finding(RELEASES_FILE, f"is not listed in {SEAL}; it does not belong to this bundle")
    for name, sealed in seal.files.items():
        if folder is None or not (folder / name).is_file():
            yield Finding(name, "the file is missing", digest=sealed.digest)
            continue
        file = ReadAt(folder / name)
        try:
            verifier = Verifier(sealed.digest, sealed.size, name)
            for chunk in file.chunks(0, file.size):
                verifier.update(chunk)
            verifier.finish()
        except IntegrityError as err:
            yield Finding(name, str(err).removeprefix(f"{name}: "), digest=sealed.digest)
        finally:
            file.close()


def read_sums(reader: BundleReader) -> Mapping[str, Digest]:
    """What `SHA256SUMS` says.

    Raises:
        DamagedBundleError: it is missing, or not as it was written.
    """
    path = reader.folder / SUMS if reader.folder is not None else None
    if path is None or not path.is_file():
        raise DamagedBundleError("the file is missing")
    with os_errors(path, "read"):
        data = path.read_bytes() if path.stat().st_size <= _MAX_SUMS_BYTES else b""
    sums = parse_sums(data)
    if not is_whole(data):
        raise DamagedBundleError("its lines hash to another digest than it states")
    return sums


def sums_findings(
    seal: Seal, reader: BundleReader, sums: Mapping[str, Digest]
) -> Iterator[Finding]:
    """What is wrong with the small files that `SHA256SUMS` alone speaks for, and which parts of
    compressed archives are missing.

    What it says of other archives was written while they were, and they are judged by the seal.
    """
    assert reader.folder is not None
    parts = ((name, parse_part_name(name)) for name in sums)
    listed = {(part[0] if part else name).removesuffix(ZSTD_SUFFIX) for name, part in parts}
    for name in sorted({*seal.archives, *seal.files, SEAL} - listed):
        yield Finding(SUMS, f"it does not list {name}; copy the file again from its origin")
    packed = {
        one.name for one in reader.archives if isinstance(one.file, SeekableFile | Unreadable)
    }
    for name in sorted(sums.keys() - seal.files.keys()):
        part = parse_part_name(name)
        stored = part[0] if part else name
        beside = reader.folder / name
        if stored in seal.archives:
            continue
        if stored.removesuffix(ZSTD_SUFFIX) in seal.archives:
            if stored.removesuffix(ZSTD_SUFFIX) in packed and not beside.is_file():
                yield Finding(name, f"the file is missing, which {SUMS} lists", digest=sums[name])
        elif name != beside.name or not beside.is_file():
            yield Finding(name, f"the file is missing, which {SUMS} lists", digest=sums[name])
        elif Digest.of(beside.read_bytes()) != sums[name]:
            yield Finding(name, f"is damaged: {SUMS} has another digest", digest=sums[name])


def lost_findings(reader: BundleReader) -> Iterator[Finding]:
    """What is missing in a folder without a seal, as far as `SHA256SUMS` tells: where that was
    written beside a seal, the seal itself is lost at least."""
    path = reader.folder / SUMS if reader.folder is not None else None
    if path is None or not path.is_file():
        return
    with os_errors(path, "read"):
        data = path.read_bytes() if path.stat().st_size <= _MAX_SUMS_BYTES else b""
    if not is_ours(data):
        return
    try:
        names = sorted(parse_sums(data))
    except DamagedBundleError as err:
        yield Finding(SUMS, str(err).removeprefix(f"{SUMS}: "))
        return
    for name in names:
        if name == Path(name).name and not (path.parent / name).exists():
            told = f"the file is missing, which {SUMS} lists; copy it again from its origin"
            yield Finding(name, told)


def part_findings(suspects: Iterable[Path], sums: Mapping[str, Digest]) -> Iterator[Finding]:
    """Which of the parts that damage was found in are not what `SHA256SUMS` says: those are to be
    copied again. They are read once more for that."""
    for path in sorted(suspects):
        expected = sums.get(path.name)
        if expected is None:
            continue
        with os_errors(path, "read"), path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected.encoded:
            told = f"is damaged: {SUMS} has another digest; copy this part again"
            yield Finding(path.name, told)


_MAX_SUMS_BYTES = 4 << 20
