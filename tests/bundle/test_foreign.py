"""Bundles of `d8 mirror` that are not what they seem: told, and taken where somebody says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.bundle.files import PartedReader
from mirror.bundle.format import part_name
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.verify import verify_bundle
from mirror.errors import DamagedBundleError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import MemoryStore
from mirror.testing import EmbeddedRegistry
from tests.support.inventories import put_image, put_index
from tests.support.program import call_mirror
from tests.support.tars import layout_files, tar_of


@contextmanager
def opened(folder: Path, *, flattened: bool = False) -> Iterator[BundleReader]:
    with BundleReader([folder], flattened=flattened) as reader:
        yield reader


# -- multi-arch images that were reduced to one platform -------------------------------------------


def flattened_bundle(folder: Path, repository: str, archive: str) -> tuple[Digest, Digest]:
    """A bundle as d8 makes it of a multi-arch component: the digest of the whole, and of what is
    there in its place."""
    source, packed = MemoryStore(), MemoryStore()
    children = [put_image(source, repository, layers=(name,)) for name in (b"amd64", b"arm64")]
    whole = put_index(source, repository, children=children)
    child = put_image(packed, repository, "v1.70.0", layers=(b"amd64",))
    packed.put_tag(repository, whole.encoded, packed.manifest(repository, child))
    folder.mkdir()
    (folder / archive).write_bytes(tar_of(layout_files(packed, repository)))
    return whole, child


@pytest.mark.parametrize(
    ("repository", "archive"), [("", "platform.tar"), ("modules/console", "module-console.tar")]
)
def test_a_verification_names_each_image_of_which_one_platform_is_left(
    tmp_path: Path, repository: str, archive: str
) -> None:
    whole, child = flattened_bundle(tmp_path / "d8", repository, archive)
    with opened(tmp_path / "d8") as reader:
        (finding,) = verify_bundle(reader, run=Run()).findings
    assert (finding.place, finding.repository, finding.tags) == (
        archive,
        repository,
        (whole.encoded,),
    )
    assert finding.problem == (
        f"of the multi-arch image {whole} only the image for one platform is there, {child}"
    )
    call_mirror("verify", tmp_path / "d8").failed(4)


def test_a_push_refuses_them_until_they_are_accepted(
    tmp_path: Path, embedded_registry: EmbeddedRegistry
) -> None:
    whole, _ = flattened_bundle(tmp_path / "d8", "", "platform.tar")
    push = ("push", tmp_path / "d8", f"{embedded_registry.address}/dkp/ee", "--insecure")
    for more in ((), ("--dry-run",)):
        call_mirror(*push, *more).failed(
            4, "1 multi-arch images", "d8", str(whole), "`mirror pull`", "--accept-flattened"
        )
    assert embedded_registry.requests.count("PUT") == 0
    run = call_mirror(*push, "--accept-flattened").succeeded()
    assert "1 multi-arch images are there for one platform only" in run.stderr
    call_mirror(
        *("verify", tmp_path / "d8", "--insecure", "--against"),
        f"{embedded_registry.address}/dkp/ee",
    ).failed(4)


def test_what_is_there_of_them_can_still_be_read_and_compared(tmp_path: Path) -> None:
    whole, child = flattened_bundle(tmp_path / "d8", "", "platform.tar")
    assert read_inventory(tmp_path / "d8").repository("").tags[whole.encoded] == child
    call_mirror("inspect", tmp_path / "d8").succeeded()
    with opened(tmp_path / "d8", flattened=True) as reader:
        assert reader.inventory().repository("").tags[whole.encoded] == child


def test_a_merge_does_not_hide_them_under_a_seal(tmp_path: Path) -> None:
    flattened_bundle(tmp_path / "d8", "", "platform.tar")
    run = call_mirror("merge", tmp_path / "d8", tmp_path / "out")
    assert run.code != 0
    assert not (tmp_path / "out" / "inventory.json").exists()


def test_an_image_under_the_hex_of_its_own_digest_or_beside_the_whole_is_whole(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    child = put_image(store, "")
    whole = put_index(store, "", children=[child])
    store.put_tag("", child.encoded, store.manifest("", child))
    store.put_tag("", whole.encoded, store.manifest("", whole))
    store.put_tag("", f"sha256-{whole.encoded}.att", store.manifest("", child))
    (tmp_path / "platform.tar").write_bytes(tar_of(layout_files(store, "")))
    with opened(tmp_path) as reader:
        assert verify_bundle(reader).findings == ()
        assert reader.inventory() == store.inventory()


# -- archives that contradict each other -----------------------------------------------------------


@pytest.mark.parametrize("name", ["redis", "zeta"])
def test_the_packages_own_archive_counts_before_the_descriptions_of_all(
    tmp_path: Path, name: str
) -> None:
    path = f"packages/{name}/version"
    own, others = MemoryStore(), MemoryStore()
    taken = put_image(own, path, "stable", "v1.0.0", layers=(b"own",))
    older = put_image(others, path, "stable", "v0.9.0", layers=(b"of all",))
    (tmp_path / f"package-{name}.tar").write_bytes(tar_of(layout_files(own, path)))
    (tmp_path / "package-versions.tar").write_bytes(tar_of(layout_files(others, path)))
    with opened(tmp_path) as reader:
        tags = reader.inventory().repository(path).tags
        assert tags == {"stable": taken, "v1.0.0": taken, "v0.9.0": older}
        (notice,) = reader.contents.notices
        assert notice == (
            f"{path}:stable is {older} in package-versions.tar and {taken} in "
            f"package-{name}.tar; that of package-{name}.tar counts"
        )
        assert verify_bundle(reader).findings == ()


def test_archives_that_agree_are_not_worth_a_word(tmp_path: Path) -> None:
    path = "packages/redis/version"
    store = MemoryStore()
    put_image(store, path, "stable")
    for name in ("package-redis.tar", "package-versions.tar"):
        (tmp_path / name).write_bytes(tar_of(layout_files(store, path)))
    with opened(tmp_path) as reader:
        assert reader.inventory() == store.inventory()
        assert reader.contents.notices == ()


def test_a_push_tells_which_archive_counts(
    tmp_path: Path, embedded_registry: EmbeddedRegistry
) -> None:
    for name, text in (("module-a.tar", b"1"), ("module-b.tar", b"2")):
        store = MemoryStore()
        put_image(store, "modules/a", "v1.0.0", layers=(text,))
        (tmp_path / name).write_bytes(tar_of(layout_files(store, "modules/a")))
    root = f"{embedded_registry.address}/dkp/ee"
    run = call_mirror("push", tmp_path, root, "--insecure").succeeded()
    assert "modules/a:v1.0.0 is sha256:" in run.stderr
    assert "that of module-b.tar counts" in run.stderr


# -- parts without a seal --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_last_part_is_suggested_where_no_seal_knows_how_many_there_are(
    tmp_path: Path, missing: int
) -> None:
    store = MemoryStore()
    put_image(store, "", "v1.0.0", layers=(bytes(3000),))
    data = tar_of(layout_files(store, ""))
    size = len(data) // 4
    pieces = [data[start : start + size] for start in range(0, len(data), size)][:-missing]
    for number, piece in enumerate(pieces):
        (tmp_path / part_name("platform.tar", number)).write_bytes(piece)
    last = part_name("platform.tar", len(pieces) - 1)
    told = f"the part behind {last} seems to be missing, copy it too, or else {last} again"
    with opened(tmp_path) as reader:
        assert isinstance(reader._archives[0].file, PartedReader)
        assert any(told in one.problem for one in verify_bundle(reader).findings)
        with pytest.raises(DamagedBundleError, match="seems to be missing"):
            reader.inventory()


def test_an_archive_in_one_piece_that_was_cut_is_called_that(tmp_path: Path) -> None:
    store = MemoryStore()
    put_image(store, "", "v1.0.0", layers=(bytes(3000),))
    (tmp_path / "platform.tar").write_bytes(tar_of(layout_files(store, ""))[:-1024])
    call_mirror("verify", tmp_path).failed(4)
    with opened(tmp_path) as reader:
        (finding,) = verify_bundle(reader).findings
    assert finding.problem.endswith(
        "the archive ends without its end marker; the archive was cut short, copy it again from "
        "its origin"
    )
