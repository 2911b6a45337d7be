"""A bundle in a bucket (versitygw) is read where it lies, and judged as it would be in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.location import RemotePath
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.errors import ConflictError, InputError
from mirror.operations.merge import merge
from mirror.operations.push import push
from mirror.run import Run
from mirror.testing import Answer, CutResponse, Fault, FaultyProxy
from tests.support.bundles import pack
from tests.support.inventories import sample_store
from tests.support.object_storage import ObjectStorage
from tests.support.program import call_mirror
from tests.support.replicas import replicas

STORE = sample_store()
WANTED = STORE.inventory()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    folder = tmp_path_factory.mktemp("storage")
    with ObjectStorage.of_this_process(folder) as server:
        pack(STORE, WANTED, folder / "bundle", part_size=100_000)
        put(server, folder / "bundle", "bundle")
        yield server


def put(server: ObjectStorage, folder: Path, prefix: str) -> None:
    """Bring the files of a folder to a place in the bucket."""
    bucket = server.bucket(prefix)
    for file in folder.iterdir():
        bucket.put(file.name, file.read_bytes(), Run())
    bucket.close()


@pytest.fixture
def folder(storage: ObjectStorage) -> Path:
    """The files that the storage has of the bundle."""
    return storage.root / storage.BUCKET / "bundle"


@pytest.fixture
def proxy(storage: ObjectStorage) -> Iterator[FaultyProxy]:
    with FaultyProxy(f"http://{storage.address}") as proxy:
        yield proxy


@pytest.fixture
def place(storage: ObjectStorage, proxy: FaultyProxy) -> Iterator[RemotePath]:
    with RemotePath(storage.bucket("bundle", address=proxy.address)) as place:
        yield place


def verified(place: Path | RemotePath) -> BundleReport:
    with BundleReader([place]) as reader:
        return verify_bundle(reader, run=Run(jobs=3))


def test_a_verification_finds_what_it_finds_in_the_folder_and_fetches_each_byte_once(
    place: RemotePath, folder: Path, proxy: FaultyProxy
) -> None:
    report = verified(place)
    assert report == verified(folder)
    assert report.findings == ()
    fetched = sum(one.sent for one in proxy.requests.matching("GET", r"\.tar"))
    assert fetched == sum(file.stat().st_size for file in folder.glob("*.tar*"))


def test_what_breaks_is_continued_and_asked_for_with_a_signature_of_its_own(
    place: RemotePath, folder: Path, proxy: FaultyProxy
) -> None:
    slow = b"<Error><Code>SlowDown</Code></Error>"
    proxy.faults.add(
        Fault(CutResponse(after=40_000, reset=True), "GET", r"\.tar", nth=2),
        Fault(Answer(503, {"Content-Type": "application/xml"}, slow), "GET", r"\.tar", nth=3),
    )
    assert verified(place) == verified(folder)
    assert proxy.faults.struck == 2


def test_an_object_that_is_replaced_is_noticed(
    storage: ObjectStorage, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    put(storage, copy, "changing")
    with (
        RemotePath(storage.bucket("changing")) as place,
        BundleReader([place]) as reader,
    ):
        for file in copy.glob("*.tar*"):
            file.write_bytes(file.read_bytes()[::-1])
        put(storage, copy, "changing")
        with pytest.raises(ConflictError, match="was changed while it was read"):
            verify_bundle(reader)


def test_a_bundle_without_seal_and_sums_is_read_as_well_since_a_bucket_is_listed(
    storage: ObjectStorage, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("inventory.json", "SHA256SUMS"):
        (copy / name).unlink()
    put(storage, copy, "unsealed")
    with RemotePath(storage.bucket("unsealed")) as place:
        assert verified(place) == verified(copy)
    with (
        RemotePath(storage.bucket("nowhere")) as nowhere,
        pytest.raises(InputError, match="holds no bundle"),
    ):
        BundleReader([nowhere])


def test_a_push_and_a_merge_take_from_it(place: RemotePath, folder: Path, tmp_path: Path) -> None:
    with replicas(1) as (one,), BundleReader([place]) as reader:
        push(reader, one.tree, run=Run(jobs=3))
        assert push(reader, one.tree).plan.blobs == ()
    with BundleReader([place]) as reader:
        merge([reader], tmp_path / "out")
    assert verified(tmp_path / "out").findings == ()
    assert read_inventory(place) == WANTED


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_commands_take_its_address(storage: ObjectStorage, folder: Path, command: str) -> None:
    address = f"s3://{storage.BUCKET}/bundle"
    there = call_mirror(command, address, "--json", env=storage.environment()).succeeded().document
    here = call_mirror(command, folder, "--json").succeeded().document
    for document in (there, here):
        for name in ("elapsedSeconds", "written", "bundle", "name"):
            document.pop(name, None)
    assert there == here
