"""A quick verification: all but the bytes of layers, of which none is read."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from mirror.bundle.archive import Entry
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.run import Run
from tests.support.bundles import archives_of, flip, pack_store
from tests.support.inventories import sample_store

STORE = sample_store()
WANTED = STORE.inventory()
ARCHIVES = {archive.name: archive for archive in archives_of(WANTED)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack_store(STORE, tmp_path)
    return tmp_path


def quick(folder: Path) -> BundleReport:
    with BundleReader([folder]) as reader:
        return verify_bundle(reader, run=Run(jobs=2), quick=True)


def layers() -> list[tuple[str, Entry]]:
    """Every blob of every archive that is neither an index's nor a manifest's."""
    nodes = WANTED.manifest_nodes()
    return [
        (name, entry)
        for name, archive in ARCHIVES.items()
        for entry in archive.entries
        if entry.content is None and entry.digest not in nodes
    ]


def test_a_whole_bundle_has_no_findings_and_the_report_says_that_it_was_quick(folder: Path) -> None:
    report = quick(folder)
    assert report.findings == ()
    assert report.quick
    assert report.to_document()["quick"] is True


@pytest.mark.parametrize("sealed", [True, False])
def test_no_byte_of_a_layer_is_read(
    folder: Path, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sealed:
        (folder / "inventory.json").unlink()
        (folder / "SHA256SUMS").unlink()
    stretches = [(name, one.data_offset, one.data_offset + one.size) for name, one in layers()]
    real = os.pread

    def watched(fd: int, size: int, offset: int) -> bytes:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        for archive, start, end in stretches:
            assert name != archive or offset + size <= start or offset >= end, (name, offset, size)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", watched)
    assert quick(folder).findings == ()


def test_all_but_layers_and_the_padding_behind_them_is_checked(folder: Path) -> None:
    name = "platform.tar"
    unread = {
        offset
        for archive, one in layers()
        if archive == name
        for offset in range(one.data_offset, one.data_offset + one.size + one.padding)
    }
    dice = random.Random(3)
    found = 0
    for offset in dice.sample(range(ARCHIVES[name].size), 120):
        flip(folder / name, offset)
        findings = quick(folder).findings
        assert bool(findings) == (offset not in unread), offset
        found += bool(findings)
        flip(folder / name, offset)
    assert found > 20


def test_missing_and_shortened_archives_are_found(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "security.tar").read_bytes()
    (folder / "security.tar").write_bytes(whole[:-600])
    assert {one.place for one in quick(folder).findings} == {"security.tar"}
    (folder / "security.tar").unlink()
    assert any("the archive is missing" in one.problem for one in quick(folder).findings)
    (folder / "security.tar").write_bytes(whole)
    shutil.copy(folder / "security.tar", folder / "module-x.tar")
    assert {one.place for one in quick(folder).findings} == {"module-x.tar"}
