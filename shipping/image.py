"""An OCI image of `mirror`, made without a container engine: the C library, and the runtime tree.

A tar of an OCI layout, which `ctr images import` reads, and `mirror push --file` as well: its
index has the tag as `d8` writes it.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from mirror.commands.program import DISTRIBUTION
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, descriptor_json
from shipping.runtime import VERSION, Machine, add_tree

USER = 64535
"""Who the program is inside: nobody on the node."""

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_SHORT_TAG = "io.deckhouse.image.short_tag"
_LIBRARIES = ("libc6", "libgcc-s1")
"""Debian's packages of what the interpreter and the wheels link against."""

_ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/sbin/nologin\nmirror:x:{USER}:{USER}::/home/mirror:\n",
    "etc/group": f"root:x:0:\nmirror:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def base(folder: Path) -> Path:
    """Make the lowest layer's tree below `folder`: the C library of this machine's Debian.

    Raises:
        subprocess.CalledProcessError: the packages could not be had.
    """
    packages, root = folder / "packages", folder / "base"
    packages.mkdir()
    subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *_LIBRARIES],
        check=True,
        cwd=packages,
        stdout=sys.stderr,
    )
    unpacked = folder / "unpacked"
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    kept = ("lib*/*.so*", "lib*/*/*.so*", "usr/lib/*/*.so*", "usr/share/doc/*/copyright")
    for path in sorted({path for pattern in kept for path in unpacked.glob(pattern)}):
        if "/gconv/" in str(path) or "/audit/" in str(path):
            continue
        to = root / path.relative_to(unpacked)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to, follow_symlinks=False)
    for name, text in _ACCOUNTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def write(
    target: Path, *, machine: Machine, lower: Path, program: Path, licences: bytes, at: int
) -> Digest:
    """Write the image as `target`; return its manifest's digest.

    `program` has `bin/mirror` and `lib/mirror`, and becomes `/usr`. The same trees give the same
    bytes. `at` is the time of everything in it.
    """
    when = datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    layers = [_layer(lower, "", at, _homes), _layer(program, "usr/", at, _texts(licences))]
    config = {
        "created": when,
        "architecture": machine.go,
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/bin", "HOME=/home/mirror"],
            "Entrypoint": ["/usr/bin/mirror"],
            "WorkingDir": "/home/mirror",
            "Labels": _labels(when),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{bare}" for _, bare in layers]},
        "history": [
            {"created": when, "created_by": f"{DISTRIBUTION} ./run build image", "comment": comment}
            for comment in ("the C library of Debian", "the program")
        ],
    }
    blobs = [_json(config), *(blob for blob, _ in layers)]
    described = [Descriptor(_CONFIG, Digest.of(blobs[0]), len(blobs[0]))]
    described += [Descriptor(_LAYER, Digest.of(blob), len(blob)) for blob in blobs[1:]]
    manifest = Manifest.parse(
        _json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor_json(described[0]),
                "layers": [descriptor_json(one) for one in described[1:]],
                "annotations": _labels(when),
            }
        )
    )
    tag = VERSION.replace("+", "_")
    names = {_SHORT_TAG: tag, "org.opencontainers.image.ref.name": f"mirror:{tag}"}
    names["io.containerd.image.name"] = f"localhost/mirror:{tag}"
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [descriptor_json(manifest.descriptor, annotations=names)],
        }
    )
    files = {"index.json": index, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    for blob in (manifest.raw, *blobs):
        files[f"blobs/sha256/{Digest.of(blob).encoded}"] = blob
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("blobs", "blobs/sha256"):
            _add(archive, name, None, at)
        for name, data in sorted(files.items()):
            _add(archive, name, data, at)
    return manifest.digest


def _labels(when: str) -> dict[str, str]:
    prefix = "org.opencontainers.image."
    return {
        f"{prefix}created": when,
        f"{prefix}licenses": "Apache-2.0",
        f"{prefix}title": "mirror",
        f"{prefix}version": VERSION,
    }


def _layer(tree: Path, prefix: str, at: int, more: Any) -> tuple[bytes, str]:
    """A layer of `tree`, compressed, and the SHA-256 of the bare tar."""
    bare = io.BytesIO()
    with tarfile.open(fileobj=bare, mode="w", format=tarfile.GNU_FORMAT) as archive:
        if prefix:
            _add(archive, prefix.rstrip("/"), None, at)
        add_tree(archive, tree, prefix, at)
        more(archive, at)
    data = bare.getvalue()
    return gzip.compress(data, 6, mtime=0), hashlib.sha256(data).hexdigest()


def _homes(archive: tarfile.TarFile, at: int) -> None:
    _add(archive, "home", None, at)
    _add(archive, "home/mirror", None, at, mode=0o750, owner=USER)
    _add(archive, "tmp", None, at, mode=0o1777)


def _texts(licences: bytes) -> Any:
    def add(archive: tarfile.TarFile, at: int) -> None:
        for name in ("usr/share", "usr/share/doc", f"usr/share/doc/{DISTRIBUTION}"):
            _add(archive, name, None, at)
        _add(archive, f"usr/share/doc/{DISTRIBUTION}/copyright", licences, at)

    return add


def _add(
    archive: tarfile.TarFile,
    name: str,
    data: bytes | None,
    at: int,
    mode: int | None = None,
    owner: int = 0,
) -> None:
    """Add a file, or a folder where there is no `data`."""
    member = tarfile.TarInfo(name)
    member.mtime, member.uid, member.gid = at, owner, owner
    if data is None:
        member.type, member.mode = tarfile.DIRTYPE, mode or 0o755
        archive.addfile(member)
    else:
        member.size, member.mode = len(data), mode or 0o644
        archive.addfile(member, io.BytesIO(data))


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
