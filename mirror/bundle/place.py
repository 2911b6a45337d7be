"""Where a bundle is made: what its writer needs of a place, and which files a bundle is there.

A place is a folder (`mirror.bundle.folder`) or in a bucket (`mirror.bundle.bucket_place`). Both get
the same bytes under the same names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.bundle import gost, sums
from mirror.bundle.archive import Archive
from mirror.bundle.follow import SHA256, MakeHash
from mirror.bundle.format import (
    GOST_SUFFIX,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SHARD_MARK,
    SIGNATURE,
    SUMS,
    ZSTD_SUFFIX,
    archive_named,
    compressed_bound,
    file_names,
    parse_part_name,
    part_sizes,
    size_text,
    whole_name,
)
from mirror.bundle.seal import Seal
from mirror.bundle.staging import JOURNAL, ArchiveStaging, Follow
from mirror.errors import DamagedBundleError, InputError
from mirror.events import OnEvent, Warned
from mirror.layout import RELEASES_FILE, TOOL_FILE, is_archive_name
from mirror.oci import Digest
from mirror.registry.downloads import FileState
from mirror.sync import Inventory, Plan

if TYPE_CHECKING:
    from mirror.bundle.compress import PackedFiles

EARLIER = "earlier" + PARTIAL_SUFFIX
"""The folder of an interrupted pull of another plan, while its content is still of use."""

OWN_FILES = (RELEASES_FILE, SUMS, SIGNATURE)
"""What the format has beside archives and seal. Only these names are removed with a bundle: a seal
may list any name, and it may come from anywhere."""


# -- which files a bundle is -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packing:
    """How a bundle is written, whatever is in it.

    `part_size` in bytes cuts archives into parts; 0 leaves them whole. `gost_digest` writes a
    GOST R 34.11-2012 digest beside each file. `sign` makes a signature over the seal; without its
    `public_key`, shards believe any plan in the bucket. Without `resume` nothing of an interrupted
    run is used, and nothing is kept for the next one. `compress` writes archives in zstd frames,
    which `part_size` then cuts; until they have their names, the disk holds both forms.
    """

    part_size: int = 0
    gost_digest: bool = False
    sign: Callable[[bytes], bytes] | None = None
    public_key: bytes | None = None
    resume: bool = True
    compress: bool = False


AS_USUAL = Packing()


def hashes_of(packing: Packing) -> Mapping[str, MakeHash]:
    """The digests that are made of each file while it is written, by name."""
    return {**SHA256, "gost": gost.GostHash} if packing.gost_digest else SHA256


def noted_sums(packing: Packing, noted: Mapping[str, Any]) -> dict[str, str]:
    """Those digests of a file as somebody noted them, which must look like some.

    Raises:
        KeyError, InvalidDigestError: they do not.
    """
    return {kind: Digest.parse(f"sha256:{noted[kind]}").encoded for kind in hashes_of(packing)}


def possible_names(packing: Packing, archive: Archive) -> Iterator[str]:
    """Name the files of an archive; of a compressed one, as many as there may be."""
    name, size = archive.name, archive.size
    if packing.compress:
        name, size = name + ZSTD_SUFFIX, compressed_bound(size)
    yield from file_names(name, size, packing.part_size)


def _stored_as(packing: Packing, seal: Seal, files: Mapping[str, int]) -> dict[str, int] | None:
    """Archive → bytes on the disk, if `files` (name → size) are exactly those that a bundle of this
    packing has, `SHA256SUMS` aside; else None."""
    names = {*seal.files, SEAL}
    if packing.sign is not None:
        names.add(SIGNATURE)
    stored: dict[str, int] = {}
    for archive in seal.archives.values():
        name, size = archive.name, archive.size
        if packing.compress:
            name += ZSTD_SUFFIX
            size = sum(n for one, n in files.items() if name == whole_name(one))
        if not size:
            return None
        own = file_names(name, size, packing.part_size)
        sizes = part_sizes(size, packing.part_size or size)
        if any(files.get(one) != n for one, n in zip(own, sizes, strict=True)):
            return None
        names.update(own)
        if packing.gost_digest:
            names.update(one + GOST_SUFFIX for one in own)
        stored[archive.name] = size
    return stored if names == files.keys() else None


def archive_by_file(name: str) -> str:
    """The archive that a file holds, or a part of, or the sum of one of these."""
    return archive_named(name.removesuffix(GOST_SUFFIX))


def is_of_a_bundle(name: str) -> bool:
    """Whether the format has files of this name: archives, their parts, and sums beside them."""
    return is_archive_name(archive_by_file(name))


def belongs(name: str, seal: Seal) -> bool:
    """Whether a file of this name belongs to the sealed bundle, complete or under way."""
    return name in (*seal.files, SEAL, SUMS, SIGNATURE) or archive_by_file(name) in seal.archives


def is_leftover(name: str) -> bool:
    """Whether interrupted pulls leave files of this name."""
    final = name.removesuffix(PARTIAL_SUFFIX)
    if SHARD_MARK.fullmatch(name) or {name, final} & {JOURNAL, EARLIER, PARTIAL_SEAL}:
        return True  # or what was to take its place
    return final != name and (final in (*OWN_FILES, TOOL_FILE) or is_of_a_bundle(final))


def check_names(where: str, names: Iterable[str], known: Seal | None, *, force: bool) -> None:
    """Refuse files that are there and neither leftovers nor of the `known` bundle.

    Raises:
        InputError: as `BundlePlace.check`.
    """
    others = [
        name
        for name in names
        if not is_leftover(name) and not (known is not None and belongs(name, known))
    ]
    if others and not force:
        raise _not_empty(where, others[0])
    for name in others:
        if not is_of_a_bundle(name) and (
            name.removesuffix(ZSTD_SUFFIX).endswith(".tar") or parse_part_name(name)
        ):
            raise InputError(
                f"{where} has {name}, which is not a bundle's archive, but a push would take "
                "it for one; move it elsewhere"
            )


def _not_empty(where: str, name: str) -> InputError:
    kind = "place" if "://" in where else "folder"
    return InputError(
        f"{where} is not empty (it has {name}); name an empty {kind}, or add --force "
        "to replace the bundle that is there"
    )


def give_up(left: Mapping[str, int], where: str, how: str, on_event: OnEvent) -> None:
    """Warn that `left` of a pull that was asked for something else is not gone on with."""
    size = sum(left[name] for name in left.keys() - {JOURNAL, PARTIAL_SEAL})
    if size:
        told = f"an interrupted pull that was asked for something else left {size_text(size)} in "
        on_event(Warned(told + f"{where}; {how}"))


# -- what a writer needs ---------------------------------------------------------------------------


class BundlePlace(ABC):
    """A place in which one bundle is made. Used by one writer at a time; `where` is its name.

    Everything but `check` and `found_seal` is called while it is `held`.
    """

    where: str

    def check(self, *, force: bool) -> None:
        """Check that a new bundle may go there; nothing is changed.

        It may be missing, be empty, or hold only what an interrupted pull left. It may hold a
        complete bundle and nothing else, too: that may be the very one that is wanted (`complete`).
        With `force` anything else may be there, except what a push would take for a part of the
        bundle. Once the new bundle is complete it takes the place of an earlier one, of which
        nothing stays behind; files that are not a bundle's stay.

        Raises:
            InputError: something else is there, and `force` is not given, or it is in the way.
        """
        self._look(force=force)

    @abstractmethod
    def _look(self, *, force: bool) -> Mapping[str, FileState]:
        """Do what `check` does; return what is there. What is no file has a size of -1."""

    @abstractmethod
    def found_seal(self) -> Seal | None:
        """The seal of the bundle that is there; None if there is none, or not a whole one."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Be the one who makes a bundle there, during the block.

        Raises:
            InputError: somebody does so already.
        """

    def complete(
        self, seal: Seal, sealed: bytes, packing: Packing, *, force: bool
    ) -> tuple[dict[str, int], str] | None:
        """Archive → bytes, and what was done, if this very bundle is there; else None.

        `sealed` is the file of the seal, which takes its name last, so that all else was there by
        then. Files that were taken away or cut short since are noticed; changed bytes are a matter
        of `mirror verify`.

        Raises:
            InputError: another bundle is there, and `force` is not given.
        """
        found = self._look(force=force)
        if SEAL not in found:
            return None
        # Behind the last step the partial seal has become the seal, and leftovers are cleared up.
        had_ended = PARTIAL_SEAL not in found and any(map(is_leftover, found))
        if (had_ended or not force) and self._read(SEAL, found) == sealed:
            try:
                stated = sums.parse_whole(self._read(SUMS, found))
            except DamagedBundleError:
                stated = {}
            files = {name: one.size for name, one in found.items() if one.size >= 0}
            sizes = {name: files[name] for name in stated if name in files}
            stored = _stored_as(packing, seal, sizes) if len(sizes) == len(stated) else None
            if stored is not None:
                return stored, self._sign_anew(found, stated, sealed, packing)
        if not force:
            raise _not_empty(self.where, SEAL)
        return None

    def _sign_anew(
        self,
        found: Mapping[str, FileState],
        stated: Mapping[str, Digest],
        sealed: bytes,
        packing: Packing,
    ) -> str:
        """Sign a complete bundle as the packing says; what was done, in words.

        Who signed it before may be another. The seal stays, and stays true: whenever this is cut
        short, the bundle is complete, and the next pull signs it.
        """
        nothing = "nothing was written"
        if packing.sign is None:
            return nothing
        signature = packing.sign(sealed)
        digest = Digest.of(signature)
        if self._read(SIGNATURE, found) == signature and stated[SIGNATURE] == digest:
            return nothing
        self._write(SIGNATURE, signature)
        self._write(SUMS, sums.render_sealed({**stated, SIGNATURE: digest}))
        return "only its signature was written anew"

    @abstractmethod
    def _read(self, name: str, found: Mapping[str, FileState]) -> bytes:
        """A small file; nothing where it was not `found`, or cannot be read."""

    @abstractmethod
    def _write(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def begin(self, seal: Seal, sealed: bytes, packing: Packing, needed: int, /) -> bool:
        """Say durably what is being made; whether an interrupted run had begun the same.

        `needed` is the bytes that all files take.

        Raises:
            NoSpaceError: there is no room for them.
        """

    @abstractmethod
    def staging(self, seal: Seal, *, keep: bool, follow: Follow) -> ArchiveStaging:
        """The archives under way; with `keep`, those of the interrupted run."""

    @abstractmethod
    def packed(self, archive: Archive, /) -> PackedFiles:
        """Where its compressed files go, if the `packing` has such; asked once, by `follow`."""

    def earlier(self) -> AbstractContextManager[ArchiveStaging | None]:
        """What a run with another plan has left that is of use; None if there is nothing, as in a
        bucket, where it cannot be read."""
        return nullcontext()

    @abstractmethod
    def stages(self, plan: Plan, staging: ArchiveStaging) -> Iterator[Plan]:
        """`plan` in the order in which it is best carried out, as one plan or several."""

    @abstractmethod
    def brought(self, carried: Inventory, plan: Plan, staging: ArchiveStaging, /) -> int:
        """Bytes of blobs that are there before `plan`, counted as its `stages` count blobs."""

    def give_way(self) -> None:  # noqa: B027 archives in a folder have other names until `take`
        """Take a former bundle's word back: archives are about to get their names."""

    @abstractmethod
    def take(
        self, archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str], /
    ) -> None:
        """Make a bundle of the files of `archives`, with `files` beside them, the seal last.

        `archives` are files with the names that they have under way, `names` the final names of
        all. An earlier bundle is gone then.
        """

    @abstractmethod
    def leftovers(self) -> dict[str, int]:
        """What interrupted runs have left: name → bytes that it takes.

        Files of a sealed bundle are not among them, nor files that are not a bundle's.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove the `leftovers`."""
