"""The limits of readers (`mirror.bundle.format`), asked for by whoever makes a bundle."""

from __future__ import annotations

from mirror.bundle.format import MAX_MEDIA_TYPE, ORDINARY, SEAL, Budget, limits_for
from mirror.bundle.seal import Seal
from mirror.documents import marks
from mirror.errors import BundleLimitError, DamagedBundleError
from mirror.sync import ManifestNode


def check_limits(seal: Seal, *, compressed: bool = False) -> bytes:
    """Refuse a bundle that no reader takes (`mirror.bundle.format`); return its seal as JSON.

    Of archives that are to be `compressed` only the ordinary limits count.

    Raises:
        BundleLimitError: it has too much of something; the message says of what.
    """
    size = 0 if compressed else sum(archive.size for archive in seal.archives.values())
    limits = limits_for(size)
    budget = Budget(limits)
    sealed = seal.to_json()
    if len(sealed) > limits.seal_bytes or marks(sealed) > limits.seal_marks:
        raise BundleLimitError(
            f"its {SEAL} would have {len(sealed)} bytes, and {limits.seal_bytes} are read at most, "
            f"with {limits.seal_marks} values",
            where="the bundle",
            advice=_SPLIT,
        )
    for archive in seal.archives.values():
        most = (ORDINARY if compressed else limits_for(archive.size)).members
        if len(archive.entries) > most:
            raise BundleLimitError(
                f"it would hold {len(archive.entries)} files, and {most} are read at most",
                where=archive.name,
                advice=_SPLIT,
            )
        try:
            budget.take_files([entry.path for entry in archive.entries])
            for content in archive.inventory.repositories.values():
                budget.take_names(len(content.tags))
                for node in content.manifests.values():
                    budget.take_names(1 + len(node.named))
        except DamagedBundleError as err:
            raise BundleLimitError(err.problem, where=err.where, advice=_SPLIT) from err
        for entry in archive.entries:
            if entry.content is not None and (
                len(entry.content) > limits.index_bytes or marks(entry.content) > limits.index_marks
            ):
                raise BundleLimitError(
                    f"{entry.path} would have {len(entry.content)} bytes, and {limits.index_bytes} "
                    f"are read at most, with {limits.index_marks} values",
                    where=archive.name,
                    advice=_SPLIT,
                )
    for digest, node in seal.inventory.manifest_nodes().items():
        if has_long_media_type(node):
            raise BundleLimitError(
                f"manifest {digest} has a media type of more than {MAX_MEDIA_TYPE} characters",
                where="the bundle",
                advice="leave its image out",
            )
    return sealed


_SPLIT = "split it: make several bundles of a part of the selection each"


def has_long_media_type(node: ManifestNode) -> bool:
    """Whether a manifest has a media type that is longer than any may be."""
    types = [node.artifact_type or "", *(one.media_type for one in node.named)]
    return any(len(one) > MAX_MEDIA_TYPE for one in types)
