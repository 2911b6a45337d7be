"""A push that several machines share: the registry of one plain push, whoever dies when."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mirror.bundle.archive import against
from mirror.bundle.format import Shard
from mirror.bundle.reader import BundleReader
from mirror.errors import (
    ConflictError,
    DowngradeError,
    IncompleteError,
    MirrorError,
    MissingBaseError,
)
from mirror.events import Event, TagDone, TransferStarted
from mirror.layout import publication_stage
from mirror.oci import Digest
from mirror.operations import shards
from mirror.operations.push import push
from mirror.operations.push_reports import PushShardReport
from mirror.operations.shards import plan_push_shard, push_shard
from mirror.run import Run
from mirror.signing import sign
from mirror.sync import MemoryStore
from mirror.sync.observe import Verification
from mirror.sync.publication_state import generations, read_state
from mirror.sync.statement import StatementKeys
from mirror.sync.tree import RegistryTree
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.faults.shelves import WatchedStorage
from tests.support import push_shards
from tests.support.bundles import pack
from tests.support.inventories import put_image
from tests.support.patience import PATIENCE_S
from tests.support.places import client_of, tree_of
from tests.support.push_shards import STORE
from tests.support.replicas import ROOT, Replica
from tests.support.shards import killed_in_turn

BYTES = sum(STORE.inventory().blob_sizes().values())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    pack(STORE, STORE.inventory(), folder)
    return folder


@pytest.fixture
def reader(bundle: Path) -> Iterator[BundleReader]:
    with BundleReader([bundle]) as opened:
        yield opened


@contextmanager
def registry() -> Iterator[Replica]:
    """An empty one, with a reader who looks at every change for tags that lead to nothing."""
    storage = WatchedStorage()
    with EmbeddedRegistry(storage) as server, client_of(server) as client:
        yield Replica(server, tree_of(client, ROOT))
        assert storage.dangling == []


@pytest.fixture
def target() -> Iterator[Replica]:
    with registry() as made:
        yield made


@pytest.fixture
def plain(reader: BundleReader) -> Iterator[Replica]:
    """What one machine makes."""
    with registry() as made:
        push(reader, made.tree)
        yield made


def send(
    reader: BundleReader, target: Replica, text: str, run: Run | None = None
) -> PushShardReport:
    """Be one of the machines."""
    return push_shard(reader, target.tree, Shard.parse(text), run=run or Run(jobs=2))


def made(target: Replica) -> object:
    """All that a registry holds and states, but for the dates."""
    newest = read_state(target.tree).newest
    return target.held(), newest and newest.digest, generations(target.tree)


def puts(target: Replica, part: str) -> list[str]:
    return [
        one.path for one in target.registry.requests if one.method == "PUT" and part in one.path
    ]


def at_once(*works: Callable[[], object]) -> None:
    """Do all of these at the same time; raise what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for begun in [pool.submit(work) for work in works]:
            begun.result()


# -- what one machine makes ------------------------------------------------------------------------


