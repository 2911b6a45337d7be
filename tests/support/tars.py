"""Tar archives as other programs write them, and as nobody should."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mirror.bundle.format import REF_NAME, SHORT_TAG
from mirror.oci import Digest
from mirror.sync import MemoryStore
from tests.support.tools import require_tool

WRONG_TYPE = "application/vnd.oci.image.layout.v1+json"
"""What other writers call a layout's index."""


def layout_files(
    store: MemoryStore, repository: str, *, prefix: str | None = None
) -> dict[str, bytes]:
    """An OCI layout of one repository of `store`, as path to content, as d8 lays it out."""
    content = store.inventory().repository(repository)
    prefix = repository if prefix is None else prefix
    base = f"{prefix}/" if prefix else ""
    files = {
        f"{base}blobs/{digest.algorithm}/{digest.encoded}": b"".join(
            store.blob(repository, digest, size)
        )
        for digest, size in content.blobs.items()
    }
    for digest in content.manifests:
        raw = store.manifest(repository, digest).raw
        files[f"{base}blobs/{digest.algorithm}/{digest.encoded}"] = raw
    described = [
        descriptor(store, repository, digest, tag) for tag, digest in sorted(content.tags.items())
    ]
    files[f"{base}index.json"] = index(described)
    files[f"{base}oci-layout"] = b'{\n    "imageLayoutVersion": "1.0.0"\n}'
    return dict(sorted(files.items()))


def descriptor(store: MemoryStore, repository: str, digest: Digest, tag: str) -> dict[str, Any]:
    """How a d8 index names an image."""
    manifest = store.manifest(repository, digest)
    return {
        "mediaType": manifest.media_type,
        "size": len(manifest.raw),
        "digest": str(digest),
        "annotations": {SHORT_TAG: tag, REF_NAME: f"registry.example.com/{repository}:{tag}"},
        "platform": {"architecture": "", "os": ""},
    }


def index(descriptors: Iterable[Mapping[str, Any]] | None) -> bytes:
    """A d8 index, with its wrong media type; None is a fresh one without images."""
    listed = None if descriptors is None else list(descriptors)
    document = {"schemaVersion": 2, "mediaType": WRONG_TYPE, "manifests": listed}
    return json.dumps(document, indent=2).encode()


def tar_of(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    """A plain GNU archive of regular files, with an end marker and no more."""
    out = bytearray()
    pairs = files.items() if isinstance(files, Mapping) else files
    for path, data in pairs:
        out += member(path, data)
    return bytes(out) + bytes(1024)


def member(
    path: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    size: int | None = None,
    link: str = "",
    dialect: Literal[0, 1, 2] = tarfile.GNU_FORMAT,
    pax: Mapping[str, str] | None = None,
) -> bytes:
    """One entry; `size` is what its header claims where that is not the truth."""
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, link
    info.size = len(data) if size is None else size
    info.pax_headers = dict(pax or {})
    header = info.tobuf(tarfile.PAX_FORMAT if pax else dialect)
    return header + data + bytes(-len(data) % 512)


def gnu_tar(files: Mapping[str, bytes], work: Path, archive: Path, *options: str) -> None:
    """Have GNU tar archive `files`; `options` are its own, `.` is what it archives."""
    folder = work / "files"
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    done = subprocess.run(
        [require_tool("tar"), "-C", folder, "-cf", archive, *options],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def unpacked(data: bytes) -> dict[str, bytes]:
    """The regular files of an archive, by the tarfile module."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            info.name: tar.extractfile(info).read()  # type: ignore[union-attr]
            for info in tar
            if info.isreg()
        }
