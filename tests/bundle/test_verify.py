from __future__ import annotations

import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.bundle.archive import Archive
from mirror.bundle.files import ReadAt
from mirror.bundle.members import members
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.errors import CancelledError, DamagedBundleError
from mirror.events import BlobDone, BytesMoved, Event, TransferStarted, serialised
from mirror.oci import Digest
from mirror.run import Cancellation, Run
from mirror.sync import Finding
from tests.support.bundles import archives_of, flip, pack_store
from tests.support.inventories import sample_store
from tests.support.tars import gnu_tar, layout_files, tar_of

STORE = sample_store()
WANTED = STORE.inventory()
ARCHIVES = {archive.name: archive for archive in archives_of(WANTED)}
BASE = Digest.of(b"base layer " * 300)


@dataclass(frozen=True)
class Bundle:
    """A bundle that may be damaged; each test has its own copy."""

    folder: Path

    def verify(self, run: Run | None = None, **more: Any) -> BundleReport:
        with BundleReader([self.folder]) as reader:
            return verify_bundle(reader, run=run or Run(jobs=2), **more)

    def flip(self, name: str, at: int, bit: int = 1) -> None:
        flip(self.folder / name, at, bit)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_store(STORE, folder)
    return folder


@pytest.fixture
def sealed(packed: Path, tmp_path: Path) -> Bundle:
    """A bundle of ours."""
    return Bundle(Path(shutil.copytree(packed, tmp_path / "sealed")))


@pytest.fixture
def unsealed(sealed: Bundle) -> Bundle:
    """The same as another tool would have written it."""
    (sealed.folder / "inventory.json").unlink()
    (sealed.folder / "SHA256SUMS").unlink()
    return sealed


def needing(archive: Archive, repository: str, digest: Digest) -> set[str]:
    """The tags that reach some content, the slow and obvious way."""
    content = archive.inventory.repository(repository)
    found = set()
    for tag, top in content.tags.items():
        pending = [top]
        while pending:
            one = pending.pop()
            if one == digest:
                found.add(tag)
            node = content.manifests.get(one)
            if node is not None:
                pending += [below.digest for below in (*node.blobs, *node.children)]
    return found


# -- whole bundles ---------------------------------------------------------------------------------


def test_a_whole_bundle_has_no_findings_and_is_counted(sealed: Bundle) -> None:
    report = sealed.verify()
    assert report.findings == ()
    assert report.notices == ()
    assert report.sealed
    assert report.archives == len(ARCHIVES)
    assert report.size == sum(archive.size for archive in ARCHIVES.values())
    assert report.repositories == len(WANTED.repositories)
    assert report.tags == sum(len(content.tags) for content in WANTED.repositories.values())
    assert report.manifests == len(WANTED.manifest_nodes())
    assert report.blobs == len(WANTED.blob_sizes())
    assert report.to_document()["ok"] is True
    assert report.to_document()["findings"] == []


def test_without_its_seal_it_is_as_whole(sealed: Bundle) -> None:
    with_seal = sealed.verify()
    (sealed.folder / "inventory.json").unlink()
    (sealed.folder / "SHA256SUMS").unlink()
    report = sealed.verify()
    assert not report.sealed
    assert report.findings == ()
    for name in ("archives", "size", "repositories", "tags", "manifests", "blobs"):
        assert getattr(report, name) == getattr(with_seal, name)


def test_every_byte_of_content_is_read_once(sealed: Bundle) -> None:
    heard: list[Event] = []
    sealed.verify(Run(2, serialised(heard.append)))
    entries = [entry for archive in ARCHIVES.values() for entry in archive.entries]
    total = sum(entry.size for entry in entries)
    (started,) = [event for event in heard if isinstance(event, TransferStarted)]
    assert started.size == total
    assert sum(event.count for event in heard if isinstance(event, BytesMoved)) == total
    done = [event for event in heard if isinstance(event, BlobDone)]
    assert len(done) == started.blobs == len(entries) + len(ARCHIVES)


@pytest.mark.parametrize(
    "options", [["--format=gnu", "."], ["--format=pax", "."], ["--format=gnu", "-b1", "."]]
)
def test_archives_of_gnu_tar_with_folders_wherever_are_whole(
    tmp_path: Path, options: list[str]
) -> None:
    files = layout_files(STORE, "modules/console")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "files/zzz/empty").mkdir(parents=True)
    gnu_tar(files, tmp_path, bundle / "all.tar", "--sort=name", *options)
    report = Bundle(bundle).verify()
    assert report.findings == ()
    assert report.tags == 1


# -- damage to a sealed bundle ---------------------------------------------------------------------