def test_shards_in_turn_make_what_one_push_makes_and_each_sends_its_share(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    reports = []
    for number in (2, 4, 1, 3):
        assert puts(target, "/manifests/") == [], "no manifest before all blobs are there"
        reports.append(send(reader, target, f"{number}/4"))
    assert made(target) == made(plain)
    assert [one.awaited for one in reports] == [(1, 3, 4), (1, 3), (3,), ()]
    assert [one.finished is None for one in reports] == [True, True, True, False]
    assert sum(one.sent for one in reports) >= BYTES
    largest = max(STORE.inventory().blob_sizes().values())
    assert max(one.sent for one in reports) <= BYTES / 4 + largest


def test_what_a_shard_would_send_is_planned_and_does_not_depend_on_what_is_there(
    reader: BundleReader, target: Replica
) -> None:
    def planned(count: int) -> list[list[Digest]]:
        shards = [Shard(number, count) for number in range(1, count + 1)]
        plans = [plan_push_shard(reader, target.tree, one) for one in shards]
        assert all(not plan.plan.manifests and not plan.plan.tags for plan in plans)
        return [[step.digest for step in plan.plan.blobs] for plan in plans]

    before = planned(3)
    assert sorted(one for share in before for one in share) == sorted(
        {one for share in planned(2) for one in share}
    )
    send(reader, target, "2/3")
    assert planned(3) == [before[0], [], before[2]]
    push(reader, target.tree)
    assert planned(3) == [[], [], []]


def test_shards_at_the_same_time_make_what_one_push_makes(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    at_once(*(partial(send, reader, target, f"{number}/4") for number in range(1, 5)))
    assert made(target) == made(plain)


def test_shards_of_a_registry_that_has_all_do_nothing(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    target.registry.requests.clear()
    plain.registry.requests.clear()
    for text in ("1/2", "2/2"):
        report = send(reader, plain, text)
        assert (report.blobs, report.sent, report.awaited) == (0, 0, ())
        assert report.finished is not None
        assert not report.finished.new
        assert not report.finished.plan
    assert {one.method for one in plain.registry.requests} <= {"GET", "HEAD"}


def test_a_plain_push_beside_shards_and_after_some_of_them_makes_the_same(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    send(reader, target, "1/3")
    done = push(reader, target.tree)
    assert done.done.sent < BYTES
    assert made(target) == made(plain)
    assert send(reader, target, "3/3").finished is not None
    with registry() as another:
        at_once(
            partial(push, reader, another.tree),
            partial(send, reader, another, "1/2"),
            partial(send, reader, another, "2/2"),
        )
        assert made(another) == made(plain)


# -- who comes to the end --------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_two_shards_that_come_to_the_end_at_the_same_moment_both_end_well(
    reader: BundleReader, target: Replica, signed: bool
) -> None:
    """Both have seen that nothing is stated, and announce. Signatures by such keys all differ."""
    key = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    keys = StatementKeys(partial(sign, key_pem=key)) if signed else StatementKeys()
    tree = RegistryTree(target.tree.client, target.tree.root, keys=keys)
    ready = threading.Barrier(2, timeout=20)

    def waits(event: Event) -> None:
        if isinstance(event, TransferStarted) and not event.blobs:
            with suppress(threading.BrokenBarrierError):
                ready.wait()
            ready.abort()  # whoever looks again does not wait

    for text in ("1/3", "2/3"):
        send(reader, target, text)
    send_and_die(reader, target, "3/3")
    reports: list[PushShardReport] = []

    def one(text: str) -> None:
        run = Run(jobs=2, on_event=waits)
        reports.append(push_shard(reader, tree, Shard.parse(text), run=run))

    at_once(partial(one, "1/3"), partial(one, "2/3"))
    assert all(report.finished is not None for report in reports)
    state = read_state(tree)
    assert (state.pending, state.generation) == (None, 1)
    assert generations(tree) == [1]


def send_and_die(reader: BundleReader, target: Replica, text: str) -> None:
    """Send the blobs of a shard, which dies before the end."""
    target.registry.faults.add(Fault(Answer(403), "PUT", "/manifests/", times=None))
    with pytest.raises(MirrorError):
        send(reader, target, text)
    target.registry.faults.clear()


def turns(event: Event) -> bool:
    """Whether a tag was set that leads to others: the push has announced what it will state."""
    return isinstance(event, TagDone) and publication_stage(event.repository, event.tag) > 0


def test_a_shard_that_comes_while_another_one_sets_the_tags_ends_well(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    send(reader, target, "1/2")
    others: list[PushShardReport] = []

    def meanwhile(event: Event) -> None:
        if turns(event) and not others:
            others.append(send(reader, target, "1/2"))

    report = send(reader, target, "2/2", Run(jobs=1, on_event=meanwhile))
    assert report.finished is not None
    assert others[0].finished is not None
    assert made(target) == made(plain)


@pytest.mark.parametrize("shared", [False, True])
def test_a_push_that_finds_another_one_under_way_which_ends_meanwhile_ends_well(
    shared: bool, reader: BundleReader, target: Replica, plain: Replica
) -> None:
    """It was about to finish what the other one had announced."""
    send(reader, target, "1/2")
    found, ended = threading.Event(), threading.Event()

    def second() -> object:
        def waits(event: Event) -> None:
            if isinstance(event, TransferStarted):
                found.set()
                ended.wait(PATIENCE_S)

        run = Run(jobs=1, on_event=waits)
        if shared:
            return send(reader, target, "1/2", run)
        return push(reader, target.tree, run=run)

    with ThreadPoolExecutor(1) as pool:
        others: list[Future[object]] = []

        def meanwhile(event: Event) -> None:
            if turns(event) and not others:
                others.append(pool.submit(second))
                found.wait(PATIENCE_S)

        send(reader, target, "2/2", Run(jobs=1, on_event=meanwhile))
        ended.set()
        others[0].result()
    assert made(target) == made(plain)


def test_what_somebody_else_published_at_the_end_is_not_pushed_over(
    reader: BundleReader, target: Replica, tmp_path: Path
) -> None:
    """As a plain push stops: it might be a rollback."""
    other = MemoryStore()
    put_image(other, "install", "v1.71.0", layers=(b"of another bundle",))
    pack(other, other.inventory(), tmp_path / "other")
    send(reader, target, "1/2")
    published: list[object] = []

    def meanwhile(event: Event) -> None:
        if isinstance(event, TransferStarted) and not event.blobs and not published:
            with BundleReader([tmp_path / "other"]) as another:
                published.append(push(another, target.tree))

    with pytest.raises(ConflictError, match="published something since this one began; no tag"):
        send(reader, target, "2/2", Run(jobs=1, on_event=meanwhile))
    assert published
    assert list(target.held().repository("install").tags) == ["v1.71.0"]


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.soak)])
def test_a_shard_may_die_at_any_request_and_is_run_again(
    step: int, reader: BundleReader, target: Replica, plain: Replica
) -> None:
    died, faults = 0, target.registry.faults
    for number in range(1, 1000, step):
        struck = faults.struck
        for text in ("1/2", "2/2"):
            faults.clear()
            faults.add(Fault(Answer(403), nth=number))
            with suppress(MirrorError):
                send(reader, target, text, Run(jobs=1))
        if faults.struck == struck:
            break
        died += faults.struck - struck
    assert died > 30 // step
    faults.clear()
    for text in ("1/2", "2/2"):
        report = send(reader, target, text)
    assert report.finished is not None
    assert made(target) == made(plain)


def test_a_shard_that_died_sends_only_what_lacks(reader: BundleReader, target: Replica) -> None:
    with registry() as whole:
        share = send(reader, whole, "1/2").sent
    fault = Fault(Answer(403), "POST", "/blobs/uploads/", nth=4, times=None)
    target.registry.faults.add(fault)
    with pytest.raises(MirrorError):
        send(reader, target, "1/2", Run(jobs=1))
    target.registry.faults.clear()
    left = plan_push_shard(reader, target.tree, Shard(1, 2)).plan.size
    assert 0 < left < share
    assert send(reader, target, "1/2").sent == left


@pytest.mark.parametrize(("count", "deaths"), [(2, 1), pytest.param(4, 12, marks=pytest.mark.soak)])
def test_machines_that_are_killed_in_turn_make_what_one_push_makes(
    count: int, deaths: int, bundle: Path, target: Replica, plain: Replica
) -> None:
    """All work at the same time. Whoever was killed is started again, as Kubernetes does."""
    moments = random.Random(7)

    def start(shard: str, is_killed: bool) -> BaseProcess:
        moment = moments.uniform(0.01, 0.3) if is_killed else None
        return push_shards.start(bundle, target.name, shard, killed_after_s=moment)

    killed_in_turn(count, deaths, start)
    assert made(target) == made(plain)


# -- what is wrong ---------------------------------------------------------------------------------


def test_a_damaged_blob_fails_its_shard_alone_and_no_tag_is_set(
    bundle: Path, tmp_path: Path, target: Replica
) -> None:
    (archive,) = (path for path in bundle.iterdir() if path.name == "platform.tar")
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray(archive.read_bytes())
    data[data.index(push_shards.LARGE[1]) + 5] ^= 1
    (tmp_path / archive.name).write_bytes(data)
    failed = []
    with BundleReader([tmp_path]) as reader:
        for number in (1, 2, 3):
            try:
                report = send(reader, target, f"{number}/3")
            except IncompleteError as err:
                failed.append((number, str(err)))
            else:
                assert report.finished is None
    ((_, told),) = failed
    assert str(Digest.of(push_shards.LARGE[1])) in told
    assert puts(target, "/manifests/") == []


def test_what_the_registry_lost_of_another_share_is_told_and_comes_with_that_shard(
    reader: BundleReader, target: Replica, plain: Replica
) -> None:
    send(reader, target, "1/2")
    with registry() as empty:
        lost = plan_push_shard(reader, empty.tree, Shard(1, 2)).plan.blobs[0]
    for path in lost.into:
        target.storage.delete_blob(target.tree.locate(path), lost.digest)
    last = send(reader, target, "2/2")
    assert (last.awaited, last.finished) == ((1,), None)
    again = send(reader, target, "1/2")
    assert again.blobs == 1
    assert made(target) == made(plain)


@pytest.mark.parametrize("verification", [Verification.TAGS, Verification.NONE])
def test_a_registry_that_accepts_blobs_and_does_not_keep_them_is_told(
    reader: BundleReader, target: Replica, verification: Verification
) -> None:
    target.registry.faults.add(Fault(Answer(404), "HEAD", "/blobs/", times=None))
    told = "accepted all blobs of shard 1/2 and does not have all of them; look for a cache"
    if verification is Verification.TAGS:
        told = "things that it accepted are not there, and no tag was set; look for a cache"
    with pytest.raises(IncompleteError, match=told):
        push_shard(reader, target.tree, Shard(1, 2), verification=verification)
    assert puts(target, "/manifests/") == []


def test_a_delta_is_shared_by_what_it_carries_and_refused_without_its_base(
    tmp_path: Path, target: Replica
) -> None:
    wanted = STORE.inventory()
    base = wanted.filtered(lambda path: not path.startswith("modules/"))
    pack(STORE, base, tmp_path / "base")
    pack(STORE, wanted, tmp_path / "delta", coverage=against(base, wanted))
    with BundleReader([tmp_path / "base"]) as older, BundleReader([tmp_path / "delta"]) as delta:
        with pytest.raises(MissingBaseError, match="push that base first"):
            send(delta, target, "1/2")
        push(older, target.tree)
        reports = [send(delta, target, text) for text in ("1/2", "2/2")]
        assert all(one.sent for one in reports), "the layer that is there counts no byte"
        with registry() as plain:
            push(older, plain.tree)
            push(delta, plain.tree)
            assert made(target) == made(plain)


def test_an_older_bundle_is_refused_before_a_byte_moves(
    reader: BundleReader, target: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is older, `mirror.operations.trust` says."""

    def refuse(*_given: object, **_named: object) -> None:
        raise DowngradeError("the bundle is older")

    monkeypatch.setattr(shards, "check_downgrade", refuse)
    with pytest.raises(DowngradeError):
        send(reader, target, "1/2")
    assert {one.method for one in target.registry.requests} <= {"GET", "HEAD"}
