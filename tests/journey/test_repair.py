"""`mirror repair`: from another copy, from either registry, and across the gap by a list."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mirror.serve import MemoryStorage
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve


@pytest.fixture
def source(make_embedded_registry: MakeEmbeddedRegistry) -> Source:
    return serve(TINY, make_embedded_registry(MemoryStorage()))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bundle(source: Source, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A bundle with damage in each of its archives, and what it was before."""
    folder = tmp_path / "bundle"
    call_mirror("pull", folder, "--source", source.root, "--insecure").succeeded()
    whole = files(folder)
    for archive in folder.glob("*.tar"):
        data = bytearray(archive.read_bytes())
        for at in range(700, len(data), 3000):
            data[at] ^= 1
        archive.write_bytes(data)
    (folder / "security.tar").unlink(missing_ok=True)
    return folder, whole


def test_a_damaged_bundle_is_repaired_from_the_registry_it_came_from(
    bundle: tuple[Path, dict[str, bytes]], source: Source
) -> None:
    folder, whole = bundle
    call_mirror("verify", folder).failed(4)
    done = call_mirror("repair", folder, "--from", source.root, "--insecure").succeeded()
    assert "repaired: " in done.stdout
    assert f" from registry {source.address}" in done.stdout
    assert "is whole (sealed" in done.stdout
    assert files(folder) == whole
    again = call_mirror("repair", folder, "--from", source.root, "--insecure").succeeded()
    assert again.stdout.startswith("nothing was damaged\n")
    assert "is whole" in again.stdout


def test_a_damaged_bundle_is_repaired_from_the_registry_it_was_pushed_to(
    bundle: tuple[Path, dict[str, bytes]],
    source: Source,
    make_embedded_registry: MakeEmbeddedRegistry,
    tmp_path: Path,
) -> None:
    folder, whole = bundle
    closed = make_embedded_registry(MemoryStorage())
    target = f"{closed.address}/system/deckhouse"
    for name, data in whole.items():
        (tmp_path / "sent").mkdir(exist_ok=True)
        (tmp_path / "sent" / name).write_bytes(data)
    call_mirror("push", tmp_path / "sent", target, "--insecure").succeeded()
    call_mirror("repair", folder, "--from", target, "--insecure").succeeded()
    assert files(folder) == whole


def test_what_the_closed_zone_lacks_crosses_the_gap_as_a_list_and_a_patch(
    bundle: tuple[Path, dict[str, bytes]], source: Source, tmp_path: Path
) -> None:
    folder, whole = bundle
    request, patch = tmp_path / "request.json", tmp_path / "patch"
    asked = call_mirror("repair", folder, "--request", request)
    assert asked.code == 4
    assert f"mirror pull PATCH --only {request} --source" in asked.stdout
    assert "is damaged or incomplete" in asked.stdout
    call_mirror("pull", patch, "--only", request, "--source", source.root, "--insecure").succeeded()
    size = sum(path.stat().st_size for path in patch.iterdir())
    assert size < sum(map(len, whole.values()))
    call_mirror("verify", patch).succeeded()
    done = call_mirror("repair", folder, "--from", patch, "--json").succeeded().document
    assert (done["ok"], done["lacking"]) == (True, {"manifests": 0, "blobs": 0})
    assert [*done["given"]] == [str(patch)]
    assert files(folder) == whole


def test_a_copy_brings_back_what_only_a_copy_has(
    bundle: tuple[Path, dict[str, bytes]], source: Source, tmp_path: Path
) -> None:
    folder, whole = bundle
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name, data in whole.items():
        (copy / name).write_bytes(data)
    (folder / "inventory.json").unlink()
    refused = call_mirror("repair", folder, "--from", source.root, "--insecure")
    refused.failed(2, "inventory.json is missing", "--from FOLDER")
    done = call_mirror("repair", folder, "--from", copy).succeeded()
    assert "inventory.json as a whole" in done.stdout
    assert files(folder) == whole


def test_what_cannot_be_repaired_from_is_told(tmp_path: Path, source: Source) -> None:
    call_mirror("pull", tmp_path / "bundle", "--source", source.root, "--insecure").succeeded()
    seal = tmp_path / "bundle" / "inventory.json"
    call_mirror("repair", tmp_path / "bundle", "--from", seal).failed(2, "name the folder")
    call_mirror("repair", tmp_path / "nothing").failed(1, "nothing")
    request = tmp_path / "request.json"
    call_mirror("repair", tmp_path / "bundle", "--request", request).succeeded()
    assert not request.exists()
