from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mirror.bundle.format import part_name
from mirror.bundle.reader import BundleReader, find_archives
from mirror.bundle.verify import verify_bundle
from mirror.errors import DamagedBundleError, FileSystemError, InputError, NotFoundError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, make_plan, transfer, union
from tests.support.bundles import pack, pack_store
from tests.support.inventories import put_image, sample_store
from tests.support.tars import layout_files, tar_of

STORE = sample_store()
WANTED = STORE.inventory()


# -- which files are a bundle ----------------------------------------------------------------------


def test_archives_are_found_by_name_and_other_files_do_not_matter(tmp_path: Path) -> None:
    for name in ("platform.tar", "module-x.tar", "x.tar.gostsum", "a.txt", "b.tar.partial"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/other.tar").write_bytes(b"")
    names = [path.name for path in find_archives([tmp_path])]
    assert names == ["module-x.tar", "platform.tar"]
    more = find_archives([tmp_path / "platform.tar", tmp_path, tmp_path / "deep"])
    assert [path.name for path in more] == ["module-x.tar", "other.tar", "platform.tar"]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([], "it has no *.tar file$"),
        (
            ["platform.tar.partial"],
            "; a pull into it was not finished, run it again, or give it up with `mirror cl",
        ),
    ],
)
def test_a_folder_without_archives_gets_a_hint(tmp_path: Path, names: list[str], hint: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"^{tmp_path} holds no bundle: ") as caught:
        find_archives([tmp_path])
    assert hint.removesuffix("$") in str(caught.value)


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}/x does not exist; name a bundle's folder"):
        BundleReader([tmp_path / "x"])


def test_a_pipe_is_no_archive_whatever_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "platform.tar")
    with pytest.raises(InputError, match="holds no bundle"):
        BundleReader([tmp_path])


# -- reading in place ------------------------------------------------------------------------------