def _check_location(archive: Archive, at: int, findings: tuple[Finding, ...]) -> None:
    """One flipped byte is one finding, which says what suffers."""
    (finding,) = findings
    assert finding.place == archive.name
    if at >= archive.trailer_offset:
        assert finding.problem == f"the end marker is damaged: the padding at byte {at} is not zero"
        return
    (entry,) = [
        entry
        for entry in archive.entries
        if entry.offset <= at < entry.data_offset + entry.size + entry.padding
    ]
    assert (finding.repository, finding.digest) == (entry.repository, entry.digest)
    if entry.content is None:
        assert set(finding.tags) == needing(archive, entry.repository, entry.digest)
        assert finding.tags
        assert str(entry.digest) in finding.problem
    else:
        assert finding.problem.startswith(f"{entry.path} is damaged: ")
    if at < entry.data_offset:
        assert (
            f"is damaged: the header at byte {entry.offset} is not the sealed one"
            in finding.problem
        )
    elif at < entry.data_offset + entry.size:
        behind = entry.data_offset + entry.size
        told = f"is damaged: bytes {entry.data_offset} to {behind} hash to sha256:"
        assert told in finding.problem
    else:
        assert f"is damaged: the padding at byte {at} is not zero" in finding.problem


def test_every_flipped_byte_is_found_and_located(sealed: Bundle) -> None:
    dice = random.Random(20)
    names = list(ARCHIVES)
    weights = [ARCHIVES[name].size for name in names]
    for name in dice.choices(names, weights, k=300):
        archive = ARCHIVES[name]
        at, bit = dice.randrange(archive.size), 1 << dice.randrange(8)
        sealed.flip(name, at, bit)
        _check_location(archive, at, sealed.verify().findings)
        sealed.flip(name, at, bit)
    assert sealed.verify().findings == ()


def test_every_flipped_byte_of_the_seal_is_found(sealed: Bundle) -> None:
    dice = random.Random(21)
    size = (sealed.folder / "inventory.json").stat().st_size
    for _ in range(100):
        at, bit = dice.randrange(size), 1 << dice.randrange(8)
        sealed.flip("inventory.json", at, bit)
        with pytest.raises(DamagedBundleError, match=r"inventory.json: .*copy it again from its"):
            sealed.verify()
        sealed.flip("inventory.json", at, bit)
    assert sealed.verify().findings == ()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_missing_archive_is_named_with_all_that_it_held(sealed: Bundle, name: str) -> None:
    (sealed.folder / name).unlink()
    findings = sealed.verify().findings
    held = ARCHIVES[name].inventory.repositories
    assert [(one.place, one.repository, one.tags) for one in findings] == [
        (name, path, tuple(sorted(content.tags))) for path, content in sorted(held.items())
    ]
    assert {one.problem for one in findings} == {"the archive is missing"}
    assert all(one.digest in held[one.repository or ""].tags.values() for one in findings)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("left", [0, 1, 512, 1500, -1024, -512, -1])
def test_a_truncated_archive_is_found_with_what_is_lost(
    sealed: Bundle, name: str, left: int
) -> None:
    archive = ARCHIVES[name]
    size = left if left >= 0 else archive.size + left
    os.truncate(sealed.folder / name, size)
    findings = sealed.verify().findings
    assert {one.place for one in findings} == {name}
    assert f"has {size} bytes instead of {archive.size}" in {one.problem for one in findings}
    lost = {
        (entry.repository, entry.digest)
        for entry in archive.entries
        if entry.data_offset + entry.size + entry.padding > size
    }
    assert {(one.repository, one.digest) for one in findings if one.digest} == lost


@pytest.mark.parametrize("more", [b"\0", b"x" * 10, bytes(10_240)])
def test_an_archive_with_something_behind_its_end_is_found(sealed: Bundle, more: bytes) -> None:
    with (sealed.folder / "security.tar").open("ab") as file:
        file.write(more)
    first, *others = sealed.verify().findings
    size = ARCHIVES["security.tar"].size
    assert str(first) == f"security.tar: has {size + len(more)} bytes instead of {size}"
    assert len(others) == (0 if not any(more) else 1)
    assert all("the end marker is damaged" in one.problem for one in others)


def test_a_foreign_archive_is_found(sealed: Bundle) -> None:
    (sealed.folder / "module-evil.tar").write_bytes(tar_of({"modules/evil/index.json": b"{}"}))
    (finding,) = sealed.verify().findings
    assert str(finding) == (
        "module-evil.tar: is not listed in inventory.json; it does not belong to this bundle"
    )


def test_a_foreign_list_of_releases_is_found(sealed: Bundle) -> None:
    (sealed.folder / "deckhousereleases.yaml").write_text("kind: DeckhouseRelease")
    (finding,) = sealed.verify().findings
    assert str(finding) == (
        "deckhousereleases.yaml: is not listed in inventory.json; it does not belong to this bundle"
    )


