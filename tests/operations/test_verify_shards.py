"""A verification that several machines share: all bytes, each once, and one result to trust."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.bundle import gost
from mirror.bundle.bucket import Bucket
from mirror.bundle.checks import Check
from mirror.bundle.format import Shard
from mirror.bundle.location import Readable, RemotePath
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import verify_bundle
from mirror.errors import (
    ConflictError,
    DamagedBundleError,
    FileSystemError,
    InputError,
    MirrorError,
)
from mirror.events import Event, TransferStarted, Warned
from mirror.operations import shards
from mirror.operations.merge import merge
from mirror.operations.pull import clean
from mirror.operations.shards import VerifyShardReport, verify_shard
from mirror.reports.registries import verify_shard_summary
from mirror.run import Run
from mirror.sync import Finding
from mirror.testing import Answer, Fault, Faults, FaultyProxy
from tests.support import push_shards
from tests.support.bundles import pack
from tests.support.object_storage import ObjectStorage
from tests.support.push_shards import LARGE, STORE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "of"
    pack(STORE, STORE.inventory(), folder)
    return folder


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    """Three layers in different places have a flipped byte, a header too, and a file is missing."""
    folder = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    for path in folder.glob("*.tar"):
        data = bytearray(path.read_bytes())
        for layer in (LARGE[0], LARGE[3], LARGE[7]):
            if layer in data:
                data[data.index(layer) + 9] ^= 1
        path.write_bytes(data)
    platform = folder / "platform.tar"
    data = bytearray(platform.read_bytes())
    data[data.index(LARGE[1]) - 512] ^= 1
    platform.write_bytes(data)
    (folder / "SHA256SUMS").unlink()
    return folder


def check(
    folder: Path,
    text: str,
    place: Path | Bucket | None = None,
    *,
    quick: bool = False,
    run: Run | None = None,
) -> VerifyShardReport:
    """Be one of the machines."""
    with BundleReader([folder]) as reader:
        shard = Shard.parse(text)
        return verify_shard(reader, shard, place, quick=quick, run=run or Run(jobs=2))


def whole(folder: Path) -> tuple[Finding, ...]:
    """What one machine finds."""
    with BundleReader([folder]) as reader:
        return verify_bundle(reader, run=Run(jobs=2)).findings


def made_as(kind: str, bundle: Path, tmp_path: Path) -> Path:
    """The same content in a bundle of this kind."""
    folder = tmp_path / kind
    if kind == "parts":
        pack(STORE, STORE.inventory(), folder, part_size=200_000)
    elif kind == "compressed":
        with BundleReader([bundle]) as reader:
            merge([reader], folder, packing=Packing(compress=True))
    else:
        shutil.copytree(bundle, folder)
    if kind == "foreign":  # without a seal
        for name in ("inventory.json", "SHA256SUMS"):
            (folder / name).unlink()
    return folder


# -- who reads what --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "parts", "compressed", "foreign", "quick"])
def test_every_stretch_is_read_by_one_shard_and_shares_are_alike(
    kind: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_as(kind, bundle, tmp_path)
    seen: list[tuple[str, int, int]] = []
    original = Check.problem

    def problem(
        self: Check, file: Readable, run: Run, on_bytes: Callable[[int], None]
    ) -> str | None:
        seen.append((self.file.path.name, self.offset, self.size))
        return original(self, file, run, on_bytes)

    monkeypatch.setattr(Check, "problem", problem)

    def read(text: str | None) -> list[tuple[str, int, int]]:
        seen.clear()
        events: list[Event] = []
        run = Run(jobs=2, on_event=events.append)
        with BundleReader([folder]) as reader:
            shard = None if text is None else Shard.parse(text)
            assert verify_bundle(reader, quick=kind == "quick", shard=shard, run=run).findings == ()
        (told,) = (one for one in events if isinstance(one, TransferStarted))
        assert (told.blobs, told.size) == (len(seen), sum(size for _, _, size in seen))
        return sorted(seen)

    alone = read(None)
    for count in (1, 2, 5):
        shares = [read(f"{number}/{count}") for number in range(1, count + 1)]
        assert sorted(one for each in shares for one in each) == alone
        if kind != "compressed":  # where an archive is read in one piece
            largest = max(size for _, _, size in alone) + 4096
            mean = sum(path.stat().st_size for path in folder.iterdir()) / count
            assert max(sum(size for _, _, size in each) for each in shares) <= mean + largest


def test_shares_find_together_what_one_machine_finds(damaged: Path) -> None:
    alone = whole(damaged)
    assert len(alone) == 5
    for count in (1, 3, 7):
        found = [check(damaged, f"{number}/{count}") for number in range(1, count + 1)]
        assert {one for each in found for one in each.report.findings} == set(alone)
        assert [each.awaited for each in found] == [None] * count, "nobody gathers"
        assert not any(each.is_complete for each in found)
        beside = [sum(one.place == "SHA256SUMS" for one in each.report.findings) for each in found]
        assert beside == [1, *[0] * (count - 1)], "the first tells what is no stretch of an archive"


@pytest.mark.parametrize("kind", ["parts", "compressed", "foreign", "truncated", "missing"])
def test_shares_find_together_what_one_machine_finds_in_bundles_of_all_kinds(
    kind: str, bundle: Path, tmp_path: Path
) -> None:
    folder = made_as(kind, bundle, tmp_path)
    largest = max(folder.glob("platform.tar*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 3] ^= 1
    if kind == "truncated":
        del data[-100_000:]
    largest.write_bytes(data)
    if kind == "missing":
        largest.unlink()
    alone = whole(folder)
    assert alone
    found = [check(folder, f"{number}/3", tmp_path / "run") for number in (1, 2, 3)]
    assert found[-1].report.findings == alone


def test_each_gost_digest_is_computed_by_one_shard(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "of"))
    archives = list(folder.glob("*.tar"))
    for path in archives:
        path.with_name(f"{path.name}.gostsum").write_text("0" * 64)
    monkeypatch.setattr(gost, "available", lambda: None)
    told = [
        int(notice.split()[0])
        for number in (1, 2, 3)
        for notice in check(folder, f"{number}/3").report.notices
        if "ending in .gostsum were not checked" in notice
    ]
    assert sum(told) == len(archives)


# -- what all have found ---------------------------------------------------------------------------


def test_the_last_shard_tells_what_all_have_found(damaged: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    reports = [check(damaged, f"{number}/4", place) for number in (3, 1, 4, 2)]
    assert [one.awaited for one in reports] == [(1, 2, 4), (2, 4), (2,), ()]
    assert [one.is_complete for one in reports] == [False, False, False, True]
    assert reports[-1].report.findings == whole(damaged)
    assert reports[-1].report.shard is None
    assert reports[-1].began is not None
    assert reports[-1].ended is not None
    assert reports[-1].began <= reports[-1].ended


def test_a_bundle_is_complete_when_each_shard_has_said_so(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert not check(bundle, "1/2", place).is_complete
    done = check(bundle, "2/2", place)
    assert (done.is_complete, done.report.findings) == (True, ())
    with BundleReader([bundle]) as reader:
        assert done.report == verify_bundle(reader)


def test_findings_may_be_gathered_in_a_bucket_and_are_cleaned_there(
    damaged: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        ObjectStorage.of_this_process(tmp_path_factory.mktemp("storage")) as storage,
        closing(storage.bucket("verify/1")) as place,
    ):
        check(damaged, "2/2", place)
        assert check(damaged, "1/2", place).report.findings == whole(damaged)
        names = ["verified-1-of-2.json", "verified-2-of-2.json"]
        assert storage.names("verify/1") == names
        assert list(clean(place).removed) == names
        assert storage.names("verify/1") == []


def test_a_shard_that_comes_again_reads_nothing_and_tells_what_it_had_found(
    damaged: Path, tmp_path: Path
) -> None:
    """As a pod does that died before it could say so."""
    place = tmp_path / "run"
    first = check(damaged, "1/2", place)
    events: list[Event] = []
    again = check(damaged, "1/2", place, run=Run(on_event=events.append))
    assert again == replace(first, read=False)
    (started,) = (one for one in events if isinstance(one, TransferStarted))
    assert started.size == 0
    (told,) = (one.message for one in events if isinstance(one, Warned))
    assert re.fullmatch(
        rf"{place}: shard 1/2 ended there at .* UTC, and nothing was read now", told
    )
    check(damaged, "2/2", place)
    told_later = check(damaged, "1/2", place)
    assert told_later.report.findings == whole(damaged), "anybody may ask for the result"
    text = verify_shard_summary(told_later, 0.1)
    assert re.match(r"Nothing was read now\. This was found between .* UTC:\nThe bundle was ", text)


def test_a_place_that_is_named_every_night_is_refused(bundle: Path, tmp_path: Path) -> None:
    """What was right yesterday may have rotted since, and keeps its size and date."""
    place = tmp_path / "run"
    for text in ("1/2", "2/2"):
        check(bundle, text, place)
    record = place / "verified-1-of-2.json"
    yesterday = {**json.loads(record.read_bytes()), "ended": "2020-02-28T01:10:00Z"}
    record.write_text(json.dumps(yesterday))
    told = (
        r"shard 1/2 ended there at 2020-02-28 01:10:00 UTC, and nothing was read; name a new place"
    )
    with pytest.raises(InputError, match=told):
        check(bundle, "1/2", place)


def test_what_was_found_in_a_bundle_that_has_changed_counts_no_more(
    bundle: Path, tmp_path: Path
) -> None:
    """Neither last week's records, nor those of other options, speak for this run."""
    folder, place = Path(shutil.copytree(bundle, tmp_path / "of")), tmp_path / "run"
    check(folder, "1/2", place)
    with pytest.raises(
        InputError, match=r"-1-of-2\.json is of a verification with another --quick; name"
    ):
        check(folder, "2/2", place, quick=True)
    with pytest.raises(InputError, match="with another number of shards; name a new place"):
        check(folder, "2/3", place)
    shutil.copyfile(bundle / "platform.tar", folder / "platform.tar")  # has another date then
    os.utime(folder / "platform.tar", (1_000_000_000, 1_000_000_000))
    with pytest.raises(InputError, match="with another size or date of its files; name"):
        check(folder, "2/2", place)
    assert list(clean(place).removed) == ["verified-1-of-2.json"]
    check(folder, "2/2", place)


