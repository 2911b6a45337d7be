"""The seal: what a bundle must hold, written beside its archives as `inventory.json`.

It names every archive with its size, every repository, tag, digest and size, and the names that
repositories had at the source. Since archives are a pure function of that (`archive.lay_out`), the
seal settles every byte of the bundle. Its own digest, over everything else in it, settles itself.

A seal speaks of everything that a target holds after a push. What of that the bundle does not carry
itself (`carriage`) follows from a few more keys, which make it one of the second schema: earlier
releases refuse it, and go on reading those of complete bundles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mirror.bundle.archive import Archive, lay_out
from mirror.bundle.carriage import EVERYTHING, Carriage, Omissions, left_out, needed_from
from mirror.errors import DamagedBundleError, InputError, InvalidDigestError
from mirror.oci import Digest
from mirror.sync import Inventory, ManifestNode, union
from mirror.sync.canonical import canonical_json, read_nodes

SCHEMA_VERSION = 1
CARRIAGE_SCHEMA_VERSION = 2
"""Of seals over bundles that do not carry all they speak of in every layout."""


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
    carriage: Carriage = EVERYTHING

    @classmethod
    def over(
        cls,
        archives: Iterable[Archive],
        selection: Mapping[str, Any],
        tool: str,
        files: Mapping[str, bytes] | None = None,
        carriage: Carriage = EVERYTHING,
    ) -> Seal:
        """Seal `archives`, laid out as `carriage` says, and the `files` beside them."""
        return cls(
            {archive.name: archive for archive in archives},
            selection,
            tool,
            {
                name: SealedFile(len(data), Digest.of(data))
                for name, data in sorted((files or {}).items())
            },
            carriage,
        )

    @property
    def inventory(self) -> Inventory:
        """All that the bundle speaks of: what a target holds once it is pushed."""
        return union(archive.inventory for _, archive in sorted(self.archives.items()))

    @property
    def carried(self) -> Inventory:
        """What of that lies in the archives; each piece where it lies."""
        return union(archive.carried for _, archive in sorted(self.archives.items()))

    @property
    def omissions(self) -> Omissions:
        """How much the bundle leaves out."""
        needed = self.carriage.needed
        at_base = needed.blob_sizes()
        repeats = sum(
            size
            for archive in self.archives.values()
            for content in archive.left_out.repositories.values()
            for digest, size in content.blobs.items()
            if digest not in at_base
        )
        return Omissions(
            self.carriage.base,
            len(needed.manifest_nodes()),
            len(at_base),
            sum(at_base.values()),
            repeats if self.carriage.once else None,
        )

    def carried_as(self, carriage: Carriage) -> Seal:
        """The same content, carried in another way."""
        parts = {name: archive.inventory for name, archive in self.archives.items()}
        origins = {name: archive.origins for name, archive in self.archives.items()}
        archives = {one.name: one for one in lay_out_all(parts, origins, carriage)}
        return replace(self, archives=archives, carriage=carriage)

    def to_json(self) -> bytes:
        """The canonical file: equal bundles have equal seals."""
        carriage = self.carriage
        document: dict[str, Any] = {
            "schemaVersion": (SCHEMA_VERSION if carriage.is_ordinary else CARRIAGE_SCHEMA_VERSION),
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
        if carriage.base is not None:
            document["base"] = {
                "digest": str(carriage.base),
                "repositories": carriage.needed.repositories_document(),
            }
        if carriage.once:
            document["dedupe"] = True
        return canonical_json({**document, "digest": str(Digest.of(canonical_json(document)))})

    @classmethod
    def from_json(cls, data: bytes) -> Seal:
        """Read a seal and check that it is whole.

        Raises:
            DamagedBundleError: a byte of it was changed, or it is something else.
            InputError: it is of a newer schema.
        """
        if not data.strip():
            raise DamagedBundleError("it is not a bundle's inventory: it is empty")
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
            if version not in (SCHEMA_VERSION, CARRIAGE_SCHEMA_VERSION):
                raise InputError(
                    f"the bundle's inventory has schema version {version}; this release of mirror "
                    f"reads versions {SCHEMA_VERSION} and {CARRIAGE_SCHEMA_VERSION}: use a newer "
                    "one"
                )
            nodes = read_nodes(document["manifests"])
            carriage = _carriage(document, nodes)
            if carriage.is_ordinary != (version == SCHEMA_VERSION):
                raise DamagedBundleError(f"its schema version {version} does not go with its keys")
            parts = {
                name: Inventory.from_nodes(nodes, value["repositories"])
                for name, value in document["archives"].items()
            }
            origins = {name: value["origins"] for name, value in document["archives"].items()}
            archives = {one.name: one for one in lay_out_all(parts, origins, carriage)}
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
            seal = cls(archives, document["selection"], document["tool"], files, carriage)
            inventory = seal.inventory
            if document["inventory"] != str(inventory.digest()):
                raise DamagedBundleError("its inventory has another digest than it states")
            if needed_from(carriage.needed, inventory) != carriage.needed:
                raise DamagedBundleError("it needs of its base what it does not speak of")
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
            what = str(err) if isinstance(err, json.JSONDecodeError) else repr(err)
            raise DamagedBundleError(f"it is not a bundle's inventory: {what}") from err


def lay_out_all(
    parts: Mapping[str, Inventory],
    origins: Mapping[str, Mapping[str, str]],
    carriage: Carriage = EVERYTHING,
) -> tuple[Archive, ...]:
    """Lay out every archive of a bundle: what each speaks of, and what its repositories were
    called at the source, both by the archive's name."""
    lefts = left_out(parts, carriage)
    return tuple(
        lay_out(name, inventory, origins[name], lefts[name]) for name, inventory in parts.items()
    )


def _carriage(document: Mapping[str, Any], nodes: Mapping[Digest, ManifestNode]) -> Carriage:
    once = document.get("dedupe", False)
    if once is not False and once is not True:
        raise ValueError("dedupe is neither true nor false")
    base = document.get("base")
    if base is None:
        return Carriage(once=once)
    needed = Inventory.from_nodes(nodes, base["repositories"])
    return Carriage(Digest.parse(base["digest"]), needed, once)