def test_two_archives_that_were_swapped_are_found(sealed: Bundle) -> None:
    one, other = sealed.folder / "platform.tar", sealed.folder / "security.tar"
    one.rename(sealed.folder / "x")
    other.rename(one)
    (sealed.folder / "x").rename(other)
    places = {finding.place for finding in sealed.verify().findings}
    assert places == {"platform.tar", "security.tar"}


# -- damage to a bundle without a seal -------------------------------------------------------------


def _content(archive: Archive) -> Iterator[tuple[str, int, int, str, Digest]]:
    for entry in archive.entries:
        if entry.content is None and entry.size:
            yield archive.name, entry.data_offset, entry.size, entry.repository, entry.digest


CONTENT = [one for archive in ARCHIVES.values() for one in _content(archive)]


def test_a_flipped_byte_of_any_blob_or_manifest_is_found_without_a_seal(unsealed: Bundle) -> None:
    dice = random.Random(22)
    for name, offset, size, repository, digest in CONTENT:
        at = offset + dice.randrange(size)
        unsealed.flip(name, at)
        findings = unsealed.verify().findings
        (finding,) = [one for one in findings if one.digest == digest]
        assert (finding.place, finding.repository) == (name, repository)
        assert set(finding.tags) == needing(ARCHIVES[name], repository, digest)
        told = rf"(blob|manifest) {digest} is damaged: .* hash to sha256:"
        assert re.match(told, finding.problem)
        assert all(one.place == name for one in findings)
        unsealed.flip(name, at)
    assert unsealed.verify().findings == ()


def test_a_damaged_index_is_found_without_a_seal(unsealed: Bundle) -> None:
    """Every byte of it that says something, that is: names of sources could be anything."""
    archive = ARCHIVES["platform.tar"]
    (entry,) = [one for one in archive.entries if one.path == "index.json"]
    assert entry.content is not None
    said = [entry.content.index(word) for word in (b"{", b'"manifests"', b"sha256:", b'"digest"')]
    digests = set(archive.inventory.repository("").tags.values())
    said += [entry.content.index(str(digest).encode()) + 20 for digest in digests]
    for at in said:
        unsealed.flip("platform.tar", entry.data_offset + at)
        findings = unsealed.verify().findings
        unsealed.flip("platform.tar", entry.data_offset + at)
        assert findings
        assert {(one.place, one.repository) for one in findings} == {("platform.tar", "")}
        assert all(
            re.search("not the index of a layout|is missing", one.problem) for one in findings
        )


def test_a_damaged_header_or_padding_is_found_without_a_seal(unsealed: Bundle) -> None:
    dice = random.Random(23)
    for archive in ARCHIVES.values():
        for entry in archive.entries:
            unsealed.flip(archive.name, entry.data_offset - 512 + dice.randrange(140))
            assert unsealed.verify().findings
            shutil.copy(_original(unsealed, archive), unsealed.folder / archive.name)
            if entry.padding:
                at = entry.data_offset + entry.size + dice.randrange(entry.padding)
                unsealed.flip(archive.name, at)
                (finding,) = unsealed.verify().findings
                assert f"is damaged: the padding at byte {at} is not zero" in finding.problem
                unsealed.flip(archive.name, at)


def _original(bundle: Bundle, archive: Archive) -> Path:
    """A whole archive, packed anew: equal content gives equal bytes."""
    folder = bundle.folder.parent / "again"
    if not folder.exists():
        pack_store(STORE, folder)
    return folder / archive.name


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_found_without_a_seal(unsealed: Bundle, keep: float) -> None:
    size = int(ARCHIVES["platform.tar"].size * keep)
    os.truncate(unsealed.folder / "platform.tar", size)
    findings = unsealed.verify().findings
    assert {one.place for one in findings} == {"platform.tar"}
    assert any(
        "the archive ends" in one.problem or "beyond the archive's end" in one.problem
        for one in findings
    )


def test_something_behind_the_end_is_found_without_a_seal(unsealed: Bundle) -> None:
    with (unsealed.folder / "security.tar").open("ab") as file:
        file.write(bytes(9000) + b"x")
    (finding,) = unsealed.verify().findings
    size = ARCHIVES["security.tar"].size
    told = f"the end marker is damaged: the padding at byte {size + 9000} is not zero"
    assert finding.problem == told


