"""Bytes of registries are read, or refused by an error of ours."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InputError, InvalidDigestError, InvalidManifestError, MirrorError
from mirror.oci import Digest, Manifest, Reference, Repository
from mirror.oci.layers import read_files
from tests.support.hostile import json_documents
from tests.support.strategies import MORE_EXAMPLES

_KEYS = [
    *("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations"),
    *("artifactType", "digest", "size", "urls", "platform", "os", "architecture"),
]
TEXTS = st.text(max_size=80) | st.sampled_from(
    ["sha256:\ud800", "a:1/b@sha256:" + "a" * 64, "\udcff"]
)


@MORE_EXAMPLES
@given(json_documents(_KEYS), st.sampled_from([None, "", "application/json", "\ud800"]))
def test_any_manifest_is_read_or_refused(raw: bytes, media_type: str | None) -> None:
    with suppress(InvalidManifestError):
        manifest = Manifest.parse(raw, media_type)
        assert manifest.descriptor.size == len(raw)


@given(TEXTS)
def test_any_text_is_a_digest_or_reference_or_refused(text: str) -> None:
    with suppress(InvalidDigestError):
        Digest.parse(text)
    for parse in (Reference.parse, Repository.parse):
        with suppress(InputError):
            parse(text)


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a" * 120 + "/b", "version.json", "dir/.wh.x"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "version.json"
        archive.addfile(link)
    return buffer.getvalue()


_LAYER = _layer()


@MORE_EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 3 * 512), st.binary(min_size=1, max_size=12)), max_size=4),
    st.integers(0, len(_LAYER)),
    st.booleans(),
)
def test_a_layer_with_any_damage_is_read_or_refused(
    damages: list[tuple[int, bytes]], cut: int, packed: bool
) -> None:
    data = bytearray(_LAYER)
    for at, piece in damages:
        data[at : at + len(piece)] = piece
    layer = bytes(data[: cut or None])
    layer = gzip.compress(layer, 1) if packed else layer
    with suppress(MirrorError):
        read_files([lambda: iter([layer])], ["version.json", "link", "x"])


@MORE_EXAMPLES
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]),
)
def test_any_bytes_are_a_layer_or_refused(data: bytes, magic: bytes) -> None:
    with suppress(MirrorError):
        read_files([lambda: iter([magic + data])], ["version.json"])
