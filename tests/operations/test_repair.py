"""A damaged bundle is brought back to the byte, and nobody's wrong bytes get into it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mirror import signing
from mirror.bundle import sums
from mirror.bundle.archive import Entry, against
from mirror.bundle.format import SEAL, SUMS
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.errors import CancelledError, InputError, SignatureError
from mirror.events import BlobDone, Event
from mirror.oci import Digest
from mirror.operations.compare import verify
from mirror.operations.merge import merge
from mirror.operations.repair import RepairReport, plan_repair, repair, wanted_of
from mirror.operations.restore import Damage
from mirror.run import Cancellation, Run
from mirror.sync import Inventory, MemoryStore
from tests.support.bundles import BIG, STORE, WANTED, in_parts, pack, pack_store, plain
from tests.support.inventories import put_image
from tests.support.patience import ends_within
from tests.support.synced import Recorder


def delta(folder: Path) -> None:
    base = MemoryStore()
    put_image(base, "install", "old", layers=(b"small",))
    pack(STORE, WANTED, folder, coverage=against(base.inventory(), WANTED))


def compressed(folder: Path) -> None:
    with_options(folder, Packing(compress=True))


def compressed_in_parts(folder: Path) -> None:
    with_options(folder, Packing(compress=True, part_size=10**6))


def signed(folder: Path) -> None:
    with_options(
        folder, Packing(sign=lambda sealed: b"signed:" + Digest.of(sealed).encoded.encode())
    )


def with_options(folder: Path, packing: Packing) -> None:
    pack_store(STORE, folder.with_name("plain"))
    with BundleReader([folder.with_name("plain")]) as reader:
        merge([reader], folder, packing=packing)
    shutil.rmtree(folder.with_name("plain"))


FORMS = [plain, in_parts, delta, compressed, compressed_in_parts, signed]


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    found: Callable[[Path], None] = request.param
    return found


def test_nothing_is_written_by_a_seal_that_the_owner_of_the_key_did_not_sign(
    tmp_path: Path,
) -> None:
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with_options(tmp_path / "bundle", Packing(sign=lambda sealed: signing.sign(sealed, secret)))
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    shutil.copytree(tmp_path / "bundle", tmp_path / "lost")
    forged = MemoryStore()
    put_image(forged, "install", "v1", layers=(b"forged",))
    pack_store(forged, tmp_path / "other")
    for name in ("inventory.json", "SHA256SUMS"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "bundle" / name)
    before = {file.name: file.read_bytes() for file in (tmp_path / "bundle").iterdir()}
    with pytest.raises(SignatureError):
        repair(tmp_path / "bundle", [tmp_path / "copy"], key=public)
    assert {file.name: file.read_bytes() for file in (tmp_path / "bundle").iterdir()} == before
    for name in ("inventory.json", "inventory.json.sig"):
        (tmp_path / "lost" / name).unlink()
    assert repair(tmp_path / "lost", [tmp_path / "copy"], key=public).verified.findings == ()


@pytest.fixture
def bundle(form: Callable[[Path], None], tmp_path: Path) -> Path:
    """A whole bundle, with the same beside it in `copy`."""
    form(tmp_path / "bundle")
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    return tmp_path / "bundle"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".tar" in path.name)


def flip(path: Path, *offsets: int) -> None:
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset] ^= 1 + offset % 255
    path.write_bytes(data)


# -- what is to be done ----------------------------------------------------------------------------


def test_a_plan_fetches_content_once_and_makes_the_rest() -> None:
    index = Entry("a", 0, 512, 2, Digest.of(b"{}"), "index.json", b"{}")
    blob = Entry("a", 1024, 1536, 5, Digest.of(b"layer"))
    again = Entry("b", 1024, 1536, 5, Digest.of(b"layer"))
    damages = [Damage("x.tar", blob), Damage("x.tar", index), Damage("y.tar", again)]
    plan = plan_repair(damages)
    assert plan.made == (damages[1],)
    assert plan.fetched == {blob.digest: (damages[0], damages[2])}
    wanted = wanted_of(damages, Inventory())
    assert {path: dict(held.blobs) for path, held in wanted.repositories.items()} == {
        "a": {blob.digest: 5},
        "b": {blob.digest: 5},
    }


# -- from a copy -----------------------------------------------------------------------------------


def mended(folder: Path, *copies: Path) -> RepairReport:
    report = repair(folder, copies, run=Run(jobs=2))
    assert report.verified.findings == ()
    assert not report.lacking.repositories
    return report


def test_a_whole_bundle_is_left_as_it_is(bundle: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    report = mended(bundle, tmp_path / "copy")
    assert (report.written, report.given, report.files) == (0, {}, ())
    assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


def test_a_thousand_flipped_bytes_are_brought_back(bundle: Path, tmp_path: Path) -> None:
    chosen = random.Random(1)
    for path in archives(bundle):
        size = path.stat().st_size
        count = 1 + 1000 * size // sum(one.stat().st_size for one in archives(bundle))
        flip(path, *(chosen.randrange(size) for _ in range(count)))
    mended(bundle, tmp_path / "copy")
    assert files(bundle) == files(tmp_path / "copy")


def lost_archive(folder: Path) -> None:
    for path in archives(folder):
        if path.name.startswith(("platform", "module-console")):
            path.unlink()


def lost_first_file(folder: Path) -> None:
    archives(folder)[0].unlink()


def cut(folder: Path) -> None:
    for path in archives(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def too_long(folder: Path) -> None:
    for path in archives(folder):
        path.write_bytes(path.read_bytes() + b"more")


def shifted(folder: Path) -> None:
    path = archives(folder)[0]
    path.write_bytes(b"x" + path.read_bytes())


def lost_seal(folder: Path) -> None:
    (folder / "inventory.json").unlink()


def damaged_seal(folder: Path) -> None:
    flip(folder / "inventory.json", 100)


def lost_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def everything(folder: Path) -> None:
    damaged_seal(folder)
    flip(folder / "SHA256SUMS", 70)
    cut(folder)
    lost_archive(folder)


@pytest.mark.parametrize("form", [in_parts, compressed, signed])
@pytest.mark.parametrize(
    "damage",
    [
        *(lost_archive, lost_first_file, cut, too_long, shifted, lost_seal, damaged_seal),
        *(lost_sums, everything),
    ],
    ids=lambda damage: damage.__name__,
)
def test_whatever_was_lost_comes_from_a_copy(
    bundle: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(bundle)
    mended(bundle, tmp_path / "copy")
    assert files(bundle) == files(tmp_path / "copy")


def test_two_copies_that_are_damaged_themselves_make_one_whole(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    whole = files(tmp_path / "bundle")
    for copy in ("copy", "second"):
        shutil.copytree(tmp_path / "bundle", tmp_path / copy)
    for number, path in enumerate(archives(tmp_path / "bundle")):
        flip(path, path.stat().st_size // 2)
        for copy, parity in (("copy", 0), ("second", 1)):
            if number % 2 == parity:
                flip(tmp_path / copy / path.name, path.stat().st_size // 2)
    flip(tmp_path / "copy" / "inventory.json", 50)
    mended(tmp_path / "bundle", tmp_path / "copy", tmp_path / "second")
    assert files(tmp_path / "bundle") == whole


def test_what_follows_from_the_seal_needs_nobody(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    whole = files(tmp_path / "bundle")
    with BundleReader([tmp_path / "bundle"]) as reader:
        seal = reader._seal
    assert seal is not None
    for name, archive in seal.archives.items():
        own = [entry for entry in archive.entries if entry.content is not None]
        headers = [entry.offset + 3 for entry in archive.entries]
        flip(tmp_path / "bundle" / name, *headers, *(one.data_offset + 1 for one in own), -1)
    report = mended(tmp_path / "bundle")
    assert report.given == {}
    assert files(tmp_path / "bundle") == whole


def test_a_blob_that_lies_in_the_bundle_twice_comes_from_there(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    whole = files(tmp_path / "bundle")
    base = b"base layer " * 300
    platform = tmp_path / "bundle" / "platform.tar"
    flip(platform, platform.read_bytes().index(base) + 1000)
    report = mended(tmp_path / "bundle")
    assert report.given == {str(tmp_path / "bundle"): len(base)}
    assert files(tmp_path / "bundle") == whole


def test_a_folder_of_other_bundles_gives_what_it_has_in_common(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    whole = files(tmp_path / "bundle")
    other = MemoryStore()
    put_image(other, "modules/other", "v7", layers=(BIG,))
    pack_store(other, tmp_path / "other")
    flip(tmp_path / "bundle" / "platform.tar", 1_000_000)
    report = mended(tmp_path / "bundle", tmp_path / "other")
    assert report.given == {str(tmp_path / "other"): len(BIG)}
    assert report.written == 1 << 20  # and not all of the layer
    assert files(tmp_path / "bundle") == whole


def test_the_sums_of_a_copy_bring_no_other_files(tmp_path: Path) -> None:
    """Nobody signs its lines: whoever has the copy may add the program of his choice."""
    own, copy = tmp_path / "own", tmp_path / "copy"
    plain(own)
    shutil.copytree(own, copy)
    (own / SUMS).unlink()
    names = ("mirror", "README.md", ".hidden", "pull.journal.partial", "platform.tar.partial")
    stated = sums.parse_whole((copy / SUMS).read_bytes())
    for name in names:
        (copy / name).write_bytes(b"#!/bin/sh")
        stated[name] = Digest.of(b"#!/bin/sh")
    (copy / SUMS).write_bytes(sums.render_sealed(stated))
    before = sorted(one.name for one in own.iterdir())
    assert repair(own, [copy]).files == ()
    assert sorted(one.name for one in own.iterdir()) == before
    (own / SUMS).write_bytes((copy / SUMS).read_bytes())  # nor do those here
    assert repair(own, [copy]).files == ()


@pytest.mark.parametrize("name", [SEAL, SUMS])
def test_a_pipe_in_the_place_of_a_file_is_replaced_and_not_waited_for(
    name: str, tmp_path: Path
) -> None:
    plain(tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "copy")
    (tmp_path / "own" / name).unlink()
    os.mkfifo(tmp_path / "own" / name)
    with ends_within(30.0):
        report = repair(tmp_path / "own", [tmp_path / "copy"])
    assert report.files == (name,)
    assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


def test_the_seal_of_another_bundle_is_not_taken(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    other = MemoryStore()
    put_image(other, "", "v7", layers=(b"another",))
    pack_store(other, tmp_path / "other")
    advice = {
        "inventory.json": "--from FOLDER",
        "SHA256SUMS": "SHA256SUMS is lost too, .*: copy both here",
    }
    for lost, told in advice.items():
        (tmp_path / "bundle" / lost).unlink()
        with pytest.raises(InputError, match=f"is missing, and without it nothing tells .*{told}"):
            repair(tmp_path / "bundle", [tmp_path / "other"])
        with pytest.raises(InputError, match="is missing"):
            repair(tmp_path / "bundle")


# -- from a registry -------------------------------------------------------------------------------


class Foreign(MemoryStore):
    """A source with other bytes of the right length under every digest."""

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        yield bytes(size - offset)


@pytest.mark.parametrize("form", [plain, in_parts, delta, signed])
def test_content_comes_from_a_source_and_wrong_bytes_of_another_are_never_written(
    bundle: Path, tmp_path: Path
) -> None:
    for path in archives(bundle):
        flip(path, path.stat().st_size // 2)
    repair(bundle)  # what needs nobody
    damaged = files(bundle)
    report = repair(bundle, sources=[Foreign()])
    assert report.verified.findings
    assert report.lacking.repositories
    assert files(bundle) == damaged
    again = repair(bundle, sources=[Foreign(), STORE])
    assert again.verified.findings == ()
    assert files(bundle) == files(tmp_path / "copy")


def test_a_lost_archive_comes_from_a_source(tmp_path: Path) -> None:
    plain(tmp_path / "bundle")
    whole = files(tmp_path / "bundle")
    (tmp_path / "bundle/platform.tar").unlink()
    assert repair(tmp_path / "bundle", sources=[STORE]).verified.findings == ()
    assert files(tmp_path / "bundle") == whole


# -- what may happen on the way --------------------------------------------------------------------


@pytest.mark.parametrize("form", [in_parts, compressed])
def test_a_repair_that_was_stopped_anywhere_is_run_again(
    form: Callable[[Path], None], tmp_path: Path
) -> None:
    form(tmp_path / "bundle")
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    everything(tmp_path / "bundle")
    for stop in range(1, 60, 5):
        run = stopped_at(stop)
        with suppress(CancelledError):
            repair(tmp_path / "bundle", [tmp_path / "copy"], run=run)
        if not run.cancellation.requested:
            break
    mended(tmp_path / "bundle", tmp_path / "copy")
    assert files(tmp_path / "bundle") == files(tmp_path / "copy")


def stopped_at(stop: int) -> Run:
    """A run that is stopped when so many entries have been looked at, or brought."""
    cancellation, seen = Cancellation(), 0

    def count(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, BlobDone)
        if seen >= stop:
            cancellation.cancel()

    return Run(jobs=1, on_event=count, cancellation=cancellation)


def test_a_file_for_which_nobody_has_anything_stays_one_that_is_missing(
    bundle: Path, tmp_path: Path
) -> None:
    for lost in archives(bundle):
        folder = tmp_path / "lost"
        shutil.copytree(bundle, folder)
        (folder / lost.name).unlink()
        names = sorted(path.name for path in folder.iterdir())
        with BundleReader([folder]) as reader:
            before = verify(reader)
        report = repair(folder)
        assert report.verified.findings == before.findings != (), "as verify says it, with names"
        assert sorted(path.name for path in folder.iterdir()) == names
        assert report.written == 0
        # Once somebody has it, all of it is brought back.
        assert not repair(folder, [bundle]).verified.findings
        assert (folder / lost.name).read_bytes() == lost.read_bytes()
        shutil.rmtree(folder)


def test_of_a_lost_archive_what_somebody_has_is_kept_though_the_rest_is_nowhere(
    tmp_path: Path,
) -> None:
    plain(tmp_path / "bundle")
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    flip(tmp_path / "copy/platform.tar", (tmp_path / "copy/platform.tar").stat().st_size // 2)
    (tmp_path / "bundle/platform.tar").unlink()
    report = repair(tmp_path / "bundle", [tmp_path / "copy"])
    assert len(report.lacking.blob_sizes()) == 1
    assert [one.digest for one in report.verified.findings] == [*report.lacking.blob_sizes()]
    assert (tmp_path / "bundle/platform.tar").exists()


@pytest.mark.parametrize("form", [plain, in_parts, delta])
def test_what_nobody_has_is_listed_and_may_be_asked_for(bundle: Path) -> None:
    for path in archives(bundle):
        flip(path, path.stat().st_size // 2)
    sizes = {name: len(data) for name, data in files(bundle).items()}
    report = repair(bundle)
    after = {name: len(data) for name, data in files(bundle).items()}
    assert after == sizes, "a file that is there stays, whatever it lacks"
    document = report.to_document()
    assert document["ok"] is False
    lacking = report.lacking
    assert document["lacking"]["blobs"] == len(lacking.blob_sizes()) > 0
    assert Inventory.from_document(json.loads(lacking.to_json())) == lacking
    held = WANTED.blob_sizes()
    assert all(held[digest] == size for digest, size in lacking.blob_sizes().items())
    assert not any(content.tags for content in lacking.repositories.values())


def test_what_was_repaired_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tmp_path / "bundle")
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    flip(tmp_path / "bundle" / "platform.tar", 700)
    (tmp_path / "bundle" / SUMS).unlink()
    recorder = Recorder(monkeypatch)
    assert repair(tmp_path / "bundle", [tmp_path / "copy"]).verified.findings == ()
    staged = [f"fsync {SUMS}.partial", f"rename {SUMS}", "fsync bundle"]
    assert (recorder.steps[:3], recorder.steps[-1]) == (staged, "fsync bundle")
    assert "fsync platform.tar" in recorder.steps
