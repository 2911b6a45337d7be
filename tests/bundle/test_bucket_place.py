"""A bundle that is made in a bucket: the same bytes, whatever happens on the way."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle import uploads
from mirror.bundle.bucket import Bucket, BucketAddress
from mirror.bundle.bucket_place import BucketPlace
from mirror.bundle.location import RemotePath
from mirror.bundle.multipart import cut
from mirror.bundle.place import AS_USUAL, Packing
from mirror.bundle.seal import Seal
from mirror.bundle.uploads import PART
from mirror.errors import (
    ConflictError,
    DeniedError,
    IncompleteError,
    InputError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
)
from mirror.events import Event, TransferStarted, Warned
from mirror.oci import Digest
from mirror.operations.pull import pack
from mirror.run import Cancellation, Run
from mirror.sync import MemoryStore, Source
from mirror.sync.failover import FailoverSource
from mirror.testing import FaultyProxy
from mirror.testing.faults import Answer, CutUpload, Delay, Fault, Faults, LoseAnswer, Refuse
from tests.support.bundles import archives_of
from tests.support.inventories import put_image
from tests.support.object_storage import LOGIN, ObjectStorage, S3Server, SeaweedStorage
from tests.support.patience import ends_within, wait_until
from tests.support.scripted_server import Reply, ScriptedServer
from tests.support.sources import CountedSource, StopError

MIB = 1 << 20
_random = random.Random(1)
LARGE = _random.randbytes(12 * MIB)


def sample() -> MemoryStore:
    """A blob of several parts, one that shares a part with small ones, and an archive of little."""
    store = MemoryStore()
    shared = _random.randbytes(3000)
    put_image(store, "", "v1", layers=[LARGE, shared, _random.randbytes(3 * MIB)])
    put_image(store, "", "v2", layers=[_random.randbytes(size) for size in (1, 70_000, 2 * MIB)])
    put_image(store, "modules/console", "v1", layers=[shared, _random.randbytes(1000)])
    return store


FILES = {"releases.json": b"{}"}


def sealed(store: MemoryStore) -> Seal:
    return Seal.over(archives_of(store.inventory()), {}, "mirror 0.test", FILES)


STORE = sample()
SEAL = sealed(STORE)
SEALED = SEAL.to_json()


class Counted(CountedSource):
    """`STORE`, or another, with its bytes counted."""

    def __init__(self, store: Source = STORE, *, most: int | None = None) -> None:
        super().__init__(store, most=most)


@pytest.fixture(
    scope="module",
    params=[ObjectStorage, pytest.param(SeaweedStorage, marks=pytest.mark.soak)],
    ids=["versitygw", "seaweedfs"],
)
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    server: type[S3Server] = request.param
    with server.of_this_process(tmp_path_factory.mktemp("storage")) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a folder holds."""
    folder = tmp_path_factory.mktemp("plain")
    pack(SEAL, FILES, STORE, folder, AS_USUAL)
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(
    bucket: Bucket,
    source: Source = STORE,
    *,
    seal: Seal = SEAL,
    packing: Packing = AS_USUAL,
    force: bool = False,
    jobs: int = 3,
) -> int:
    """Make the bundle; return how many bytes came from the source."""
    with closing(bucket):
        return pack(seal, FILES, source, bucket, packing, force=force, run=Run(jobs=jobs)).taken


# -- the same bytes --------------------------------------------------------------------------------