@pytest.mark.parametrize("repository", sorted(WANTED.repositories))
def test_a_missing_blob_is_named_with_its_tags_without_a_seal(
    tmp_path: Path, repository: str
) -> None:
    content = WANTED.repository(repository)
    whole = layout_files(STORE, repository)
    for digest in (*content.blobs, *content.manifests):
        (path,) = [path for path in whole if path.endswith(digest.encoded)]
        files = {name: data for name, data in whole.items() if name != path}
        (tmp_path / "some.tar").write_bytes(tar_of(files))
        findings = Bundle(tmp_path).verify().findings
        (finding,) = [one for one in findings if one.digest == digest]
        assert finding.place == "some.tar"
        assert finding.repository == repository
        assert finding.problem.endswith(f"{digest} is missing")
        assert finding.tags


def test_a_damaged_orphan_is_found_though_nobody_needs_it(tmp_path: Path) -> None:
    path = f"blobs/sha256/{Digest.of(b'orphan').encoded}"
    (tmp_path / "platform.tar").write_bytes(tar_of({**layout_files(STORE, ""), path: b"orphaN"}))
    (finding,) = Bundle(tmp_path).verify().findings
    assert finding.digest == Digest.of(b"orphan")
    assert finding.tags == ()


def test_damage_in_a_legacy_archive_is_named_by_the_module_s_repository(tmp_path: Path) -> None:
    files = layout_files(STORE, "modules/console", prefix="")
    path = f"blobs/sha256/{Digest.of(b'console').encoded}"
    (tmp_path / "module-console.tar").write_bytes(tar_of({**files, path: b"konsole"}))
    (finding,) = Bundle(tmp_path).verify().findings
    assert (finding.place, finding.repository) == ("module-console.tar", "modules/console")
    assert finding.tags == ("v0.1.0",)


# -- failures that are none of the bundle's --------------------------------------------------------


def test_a_bad_sector_is_a_finding_and_hides_no_other(
    sealed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = ARCHIVES["platform.tar"]
    bad = max((one for one in archive.entries if one.content is None), key=lambda one: one.size)
    sealed.flip("security.tar", 700)
    real = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        hit = offset < bad.data_offset + bad.size and offset + size > bad.data_offset
        if name == "platform.tar" and hit:
            raise OSError(5, "Input/output error")
        return real(fd, size, offset)

    with BundleReader([sealed.folder]) as reader:
        monkeypatch.setattr(os, "pread", failing)
        findings = verify_bundle(reader).findings
    told = {one.place: one for one in findings}
    assert told.keys() == {"platform.tar", "security.tar"}
    finding = told["platform.tar"]
    assert (finding.repository, finding.digest) == (bad.repository, bad.digest)
    assert "Input/output error; the medium is failing" in finding.problem


def test_a_bad_sector_in_a_header_is_a_finding_too(
    sealed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if name == "security.tar" and offset == 0:
            raise OSError(5, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    findings = sealed.verify().findings
    assert {one.place for one in findings} == {"security.tar"}
    assert any("Input/output error" in one.problem for one in findings)


def test_what_was_taken_out_of_an_archive_is_named_and_nothing_else(sealed: Bundle) -> None:
    """Other tools close the gap: everything behind it lies elsewhere, and is right."""
    archive = ARCHIVES["platform.tar"]
    lost = [one for one in archive.entries if one.content is None][3]
    path = sealed.folder / archive.name
    with closing(ReadAt(path)) as file:
        kept = {one.path: file.read(one.offset, one.size) for one in members(file)}
    del kept[lost.path]
    path.write_bytes(tar_of(kept))
    first, *others = sorted(sealed.verify().findings, key=lambda one: one.digest is not None)
    assert first.problem.startswith(f"has {path.stat().st_size} bytes instead of {archive.size}")
    assert {(one.repository, one.digest) for one in others} == {(lost.repository, lost.digest)}
    assert others[0].problem == f"blob {lost.digest} is missing"


def test_a_cancelled_verification_says_so(sealed: Bundle) -> None:
    cancel = Cancellation()

    def on_event(event: Event) -> None:
        if isinstance(event, BlobDone):
            cancel.cancel()

    with pytest.raises(CancelledError, match="stopped on request"):
        sealed.verify(Run(2, on_event, cancel))


def test_a_verification_changes_nothing(sealed: Bundle) -> None:
    sealed.flip("platform.tar", 5000)
    before = {path.name: path.read_bytes() for path in sealed.folder.iterdir()}
    assert sealed.verify().findings
    assert {path.name: path.read_bytes() for path in sealed.folder.iterdir()} == before


def test_bytes_are_read_in_no_more_threads_however_much_hosts_bear(packed: Path) -> None:
    """A bundle may lie far away, and each thread holds pieces of it."""
    names: set[str] = set()

    def hear(_event: Event) -> None:
        names.update(thread.name for thread in threading.enumerate())

    run = Run(2, hear, widest=64)
    run.width.bears = 64
    assert not Bundle(packed).verify(run).findings
    assert {name for name in names if name.startswith("mirror_")} <= {"mirror_0", "mirror_1"}
