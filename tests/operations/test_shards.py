"""A bundle that several machines make in one bucket: the bytes of one machine, whoever dies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.bucket import Bucket
from mirror.bundle.format import Shard, share
from mirror.bundle.multipart import BucketArchive
from mirror.bundle.place import AS_USUAL, Packing
from mirror.bundle.seal import Seal
from mirror.bundle.shards import ShardPlace
from mirror.bundle.sums import parse_whole
from mirror.bundle.uploads import Object
from mirror.errors import ConflictError, InputError, IntegrityError, MirrorError
from mirror.events import Event, TransferStarted, Warned
from mirror.oci import Digest
from mirror.operations.pull import PullPlan, clean, pack
from mirror.operations.shards import ShardReport, pull_shard
from mirror.run import Run
from mirror.sync import MemoryStore, Source
from mirror.testing import FaultyProxy
from mirror.testing.faults import Answer, Fault, Faults, LoseAnswer
from tests.bundle.test_bucket_place import FILES, LARGE, MIB, Counted, content, sealed
from tests.support import shards
from tests.support.inventories import put_image
from tests.support.object_storage import ObjectStorage
from tests.support.shards import ASKED
from tests.support.sources import StopError

STORE = MemoryStore()
_random = random.Random(7)
put_image(STORE, "", "v1", layers=[LARGE, *(_random.randbytes(6 * MIB) for _ in range(3))])
put_image(STORE, "modules/console", "v1", layers=[_random.randbytes(6 * MIB), b"small"])
SEAL = sealed(STORE)
BYTES = sum(sum(one.blobs.values()) for one in STORE.inventory().repositories.values())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes."""
    folder = tmp_path_factory.mktemp("plain")
    pack(SEAL, FILES, STORE, folder, AS_USUAL)
    return content(folder)


def carry(
    storage: ObjectStorage,
    prefix: str,
    text: str,
    source: Source = STORE,
    *,
    seal: Seal = SEAL,
    asked: Mapping[str, Any] = ASKED,
    packing: Packing = AS_USUAL,
    address: str | None = None,
    run: Run | None = None,
) -> ShardReport:
    """Be one of the machines."""
    with closing(storage.bucket(prefix, address=address)) as bucket:
        return pull_shard(
            bucket,
            Shard.parse(text),
            asked,
            lambda: shards.plan_of(seal),
            source,
            packing=packing,
            run=run or Run(jobs=2),
        )


# -- who carries what ------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(1, 40))
def test_every_piece_is_in_one_share_and_no_share_is_far_above_the_mean(
    sizes: list[int], count: int
) -> None:
    shares = [share(sizes, Shard(number, count)) for number in range(1, count + 1)]
    assert [number for one in shares for number in one] == [*range(len(sizes))]
    most = sum(sizes) / count + max(sizes, default=0)
    assert all(sum(sizes[number] for number in one) <= most for one in shares)


