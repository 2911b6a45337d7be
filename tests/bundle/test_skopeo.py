"""Other people's tools read the layouts, once GNU tar has unpacked them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from examples.release_tree.images import AMD64, ARM64, image, index, layer
from mirror.bundle.format import REF_NAME
from mirror.oci import Digest
from mirror.oci.manifest import DOCKER_MANIFEST
from mirror.sync import MemoryStore
from tests.support.bundles import ORIGIN, pack_store
from tests.support.skopeo import SkopeoError, run_skopeo, skopeo_copy, skopeo_inspect
from tests.support.tools import require_tool


@pytest.fixture
def store() -> MemoryStore:
    """Images of every family, which runtimes could run."""
    made = MemoryStore()
    base = layer({"etc/os-release": "ID=distroless\n"})
    plain = image([base, layer({"bin/app": b"\x7fELF"}, compression="zstd")])
    docker = image([base, layer({"bin/other": b"\x7fELF"})], family="docker")
    both = index([(AMD64, plain), (ARM64, image([base], platform=ARM64))])
    for one, tags in (
        (plain, ("v1.0.0",)),
        (docker, ("v1.1.0",)),
        (both, ("all", both.digest.encoded)),
    ):
        for child in (*one.children, one):
            for blob in child.blobs.values():
                made.add_blob("modules/console", blob)
            tagged = tags if child is one else ()
            made.add_manifest("modules/console", child.raw, child.media_type, tags=tagged)
    return made


def test_skopeo_reads_the_layouts_that_gnu_tar_unpacked(store: MemoryStore, tmp_path: Path) -> None:
    pack_store(store, tmp_path / "bundle")
    gnu_tar = require_tool("tar")
    archive = tmp_path / "bundle/module-console.tar"
    subprocess.run([gnu_tar, "xf", archive, "-C", tmp_path], check=True)
    layout = tmp_path / "modules/console"
    tags = store.inventory().repository("modules/console").tags
    listed = json.loads((layout / "index.json").read_text())["manifests"]
    assert len(listed) == len(tags) == 4
    for entry in listed:
        if entry["mediaType"] == DOCKER_MANIFEST:
            continue  # skopeo passes over Docker's images in OCI layouts; registries serve them
        name = entry["annotations"][REF_NAME]
        assert name.startswith(f"{ORIGIN}/modules/console")
        raw = skopeo_inspect(f"oci:{layout}:{name}", raw=True)
        assert str(Digest.of(raw.encode())) == entry["digest"]
        found = skopeo_inspect(f"oci:{layout}:{name}", "--override-arch=amd64")
        assert found["Os"] == "linux"
        assert found["Layers"]
    # All blobs are where they should be: a copy reads and verifies each of them.
    for tag in ("v1.0.0", "all"):
        copied = tmp_path / tag
        skopeo_copy(f"oci:{layout}:{ORIGIN}/modules/console:{tag}", f"dir:{copied}")
        manifest = (copied / "manifest.json").read_bytes()
        assert Digest.of(manifest) == tags[tag]


def test_skopeo_lists_no_image_that_the_layout_does_not_have(
    store: MemoryStore, tmp_path: Path
) -> None:
    pack_store(store, tmp_path / "bundle")
    archive = tmp_path / "bundle/module-console.tar"
    subprocess.run([require_tool("tar"), "xf", archive, "-C", tmp_path], check=True)
    with pytest.raises(SkopeoError, match="v9"):
        run_skopeo("inspect", f"oci:{tmp_path}/modules/console:{ORIGIN}/modules/console:v9")
