"""The seal: what a bundle must hold, written beside its archives as `inventory.json`.

It names every archive with its size, every repository, tag, digest and size, and the names that
repositories had at the source. Since archives are a pure function of that (`archive.lay_out`), the
seal settles every byte of the bundle. Its own digest, over everything else in it, settles itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirror.bundle.archive import Archive, lay_out
from mirror.errors import DamagedBundleError, InputError, InvalidDigestError
from mirror.oci import Digest
from mirror.sync import Inventory, union
from mirror.sync.inventory import canonical_json

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file beside the archives. `size` in bytes."""

    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Seal:
    """A bundle's table of contents. `selection` is what was asked for, as JSON values."""

    archives: Mapping[str, Archive]
    selection: Mapping[str, Any] = field(default_factory=dict)
    tool: str = ""
    files: Mapping[str, SealedFile] = field(default_factory=dict)

    @classmethod
    def over(
        cls,
        archives: Iterable[Archive],
        selection: Mapping[str, Any],
        tool: str,
        files: Mapping[str, bytes] | None = None,
    ) -> Seal:
        """Seal `archives` and the `files` beside them."""
        return cls(
            {archive.name: archive for archive in archives},
            selection,
            tool,
            {
                name: SealedFile(len(data), Digest.of(data))
                for name, data in sorted((files or {}).items())
            },
        )

    @property
    def inventory(self) -> Inventory:
        """All that the bundle holds."""
        return union(archive.inventory for _, archive in sorted(self.archives.items()))

    def to_json(self) -> bytes:
        """The canonical file: equal bundles have equal seals."""
        document = {
            "schemaVersion": SCHEMA_VERSION,
            "tool": self.tool,
            "selection": self.selection,
            "inventory": str(self.inventory.digest()),
            "files": {
                name: {"size": file.size, "digest": str(file.digest)}
                for name, file in self.files.items()
            },
            "manifests": self.inventory.manifests_document(),
            "archives": {
                name: {
                    "size": archive.size,
                    "origins": dict(archive.origins),
                    "repositories": archive.inventory.repositories_document(),
                }
                for name, archive in self.archives.items()
            },
        }
        return canonical_json({**document, "digest": str(Digest.of(canonical_json(document)))})

    @classmethod
    def from_json(cls, data: bytes) -> Seal:
        """Read a seal and check that it is whole.

        Raises:
            DamagedBundleError: a byte of it was changed, or it is something else.
            InputError: it is of a newer schema.
        """
        try:
            document = json.loads(data)
            stated = document.pop("digest")
            actual = str(Digest.of(canonical_json(document)))
            whole = canonical_json({**document, "digest": actual}) == data
            if stated != actual or not whole:
                raise DamagedBundleError(
                    f"its bytes were changed: it states digest {stated!s:.80} and has {actual}"
                )
            # Only now: a version that is there by damage asks for no newer release.
            version = document["schemaVersion"]
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"the bundle's inventory has schema version {version}; this release of mirror "
                    f"reads version {SCHEMA_VERSION}: use a newer one"
                )
            manifests = document["manifests"]
            archives = {
                name: lay_out(
                    name,
                    Inventory.from_tables(manifests, value["repositories"]),
                    value["origins"],
                )
                for name, value in document["archives"].items()
            }
            for name, value in document["archives"].items():
                if archives[name].size != value["size"]:
                    raise DamagedBundleError(f"it lays {name} out in another way than this release")
            for name in (*archives, *document["files"]):
                if name != Path(name).name or name.startswith("."):
                    raise DamagedBundleError(f"it names {name!r}, which is no file beside it")
            files = {
                name: SealedFile(int(value["size"]), Digest.parse(value["digest"]))
                for name, value in document["files"].items()
            }
            seal = cls(archives, document["selection"], document["tool"], files)
            if document["inventory"] != str(seal.inventory.digest()):
                raise DamagedBundleError("its inventory has another digest than it states")
            return seal
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            InvalidDigestError,
        ) as err:
            raise DamagedBundleError(f"it is not a bundle's inventory: {err!r}") from err
