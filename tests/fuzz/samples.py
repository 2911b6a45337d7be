"""True documents and archives, small, for mutations to begin with."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
import zlib
from array import array
from pathlib import Path

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.bundle.seekable import table
from mirror.sync import MemoryStore
from mirror.sync.statement import Statement, make_artifact
from tests.support.bundles import archives_of, pack_store, seal_of
from tests.support.inventories import put_image, put_index

SIGNED = b"what was signed"
PUBLIC_KEY = (
    Ed25519PrivateKey.from_private_bytes(bytes(32))
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


def _store() -> MemoryStore:
    store = MemoryStore()
    child = put_image(store, "", layers=(b"layer",))
    put_index(store, "", "v1.70.0", children=[child])
    put_image(store, "release-channel", "stable", layers=(b"version",))
    return store


def inventory() -> bytes:
    """An inventory as JSON."""
    return json.dumps(_store().inventory().to_document()).encode()


def sealed() -> bytes:
    """The seal of a bundle."""
    return seal_of(archives_of(_store().inventory())).to_json()


def stated() -> bytes:
    """A statement."""
    former = {"": {"v1.69.0": next(iter(_store().inventory().repository("").manifests))}}
    return Statement(_store().inventory(), 7, former, tool="fuzz").to_json()


def noted(statement: str) -> bytes:
    """A registry's note of the date at which it reached a statement."""
    made = {"org.opencontainers.image.created": "2026-03-01T12:00:00Z"}
    notes = {**made, "io.deckhouse.mirror.statement": statement}
    return make_artifact(
        "application/vnd.deckhouse.mirror.reached.v1", annotations=notes
    ).manifest.raw


def archive() -> bytes:
    """An archive of a bundle."""
    store = MemoryStore()
    put_image(store, "", "v1.70.0", layers=(b"layer",))
    with tempfile.TemporaryDirectory() as folder:
        pack_store(store, Path(folder) / "bundle")
        return (Path(folder) / "bundle" / "platform.tar").read_bytes()


def frames() -> bytes:
    """A seekable zstd file of three frames."""
    packed, sizes = b"", array("I")
    for piece in (b"a" * 100, b"bc" * 50, b"d"):
        frame = zstandard.ZstdCompressor().compress(piece)
        sizes.extend((len(frame), len(piece), zlib.crc32(piece)))
        packed += frame
    return packed + table(sizes)


def manifests() -> tuple[bytes, ...]:
    """An image's and an index."""
    store = _store()
    held = store.inventory().repository("").manifests
    return tuple(store.manifest("", digest).raw for digest in held)


def layers() -> tuple[bytes, ...]:
    """A layer with files, links and long names: plain, gzip, zstd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name in ("a" * 120 + "/b", "version.json", "dir/.wh.x"):
            info = tarfile.TarInfo(name)
            info.size = 3
            made.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "version.json"
        made.addfile(link)
        end = made.offset + 1024
    plain = buffer.getvalue()[:end]
    return plain, gzip.compress(plain, 1, mtime=0), zstandard.ZstdCompressor().compress(plain)


def contracts() -> tuple[bytes, ...]:
    """What a plugin needs."""
    need = {"name": "b", "constraint": ">=1"}
    contract = {
        "name": "a",
        "version": "v1.0.0",
        "requirements": {
            "kubernetes": {"constraint": ">=1.27"},
            "modules": {"mandatory": [need], "anyOf": [{"name": "c", "modules": [{"name": "d"}]}]},
        },
    }
    return json.dumps(contract).encode(), b"name: a\nversion: v1.0.0\n"


def module_configs() -> tuple[bytes, ...]:
    """Settings of the registry module."""
    head = b"apiVersion: deckhouse.io/v1alpha1\nkind: ModuleConfig\nmetadata: {name: deckhouse}\n"
    direct = b"{imagesRepo: registry.example/a, scheme: HTTPS, username: u, password: p}"
    proxy = b"{imagesRepo: registry.example/a, ttl: 72h}"
    return (
        head + b"spec:\n  settings:\n    registry:\n      mode: Direct\n      direct: " + direct,
        b"registry:\n  mode: Proxy\n  proxy: " + proxy,
    )


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIUYm2I7WRcomlDruZHP/YZWS51fYIwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEZnV6ejAeFw0yNjExMjkwMTA2MDdaFw0zNjExMjYwMTA2MDda
MA8xDTALBgNVBAMMBGZ1enowWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASUbVvd
xpxVfM7c8Oze+zHCVYJwZ1yCOiJkTLZoTdK5qZQTEkHy5E1/0OXV3nMrnH4KSfW5
OK29kzUeRDLmWHCmo1MwUTAdBgNVHQ4EFgQU2ur4xMGtQV6oznOkragulixLeEMw
HwYDVR0jBBgwFoAU2ur4xMGtQV6oznOkragulixLeEMwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNIADBFAiA48Zy+jH7bm0noozOFARDar6y1tjbC3lyyzMYG
/EfcXAIhAO32xqJrreY1q73iWzQaTDcXN/uxjj4joPy+Jdf4kBrf
-----END CERTIFICATE-----
"""
