"""Where a bundle is made: what its writer needs of a place, and a folder as one.

A bucket is the other one (`mirror.bundle.multipart`). Both get the same bytes under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mirror.bundle import sums
from mirror.bundle.archive import Archive
from mirror.bundle.folder import (
    Packing,
    allocated,
    check_content,
    check_folder,
    check_space,
    clear_leftovers,
    complete_bundle,
    earlier_staging,
    is_leftover,
    leftovers,
    listed,
    not_empty,
    only_writer,
    sort_leftovers,
    take_the_place,
    write_partial_seal,
)
from mirror.bundle.format import (
    MAX_SUMS_BYTES,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SIGNATURE,
    SUMS,
    size_text,
)
from mirror.bundle.seal import Seal, seal_in
from mirror.bundle.staging import JOURNAL, ArchiveStaging, Follow, folder_staging
from mirror.durable import Folder, make_folder, os_errors
from mirror.events import OnEvent, Warned, ignore
from mirror.oci import Digest
from mirror.sync import Inventory, Plan

if TYPE_CHECKING:
    from mirror.bundle.compress import PackedFiles


class BundlePlace(Protocol):
    """A place in which one bundle is made. Used by one writer at a time; `where` is its name.

    Everything but `check` and `found_seal` is called while it is `held`.
    """

    @property
    def where(self) -> str:
        """What it is called, for messages."""
        ...

    def check(self, *, force: bool) -> None:
        """Check that a new bundle may go there; nothing is changed.

        Raises:
            InputError: something else is there, and `force` is not given, or it is in the way.
        """
        ...

    def found_seal(self) -> Seal | None:
        """The seal of the bundle that is there; None if there is none, or not a whole one."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Be the one who makes a bundle there, during the block.

        Raises:
            InputError: somebody does so already.
        """
        ...

    def complete(
        self, seal: Seal, sealed: bytes, packing: Packing, *, force: bool
    ) -> tuple[dict[str, int], str] | None:
        """Archive → bytes, and what was done, if this very bundle is there; else None.

        Raises:
            InputError: another bundle is there, and `force` is not given.
        """
        ...

    def begin(self, seal: Seal, sealed: bytes, packing: Packing, needed: int, /) -> bool:
        """Say durably what is being made; whether an interrupted run had begun the same.

        `needed` is the bytes that all files take.

        Raises:
            NoSpaceError: there is no room for them.
        """
        ...

    def staging(self, seal: Seal, part_size: int, *, keep: bool, follow: Follow) -> ArchiveStaging:
        """The archives under way; with `keep`, those of the interrupted run."""
        ...

    def packed(self, archive: Archive) -> PackedFiles:
        """Where its compressed files go, if the `packing` has such; asked once, by `follow`."""
        ...

    def earlier(self) -> AbstractContextManager[ArchiveStaging | None]:
        """What a run with another plan has left that is of use; None if there is nothing."""
        ...

    def stages(self, plan: Plan, staging: ArchiveStaging) -> Iterator[Plan]:
        """`plan` in the order in which it is best carried out, as one plan or several."""
        ...

    def brought(self, carried: Inventory, plan: Plan, staging: ArchiveStaging) -> int:
        """Bytes of blobs that are there before `plan`, counted as its `stages` count blobs."""
        ...

    def give_way(self) -> None:
        """Take a former bundle's word back: archives are about to get their names."""
        ...

    def take(
        self, archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str], /
    ) -> None:
        """Make a bundle of the files of `archives`, with `files` beside them, the seal last.

        `names` are the final names of the archives' files. An earlier bundle is gone then.
        """
        ...

    def leftovers(self) -> dict[str, int]:
        """What interrupted runs have left: name → bytes that it takes.

        Files of a sealed bundle are not among them, nor files that are not a bundle's.
        """
        ...

    def clear(self) -> None:
        """Remove the `leftovers`."""
        ...