def test_what_was_found_in_a_copy_does_not_count(bundle: Path, tmp_path: Path) -> None:
    """It may be equal by names, sizes and dates, and damaged."""
    one, other = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("one", "other"))
    place = tmp_path / "run"
    check(one, "1/2", place)
    with pytest.raises(InputError, match="with another place of the bundle; name a new place"):
        check(other, "2/2", place)
    with pytest.raises(InputError, match="one: findings need a place of their own"):
        check(one, "2/2", one)


def test_findings_go_into_no_folder_whose_share_is_not_mounted(
    bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(MirrorError, match=r"cannot create .*/share/run: No such file or directory"):
        check(bundle, "1/2", tmp_path / "share" / "run")
    assert not (tmp_path / "share").exists()


def test_a_shard_that_died_has_said_nothing(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"

    def dies(event: Event) -> None:
        if isinstance(event, TransferStarted):
            raise FileSystemError("the machine died")

    with pytest.raises(FileSystemError):
        check(bundle, "1/2", place, run=Run(on_event=dies))
    assert "ended" not in json.loads((place / "verified-1-of-2.json").read_bytes())
    assert check(bundle, "2/2", place).awaited == (1,)
    assert check(bundle, "1/2", place).is_complete


def test_a_bundle_that_changes_while_it_is_read_is_told(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "of"))

    def changes(event: Event) -> None:
        if isinstance(event, TransferStarted):
            os.utime(folder / "platform.tar", (1_000_000_000, 1_000_000_000))

    with pytest.raises(ConflictError, match="its files changed while they were read; let nobody"):
        check(folder, "1/2", tmp_path / "run", run=Run(on_event=changes))
    assert "ended" not in json.loads((tmp_path / "run/verified-1-of-2.json").read_bytes())


def test_a_shard_knows_what_it_found_where_a_list_lags_behind(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards._ShardFindings, "read", lambda _self, _about: {})
    assert check(bundle, "1/2", tmp_path / "run").awaited == (2,)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.soak)])
