"""The seal: what a bundle must hold, written beside its archives as `inventory.json`.

It names every archive with its size, every repository, tag, digest and size, and the names that
repositories had at the source. Archives are a pure function of that (`archive.lay_out`), so the
seal determines every byte of the bundle. Its own digest, over everything else in it, protects it.

A seal speaks of everything that a target holds after a push. A few more keys say which part of that
the bundle leaves out (`delta`), and give it the second schema version: earlier releases refuse such
a seal, and go on reading those of complete bundles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, NoReturn

from mirror.bundle.archive import (
    COMPLETE,
    Archive,
    Coverage,
    Omissions,
    lay_out,
    left_out,
    needed_from,
)
from mirror.bundle.files import open_file
from mirror.bundle.format import (
    LARGE,
    MAX_COMPANION_BYTES,
    MAX_MEDIA_TYPE,
    ORDINARY,
    SEAL,
    Budget,
    BundleLimits,
    limits_for,
)
from mirror.bundle.location import COPY_AGAIN, Location, size_of
from mirror.documents import LargeJson, open_json, parse_json, value_count
from mirror.durable import Folder, os_errors
from mirror.errors import (
    BundleLimitError,
    DamagedBundleError,
    InputError,
    MirrorError,
)
from mirror.oci import Digest, Repository
from mirror.oci.reference import digest_of
from mirror.sync import Inventory, ManifestNode, union
from mirror.sync.inventory import MALFORMED, ManifestTable, canonical_json, json_object
from mirror.sync.statement import joined

SCHEMA_VERSION = 1
PARTIAL_SCHEMA_VERSION = 2
"""The version of seals over bundles that do not carry all they speak of in every layout."""

MAX_SELECTION_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file beside the archives. `size` in bytes."""

    size: int
    digest: Digest


@dataclass(frozen=True)
class Seal:
    """A bundle's table of contents. `selection` is what was asked for, as JSON values."""

    archives: Mapping[str, Archive]
    selection: Mapping[str, Any] = field(default_factory=dict)
    tool: str = ""
    files: Mapping[str, SealedFile] = field(default_factory=dict)
    coverage: Coverage = COMPLETE

    @classmethod
    def over(
        cls,
        archives: Iterable[Archive],
        selection: Mapping[str, Any],
        tool: str,
        files: Mapping[str, bytes] | None = None,
        coverage: Coverage = COMPLETE,
    ) -> Seal:
        """Seal `archives`, laid out as `coverage` says, and the `files` beside them."""
        return cls(
            {archive.name: archive for archive in archives},
            selection,
            tool,
            {
                name: SealedFile(len(data), Digest.of(data))
                for name, data in sorted((files or {}).items())
            },
            coverage,
        )

    @cached_property
    def inventory(self) -> Inventory:
        """All that the bundle speaks of: what a target holds after a push."""
        return union(archive.inventory for _, archive in sorted(self.archives.items()))

    @cached_property
    def carried(self) -> Inventory:
        """The part of that which lies in the archives, each piece where it lies."""
        return union(archive.carried for _, archive in sorted(self.archives.items()))

    @cached_property
    def omissions(self) -> Omissions:
        needed = self.coverage.needed
        at_base = needed.blob_sizes()
        repeats = sum(
            size
            for archive in self.archives.values()
            for content in archive.left_out.repositories.values()
            for digest, size in content.blobs.items()
            if digest not in at_base
        )
        return Omissions(
            self.coverage.base,
            len(needed.manifest_nodes()),
            len(at_base),
            sum(at_base.values()),
            repeats if self.coverage.once else None,
        )

    def carried_as(self, coverage: Coverage) -> Seal:
        """Return a seal of the same content, carried in another way."""
        parts = {name: archive.inventory for name, archive in self.archives.items()}
        origins = {name: archive.origins for name, archive in self.archives.items()}
        archives = {one.name: one for one in lay_out_all(parts, origins, coverage)}
        return replace(self, archives=archives, coverage=coverage)

    def to_json(self) -> bytes:
        """Render the canonical file: equal bundles have equal seals."""
        coverage = self.coverage
        document: dict[str, Any] = {
            "schemaVersion": (SCHEMA_VERSION if coverage.is_ordinary else PARTIAL_SCHEMA_VERSION),
            "tool": self.tool,
            "selection": self.selection,
            "inventory": str(self.inventory.digest()),
            "files": {
                name: {"size": file.size, "digest": str(file.digest)}
                for name, file in self.files.items()
            },
        }
        if coverage.once:
            document["dedupe"] = True
        members = {key: canonical_json(value) for key, value in document.items()}
        members["manifests"] = b"".join(self.inventory.manifest_pieces())
        archives = sorted(self.archives.items())
        members["archives"] = b"".join(json_object((name, _stated(one)) for name, one in archives))
        if coverage.base is not None:
            base = [canonical_json(str(coverage.base))]
            held = coverage.needed.repository_pieces()
            members["base"] = b"".join(json_object((("digest", base), ("repositories", held))))
        members["digest"] = canonical_json(str(digest_of(_pieces(members))))
        return b"".join(_pieces(members))

    @classmethod
    def from_json(cls, data: bytes) -> Seal:
        """Read a seal and check that it is whole.

        Raises:
            DamagedBundleError: somebody changed a byte of it, or it is something else.
            InputError: it is of a newer schema.
        """
        if not data or data.isspace():
            raise DamagedBundleError("it is not a bundle's inventory: it is empty")
        try:
            if json.detect_encoding(data) != "utf-8":
                raise ValueError("its bytes were changed: they are not UTF-8")
            document = open_json(data)
            stated, actual = document["digest"], _digest_without(data, document)
            if stated != actual:
                raise DamagedBundleError(
                    f"its bytes were changed: it states digest {stated!s:.80} and has {actual}"
                )
            # Only now, since damage could also have made a higher version.
            version = document["schemaVersion"]
            if version not in (SCHEMA_VERSION, PARTIAL_SCHEMA_VERSION):
                raise InputError(
                    f"the bundle's inventory has schema version {version}; this release of mirror "
                    f"reads versions {SCHEMA_VERSION} and {PARTIAL_SCHEMA_VERSION}: use a newer "
                    "one"
                )
            table = ManifestTable(document["manifests"])
            coverage = _coverage(document, table)
            if coverage.is_ordinary != (version == SCHEMA_VERSION):
                raise DamagedBundleError(f"its schema version {version} does not match its keys")
            parts, origins, sizes = {}, {}, {}
            for name, value in document["archives"].items():
                parts[name] = table.inventory(value["repositories"])
                origins[name], sizes[name] = _origins(value["origins"], parts[name]), value["size"]
            del table
            archives = {one.name: one for one in lay_out_all(parts, origins, coverage)}
            for name, size in sizes.items():
                if archives[name].size != size:
                    raise DamagedBundleError(f"it lays {name} out in another way than this release")
            files = {
                name: SealedFile(int(value["size"]), Digest.parse(value["digest"]))
                for name, value in document["files"].items()
            }
            for name in (*archives, *files):
                if name != PurePath(name).name or name.startswith("."):
                    raise DamagedBundleError(
                        f"it names {name!r}, which is not the name of a file beside it"
                    )
            _, start, end = document.places()["selection"]
            selection = parse_json(data[start : min(end, start + MAX_SELECTION_BYTES)])
            seal = cls(archives, selection, document["tool"], files, coverage)
            inventory = seal.inventory
            if document["inventory"] != str(inventory.digest()):
                raise DamagedBundleError("its inventory has another digest than it states")
            if needed_from(coverage.needed, inventory) != coverage.needed:
                raise DamagedBundleError(
                    "it relies on content of its base that it does not speak of"
                )
            return seal
        except (*MALFORMED, OverflowError, RecursionError) as err:
            what = str(err) if isinstance(err, ValueError) else repr(err)
            raise DamagedBundleError(f"it is not a bundle's inventory: {what}") from err


