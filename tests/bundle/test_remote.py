"""A bundle on a web server (nginx) is read where it lies, and judged as it would be in a folder."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.location import RemotePath
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.static_server import remote_folder
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.errors import (
    CancelledError,
    ConflictError,
    DeniedError,
    InputError,
    MirrorError,
    RegistryError,
)
from mirror.operations.merge import merge
from mirror.operations.push import push
from mirror.operations.repair import repair
from mirror.registry import ConnectionOptions
from mirror.registry.options import RetryPolicy
from mirror.run import Cancellation, Run
from mirror.serve.store import BundleStorage
from mirror.testing import (
    Answer,
    ChangeHeaders,
    CutResponse,
    Fault,
    FaultyProxy,
    IgnoreRange,
    RecordedRequest,
    Refuse,
    ShiftRange,
    Stall,
)
from tests.support.bundles import BIG, STORE, WANTED, in_parts, pack_store, plain
from tests.support.nginx import Nginx
from tests.support.patience import wait_until, without_waiting
from tests.support.replicas import replicas

AT_ONCE = RetryPolicy(attempts=3, sleep=lambda _seconds: None)


def compressed_in_parts(folder: Path) -> None:
    pack_store(STORE, folder.with_name("before"))
    with BundleReader([folder.with_name("before")]) as reader:
        merge([reader], folder, packing=Packing(compress=True, part_size=10**6))


FORMS = [plain, in_parts, compressed_in_parts]


@dataclass
class Served:
    """Bundles in folders below `root`, which a web server serves, through a proxy that fails."""

    root: Path
    proxy: FaultyProxy

    def at(self, name: str, options: ConnectionOptions | None = None) -> RemotePath:
        """The folder `name`, as a client sees it."""
        options = options or ConnectionOptions(plain_http=True, retries=AT_ONCE)
        return remote_folder(f"http://{self.proxy.address}/{name}", options=options)

    def verify(self, name: str, *, quick: bool = False) -> BundleReport:
        with self.at(name) as place, BundleReader([place]) as reader:
            return verify_bundle(reader, run=Run(jobs=3), quick=quick)

    def requests(self) -> list[RecordedRequest]:
        """Those that asked for bytes of archives."""
        return self.proxy.requests.matching("GET", r"\.tar")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("nginx")
    root = folder / "files"
    root.mkdir()
    for form in FORMS:
        form(root / form.__name__)
    with Nginx(folder / "server", files=root) as server:
        yield root, server.url


@pytest.fixture
def served(nginx: tuple[Path, str]) -> Iterator[Served]:
    with FaultyProxy(nginx[1]) as proxy:
        yield Served(nginx[0], proxy)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest) -> str:
    found: Callable[[Path], None] = request.param
    return found.__name__


@pytest.fixture
def damaged(served: Served, form: str) -> Iterator[Path]:
    """A copy of a bundle, to be damaged, beside it."""
    copy = served.root / "damaged"
    shutil.copytree(served.root / form, copy)
    yield copy
    shutil.rmtree(copy)


def in_folder(folder: Path, *, quick: bool = False) -> BundleReport:
    with BundleReader([folder]) as reader:
        return verify_bundle(reader, run=Run(jobs=3), quick=quick)


def ranges(requests: list[RecordedRequest]) -> dict[str, list[tuple[int, int]]]:
    """File → the stretches of it that were asked for, sorted."""
    found: dict[str, list[tuple[int, int]]] = {}
    for one in requests:
        first, last = one.headers["range"].removeprefix("bytes=").split("-")
        found.setdefault(one.path.rpartition("/")[2], []).append((int(first), int(last) + 1))
    return {name: sorted(stretches) for name, stretches in found.items()}


# -- verification ----------------------------------------------------------------------------------


def test_a_verification_finds_what_it_finds_in_the_folder_and_fetches_each_byte_once(
    served: Served, form: str
) -> None:
    report = served.verify(form)
    assert report == in_folder(served.root / form)
    assert report.findings == ()
    asked = ranges(served.requests())
    table = 1000 if form.startswith("compressed") else 0  # bytes that tell where the frames begin
    for file in (served.root / form).glob("*.tar*"):
        twice = before = 0
        for start, end in asked[file.name]:
            assert start <= before, f"bytes {before} to {start} of {file.name} were left out"
            twice += min(before, end) - start
            before = max(before, end)
        assert before == file.stat().st_size
        assert twice <= table


def test_neighbours_come_in_one_answer(served: Served) -> None:
    served.verify("plain")
    files = {one.path for one in served.requests()}
    entries = sum(len(content.blobs) for content in WANTED.repositories.values())
    assert len(served.requests()) <= len(files) + 2 < entries


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_found_at_the_same_place_with_the_same_words(
    served: Served, damaged: Path, seed: int
) -> None:
    chance = random.Random(seed)
    files = sorted(damaged.glob("*.tar*"))
    file = max(files, key=lambda one: one.stat().st_size) if seed < 2 else chance.choice(files)
    data = bytearray(file.read_bytes())
    if seed == 5:
        del data[-chance.randrange(1, len(data)) :]
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    if seed == 4:
        (damaged / "SHA256SUMS").unlink()
    for quick in (False, True):
        here = in_folder(damaged, quick=quick)
        if seed != 4 or not file.name.endswith(".chunk"):
            assert served.verify(damaged.name, quick=quick).findings == here.findings
    assert in_folder(damaged).findings


def test_a_quick_verification_reads_no_layer(served: Served) -> None:
    report = served.verify("plain", quick=True)
    assert report == in_folder(served.root / "plain", quick=True)
    assert sum(one.sent for one in served.requests()) < len(BIG) / 4


# -- other commands --------------------------------------------------------------------------------


def test_what_is_inside_is_told_from_indexes_and_manifests_alone(served: Served, form: str) -> None:
    with served.at(form) as place, BundleReader([place]) as reader:
        there = inspect_bundle(reader)
    with BundleReader([served.root / form]) as reader:
        here = inspect_bundle(reader)
    assert replace(there, name="", written=None) == replace(here, name="", written=None)
    with served.at(form) as place:
        assert read_inventory(place) == WANTED


def test_a_push_of_what_the_registry_holds_fetches_seal_and_manifests_alone(
    served: Served, form: str
) -> None:
    with replicas(1) as (one,), served.at(form) as place, BundleReader([place]) as reader:
        push(reader, one.tree, run=Run(jobs=3))
        served.proxy.requests.clear()
        with served.at(form) as again, BundleReader([again]) as same:
            report = push(same, one.tree, run=Run(jobs=3))
    assert report.plan.blobs == ()
    if form != "compressed_in_parts":  # where a manifest lies in a frame with others
        assert sum(request.sent for request in served.requests()) < 200_000


def test_a_merge_makes_the_same_bytes(served: Served, form: str, tmp_path: Path) -> None:
    with served.at(form) as place, BundleReader([place]) as reader:
        merge([reader], tmp_path / "out", run=Run(jobs=3))
    for file in (served.root / "plain").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_repair_takes_what_is_damaged_and_nothing_else(served: Served, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(served.root / "plain", tmp_path / "bundle"))
    archive = next(one for one in folder.glob("*.tar") if one.stat().st_size > len(BIG))
    data = bytearray(archive.read_bytes())
    data[data.index(BIG) + 1000] ^= 1
    archive.write_bytes(data)
    (folder / "inventory.json").unlink()
    with served.at("plain") as place:
        report = repair(folder, [place], run=Run(jobs=3))
    assert report.verified.findings == ()
    assert sum(one.sent for one in served.requests()) < 1.1 * len(BIG)


def test_a_store_serves_blobs_from_where_they_lie(served: Served, form: str) -> None:
    with served.at(form) as place, BundleReader([place]) as reader:
        storage = BundleStorage(reader, root="x")
        for path, content in WANTED.repositories.items():
            for digest, size in content.blobs.items():
                blob = storage.open_blob(f"x/{path}".rstrip("/"), digest)
                assert blob is not None
                assert not blob.pieces(0, size)
                assert blob.read_at(0, size) == b"".join(STORE.blob(path, digest, size))


# -- the network and the server --------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [CutResponse(after=70_000), CutResponse(after=1, reset=True), Refuse(), Answer(503)],
    ids=lambda action: type(action).__name__,
)
def test_what_breaks_is_continued_at_the_byte_reached(
    served: Served, form: str, action: CutResponse | Refuse | Answer
) -> None:
    served.proxy.faults.add(Fault(action, "GET", r"\.tar"), Fault(action, "GET", r"\.tar", nth=4))
    assert served.verify(form) == in_folder(served.root / form)
    assert served.proxy.faults.struck == 2


@pytest.mark.parametrize(
    ("action", "kind", "told"),
    [
        (IgnoreRange(), RegistryError, "sends the whole file: it serves no ranges; use a server"),
        (ShiftRange(5), RegistryError, r"asked for bytes .* answers with 'bytes .*mishandles"),
        (ChangeHeaders({"ETag": '"x"'}), ConflictError, "was changed while it was read; find out"),
        (ChangeHeaders({"Content-Encoding": "br"}), RegistryError, r"file encoded \(br\); switch"),
        (Answer(404), ConflictError, "was changed while it was read"),
        (Answer(412), ConflictError, "was changed while it was read"),
        (Answer(403), DeniedError, r"denies this \(HTTP 403\).*; mirror sends no login"),
        (Answer(500), RegistryError, "has trouble"),
    ],
)
def test_a_server_that_cannot_be_relied_on_ends_the_work_and_is_no_damage(
    served: Served, action: Answer, kind: type[MirrorError], told: str
) -> None:
    served.proxy.faults.add(Fault(action, "GET", r"\.tar", nth=2, times=None))
    with pytest.raises(kind, match=told):
        served.verify("plain", quick=True)


def test_a_file_that_grows_is_noticed(served: Served, damaged: Path) -> None:
    with served.at(damaged.name) as place, BundleReader([place]) as reader:
        for file in damaged.glob("*.tar*"):
            with file.open("ab") as more:
                more.write(b"x")
        with pytest.raises((ConflictError, RegistryError), match="was changed while it was read"):
            verify_bundle(reader)


def test_a_server_that_is_silent_is_left_at_once_when_the_run_is_stopped(served: Served) -> None:
    served.proxy.faults.add(Fault(Stall(after=10, seconds=60), "GET", r"\.tar", times=None))
    cancellation = Cancellation()
    with served.at("plain") as place, BundleReader([place]) as reader:

        def stop() -> None:
            wait_until(lambda: served.proxy.faults.struck)
            cancellation.cancel()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with without_waiting(30), pytest.raises(CancelledError):
            verify_bundle(reader, run=Run(jobs=3, cancellation=cancellation))
        stopper.join()


def test_a_push_that_was_stopped_is_completed_by_another(served: Served) -> None:
    served.proxy.faults.add(Fault(Answer(403), "GET", r"\.tar", nth=8, times=None))
    with replicas(1) as (one,):
        with (
            served.at("plain") as place,
            BundleReader([place]) as reader,
            pytest.raises(MirrorError),
        ):
            push(reader, one.tree, run=Run(jobs=3))
        served.proxy.faults.clear()
        with served.at("plain") as place, BundleReader([place]) as reader:
            push(reader, one.tree, run=Run(jobs=3))
            again = push(reader, one.tree, run=Run(jobs=3))
    assert again.plan.blobs == ()


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://user:secret@files.example/x", "a user or password is not taken"),
        ("http://files.example/x", "is plain HTTP; use https, or add --insecure"),
        ("https://files.example/x?token=1", "has a query; name the folder"),
        ("https:///x", "is not an address of a bundle"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_without_telling_its_secret(
    address: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        remote_folder(address)
    assert "secret" not in str(refused.value)


def test_a_bundle_without_seal_and_sums_is_told_to_be_copied(
    served: Served, tmp_path: Path
) -> None:
    with (
        served.at("nowhere") as place,
        pytest.raises(InputError, match=r"a web server lists no files.*copy the bundle into"),
    ):
        BundleReader([place])


def test_without_a_seal_sums_tell_the_files_and_near_headers_come_in_one_answer(
    served: Served, damaged: Path
) -> None:
    (damaged / "inventory.json").unlink()
    sums = damaged / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(one for one in lines if one[0] != "#" and "json" not in one))
    with served.at(damaged.name) as place, BundleReader([place]) as reader:
        members = sum(len(archive.members) for archive in reader._archives)
    assert len(served.requests()) < members / 2
    assert served.verify(damaged.name).findings == in_folder(damaged).findings == ()


def test_names_in_sums_lead_nowhere_else(served: Served, damaged: Path) -> None:
    (damaged / "SHA256SUMS").write_text(f"{'0' * 64}  ../plain/SHA256SUMS\n{'1' * 64}  a/b\n")
    with served.at(damaged.name) as place, BundleReader([place]) as reader:
        assert verify_bundle(reader).findings
    asked = Counter(one.path for one in served.proxy.requests)
    assert all(path.startswith("/damaged/") and path.count("/") == 2 for path in asked)
