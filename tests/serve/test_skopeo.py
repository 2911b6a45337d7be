"""Other people's tools push into the embedded registry and pull out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from examples.release_tree.images import image, layer
from mirror.oci import Digest
from mirror.serve import BasicAuth, Store, TokenAuth, User
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry, MakeRealRegistry
from tests.support.sample_images import descriptor
from tests.support.skopeo import SkopeoError, run_skopeo, skopeo_copy, skopeo_inspect
from tests.support.tls import Authority


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An OCI image layout with one image, `v1`, whose layer holds one file."""
    one = image([layer({"hello": "world"})])
    made = tmp_path / "layout"
    (made / "blobs/sha256").mkdir(parents=True)
    for digest, data in {**one.blobs, one.digest: one.raw}.items():
        (made / "blobs/sha256" / digest.encoded).write_bytes(data)
    named = {"org.opencontainers.image.ref.name": "v1"}
    entries = [descriptor(one.media_type, one.raw, annotations=named)]
    (made / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (made / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return made


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}


def manifest_digest(layout: Path) -> str:
    index: Any = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def test_skopeo_pushes_and_pulls_the_same_bytes(
    registry: EmbeddedRegistry, layout: Path, tmp_path: Path
) -> None:
    image = f"docker://{registry.address}/deckhouse/ee:v1"
    skopeo_copy(f"oci:{layout}:v1", image)
    assert skopeo_inspect(image)["Digest"] == manifest_digest(layout)
    skopeo_copy(image, f"oci:{tmp_path / 'pulled'}:v1")
    assert blobs(tmp_path / "pulled") == blobs(layout)
    assert registry.requests.count(status=500) == 0
    registry.requests.clear()
    skopeo_copy(f"oci:{layout}:v1", image)
    assert registry.requests.count("PATCH") == 0  # all was there


def test_skopeo_pushes_and_pulls_over_tls(
    make_embedded_registry: MakeEmbeddedRegistry,
    authority: Authority,
    storage: Store,
    layout: Path,
    tmp_path: Path,
) -> None:
    registry = make_embedded_registry(storage, tls=authority.issue())
    trust = tmp_path / "trust"
    trust.mkdir()
    (trust / "ca.crt").write_bytes(authority.certificate.read_bytes())
    image = f"docker://{registry.address}/deckhouse/ee:v1"
    skopeo_copy(f"oci:{layout}:v1", image, cert_dir=trust)
    skopeo_copy(image, f"oci:{tmp_path / 'pulled'}:v1", cert_dir=trust)
    assert blobs(tmp_path / "pulled") == blobs(layout)
    (trust / "ca.crt").unlink()
    with pytest.raises(SkopeoError, match="certificate"):
        skopeo_inspect(image, cert_dir=trust)


def test_skopeo_copies_from_ours_to_a_real_registry_and_back(
    embedded_registry: EmbeddedRegistry, make_real_registry: MakeRealRegistry, layout: Path
) -> None:
    ours, theirs = embedded_registry.address, make_real_registry().address
    skopeo_copy(f"oci:{layout}:v1", f"docker://{ours}/a:v1")
    skopeo_copy(f"docker://{ours}/a:v1", f"docker://{theirs}/b:v1")
    skopeo_copy(f"docker://{theirs}/b:v1", f"docker://{ours}/c:v1")
    raw = skopeo_inspect(f"docker://{ours}/c:v1", raw=True)
    assert str(Digest.of(raw.encode())) == manifest_digest(layout)


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_skopeo_logs_in(
    make_embedded_registry: MakeEmbeddedRegistry, layout: Path, kind: str
) -> None:
    users = {"ci": User("s3cret")}
    auth = BasicAuth(users) if kind == "basic" else TokenAuth(users)
    registry = make_embedded_registry(auth=auth)
    image = f"docker://{registry.address}/a/b:v1"
    refusal = {"basic": r"authentication required|denied", "token": "auth token: .*unauthorized"}
    with pytest.raises(SkopeoError, match=refusal[kind]):
        skopeo_copy(f"oci:{layout}:v1", image)
    skopeo_copy(f"oci:{layout}:v1", image, "--dest-creds=ci:s3cret")
    assert skopeo_inspect(image, "--creds=ci:s3cret")["Digest"] == manifest_digest(layout)


def test_skopeo_lists_tags_and_deletes(registry: EmbeddedRegistry, layout: Path) -> None:
    image = f"docker://{registry.address}/a/b"
    for tag in ("v1", "v2"):
        skopeo_copy(f"oci:{layout}:v1", f"{image}:{tag}")
    listed = json.loads(run_skopeo("list-tags", "--tls-verify=false", image))
    assert listed["Tags"] == ["v1", "v2"]
    run_skopeo("delete", "--tls-verify=false", f"{image}:v1")
    with pytest.raises(SkopeoError, match="manifest unknown"):
        skopeo_inspect(f"{image}:v1")