def test_a_shard_may_die_at_any_request_and_is_run_again(
    step: int, damaged: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The bundle and the findings are in a bucket. Nobody says that it is whole."""
    denied, faults, died = b"<Error><Code>AccessDenied</Code></Error>", Faults(), 0
    with (
        ObjectStorage.of_this_process(tmp_path_factory.mktemp("storage")) as storage,
        FaultyProxy(f"http://{storage.address}", faults=faults) as proxy,
        closing(storage.bucket("of")) as bucket,
    ):
        for path in damaged.iterdir():
            bucket.put(path.name, path.read_bytes(), Run())

        def one(text: str) -> VerifyShardReport:
            with (
                closing(storage.bucket("findings", address=proxy.address)) as place,
                RemotePath(storage.bucket("of", address=proxy.address)) as folder,
                BundleReader([folder]) as reader,
            ):
                return verify_shard(reader, Shard.parse(text), place, run=Run(jobs=1))

        for number in range(1, 1000, step):
            before = faults.struck
            for text in ("1/2", "2/2"):
                faults.clear()
                faults.add(Fault(Answer(403, body=denied), nth=number))
                with suppress(MirrorError):
                    found = one(text)
                    assert found.awaited != () or len(found.report.findings) == 5
            died += faults.struck - before
            if faults.struck == before:
                break
        faults.clear()
        assert died >= 2
        assert [one(text).report.findings for text in ("1/2", "2/2")] == [whole(damaged)] * 2


@pytest.mark.parametrize(("count", "deaths"), [(2, 1), pytest.param(4, 12, marks=pytest.mark.soak)])
def test_machines_that_are_killed_in_turn_find_what_one_machine_finds(
    count: int, deaths: int, damaged: Path, tmp_path: Path
) -> None:
    place, moments = tmp_path / "run", random.Random(7)
    for number in range(1, count + 1):
        for _ in range(deaths):
            moment = moments.uniform(0.01, 0.15)
            machine = push_shards.start(
                damaged, str(place), f"{number}/{count}", killed_after_s=moment, verifies=True
            )
            machine.join()
    reports = [check(damaged, f"{number}/{count}", place) for number in range(1, count + 1)]
    assert reports[-1].is_complete
    assert reports[-1].report.findings == whole(damaged)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"about": {}, "ended": "now"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_record_of_a_shard_is_told(data: bytes, bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "verified-2-of-2.json").write_bytes(data)
    told = r"verified-2-of-2\.json: it is not what a shard of a verification writes down"
    with pytest.raises(DamagedBundleError, match=told):
        check(bundle, "1/2", place)


def test_no_more_is_read_of_a_place_than_shards_write_there(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    with (place / "verified-2-of-2.json").open("wb") as file:
        file.truncate(1 << 40)
    (place / "verified-1-of-2.json").symlink_to("/dev/zero")
    with pytest.raises(DamagedBundleError, match="it is not what a shard of a verification writes"):
        check(bundle, "1/2", place)


def test_more_findings_than_a_record_has_room_for_are_counted(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_FINDINGS", 2)
    done = check(damaged, "1/1", tmp_path / "run")
    assert (done.is_complete, len(done.report.findings)) == (True, 2)
    assert "shard 1/1 found 3 more, which are not listed" in done.report.notices


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    events: list[Event] = []
    with pytest.raises(FileSystemError, match="file"):
        check(bundle, "1/2", tmp_path / "file" / "run", run=Run(on_event=events.append))
    with pytest.raises(InputError, match="findings need a place of their own"):
        check(bundle, "1/2", bundle, run=Run(on_event=events.append))
    assert events == []


def test_findings_about_unpacked_layouts_are_not_gathered(bundle: Path, tmp_path: Path) -> None:
    """Nothing would tell whether their files change."""
    with tarfile.open(bundle / "platform.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert check(tmp_path / "unpacked", "1/2").report.findings == ()
    with pytest.raises(InputError, match="unpacked has no archives, so that nothing tells"):
        check(tmp_path / "unpacked", "1/2", tmp_path / "run")
