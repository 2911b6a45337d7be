"""What a repair brings back as whole files: those beside the archives, and compressed archives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from mirror.bundle import sums
from mirror.bundle.archive import Entry
from mirror.bundle.checks import check_signed_by
from mirror.bundle.files import open_file
from mirror.bundle.format import (
    MAX_SUMS_BYTES,
    PARTIAL_SUFFIX,
    SEAL,
    SUMS,
    archive_named,
    parse_part_name,
    part_sizes,
)
from mirror.bundle.location import Location
from mirror.bundle.place import belongs
from mirror.bundle.reader import BundleReader, find_archives
from mirror.bundle.seal import Seal, parse_seal, seal_bytes
from mirror.durable import Folder, os_errors, sync_file
from mirror.errors import DamagedBundleError, FileSystemError, InputError, IntegrityError
from mirror.layout import TOOL_FILE
from mirror.oci import Digest, Verifier
from mirror.run import Run
from mirror.sync import Source

ASIDE = "repair" + PARTIAL_SUFFIX  # no seal has this name
IN_PLACE = "the damaged entry itself"


@dataclass(frozen=True, slots=True)
class Damage:
    """An entry that does not lie in its archive as the seal says."""

    archive: str
    entry: Entry


class Restorer:
    """The bundle under repair: its seal, its sums, and the places that may have what it lacks."""

    def __init__(
        self,
        folder: Folder,
        copies: Sequence[tuple[Location, BundleReader | None]],
        sources: Sequence[Source],
        key: bytes | None,
        run: Run,
    ) -> None:
        self._folder, self._copies, self._sources, self._run = folder, copies, sources, run
        self._key = key
        self.given: Counter[str] = Counter()
        self.written = 0
        self.files: list[str] = []
        self.lost: list[Damage] = []
        self._stated: Mapping[str, Digest] = {}
        self.seal = self._restored_seal()

    def _restored_seal(self) -> Seal:
        """The seal here, or the very same of a copy; with a key, one that its owner signed."""
        path = self._folder.path
        raw = b""
        with suppress(OSError):
            raw = self._folder.read(SUMS, MAX_SUMS_BYTES)
        for place in self._places():
            with suppress(DamagedBundleError, FileSystemError):
                data = seal_bytes(place / SEAL) or b""
                seal = parse_seal(data, str(place / SEAL))
                sealed = Digest.of(data)
                if not (place == path or sealed.encoded.encode() in raw):
                    continue
                if self._key is not None:
                    check_signed_by(data, self._key, self._places())
                if place == path or self._take_file(SEAL, sealed):
                    self._restore_sums(sealed, seal)
                    return seal
        state = "damaged" if (path / SEAL).exists() else "missing"
        raise InputError(
            f"{path / SEAL} is {state}, and without it nothing tells what the bundle must hold",
            advice=f"name a folder with this bundle's {SEAL}: --from FOLDER"
            if raw
            else f"{SUMS} is lost too, which tells whose {SEAL} is the right one: copy both here "
            "from a copy that you trust, then repair with --from",
        )

    def _places(self) -> tuple[Location, ...]:
        """The bundle's own folder, and the copies."""
        return (self._folder.path, *(copy for copy, _ in self._copies))

    def _restore_sums(self, sealed: Digest, seal: Seal) -> None:
        for place in self._places():
            with suppress(DamagedBundleError, FileSystemError):
                data = sums.read(place / SUMS)
                stated = sums.parse_whole(data)
                # Nobody signs these lines, so they bring nothing but the files of a bundle.
                known = {
                    one: digest
                    for one, digest in stated.items()
                    if belongs(one, seal) and not one.endswith(PARTIAL_SUFFIX)
                }
                own = place == self._folder.path
                if known.get(SEAL) == sealed and (own or len(known) == len(stated)):
                    self._stated = known
                    if not own:
                        self._take_file(SUMS, Digest.of(data))
                    return

    def restore_files(self) -> None:
        """Bring back the files beside the archives, which are small."""
        wanted = {name: file.digest for name, file in self.seal.files.items()}
        wanted |= {
            name: digest
            for name, digest in self._stated.items()
            if name == Path(name).name and archive_named(name) not in self.seal.archives
        }
        self.restore(wanted)

    def restore(self, files: Mapping[str, Digest]) -> None:
        """Take each of `files` that is not as it should be from a copy."""
        for name, digest in files.items():
            sound = False
            if (self._folder / name).is_file():
                with suppress(FileSystemError), closing(open_file(self._folder / name)) as file:
                    sound = self.passed(file.chunks(0, file.size), digest)
            if not sound:
                self._take_file(name, digest)

    def passed(
        self,
        chunks: Generator[bytes, None, None],
        digest: Digest,
        size: int | None = None,
        take: Callable[[bytes], object] = lambda _chunk: None,
    ) -> bool:
        """Hand all `chunks` to `take`; whether they are what the digest and the size say."""
        verifier = Verifier(digest, size, str(digest))
        try:
            with closing(chunks):
                for chunk in chunks:
                    self._run.check()
                    verifier.update(chunk)
                    take(chunk)
            verifier.finish()
        except IntegrityError:
            return False
        return True

    def _take_file(self, name: str, digest: Digest) -> bool:
        """Take a file whole from the first copy that has the very same."""
        staged = name + PARTIAL_SUFFIX
        for copy, _ in self._copies:
            if not (copy / name).is_file():
                continue
            with os_errors(self._folder / staged, "write"), closing(open_file(copy / name)) as file:
                self._folder.unlink(staged)
                fd = self._folder.create(staged)
                with os.fdopen(fd, "wb", buffering=0) as out:
                    sound = self.passed(file.chunks(0, file.size), digest, take=out.write)
                    if name == TOOL_FILE:
                        os.fchmod(fd, 0o755)
                    sync_file(fd)
                if not sound:
                    self._folder.unlink(staged)
                    continue
                self._folder.rename(staged, name)
                self._folder.sync()
                self.given[str(copy)] += file.size
                self.written += file.size
                self.files.append(name)
                return True
        return False

    def part_size(self) -> int:
        """Return how long parts are, as what is in a copy or here makes as many parts of each
        archive as `SHA256SUMS` says; 0 if nothing tells."""
        sizes = {name: archive.size for name, archive in self.seal.archives.items()}
        counts = Counter(part[0] for one in self._stated if (part := parse_part_name(one)))
        for place in (*self._places()[1:], self._folder.path):
            with suppress(InputError):
                size = sums.part_size_in(place, self.seal, find_archives([place]))
                if size and all(len(part_sizes(sizes[n], size)) == c for n, c in counts.items()):
                    return size
        return 0

    def is_sound(
        self, chunks: Callable[[int, int], Generator[bytes, None, None]], entry: Entry
    ) -> bool:
        """Whether header, content and padding of an entry are as the seal says."""
        end = entry.data_offset + entry.size
        try:
            head = b"".join(chunks(entry.offset, entry.data_offset - entry.offset))
            content = chunks(entry.data_offset, entry.size)
            return (
                head == entry.header
                and self.passed(content, entry.digest, entry.size)
                and not any(b"".join(chunks(end, entry.padding)))
            )
        except (IntegrityError, FileSystemError):
            return False