def test_a_bundle_is_a_source_that_needs_no_unpacking(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with BundleReader([tmp_path]) as reader:
        assert reader.name == f"bundle {tmp_path}"
        assert reader.inventory() == WANTED
        target = MemoryStore()
        transfer(make_plan(WANTED, Inventory()), reader, target, run=Run(jobs=4))
        for path, content in WANTED.repositories.items():
            for digest in content.manifests:
                assert reader.manifest(path, digest) == STORE.manifest(path, digest)
    assert target.inventory() == WANTED
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_blob_is_read_from_any_offset(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    data = b"base layer " * 300
    with BundleReader([tmp_path]) as reader:
        for offset in (0, 1, 511, 512, 513, len(data) - 1, len(data)):
            chunks = reader.blob("modules/console", Digest.of(data), len(data), offset)
            assert b"".join(chunks) == data[offset:]


def test_what_a_bundle_does_not_hold_is_told(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    with BundleReader([tmp_path]) as reader:
        nothing = Digest.of(b"nothing")
        with pytest.raises(NotFoundError, match=f"bundle {tmp_path}: no manifest {nothing} in /"):
            reader.manifest("", nothing)
        with pytest.raises(NotFoundError, match=f"bundle {tmp_path}: no blob {nothing} in install"):
            b"".join(reader.blob("install", nothing, 7))
        data = b"component"
        with pytest.raises(NotFoundError, match="no blob"):  # it is not in that repository
            b"".join(reader.blob("release-channel", Digest.of(data), len(data)))
        with pytest.raises(NotFoundError, match="no blob"):  # nor of that length anywhere
            b"".join(reader.blob("", Digest.of(data), len(data) + 1))


def test_a_legacy_archive_answers_for_its_own_module_only(tmp_path: Path) -> None:
    store = MemoryStore()
    put_image(store, "modules/console", "v1", layers=(b"module",))
    files = layout_files(store, "modules/console", prefix="")
    (tmp_path / "module-console.tar").write_bytes(tar_of(files))
    with BundleReader([tmp_path]) as reader:
        digest = Digest.of(b"module")
        assert b"".join(reader.blob("modules/console", digest, 6)) == b"module"
        for other in ("", "modules", "modules/console-pro", "modules/other"):
            with pytest.raises(NotFoundError, match="no blob"):
                b"".join(reader.blob(other, digest, 6))


def test_folders_and_archives_make_one_bundle_together(tmp_path: Path) -> None:
    one, other = MemoryStore(), MemoryStore()
    put_image(one, "", "v1.0.0", "latest", layers=(b"1",))
    put_image(other, "", "v1.1.0", "latest", layers=(b"2",))
    for name, store in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "platform.tar").write_bytes(tar_of(layout_files(store, "")))
    with BundleReader([tmp_path / "one", tmp_path / "other/platform.tar"]) as reader:
        assert reader._seal is None
        assert reader.inventory() == union([one.inventory(), other.inventory()])
        assert reader.contents.archives == {"platform.tar": reader.inventory()}
        target = MemoryStore()
        transfer(make_plan(reader.inventory(), Inventory()), reader, target)
    assert target.inventory() == reader.contents.inventory


def test_closing_lets_go_of_every_file(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)

    def held() -> int:
        return sum(path.is_relative_to(tmp_path) for path in _opened().values())

    with BundleReader([tmp_path]) as reader:
        assert held() == len(reader._archives) == 4
    assert held() == 0
    reader.close()  # harmless


def test_an_archive_that_fails_to_open_leaves_no_other_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(STORE, tmp_path)
    before = _opened()
    real = os.open

    def failing(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("security.tar"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(FileSystemError, match=r"cannot open .*security.tar: Permission denied"):
        BundleReader([tmp_path])
    monkeypatch.undo()
    assert _opened() == before


def test_loose_archives_beside_a_folder_do_not_lift_its_seal(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path / "a")
    other = MemoryStore()
    put_image(other, "modules/more", "v1")
    pack_store(other, tmp_path / "b")
    (tmp_path / "a/security.tar").unlink()
    extra = tmp_path / "b/module-more.tar"
    with (
        BundleReader([tmp_path / "a", extra]) as reader,
        pytest.raises(DamagedBundleError, match=r"security.tar.*: the archive is missing"),
    ):
        reader.inventory()


def test_a_foreign_archive_in_a_sealed_folder_is_named(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    shutil.copy(tmp_path / "security.tar", tmp_path / "module-evil.tar")
    with (
        BundleReader([tmp_path]) as reader,
        pytest.raises(DamagedBundleError, match=r"module-evil.tar: is not listed in inventory"),
    ):
        reader.inventory()


# -- parts -------------------------------------------------------------------------------------


def _cut(folder: Path, size: int) -> None:
    """Cut every archive in a folder into parts."""
    for path in sorted(folder.glob("*.tar")):
        data = path.read_bytes()
        for number, start in enumerate(range(0, len(data), size)):
            part = path.with_name(part_name(path.name, number))
            part.write_bytes(data[start : start + size])
        path.unlink()


@pytest.mark.parametrize("size", [512, 1000, 4096])
def test_a_bundle_in_parts_is_read_like_a_whole_one(tmp_path: Path, size: int) -> None:
    pack_store(STORE, tmp_path)
    _cut(tmp_path, size)
    with BundleReader([tmp_path]) as reader:
        inventory = reader.inventory()
        assert inventory == WANTED
        assert not verify_bundle(reader).findings
        copy = MemoryStore()
        transfer(make_plan(inventory, Inventory()), reader, copy)
    assert copy.inventory() == WANTED
    one = tmp_path / "security.tar.0000.chunk"
    with BundleReader([one]) as reader:
        assert set(reader.inventory().repositories) == {"security/trivy-db"}


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_missing_part_is_named(tmp_path: Path, number: int) -> None:
    pack_store(STORE, tmp_path)
    _cut(tmp_path, 1000)
    lost = sorted(tmp_path.glob("platform.tar.*.chunk"))[number]
    lost.unlink()
    with BundleReader([tmp_path]) as reader:
        told = f"{lost.name} of [0-9]+ parts is missing"
        with pytest.raises(DamagedBundleError, match=told):
            reader.inventory()
        assert re.search(told, str(verify_bundle(reader).findings))


def test_whatever_is_wrong_with_parts_is_told_of_all_archives_at_once(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    _cut(tmp_path, 1000)
    numbered = sorted(tmp_path.glob("platform.tar.*.chunk"))
    short, lost = tmp_path / "security.tar.0000.chunk", numbered[2]
    short.write_bytes(short.read_bytes()[:100])
    lost.unlink()
    with BundleReader([tmp_path]) as reader:
        for quick in (False, True):
            told = [str(one) for one in verify_bundle(reader, quick=quick).findings]
            told = [one for one in told if "SHA256SUMS" not in one and "cannot be read" not in one]
            assert len(told) == 2
            assert f"platform.tar: {lost.name} of {len(numbered)} parts is missing" in told[0]
            assert f"security.tar: {short.name} has 100 bytes instead of 1000" in told[1]


def test_a_foreign_part_is_named(tmp_path: Path) -> None:
    pack(STORE, WANTED, tmp_path, part_size=1000)
    first, other = (tmp_path / f"platform.tar.{number:04}.chunk" for number in (1, 2))
    first.write_bytes(other.read_bytes())
    with BundleReader([tmp_path]) as reader:
        told = [str(one) for one in verify_bundle(reader).findings]
        quick = [str(one) for one in verify_bundle(reader, quick=True).findings]
    assert f"{first.name}: is damaged: SHA256SUMS has another digest; copy this part again" in told
    assert not any(one.startswith(other.name) for one in told)
    assert quick
    assert all(first.name in one for one in quick)


def test_an_archive_that_is_there_whole_and_in_parts_is_refused(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    (tmp_path / "security.tar.0000.chunk").write_bytes(b"older")
    with pytest.raises(InputError, match=r"security.tar is there whole and in parts"):
        BundleReader([tmp_path])


def _opened() -> dict[int, Path]:
    """Every descriptor that is open now, with what it leads to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself is gone by now
            found[int(entry.name)] = entry.readlink()
    return found


# -- the seal --------------------------------------------------------------------------------------


def test_a_sealed_bundle_without_one_of_its_archives_is_refused(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    (tmp_path / "module-console.tar").unlink()
    with BundleReader([tmp_path]) as reader, pytest.raises(DamagedBundleError) as caught:
        reader.inventory()
    message = str(caught.value)
    assert message.startswith(f"bundle {tmp_path} is damaged or incomplete; copy it again from")
    assert (
        "\n  module-console.tar: repository modules/console, tag v0.1.0: the archive is missing"
        in message
    )
    assert "module-console.tar: repository modules/console/release, tags stable, v0.1.0" in message


def test_a_seal_alone_is_a_bundle_that_lacks_everything(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    with (
        BundleReader([tmp_path]) as reader,
        pytest.raises(DamagedBundleError, match=r"platform.tar: .*the archive is missing"),
    ):
        reader.inventory()


def test_archives_of_another_bundle_under_a_seal_are_refused(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path / "one")
    other = sample_store()
    put_image(other, "security/trivy-bdu", "1", layers=(b"newer",), artifact=True)
    pack_store(other, tmp_path / "other")
    (tmp_path / "other/security.tar").replace(tmp_path / "one/security.tar")
    with (
        BundleReader([tmp_path / "one"]) as reader,
        pytest.raises(DamagedBundleError, match=r"inventory.json: the archives hold other images"),
    ):
        reader.inventory()


def test_a_damaged_seal_is_refused_at_once(tmp_path: Path) -> None:
    pack_store(STORE, tmp_path)
    seal = tmp_path / "inventory.json"
    seal.write_bytes(seal.read_bytes().replace(b"v1.0.0", b"v1.0.1", 1))
    told = f"^{seal}: its bytes were changed: .*; copy it again from its origin$"
    with pytest.raises(DamagedBundleError, match=told):
        BundleReader([tmp_path])
    with BundleReader([tmp_path / "platform.tar"]) as reader:  # an archive on its own has none
        assert reader._seal is None
        assert "v1.0.0" in reader.inventory().repository("").tags