@pytest.fixture
def no_follower(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """No thread that hashes can be started; the names of those that were to be."""
    start, refused = threading.Thread.start, set[str]()

    def starting(thread: threading.Thread) -> None:
        if thread.name.startswith("follow-"):
            refused.add(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    return refused


def test_without_a_thread_that_hashes_what_is_complete_is_read_back(
    storage: S3Server, plain: dict[str, bytes], no_follower: set[str]
) -> None:
    """Memory for parts is no more than one of them, and nobody waits for a thread that is not."""
    fill(storage.bucket("no-thread"), jobs=1)
    assert no_follower
    assert storage.content("no-thread") == plain


def test_without_a_thread_that_compresses_it_says_what_to_do(
    storage: S3Server, no_follower: set[str]
) -> None:
    with pytest.raises(MirrorError, match=r"no thread left to compress it; .* leave out --comp"):
        fill(storage.bucket("no-thread-zstd"), packing=Packing(compress=True), jobs=1)
    assert no_follower


@pytest.mark.parametrize(("part_size", "compress"), [(0, False), (7 * MIB + 17, False), (0, True)])
def test_a_bucket_holds_what_a_folder_holds(
    part_size: int, storage: S3Server, tmp_path: Path, *, compress: bool
) -> None:
    prefix = f"same/{part_size}/{compress}"
    packing = Packing(part_size=part_size, sign=lambda _seal: b"mine", compress=compress)
    pack(SEAL, FILES, STORE, tmp_path, packing)
    fill(storage.bucket(prefix), packing=packing)
    assert storage.content(prefix) == content(tmp_path)
    assert storage.pending(prefix) == []


def test_what_is_there_already_is_not_made_again(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    fill(storage.bucket("again"), packing=Packing(sign=lambda _seal: b"first"))
    for signature, what in (
        (b"first", "nothing was written"),
        (b"second", "only its signature was written anew"),
    ):
        events: list[Event] = []
        run, packing = Run(on_event=events.append), Packing(sign={SEALED: signature}.__getitem__)
        with closing(storage.bucket("again")) as bucket:
            assert pack(SEAL, FILES, STORE, bucket, packing, run=run).taken == 0
        assert Warned(f"s3://bundles/again holds this bundle already; {what}") in events
        assert storage.content("again")["inventory.json.sig"] == signature
    assert storage.content("again")["platform.tar"] == plain["platform.tar"]


def test_one_that_was_stopped_while_it_cleared_up_is_complete_even_with_force(
    storage: S3Server,
) -> None:
    fill(storage.bucket("cleared"))
    with closing(storage.bucket("cleared")) as bucket:
        bucket.put("pull.journal.partial", b"the last that is removed", Run())
    source = Counted()
    assert fill(storage.bucket("cleared"), source, force=True) == source.given == 0
    assert "pull.journal.partial" not in storage.content("cleared")
    assert fill(storage.bucket("cleared"), source, force=True) == source.given > 0


@given(
    sizes=st.lists(st.integers(512, 40 * MIB), min_size=1, max_size=30),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_parts_are_neither_too_small_nor_too_large(
    sizes: list[int], window: tuple[float, float]
) -> None:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    start, stop = sorted(int(share * ends[-1]) for share in window)
    stop = max(stop, start + 1)
    parts = cut(ends, start, stop)
    lengths = [end - begin for begin, end in zip([start, *parts], parts, strict=False)]
    assert parts[-1] == stop
    assert max(lengths) <= PART
    assert min(lengths[:-1], default=PART) >= PART // 2
    # Only an entry is cut that is too large, or was when what had to go with it came before.
    for end in set(parts[:-1]) - set(ends):
        assert next(n for n, last in zip(sizes, ends, strict=True) if last > end) > PART // 2


def test_a_large_archive_has_no_more_parts_than_servers_take() -> None:
    size = 300 << 30
    parts = cut(range(0, size, 7 * MIB), 0, size)
    assert len(parts) <= 10_000


# -- interruptions ---------------------------------------------------------------------------------


def test_stopped_anywhere_it_goes_on_with_what_has_arrived(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    for most in (0, 10 * MIB, 16 * MIB):
        with suppress(StopError):
            fill(storage.bucket("stopped"), Counted(most=most), jobs=1)
    source = Counted()
    fill(storage.bucket("stopped"), source)
    assert storage.content("stopped") == plain
    assert storage.pending("stopped") == []
    assert source.given < 6 * MIB  # of 17: the large blob had arrived


def test_a_large_blob_goes_on_behind_its_last_whole_part(storage: S3Server, tmp_path: Path) -> None:
    store = MemoryStore()
    put_image(store, "", "v1", layers=[_random.randbytes(28 * MIB)])
    seal = sealed(store)
    pack(seal, FILES, store, tmp_path, AS_USUAL)
    for most in (21 * MIB, 8 * MIB):
        with suppress(StopError):
            fill(storage.bucket("large"), Counted(store, most=most), seal=seal, jobs=1)
        assert storage.pending("large") == ["platform.tar"]
    source = Counted(store)
    fill(storage.bucket("large"), source, seal=seal)
    assert storage.content("large") == content(tmp_path)
    assert source.given < 10 * MIB


def test_what_a_killed_run_brought_wrong_is_found_before_the_seal(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    digest = Digest.of(LARGE)
    with suppress(StopError):
        fill(storage.bucket("late"), Wrong(digest, 10, most=11 * MIB), jobs=1)
    source, events = Counted(), list[Event]()
    with closing(storage.bucket("late")) as bucket:
        pack(SEAL, FILES, source, bucket, AS_USUAL, run=Run(3, events.append))
    assert any(isinstance(one, Warned) and "no longer what they were" in str(one) for one in events)
    assert source.given > len(LARGE)
    assert storage.content("late") == plain


def test_it_may_fail_at_any_request_and_ends_with_the_same_bytes(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    faults, told = Faults(), list[str]()
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        for number in range(1, 200):
            faults.clear()
            faults.add(Fault(Answer(403, body=denied), nth=number))
            before = faults.struck
            try:
                fill(storage.bucket("any", address=proxy.address), jobs=2)
            except MirrorError as err:
                told.append(str(err))
            if faults.struck == before:
                break
    assert len(told) > 15
    assert all("HTTP 403" in text and LOGIN[1] not in text for text in told)
    assert storage.content("any") == plain
    assert storage.pending("any") == []


@pytest.mark.parametrize("nth", range(1, 22, 5))
def test_a_server_that_is_silent_is_left_at_once_when_the_run_is_stopped(
    nth: int, storage: S3Server
) -> None:
    faults, cancellation, ends = Faults(Fault(Delay(60.0), nth=nth)), Cancellation(), list[str]()
    with (
        FaultyProxy(f"http://{storage.address}", faults=faults) as proxy,
        closing(storage.bucket(f"silent/{nth}", address=proxy.address)) as bucket,
    ):

        def work() -> None:
            try:
                run = Run(jobs=2, cancellation=cancellation)
                pack(SEAL, FILES, STORE, bucket, AS_USUAL, run=run)
            except MirrorError as err:
                ends.append(type(err).__name__)

        worker = threading.Thread(target=work)
        worker.start()
        wait_until(lambda: faults.struck)
        with ends_within(2.0):
            cancellation.cancel()
            worker.join()
    assert ends == ["CancelledError"]


def test_what_passes_is_waited_for(storage: S3Server, plain: dict[str, bytes]) -> None:
    internal = b"<Error><Code>InternalError</Code></Error>"
    passing = [
        Fault(Answer(503, body=b"<Error><Code>SlowDown</Code></Error>"), times=3, nth=4),
        Fault(Answer(500, body=internal), "PUT", "partNumber", nth=2),
        Fault(CutUpload(3 * MIB), "PUT", "partNumber=1"),
        Fault(Refuse(), "PUT", "partNumber=2"),
        Fault(LoseAnswer(), "POST", r"platform\.tar\?uploadId"),
        Fault(LoseAnswer(), "PUT", r"inventory\.json\?"),
        Fault(Answer(200, body=internal), "POST", r"console\.tar\?uploadId="),
    ]
    faults = Faults(*passing)
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        fill(storage.bucket("passes", address=proxy.address))
    assert faults.struck == 2 + len(passing)
    assert storage.content("passes") == plain
    assert storage.pending("passes") == []


def test_expired_credentials_end_a_pull_and_the_next_goes_on(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    expired = b"<Error><Code>ExpiredToken</Code><Message>The token expired</Message></Error>"
    faults = Faults(Fault(Answer(400, body=expired), "PUT", "partNumber=3", times=None))
    again = pytest.raises(IncompleteError, match="renew them and run the same again")
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy, again:
        fill(storage.bucket("expired", address=proxy.address), jobs=1)
    source = Counted()
    fill(storage.bucket("expired"), source)
    assert source.given < 6 * MIB
    assert storage.content("expired") == plain


class FirstIsLast(Counted):
    """A source whose `first` blob comes to its end only when all others have come."""

    def __init__(self, store: MemoryStore, first: Digest) -> None:
        super().__init__(store)
        self._first, self._over = first, threading.Event()
        self._left = len(store.inventory().blob_sizes()) - 1

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        for piece in super().blob(repository, digest, size, offset):
            yield piece
            if digest == self._first:
                assert self._over.wait(60), "others wait for the first blob"
        if digest != self._first:
            with self._lock:
                self._left -= 1
            if not self._left:
                self._over.set()


@pytest.mark.parametrize("jobs", [2, 3, 8])
def test_others_do_not_wait_for_a_large_blob_that_comes_slowly(
    jobs: int, storage: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(uploads, "_LOOK_S", 0.05)
    store = MemoryStore()
    layers = [bytes([number]) * (12 * MIB + number) for number in range(5)]
    put_image(store, "", "v1", layers=layers)
    seal = sealed(store)
    blobs = [one for one in seal.archives["platform.tar"].entries if one.size > MIB]
    pack(seal, FILES, store, tmp_path, AS_USUAL)
    source = FirstIsLast(store, blobs[0].digest)
    fill(storage.bucket(f"slow/{jobs}"), source, seal=seal, jobs=jobs)
    assert storage.content(f"slow/{jobs}") == content(tmp_path)
    assert source.given == sum(store.inventory().blob_sizes().values())


# -- wrong bytes -----------------------------------------------------------------------------------


class Wrong(Counted):
    """A source with one byte of one blob changed."""

    name = "wrong source"

    def __init__(
        self, digest: Digest, at: int, store: Source = STORE, *, most: int | None = None
    ) -> None:
        super().__init__(store, most=most)
        self._wrong, self._at = digest, at

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        for piece in super().blob(repository, digest, size, offset):
            if digest == self._wrong and offset <= self._at < offset + len(piece):
                place = self._at - offset
                piece = piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
            offset += len(piece)
            yield piece


@pytest.mark.parametrize("size", [12 * MIB, 3000])
def test_a_blob_that_came_wrong_is_never_part_of_an_object(
    size: int, storage: S3Server, plain: dict[str, bytes]
) -> None:
    prefix = f"wrong/{size}"
    digest = next(d for d, n in STORE.inventory().blob_sizes().items() if n == size)
    with pytest.raises(IncompleteError, match=str(digest)):
        fill(storage.bucket(prefix), Wrong(digest, 10))
    assert not [name for name in storage.names(prefix) if name.endswith(".tar")]
    source = Counted()
    fill(storage.bucket(f"first/{size}"), FailoverSource([Wrong(digest, 10), source]))
    assert storage.content(f"first/{size}") == plain
    fill(storage.bucket(prefix), FailoverSource([Wrong(digest, size - 1), STORE]))
    assert storage.content(prefix) == plain


# -- what is there before --------------------------------------------------------------------------


def other() -> tuple[MemoryStore, Seal]:
    store = MemoryStore()
    put_image(store, "modules/other", "v1", layers=[b"something else" * 1000])
    return store, sealed(store)


def test_another_bundle_is_replaced_with_force_alone(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    store, seal = other()
    fill(storage.bucket("force"), store, seal=seal)
    before = storage.content("force")
    with pytest.raises(InputError, match=r"s3://bundles/force is not empty .* add --force"):
        fill(storage.bucket("force"))
    assert storage.content("force") == before
    fill(storage.bucket("force"), force=True)
    assert storage.content("force") == plain


def test_what_another_plan_has_uploaded_is_given_up(
    storage: S3Server, plain: dict[str, bytes]
) -> None:
    with pytest.raises(StopError):
        fill(storage.bucket("plans"), Counted(most=14 * MIB), jobs=1)
    assert storage.pending("plans")
    store, seal = other()
    fill(storage.bucket("plans"), store, seal=seal)
    assert storage.pending("plans") == []
    assert "platform.tar" not in storage.names("plans")


def test_objects_of_others_are_not_touched(storage: S3Server) -> None:
    with closing(storage.bucket("others")) as bucket:
        bucket.put("notes.txt", b"mine", Run())
        with pytest.raises(InputError, match=r"not empty \(it has notes\.txt\)"):
            BucketPlace(bucket, Run()).check(force=False)
    store, seal = other()
    fill(storage.bucket("others"), store, seal=seal, force=True)
    assert storage.content("others")["notes.txt"] == b"mine"


def meanwhile(monkeypatch: pytest.MonkeyPatch, step: str, others: Callable[[], object]) -> None:
    """Let others do something just before the next pull takes this step of its place."""
    ours = getattr(BucketPlace, step)

    def after_them(*given: object) -> None:
        monkeypatch.setattr(BucketPlace, step, ours)
        others()
        ours(*given)

    monkeypatch.setattr(BucketPlace, step, after_them)


LAST_STEPS = pytest.mark.parametrize("step", ["give_way", "take"])


@LAST_STEPS
@pytest.mark.parametrize("most", [1, None], ids=["begun", "sealed"])
def test_of_two_pulls_of_different_bundles_the_later_one_counts(
    step: str, most: int | None, storage: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"at-once/{step}-{most}"
    store, seal = other()

    def others() -> None:
        with suppress(StopError):
            fill(storage.bucket(prefix), Counted(store, most=most), seal=seal, force=True)

    meanwhile(monkeypatch, step, others)
    told = "let one pull at a time work there, and run it again"
    with pytest.raises((ConflictError, RegistryNotFoundError), match=told):
        fill(storage.bucket(prefix))
    assert storage.content(prefix).get("inventory.json") in (None, seal.to_json())
    fill(storage.bucket(prefix), store, seal=seal, force=True)
    fill(storage.bucket("alone"), store, seal=seal)
    assert storage.content(prefix) == storage.content("alone")


def test_what_is_sealed_in_the_last_moment_stays(
    storage: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seal = other()
    put = Bucket.put

    def late(bucket: Bucket, name: str, data: bytes, run: Run, *, only_new: bool = False) -> bool:
        if only_new:
            monkeypatch.setattr(Bucket, "put", put)
            put(bucket, name, seal.to_json(), run)
        return put(bucket, name, data, run, only_new=only_new)

    monkeypatch.setattr(Bucket, "put", late)
    with pytest.raises(ConflictError, match="another bundle was made here meanwhile"):
        fill(storage.bucket("last"))
    assert storage.content("last")["inventory.json"] == seal.to_json()


@pytest.mark.parametrize("prefix", ["a b/1 + 2", "100%/пакет", "x/a&b=c?d"])
def test_a_prefix_may_have_any_characters(
    prefix: str, storage: S3Server, plain: dict[str, bytes]
) -> None:
    fill(storage.bucket(prefix))
    assert storage.content(prefix) == plain
    with RemotePath(storage.bucket(prefix)) as place:
        assert {file.name: file.read_bytes() for file in place.iterdir()} == plain


@LAST_STEPS
def test_two_pulls_of_the_same_bundle_make_it(
    step: str,
    storage: S3Server,
    plain: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meanwhile(monkeypatch, step, lambda: fill(storage.bucket(f"twice/{step}")))
    fill(storage.bucket(f"twice/{step}"))
    assert storage.content(f"twice/{step}") == plain


# -- compressed on the way -------------------------------------------------------------------------

ZSTD = Packing(part_size=MIB, compress=True)
SMALL = MemoryStore()
put_image(SMALL, "", "v1", layers=[_random.randbytes(4 * MIB), b"small" * 500])
put_image(SMALL, "modules/console", "v1", layers=[b"another" * 100])
SMALL_SEAL = sealed(SMALL)


class Stopped(Counted):
    """A source that fails behind 3 MiB, once the one archive is there and the other under way."""

    def __init__(self, storage: S3Server, prefix: str) -> None:
        super().__init__(SMALL, most=3 * MIB)
        self._there = lambda: (
            "module-console.tar.zst.partial" in storage.names(prefix)
            and any("platform" in name for name in storage.pending(prefix))
        )

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        try:
            yield from super().blob(repository, digest, size, offset)
        except StopError:
            wait_until(self._there)
            raise


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a folder holds of a compressed bundle."""
    folder = tmp_path_factory.mktemp("packed")
    pack(SMALL_SEAL, FILES, SMALL, folder, ZSTD)
    return content(folder)


def test_an_archive_that_was_compressed_stays_and_one_that_was_under_way_begins_anew(
    storage: S3Server, packed: dict[str, bytes]
) -> None:
    with suppress(StopError):
        source = Stopped(storage, "zstd")
        fill(storage.bucket("zstd"), source, seal=SMALL_SEAL, packing=ZSTD, jobs=1)
    again, events = Counted(SMALL), list[Event]()
    with closing(storage.bucket("zstd")) as bucket:
        pack(SMALL_SEAL, FILES, again, bucket, ZSTD, run=Run(3, events.append))
    assert storage.content("zstd") == packed
    assert storage.pending("zstd") == []
    assert again.given == sum(SMALL_SEAL.archives["platform.tar"].inventory.blob_sizes().values())
    assert [one.message for one in events if isinstance(one, Warned)] == [
        (
            "s3://bundles/zstd/platform.tar.zst was under way when a run was interrupted; what is "
            "compressed on the way begins anew"
        )
    ]


def test_compressing_may_fail_at_any_request_and_ends_with_the_same_bytes(
    storage: S3Server, tmp_path: Path
) -> None:
    """A bundle that lies there stays whole until all of the new one has arrived."""
    (store, seal), faults, told = other(), Faults(), list[str]()
    pack(seal, FILES, store, tmp_path, ZSTD)
    former = Seal.over(archives_of(store.inventory()), {"former": True}, "mirror 0.test", FILES)
    fill(storage.bucket("any-zstd"), store, seal=former)
    before = storage.content("any-zstd")
    with FaultyProxy(f"http://{storage.address}", faults=faults) as proxy:
        for number in range(1, 200, 2):
            faults.clear()
            faults.add(Fault(Answer(403), nth=number))
            struck, bucket = faults.struck, storage.bucket("any-zstd", address=proxy.address)
            try:
                fill(bucket, store, seal=seal, packing=ZSTD, force=True, jobs=2)
            except MirrorError as err:
                told.append(str(err))
                there = storage.content("any-zstd")
                if there.get("inventory.json") == before["inventory.json"]:
                    assert before.items() <= there.items()
            if faults.struck == struck:
                break
    assert len(told) > 8
    assert all("HTTP 403" in text for text in told)
    assert storage.content("any-zstd") == content(tmp_path)
    assert storage.pending("any-zstd") == []


def test_a_blob_that_came_wrong_is_never_part_of_a_compressed_bundle(
    storage: S3Server, packed: dict[str, bytes]
) -> None:
    digest, size = max(SMALL.inventory().blob_sizes().items(), key=lambda one: one[1])
    wrong = Wrong(digest, 10, SMALL)
    with pytest.raises(IncompleteError, match=str(digest)):
        fill(storage.bucket("wrong-zstd"), wrong, seal=SMALL_SEAL, packing=ZSTD)
    source = FailoverSource([Wrong(digest, size - 1, SMALL), SMALL])
    fill(storage.bucket("wrong-zstd"), source, seal=SMALL_SEAL, packing=ZSTD)
    assert storage.content("wrong-zstd") == packed


@pytest.mark.parametrize("record", [b"[]", b"elsewhere", None], ids=str)
def test_a_record_of_what_was_compressed_that_is_none_counts_for_nothing(
    record: bytes | None, storage: S3Server, packed: dict[str, bytes]
) -> None:
    prefix, name = f"record/{record!r}", "module-console.tar.zst.partial"
    with suppress(StopError):
        source = Stopped(storage, prefix)
        fill(storage.bucket(prefix), source, seal=SMALL_SEAL, packing=ZSTD, jobs=1)
    with closing(storage.bucket(prefix)) as bucket:
        if record == b"elsewhere":
            state = bucket.states(Run())[name]
            text = bucket.read(name, state, Run()).replace(b"module-console.tar.zst", b"../x")
            bucket.put(name, text, Run())
        elif record is None:  # what it speaks of has gone
            for one, upload in bucket.uploads(Run()):
                bucket.abort(one, upload, Run())
        else:
            bucket.put(name, record, Run())
    fill(storage.bucket(prefix), SMALL, seal=SMALL_SEAL, packing=ZSTD)
    assert storage.content(prefix) == packed
    assert storage.pending(prefix) == []


# -- what is told of servers -----------------------------------------------------------------------


def test_a_login_that_is_refused_says_what_to_check(
    storage: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no-such-secret")
    caplog.set_level("DEBUG")
    with pytest.raises(DeniedError, match="AWS_ACCESS_KEY_ID") as caught:
        fill(storage.bucket("denied"))
    assert "no-such-secret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong, or that of the server"),
        (403, "AccessDenied", "check the credentials"),
        (404, "NoSuchBucket", "create the bucket first"),
        (301, "PermanentRedirect", "set AWS_REGION"),
        (
            404,
            "NoSuchUpload",
            r"somebody else has .* run it again \(the S3 server refuses: HTTP 404",
        ),
    ],
)
def test_what_a_server_refuses_is_told_with_what_to_do(
    status: int, code: str, told: str, storage: S3Server
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    faults = Faults(Fault(Answer(status, {"Location": "http://192.0.2.1/"}, body), "GET"))
    with (
        FaultyProxy(f"http://{storage.address}", faults=faults) as proxy,
        closing(storage.bucket("told", address=proxy.address)) as bucket,
        pytest.raises(RegistryError, match=told) as caught,
    ):
        bucket.states(Run())
    assert caught.value.codes == (code,)
    first = "somebody else" if code == "NoSuchUpload" else "the S3 server refuses (HTTP "
    assert str(caught.value).startswith(f"GET s3://bundles/told: {first}")


@pytest.mark.parametrize("endpoint", ["http://minio", "https://minio:9000", "http://[::1]:9000"])
def test_a_server_may_have_any_name(endpoint: str) -> None:
    place = BucketAddress("bundles", "x")
    with closing(Bucket(place, environment={"AWS_ENDPOINT_URL_S3": endpoint})) as bucket:
        assert bucket.where == "s3://bundles/x"


# -- a hostile server ------------------------------------------------------------------------------

ODD = {
    "a size that is no number": "<Contents><Key>a</Key><Size>many</Size><ETag>e</ETag></Contents>",
    "a size without end": f"<Contents><Key>a</Key><Size>{'9' * 5000}</Size></Contents>",
    "no size": "<Contents><Key>a</Key></Contents>",
    "a list without end": (
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    ),
    "a list without a next page": "<IsTruncated>true</IsTruncated>",
}


@pytest.mark.parametrize(
    "answer",
    [
        *(f"<List>{odd}</List>" for odd in ODD.values()),
        '<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><List>&b;</List>',
        '<?xml version="1.0" encoding="utf-32"?><List/>',
        '<?xml version="1.0" encoding="none-such"?><List/>',
        "a page",
        "",
    ],
    ids=[*ODD, "entities", "another encoding", "an unknown encoding", "no XML", "nothing"],
)
def test_an_odd_answer_of_a_server_is_an_error_of_ours(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", LOGIN[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", LOGIN[1])
    with ScriptedServer(lambda _request: Reply(200, {}, answer.encode())) as server:
        environment = {"AWS_ENDPOINT_URL_S3": server.url}
        bucket = Bucket(BucketAddress("bundles"), environment=environment)
        with closing(bucket), pytest.raises(RegistryError, match="S3 server"):
            bucket.states(Run())


# -- what is told ----------------------------------------------------------------------------------


def test_a_pull_that_goes_on_says_once_how_much_is_there(storage: S3Server) -> None:
    events: list[Event] = []
    with closing(storage.bucket("told")) as bucket:
        pack(SEAL, FILES, STORE, bucket, AS_USUAL, run=Run(on_event=events.append))
        whole = sum(one.size for one in events if isinstance(one, TransferStarted))
        assert not any(one.earlier for one in events if isinstance(one, TransferStarted))
        for name in ("inventory.json", "SHA256SUMS"):
            bucket.remove(name, Run())
        bucket.remove("module-console.tar", Run())
        bucket.put("inventory.json.partial", SEALED, Run())
        bucket.put("pull.journal.partial", f"parts 0 of {PART}\n".encode(), Run())
        events.clear()
        pack(SEAL, FILES, STORE, bucket, AS_USUAL, run=Run(on_event=events.append))
    told = [one for one in events if isinstance(one, TransferStarted) and one.earlier]
    assert [one.earlier + one.size for one in told] == [whole]
    assert not any(isinstance(one, Warned) for one in events)


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_a_pull_of_something_else_says_first_what_an_interrupted_one_left(
    kind: str, storage: S3Server, tmp_path: Path
) -> None:
    other = Seal.over(archives_of(STORE.inventory()), {"other": True}, "mirror 0.test", FILES)
    events: list[Event] = []
    with closing(storage.bucket("else")) as bucket:
        place = bucket if kind == "bucket" else tmp_path
        with pytest.raises(StopError):
            pack(SEAL, FILES, Counted(most=14 * MIB), place, AS_USUAL, run=Run(jobs=1))
        pack(other, FILES, STORE, place, AS_USUAL, run=Run(on_event=events.append))
    [told] = [one.message for one in events if isinstance(one, Warned)]
    assert isinstance(events[0], Warned), "before anything is fetched"
    assert "an interrupted pull that was asked for something else left" in told
    assert " MiB in " in told