class FolderPlace:
    """A folder in which a bundle is made (`mirror.bundle.folder`)."""

    def __init__(self, path: Path, on_event: OnEvent = ignore) -> None:
        self.path, self._on_event = path, on_event
        self.folder: Folder

    @property
    def where(self) -> str:
        return str(self.path)

    def check(self, *, force: bool) -> None:
        check_folder(self.path, force=force)

    def found_seal(self) -> Seal | None:
        with suppress(OSError), Folder(self.path) as folder:
            return seal_in(folder, SEAL)
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        with os_errors(self.path, "create"):
            make_folder(self.path)
        with only_writer(self.path) as self.folder:
            yield

    def complete(
        self, seal: Seal, sealed: bytes, packing: Packing, *, force: bool
    ) -> tuple[dict[str, int], str] | None:
        check_content(self.folder, force=force)
        names = listed(self.folder)
        # Behind the last step the partial seal has become the seal, and leftovers are cleared up.
        if not force or (PARTIAL_SEAL not in names and any(map(is_leftover, names))):
            stored = complete_bundle(self.folder, seal, sealed, packing)
            if stored is not None:
                with os_errors(self.folder / SIGNATURE, "replace"):
                    return stored, sign_anew(self._read, self._write, sealed, packing)
        if not force and SEAL in names:
            raise not_empty(self.where, SEAL)
        return None

    def _read(self, name: str) -> bytes:
        return self.folder.read(name, MAX_SUMS_BYTES)

    def _write(self, name: str, data: bytes) -> None:
        self.folder.write(name, data, staged=name + PARTIAL_SUFFIX)

    def begin(self, seal: Seal, sealed: bytes, packing: Packing, needed: int) -> bool:
        part_size = 0 if packing.compress else packing.part_size  # frames are cut, not the tar
        left = leftovers(self.folder) if packing.resume else {}
        keep = packing.resume and sort_leftovers(self.folder, seal, part_size)
        if not packing.resume:
            clear_leftovers(self.folder)
        elif not keep:
            give_up(left, self.where, "this one takes over what it needs of it", self._on_event)
        check_space(self.folder, needed - (allocated(self.folder) if keep else 0))
        if not keep:
            write_partial_seal(self.folder, sealed)
        return keep

    def staging(self, seal: Seal, part_size: int, *, keep: bool, follow: Follow) -> ArchiveStaging:
        return folder_staging(self.folder, seal, part_size, keep=keep, follow=follow)

    def packed(self, _archive: Archive) -> PackedFiles:
        from mirror.bundle.compress import FolderFiles  # few need it

        return FolderFiles(self.folder)

    def earlier(self) -> AbstractContextManager[ArchiveStaging | None]:
        return earlier_staging(self.folder)

    def stages(self, plan: Plan, staging: ArchiveStaging) -> Iterator[Plan]:
        """One, with blobs in the order in which they lie in the archives.

        Writes then move through the disk from front to back, which is fast on spinning disks, and
        spares file systems without holes (FAT) from writing zeros that are overwritten.
        """
        yield staging.in_archive_order(plan)

    def brought(self, carried: Inventory, plan: Plan, _staging: ArchiveStaging) -> int:
        lacking = {step.digest for step in plan.blobs}
        blobs = carried.blob_sizes()
        return sum(size for digest, size in blobs.items() if digest not in lacking)

    def give_way(self) -> None:
        """Do nothing: archives have other names until `take`."""

    def take(
        self, archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str]
    ) -> None:
        take_the_place(self.folder, archives, files, names)

    def leftovers(self) -> dict[str, int]:
        return leftovers(self.folder)

    def clear(self) -> None:
        clear_leftovers(self.folder)


def give_up(left: Mapping[str, int], where: str, how: str, on_event: OnEvent) -> None:
    """Warn that `left` of a pull that was asked for something else is not gone on with."""
    size = sum(left[name] for name in left.keys() - {JOURNAL, PARTIAL_SEAL})
    if size:
        told = f"an interrupted pull that was asked for something else left {size_text(size)} in "
        on_event(Warned(told + f"{where}; {how}"))


def sign_anew(
    read: Callable[[str], bytes],
    write: Callable[[str, bytes], object],
    sealed: bytes,
    packing: Packing,
) -> str:
    """Sign a complete bundle as the packing says; what was done, in words.

    `read` and `write` do so with files of the bundle. Who signed it before may be another. The seal
    stays, and stays true: whenever this is cut short, the bundle is complete, and the next pull
    signs it.
    """
    nothing = "nothing was written"
    if packing.sign is None:
        return nothing
    signature = packing.sign(sealed)
    stated = sums.parse_whole(read(SUMS))
    if read(SIGNATURE) == signature and stated[SIGNATURE] == Digest.of(signature):
        return nothing
    write(SIGNATURE, signature)
    write(SUMS, sums.render_sealed({**stated, SIGNATURE: Digest.of(signature)}))
    return "only its signature was written anew"
