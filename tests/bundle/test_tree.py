"""A folder of OCI layouts, as `tar x` of archives leaves it, read like the archives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.members import TreeFile
from mirror.bundle.reader import BundleReader
from mirror.errors import DamagedBundleError, FileSystemError, InputError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from tests.support.bundles import pack_store, verify
from tests.support.inventories import sample_store
from tests.support.tools import require_tool

STORE = sample_store()
WANTED = STORE.inventory()
BASE = Digest.of(b"base layer " * 300)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """All archives of a bundle, unpacked into one folder by GNU tar."""
    pack_store(STORE, tmp_path / "bundle")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for archive in (tmp_path / "bundle").glob("*.tar"):
        subprocess.run([require_tool("tar"), "-C", folder, "-xf", archive], check=True)
    return folder


def test_a_tree_is_a_source_like_the_archives_it_came_from(tree: Path) -> None:
    (tree / "notes.txt").write_text("whatever lies beside")
    with BundleReader([tree]) as reader:
        assert reader.inventory() == WANTED
        target = MemoryStore()
        transfer(make_plan(WANTED, Inventory()), reader, target, run=Run(jobs=4))
        assert inspect_bundle(reader).images > 0
    assert target.inventory() == WANTED
    report = verify(tree)
    assert report.findings == ()
    assert not report.sealed
    assert verify(tree, quick=True).findings == ()


def test_damage_in_a_tree_is_found_and_a_quick_look_does_not_see_it(tree: Path) -> None:
    path = next(tree.glob(f"**/{BASE.encoded}"))
    data = path.read_bytes()
    path.write_bytes(b"X" + data[1:])
    findings = verify(tree).findings
    assert {finding.digest for finding in findings} == {BASE}
    assert verify(tree, quick=True).findings == ()
    path.write_bytes(data[:-1])
    (finding,) = verify(tree, quick=True).findings
    assert "bytes instead of" in finding.problem
    path.unlink()
    assert "is missing" in verify(tree, quick=True).findings[0].problem


def test_a_link_out_of_the_tree_is_refused_and_not_followed(tree: Path, tmp_path: Path) -> None:
    path = next(tree.glob(f"**/{BASE.encoded}"))
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with (
        BundleReader([tree]) as reader,
        pytest.raises(DamagedBundleError, match="is a symbolic link that leads out of the folder"),
    ):
        reader.inventory()
    assert any("leads out of the folder" in one.problem for one in verify(tree).findings)


def test_a_file_that_becomes_a_link_while_the_tree_is_read_is_not_followed(
    tree: Path, tmp_path: Path
) -> None:
    blob = next(tree.glob(f"**/{BASE.encoded}"))
    (tmp_path / "secret").write_bytes(bytes(blob.stat().st_size))
    file = TreeFile(tree)
    blob.unlink()
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(FileSystemError, match=BASE.encoded):
        for _ in file.chunks(0, file.size):
            pass


def test_a_link_to_a_folder_outside_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tree / "modules" / "linked").symlink_to(tmp_path / "elsewhere")
    assert any("leads out of the folder" in one.problem for one in verify(tree).findings)


def test_a_link_inside_the_tree_counts_as_the_file(tree: Path) -> None:
    one, *_ = sorted(tree.glob(f"**/{BASE.encoded}"))
    kept = tree / "kept"
    one.rename(kept)
    one.symlink_to(os.path.relpath(kept, one.parent))
    assert verify(tree).findings == ()


def test_a_pipe_in_place_of_a_blob_is_refused(tree: Path) -> None:
    path = next(tree.glob(f"**/{BASE.encoded}"))
    path.unlink()
    os.mkfifo(path)
    assert any("is not a regular file" in one.problem for one in verify(tree).findings)


def test_a_folder_without_layouts_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "index.json").write_text("{}")
    with pytest.raises(InputError, match="holds no bundle"):
        BundleReader([tmp_path])
