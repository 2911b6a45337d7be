"""How much memory a bundle with one huge layer takes, on its whole way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.oci import manifest as types
from mirror.serve import FolderStorage
from mirror.testing import EmbeddedRegistry
from tests.support.measured import measured
from tests.support.release_source import TINY, Shelf, Source, serve

MOST_MEMORY = 150_000_000


def put_hole(storage: FolderStorage, repository: str, size: int) -> str:
    """A blob of `size` zeros, which takes no room in the folder (its layout: `FolderStorage`)."""
    zeros, running = bytes(1 << 20), hashlib.sha256()
    for _ in range(size >> 20):
        running.update(zeros)
    encoded = running.hexdigest()
    link = storage.path / "repositories" / repository / "_blobs" / "sha256" / encoded
    content = storage.path / "blobs" / "sha256" / encoded
    for path in (link, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with content.open("r+b") as file:
        file.truncate(size)
    return f"sha256:{encoded}"


def serve_huge(stack: ExitStack, folder: Path, size: int) -> Source:
    """A tree one of whose images has a layer of `size` bytes."""
    storage = FolderStorage(folder)
    source = serve(TINY, stack.enter_context(EmbeddedRegistry(storage)))
    shelf, database = Shelf(source.registry), f"{source.tree.root}/security/trivy-db"
    config = shelf.add_blob(database, b"{}")
    layer = put_hole(storage, database, size)
    document = {
        "schemaVersion": 2,
        "mediaType": types.OCI_MANIFEST,
        "config": {"mediaType": types.OCI_CONFIG, "digest": str(config), "size": 2},
        "layers": [{"mediaType": types.OCI_LAYER_GZIP, "digest": layer, "size": size}],
    }
    shelf.add_manifest(database, json.dumps(document).encode(), types.OCI_MANIFEST, tags=["2"])
    return source


@pytest.fixture
def stack(_this_machine_only: None) -> Iterator[ExitStack]:
    with ExitStack() as registries:
        yield registries


def journey(stack: ExitStack, work: Path, size: int, *options: str) -> None:
    """Pull, verify and push a bundle with a layer of `size` bytes; none takes much memory."""
    source = serve_huge(stack, work / "source", size)
    target = stack.enter_context(EmbeddedRegistry(FolderStorage(work / "target")))
    bundle = work / "bundle"
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("pull", bundle, "--source", source.root, "--insecure", *options),
        ("verify", bundle),
        ("push", bundle, f"{target.address}/dkp/ee", "--insecure"),
    )
    for command in commands:
        (run,), peak = measured(command)
        run.succeeded()
        print(f"{command[0]} {' '.join(options)} of {size} bytes: {peak / 1e6:.0f} MB at most")
        assert peak <= MOST_MEMORY, command


def test_a_large_layer_takes_little_memory(stack: ExitStack, tmp_path: Path) -> None:
    journey(stack, tmp_path, 144 << 20)


def test_a_large_layer_takes_little_memory_when_it_is_compressed(
    stack: ExitStack, tmp_path: Path
) -> None:
    journey(stack, tmp_path, 128 << 20, "--compress", "zstd")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", [(), ("--compress", "zstd")], ids=["plain", "compressed"])
def test_a_layer_of_5_gib_takes_no_more(
    stack: ExitStack, tmp_path: Path, options: tuple[str, ...]
) -> None:
    journey(stack, tmp_path, 5 << 30, *options)