def _stated(archive: Archive) -> Iterator[bytes]:
    members = {
        "origins": [canonical_json(dict(archive.origins))],
        "repositories": archive.inventory.repository_pieces(),
        "size": [canonical_json(archive.size)],
    }
    return json_object(members.items())


def _pieces(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """What `canonical_json` makes of rendered members, in pieces: a large seal is there once."""
    return json_object((key, [value]) for key, value in sorted(members.items()))


def _digest_without(data: bytes, document: LargeJson) -> str:
    """The digest of a seal without what it states of that."""
    start, value, end = document.places()["digest"]
    if data[start:value] != b'"digest":':
        raise DamagedBundleError("its bytes were changed: it has spaces in it")
    return str(digest_of([memoryview(data)[:start], memoryview(data)[end + 1 :]]))  # the comma too


def _origins(document: Any, inventory: Inventory) -> dict[str, str]:
    """What the repositories of an archive were called: it is shown, and hosts are named by it."""
    origins: dict[str, str] = {}
    for path, origin in document.items():
        if str(Repository.parse(origin)) != origin or path not in inventory.repositories:
            raise DamagedBundleError(
                f"its origin {origin!r:.200} is not a repository of that archive"
            )
        origins[path] = origin
    return origins


def lay_out_all(
    parts: Mapping[str, Inventory],
    origins: Mapping[str, Mapping[str, str]],
    coverage: Coverage = COMPLETE,
) -> tuple[Archive, ...]:
    """Lay out every archive of a bundle: what each speaks of, and what its repositories were
    called at the source, both by the archive's name."""
    lefts = left_out(parts, coverage)
    return tuple(
        lay_out(name, inventory, origins[name], lefts[name]) for name, inventory in parts.items()
    )


def _coverage(document: Mapping[str, Any], table: ManifestTable) -> Coverage:
    once = document.get("dedupe", False)
    if once is not False and once is not True:
        raise ValueError("dedupe is neither true nor false")
    base = document.get("base")
    if base is None:
        return Coverage(once=once)
    return Coverage(Digest.parse(base["digest"]), table.inventory(base["repositories"]), once)


# -- files -----------------------------------------------------------------------------------------


def seal_bytes(path: Location, limits: BundleLimits = LARGE) -> bytes | None:
    """Read the file of a seal; None where there is none. One that is too long is cut short.

    Raises:
        DamagedBundleError: most of it speaks of no content.
    """
    if not path.exists():
        return None
    try:
        with closing(open_file(path)) as file:
            return joined(file.chunks(0, min(limits.seal_bytes + 1, file.size)))
    except ValueError as err:
        raise DamagedBundleError(
            f"it is not a bundle's inventory: {err}", where=str(path), advice=COPY_AGAIN
        ) from err


def parse_seal(data: bytes, where: str, limits: BundleLimits = LARGE) -> Seal:
    """Read a seal within the limits of one; `where` it came from is for messages.

    Raises:
        DamagedBundleError: it is not whole.
    """
    if len(data) > limits.seal_bytes:
        raise DamagedBundleError(f"{where} is larger than any bundle's table of contents")
    if value_count(data) > limits.seal_values:
        # A parser makes up to 30 times the text of it.
        raise DamagedBundleError(f"{where} has more values than any bundle's table of contents")
    try:
        return Seal.from_json(data)
    except DamagedBundleError as err:
        raise DamagedBundleError(err.problem, where=where, advice=COPY_AGAIN) from err


def try_seal(path: Location) -> Seal | None:
    """The seal at `path`; None if there is none, or not a whole one."""
    try:
        data = seal_bytes(path)
        return None if data is None else parse_seal(data, str(path))
    except MirrorError:
        return None


def seal_in(folder: Folder, name: str) -> Seal | None:
    """The seal of that name in `folder`; None if there is none, or not a whole one."""
    try:
        return parse_seal(folder.read(name, LARGE.seal_bytes), name)
    except (OSError, MirrorError):
        return None


def read_files(folder: Location, seal: Seal) -> dict[str, bytes]:
    """Read the files beside a bundle's archives, which must be as its seal says.

    Raises:
        DamagedBundleError: one is missing or differs.
    """
    files: dict[str, bytes] = {}
    for name, sealed in seal.files.items():
        path = folder / name
        with os_errors(path, "read"):
            found = path.is_file() and size_of(path) == sealed.size <= MAX_COMPANION_BYTES
            files[name] = path.read_bytes() if found else b""
        if not found or Digest.of(files[name]) != sealed.digest:
            problem = f"{path} is missing, or not what {SEAL} says"
            raise DamagedBundleError(problem, advice=COPY_AGAIN)
    return files


# -- limits ----------------------------------------------------------------------------------------


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

    def refuse(problem: str, where: str = "the bundle", advice: str = _SPLIT) -> NoReturn:
        raise BundleLimitError(problem, where=where, advice=advice)

    def check(what: str, data: bytes, most: int, values: int, where: str = "the bundle") -> None:
        if len(data) > most or value_count(data) > values:
            refuse(
                f"{what} would have {len(data)} bytes, and {most} are read at most, with {values} "
                "values",
                where,
            )

    check(f"its {SEAL}", sealed, limits.seal_bytes, limits.seal_values)
    if len(canonical_json(seal.selection)) > MAX_SELECTION_BYTES:
        problem = (
            f"what was asked for would take more than {MAX_SELECTION_BYTES} bytes in its {SEAL}"
        )
        refuse(problem, advice="ask for less by name")
    for archive in seal.archives.values():
        most = (ORDINARY if compressed else limits_for(archive.size)).members
        if len(archive.entries) > most:
            files = f"it would hold {len(archive.entries)} files, and {most} are read at most"
            refuse(files, archive.name)
        try:
            budget.take_files([entry.path for entry in archive.entries])
            for content in archive.inventory.repositories.values():
                budget.take_names(len(content.tags))
                for node in content.manifests.values():
                    budget.take_names(1 + len(node.named))
        except DamagedBundleError as err:
            raise BundleLimitError(err.problem, where=err.where, advice=_SPLIT) from err
        for entry in archive.entries:
            data = entry.content or b""
            check(entry.path, data, limits.index_bytes, limits.index_values, archive.name)
    for digest, node in seal.inventory.manifest_nodes().items():
        if has_long_media_type(node):
            long = f"manifest {digest} has a media type of more than {MAX_MEDIA_TYPE} characters"
            refuse(long, advice="leave its image out")
    return sealed


_SPLIT = "split it: make several bundles of a part of the selection each"


def has_long_media_type(node: ManifestNode) -> bool:
    """Whether a manifest has a media type that is longer than any may be."""
    types = [node.artifact_type or "", *(one.media_type for one in node.named)]
    return any(len(one) > MAX_MEDIA_TYPE for one in types)