def test_a_pod_of_an_indexed_job_knows_its_share() -> None:
    assert Shard.parse("3/8") == Shard(3, 8)
    job = {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8"}
    assert Shard.parse("auto", job) == Shard(3, 8)


@pytest.mark.parametrize(
    ("text", "job", "told"),
    [
        ("0/8", {}, "0/8 is not one of several shards"),
        ("9/8", {}, "from 1/8 to 8/8"),
        ("3", {}, "write its number and how many"),
        ("auto", {}, "which only pods of an Indexed Job have"),
        ("auto", {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX=2 with JOB_COMPLETIONS= is"),
        ("auto", {"JOB_COMPLETION_INDEX": "8", "JOB_COMPLETIONS": "8"}, "is not one of"),
    ],
)
def test_what_is_no_share_is_told(text: str, job: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Shard.parse(text, job)


# -- the same bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("part_size", [0, 13 * MIB + 17])
def test_shards_make_what_one_machine_makes(
    part_size: int, storage: ObjectStorage, tmp_path: Path
) -> None:
    prefix, packing = f"same/{part_size}", Packing(part_size=part_size, sign=lambda _seal: b"mine")
    pack(SEAL, FILES, STORE, tmp_path, packing)
    sources = [Counted(STORE) for _ in range(3)]
    reports = [
        carry(storage, prefix, f"{number}/3", source, packing=packing)
        for number, source in enumerate(sources, 1)
    ]
    assert storage.content(prefix) == content(tmp_path)
    assert storage.pending(prefix) == []
    assert [one.is_sealed for one in reports] == [False, False, True]
    assert sum(source.given for source in sources) == BYTES
    assert max(one.fetched for one in reports) <= BYTES / 3 + len(LARGE)
    files = [name for one in reports for name in one.summed]
    assert sorted(files) == [name for name in storage.names(prefix) if ".tar" in name]


def test_shards_at_the_same_time_make_one_bundle(
    storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    """Each would make another signature; sums and signature fit."""
    reports: list[ShardReport] = []
    signatures = iter(range(10))

    def one(number: int) -> None:
        packing = Packing(sign=lambda _seal: b"%d" % next(signatures))
        reports.append(carry(storage, "at-once", f"{number}/4", packing=packing))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = storage.content("at-once")
    assert any(report.is_sealed for report in reports)
    assert storage.pending("at-once") == []
    signature = made.pop("inventory.json.sig")
    assert parse_whole(made.pop("SHA256SUMS"))["inventory.json.sig"] == Digest.of(signature)
    assert made == {name: data for name, data in plain.items() if name != "SHA256SUMS"}


# -- interruptions ---------------------------------------------------------------------------------


def test_a_shard_that_died_is_run_again_and_carries_what_lacks(
    storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    carry(storage, "died", "1/2")
    with pytest.raises(StopError):
        carry(storage, "died", "2/2", Counted(STORE, most=7 * MIB), run=Run(jobs=1))
    source = Counted(STORE)
    assert carry(storage, "died", "2/2", source).is_sealed
    assert source.given <= BYTES / 2  # without what had arrived
    assert storage.content("died") == plain


@pytest.mark.parametrize(("count", "deaths"), [(2, 1), pytest.param(4, 12, marks=pytest.mark.soak)])
def test_machines_that_are_killed_in_turn_make_what_one_makes(
    count: int, deaths: int, storage: ObjectStorage, tmp_path: Path
) -> None:
    """All work at the same time. Whoever was killed is started again, as Kubernetes does."""
    place, env = f"s3://bundles/killed/{count}", storage.environment()

    def start(shard: str, is_killed: bool) -> BaseProcess:
        moment = _random.uniform(0.01, 0.5) if is_killed else None
        return shards.start(place, shard, env, killed_after_s=moment)

    shards.killed_in_turn(count, deaths, start)
    pack(shards.SEAL, FILES, shards.STORE, tmp_path, AS_USUAL)
    assert storage.content(f"killed/{count}") == content(tmp_path)
    assert storage.pending(f"killed/{count}") == []


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_a_shard_may_die_at_any_request_and_the_bundle_is_the_same(
    step: int, storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    faults, died = Faults(), 0
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        for shard in ("1/2", "2/2"):
            for number in range(1, 100, step):
                faults.clear()
                faults.add(Fault(Answer(403, body=denied), nth=number))
                before = faults.struck
                with suppress(MirrorError):
                    carry(storage, f"any/{step}", shard, address=proxy.address)
                if faults.struck == before:
                    break
                died += 1
    assert died > 30 // step
    assert storage.content(f"any/{step}") == plain
    assert storage.pending(f"any/{step}") == []


def test_a_shard_that_comes_again_behind_the_end_changes_nothing(
    storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    carry(storage, "behind", "1/2")
    # What a server says if two come at the same moment, and neither may have been first.
    unclear = Answer(409, body=b"<Error><Code>ConditionalRequestConflict</Code></Error>")
    faults = Faults(Fault(unclear, "PUT", "shard-claims"))
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        assert carry(storage, "behind", "2/2", address=proxy.address).is_sealed
    assert faults.struck == 1
    events: list[Event] = []
    source = Counted(STORE)
    assert carry(storage, "behind", "1/2", source, run=Run(on_event=events.append)).is_sealed
    assert Warned("s3://bundles/behind holds this bundle already; nothing was written") in events
    assert source.given == 0
    assert storage.content("behind") == plain
    with pytest.raises(InputError, match=r"s3://bundles/behind has another bundle"):
        carry(storage, "behind", "1/2", asked={"selection": {}})


@pytest.mark.parametrize("what", ["shards.partial", "shard-claims-platform.tar", "inventory.json"])
def test_the_answer_to_what_a_shard_was_first_to_put_may_be_lost(
    what: str, storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    prefix = f"lost/of-{what}"
    faults = Faults(Fault(LoseAnswer(), "PUT", what))
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        for text in ("1/2", "2/2"):
            carry(storage, prefix, text, address=proxy.address)
    assert faults.struck == 1
    assert (storage.content(prefix), storage.pending(prefix)) == (plain, [])


@pytest.mark.parametrize("method", ["begin", "_read_agreed", "agreed", "seal"])
def test_a_shard_may_be_late_at_any_moment_of_another_ones_end(
    method: str,
    storage: ObjectStorage,
    plain: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"late/{method}"
    assert [carry(storage, prefix, f"{number}/4").is_sealed for number in (1, 2, 3)] == [False] * 3
    original = getattr(ShardPlace, method)

    def late(place: ShardPlace, *given: Any) -> Any:
        monkeypatch.setattr(ShardPlace, method, original)
        assert carry(storage, prefix, "4/4").is_sealed
        return original(place, *given)

    monkeypatch.setattr(ShardPlace, method, late)
    assert carry(storage, prefix, "1/4").is_sealed
    assert (storage.content(prefix), storage.pending(prefix)) == (plain, [])


def test_a_shard_that_plans_while_the_others_seal_ends_well(
    storage: ObjectStorage, plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is about to ask of the server has gone with what the others had agreed upon."""
    original = Bucket.knows_conditions

    def late(bucket: Bucket, name: str, data: bytes, run: Run) -> bool:
        monkeypatch.setattr(Bucket, "knows_conditions", original)
        assert carry(storage, "while-planning", "2/2").is_sealed
        return original(bucket, name, data, run)

    def planned() -> PullPlan:
        carry(storage, "while-planning", "1/2")
        monkeypatch.setattr(Bucket, "knows_conditions", late)
        return shards.plan_of(SEAL)

    with closing(storage.bucket("while-planning")) as bucket:
        assert pull_shard(bucket, Shard(2, 2), ASKED, planned, STORE, run=Run(jobs=2)).is_sealed
    assert (storage.content("while-planning"), storage.pending("while-planning")) == (plain, [])


def test_a_file_that_is_removed_when_it_was_complete_is_told(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BucketArchive.join

    def joined(archive: BucketArchive, one: Object, may: Callable[[], bool]) -> bool:
        found = original(archive, one, may)
        with closing(storage.bucket("removed")) as bucket:
            if found:
                bucket.remove(one.name, Run())
        return found

    monkeypatch.setattr(BucketArchive, "join", joined)
    with pytest.raises(ConflictError, match=r"removed/.*\.tar: it was complete, and is gone"):
        carry(storage, "removed", "1/1")


def test_shards_can_be_given_up(storage: ObjectStorage, plain: dict[str, bytes]) -> None:
    with pytest.raises(StopError):
        carry(storage, "up", "1/2", Counted(STORE, most=16 * MIB), run=Run(jobs=1))
    carry(storage, "up", "2/2")
    with closing(storage.bucket("up")) as bucket:
        assert "shards.partial" in clean(bucket).removed
    assert (storage.names("up"), storage.pending("up")) == ([], [])


# -- one plan --------------------------------------------------------------------------------------


def test_all_go_by_the_plan_of_the_first(storage: ObjectStorage, plain: dict[str, bytes]) -> None:
    """What the source has become since then is for the next bundle."""
    carry(storage, "plan", "2/2")
    assert carry(storage, "plan", "1/2", seal=Seal({})).is_sealed
    assert storage.content("plan") == plain


@pytest.mark.parametrize(
    ("text", "asked", "packing", "told"),
    [
        ("2/3", ASKED, AS_USUAL, "they differ in number of shards; run all"),
        ("2/2", {"selection": {}}, AS_USUAL, "they differ in selection;"),
        ("2/2", ASKED, Packing(part_size=1 << 30), "they differ in images-bundle-chunk-size;"),
        ("2/2", ASKED, Packing(resume=False), "takes no --no-pull-resume"),
        ("2/2", ASKED, Packing(compress=True), "takes no --compress"),
    ],
)
def test_a_shard_that_is_asked_for_something_else_is_refused(
    text: str, asked: dict[str, Any], packing: Packing, told: str, storage: ObjectStorage
) -> None:
    if not storage.names("asked"):
        with pytest.raises(StopError):
            carry(storage, "asked", "1/2", Counted(STORE, most=0))
    before = storage.content("asked")
    with pytest.raises(InputError, match=told):
        carry(storage, "asked", text, asked=asked, packing=packing)
    assert storage.content("asked") == before


def test_shards_and_a_pull_alone_keep_out_of_each_others_way(storage: ObjectStorage) -> None:
    with closing(storage.bucket("alone")) as bucket, pytest.raises(StopError):
        pack(SEAL, FILES, Counted(STORE, most=7 * MIB), bucket, AS_USUAL, run=Run(jobs=1))
    with pytest.raises(InputError, match="a pull without --shard is under way in s3://bundles/al"):
        carry(storage, "alone", "1/2")


def test_an_upload_that_was_given_up_is_told(storage: ObjectStorage) -> None:
    with pytest.raises(StopError):
        carry(storage, "gone", "1/2", Counted(STORE, most=0))
    with closing(storage.bucket("gone")) as bucket:
        for name, upload in bucket.uploads(Run()):
            bucket.abort(name, upload, Run())
    with pytest.raises(
        ConflictError, match=r"all shards had agreed upon is gone .* run all shards"
    ):
        carry(storage, "gone", "1/2")


def test_what_lies_in_the_bucket_and_is_wrong_is_not_sealed(storage: ObjectStorage) -> None:
    carry(storage, "wrong", "1/2")
    record, archive = (storage.root / storage.BUCKET / "wrong" / name for name in RECORDED)
    record.unlink()
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"1 file of module-console\.tar are not in "):
        carry(storage, "wrong", "1/2")
    assert "inventory.json" not in storage.names("wrong")


RECORDED = ("shard-1.partial", "module-console.tar")


# -- what is told ----------------------------------------------------------------------------------


def started(events: list[Event]) -> list[tuple[int, int]]:
    """(bytes that were there, bytes that come) of each transfer that says so."""
    return [
        (one.earlier, one.size) for one in events if isinstance(one, TransferStarted) if one.earlier
    ]


def test_a_shard_says_what_is_there_of_its_share(storage: ObjectStorage) -> None:
    first: list[Event] = []
    source = Counted(STORE, most=14 * MIB)
    with pytest.raises(StopError):
        carry(storage, "told", "1/2", source, run=Run(jobs=1, on_event=first.append))
    assert started(first) == []
    whole = sum(one.size for one in first if isinstance(one, TransferStarted))
    again: list[Event] = []
    carry(storage, "told", "1/2", run=Run(on_event=again.append))
    [(earlier, size)] = started(again)
    assert earlier + size == whole < BYTES


@pytest.mark.parametrize("force", [False, True])
def test_a_pull_without_shard_gives_up_nothing_of_shards(
    force: bool, storage: ObjectStorage, plain: dict[str, bytes]
) -> None:
    prefix = f"refused/{force}"
    carry(storage, prefix, "1/2")
    before = storage.content(prefix)
    with (
        closing(storage.bucket(prefix)) as bucket,
        pytest.raises(InputError, match=r"run this pull with --shard as before, or .* `mirror cl"),
    ):
        pack(SEAL, FILES, STORE, bucket, AS_USUAL, force=force)
    assert storage.content(prefix) == before
    assert carry(storage, prefix, "2/2").is_sealed
    assert storage.content(prefix) == plain
