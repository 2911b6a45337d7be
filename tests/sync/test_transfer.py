"""One suite for every source and every target."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings

from mirror.errors import (
    CancelledError,
    DigestMismatchError,
    IncompleteError,
    MirrorError,
    NotFoundError,
    RegistryError,
    UnreachableError,
)
from mirror.events import (
    BlobDone,
    BytesMoved,
    Event,
    ManifestDone,
    TagDone,
    TransferStarted,
    serialised,
)
from mirror.oci import Digest, Manifest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.run import Cancellation, Run
from mirror.serve import MemoryStorage, Store
from mirror.sync import (
    BlobContent,
    CopyBlob,
    Inventory,
    MemoryStore,
    Plan,
    Source,
    TransferReport,
    make_plan,
    transfer,
)
from mirror.sync.tree import RegistrySource, RegistryTarget
from mirror.testing import (
    Action,
    Answer,
    CutResponse,
    CutUpload,
    EmbeddedRegistry,
    Fault,
    LoseAnswer,
    Refuse,
)
from tests.conftest import MakeEmbeddedRegistry
from tests.support.inventories import put_image, put_index, sample_store, stores
from tests.support.patience import PATIENCE_S
from tests.support.places import (
    KINDS,
    Destination,
    below,
    client_of,
    destination_of,
    source_of,
    stored,
)
from tests.support.real_registry import RealRegistry

STORE = sample_store()
WANTED = STORE.inventory()


@pytest.fixture(params=KINDS)
def source(
    request: pytest.FixtureRequest, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> Iterator[Source]:
    """Something that offers the sample tree."""
    with source_of(request.param, STORE, embedded_registry, tmp_path / "source") as made:
        yield made


@pytest.fixture(params=KINDS)
def destination(
    request: pytest.FixtureRequest, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> Iterator[Destination]:
    """Somewhere with room for the sample tree."""
    with destination_of(request.param, WANTED, embedded_registry, tmp_path / "target") as made:
        yield made


class Faulty:
    """The sample tree, of which one blob or manifest cannot be had."""

    name = "the faulty source"

    def __init__(self, bad: Digest, error: MirrorError | None = None) -> None:
        self._bad, self._error = bad, error

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        if digest == self._bad:
            raise self._error or NotFoundError("it is gone")
        return STORE.manifest(repository, digest)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        data = b"".join(STORE.blob(repository, digest, size, offset))
        if digest == self._bad:
            if self._error is not None:
                raise self._error
            data = data[:-1] + bytes([data[-1] ^ 1])
        for start in range(0, len(data), 100):
            yield data[start : start + 100]


# -- everything arrives ----------------------------------------------------------------------------


def test_all_that_is_wanted_arrives_and_nothing_else(
    source: Source, destination: Destination
) -> None:
    plan = make_plan(WANTED, destination.target.held(WANTED))
    report = transfer(plan, source, destination.target, run=Run(jobs=4))
    distinct = WANTED.blob_sizes()
    assert report == TransferReport(
        blobs=len(distinct),
        sent=sum(distinct.values()),
        manifests=sum(len(one.manifests) for one in WANTED.repositories.values()),
        tags=sum(len(one.tags) for one in WANTED.repositories.values()),
    )
    assert destination.holds() == WANTED


def test_events_account_for_every_step_and_every_byte(
    source: Source, destination: Destination
) -> None:
    heard: list[Event] = []
    plan = make_plan(WANTED, Inventory())
    transfer(plan, source, destination.target, run=Run(4, serialised(heard.append)))
    sizes = WANTED.blob_sizes()
    assert heard[0] == TransferStarted(
        len(sizes), sum(sizes.values()), plan.manifest_count, plan.tag_count
    )
    moved = dict.fromkeys(sizes, 0)
    for event in heard:
        if isinstance(event, BytesMoved):
            moved[event.digest] += event.count
    assert moved == sizes
    done = {event.digest: event for event in heard if isinstance(event, BlobDone)}
    assert done == {digest: BlobDone(digest, size, size) for digest, size in sizes.items()}
    manifests = [event for event in heard if isinstance(event, ManifestDone)]
    assert len(manifests) == len(set(manifests)) == plan.manifest_count
    tags = [event for event in heard if isinstance(event, TagDone)]
    assert {(one.repository, one.tag, one.digest) for one in tags} == {
        (name.repository, name.tag, name.digest) for stage in plan.tags for name in stage
    }


@pytest.mark.parametrize("kind", ["memory", "registry"])
def test_a_second_run_sends_nothing(
    kind: str, source: Source, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    with destination_of(kind, WANTED, embedded_registry, tmp_path / "target") as place:
        transfer(
            make_plan(WANTED, place.target.held(WANTED)), source, place.target, run=Run(jobs=2)
        )
        embedded_registry.requests.clear()
        plan = make_plan(WANTED, place.target.held(WANTED))
        assert plan == Plan()
        report = transfer(plan, source, place.target)
        assert report == TransferReport(blobs=0, sent=0, manifests=0, tags=0)
        requests = embedded_registry.requests
        assert not [one for one in requests if one.method in {"POST", "PUT", "PATCH", "DELETE"}]
        assert requests.received() == 0
        if kind == "registry":
            assert len(requests) > 0  # it did ask


def test_a_blob_that_many_repositories_share_crosses_the_wire_once(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        transfer(make_plan(WANTED, Inventory()), STORE, RegistryTarget(client, below("target")))
    uploads = embedded_registry.requests.matching("PUT", "/blobs/uploads/.*digest=", 201)
    assert len(uploads) == len(WANTED.blob_sizes())
    assert embedded_registry.requests.received("/blobs/") == sum(WANTED.blob_sizes().values())
    mounts = embedded_registry.requests.matching("POST", "mount=.*&from=", 201)
    holdings = sum(len(content.blobs) for content in WANTED.repositories.values())
    assert len(mounts) == holdings - len(uploads)


def test_where_nothing_can_be_mounted_all_arrives_nonetheless(
    embedded_registry: EmbeddedRegistry,
) -> None:
    refusal = Answer(405, {}, b'{"errors":[{"code":"UNSUPPORTED"}]}')
    embedded_registry.faults.add(Fault(refusal, "POST", "mount=", times=None))
    with client_of(embedded_registry) as client:
        target = RegistryTarget(client, below("target"))
        report = transfer(make_plan(WANTED, Inventory()), STORE, target)
    assert embedded_registry.faults.struck > 0
    holdings = [one.blobs.values() for one in WANTED.repositories.values()]
    assert report.sent == sum(map(sum, holdings))
    assert stored(_storage(embedded_registry), "target") == WANTED


@settings(max_examples=25)
@given(store=stores(), other=stores())
def test_any_content_arrives_beside_whatever_is_there(
    store: MemoryStore, other: MemoryStore
) -> None:
    wanted, before = store.inventory(), other.inventory()
    transfer(make_plan(wanted, before), store, other, run=Run(jobs=2))
    assert make_plan(wanted, other.inventory()) == Plan()
    assert make_plan(before, other.inventory()).blobs == ()
    for path, content in wanted.repositories.items():
        for digest, size in content.blobs.items():
            data = b"".join(other.blob(path, digest, size))
            assert Digest.of(data, digest.algorithm) == digest


# -- order: a tag is a promise that is kept already ------------------------------------------------


class Watchful(MemoryStore):
    """A target that looks, at every step, whether it would show somebody a half."""

    def __init__(self) -> None:
        super().__init__("the watchful target")
        self.halves: list[str] = []
        self.tagged: list[tuple[str, str]] = []

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        super().put_manifest(repository, manifest)
        self.halves += [
            f"manifest before {gap.missing}"
            for gap in self.inventory().gaps()
            if gap.needed_by == manifest.digest
        ]

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        super().put_tag(repository, tag, manifest)
        self.tagged.append((repository, tag))
        self.halves += [f"{repository}:{tag} before {gap}" for gap in self.inventory().gaps()]


@settings(max_examples=25)
@given(store=stores())
def test_whoever_looks_at_any_moment_never_sees_a_half(store: MemoryStore) -> None:
    target = Watchful()
    transfer(make_plan(store.inventory(), Inventory()), store, target, run=Run(jobs=8))
    assert target.halves == []
    assert target.inventory() == store.inventory()


def test_tags_of_a_later_stage_turn_after_all_of_the_earlier() -> None:
    target = Watchful()
    stages = {"alpha": 1, "stable": 1, "v3.2.1": 2}
    plan = make_plan(WANTED, Inventory(), stage=lambda _repository, tag: stages.get(tag, 0))
    transfer(plan, STORE, target, run=Run(jobs=8))
    order = [stages.get(tag, 0) for _, tag in target.tagged]
    assert order == sorted(order)
    assert order[-3:] == [1, 1, 2]


# -- failures --------------------------------------------------------------------------------------


def _some_layer() -> tuple[Digest, int]:
    return max(WANTED.blob_sizes().items(), key=lambda blob: blob[1])


def test_a_blob_with_wrong_bytes_stops_manifests_and_tags_but_not_its_siblings(
    destination: Destination,
) -> None:
    bad, _ = _some_layer()
    heard: list[Event] = []
    plan = make_plan(WANTED, Inventory())
    with pytest.raises(IncompleteError) as caught:
        transfer(plan, Faulty(bad), destination.target, run=Run(on_event=serialised(heard.append)))
    message = str(caught.value)
    assert message.startswith(
        f"1 of {len(plan.blobs)} blobs could not be brought from the faulty source "
        f"to {destination.target.name}\n"
    )
    assert re.search(rf"\n  blob {bad} into /, .*: expected {bad}, got sha256:", message)
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.failures[0][1], DigestMismatchError)
    done = {event.digest for event in heard if isinstance(event, BlobDone)}
    assert done == set(WANTED.blob_sizes()) - {bad}
    assert not any(isinstance(event, ManifestDone | TagDone) for event in heard)
    held = destination.holds()
    assert not held.manifest_nodes()
    assert not any(content.tags for content in held.repositories.values())


def test_a_manifest_that_is_gone_stops_its_parents_and_all_tags() -> None:
    index = WANTED.repository("").tags["v1.0.0"]
    child = WANTED.repository("").manifests[index].children[0].digest
    target = MemoryStore()
    told = "1 of 8 manifests could not be brought from the faulty source to memory"
    with pytest.raises(IncompleteError, match=told) as err:
        transfer(make_plan(WANTED, Inventory()), Faulty(child), target)
    assert f"\n  manifest @{child}: it is gone" in str(err.value)
    held = target.inventory()
    assert index not in held.repository("").manifests
    assert not any(content.tags for content in held.repositories.values())


def test_one_reason_for_all_failures_gives_its_exit_code() -> None:
    bad, _ = _some_layer()
    unreachable = UnreachableError("no answer", where="GET x")
    with pytest.raises(IncompleteError) as caught:
        transfer(make_plan(WANTED, Inventory()), Faulty(bad, unreachable), MemoryStore())
    assert caught.value.exit_code == UnreachableError.exit_code


class Refusing(MemoryStore):
    """A target that takes no blob."""

    def __init__(self, refusal: Callable[[CopyBlob], MirrorError]) -> None:
        super().__init__("registry r")
        self._refusal = refusal

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        raise self._refusal(step)


def test_a_target_that_refuses_is_told_once_however_many_items_it_refuses() -> None:
    def refusal(step: CopyBlob) -> MirrorError:
        where = f"PUT r/{step.into[0]}@{step.digest}"
        return RegistryError(f"{where}: r refuses (HTTP 405)", where=where, status=405)

    plan = make_plan(WANTED, Inventory())
    count = len(plan.blobs)
    with pytest.raises(IncompleteError) as caught:
        transfer(plan, STORE, Refusing(refusal))
    first, second = str(caught.value).splitlines()
    assert first == (
        f"{count} of {count} blobs could not be brought from {STORE.name} to registry r"
    )
    assert second.startswith("  blob sha256:")
    assert f" and {count - 1} more for the same reason: PUT r/" in second
    assert len(caught.value.failures) == count


def test_what_was_not_tried_is_told_too() -> None:
    plan = make_plan(WANTED, Inventory())
    with pytest.raises(IncompleteError) as caught:
        transfer(
            plan, STORE, Refusing(lambda step: UnreachableError("no", where="x")), run=Run(jobs=1)
        )
    tried = len(caught.value.failures)
    assert tried < len(plan.blobs)
    assert f"{tried} of {len(plan.blobs)} blobs could not be brought" in str(caught.value)
    assert f", {len(plan.blobs) - tried} more were not tried\n" in str(caught.value)


def test_a_blob_of_many_repositories_names_the_first_few() -> None:
    store = MemoryStore()
    for number in range(9):
        put_image(store, f"modules/m{number}", "v1", layers=(b"shared",))
    refuse = Refusing(lambda step: UnreachableError("no", where="x"))
    with pytest.raises(IncompleteError) as caught:
        transfer(make_plan(store.inventory(), Inventory()), store, refuse, run=Run(jobs=1))
    assert " into modules/m0, modules/m1, modules/m2 and 6 more" in str(caught.value)


def test_a_bug_in_a_source_is_no_failure_of_an_item() -> None:
    class Broken(Faulty):
        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        transfer(make_plan(WANTED, Inventory()), Broken(Digest.of(b"")), MemoryStore())


def test_a_cancelled_transfer_leaves_no_tag_and_the_next_completes_it(source: Source) -> None:
    cancel = Cancellation()
    target = Watchful()

    def on_event(event: Event) -> None:
        if isinstance(event, BlobDone):
            cancel.cancel()

    plan = make_plan(WANTED, Inventory())
    with pytest.raises(CancelledError, match="stopped on request"):
        transfer(plan, source, target, run=Run(2, on_event, cancel))
    assert target.tagged == []
    there = target.inventory()
    assert there.blob_sizes()
    rest = make_plan(WANTED, there)
    assert len(rest.blobs) < len(plan.blobs)
    transfer(rest, source, target)
    assert target.inventory() == WANTED
    assert target.halves == []


# -- faults at every request -----------------------------------------------------------------------


def _small_store() -> MemoryStore:
    store = MemoryStore()
    one = put_image(store, "", "v1", layers=(b"base" * 300, b"one"))
    other = put_image(store, "", layers=(b"base" * 300, b"other"))
    put_index(store, "", "v1-all", children=[one, other])
    put_image(store, "release", "alpha", layers=(b"base" * 300,))
    return store


@pytest.fixture(scope="module")
def module_registry() -> Iterator[EmbeddedRegistry]:
    """One registry for hundreds of runs, each below a root of its own."""
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield registry


@pytest.fixture(scope="module")
def module_client(module_registry: EmbeddedRegistry) -> Iterator[RegistryClient]:
    """Its client, which gives up at the first failure."""
    with client_of(module_registry) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("before", [Refuse(), CutUpload(after=2)]),
        ("after", [LoseAnswer(), CutResponse(after=2)]),
        ("answered", [Answer(500), Answer(403)]),
    ],
)
def test_a_push_cut_at_any_request_never_lies_and_is_completed_by_the_next(
    module_registry: EmbeddedRegistry,
    module_client: RegistryClient,
    name: str,
    actions: list[Action],
) -> None:
    store = _small_store()
    wanted = store.inventory()
    registry, storage = module_registry, _storage(module_registry)

    def push(root: str) -> None:
        target = RegistryTarget(module_client, below(root), run=Run(jobs=2))
        plan = make_plan(wanted, target.held(wanted), stage=lambda _, tag: int(tag == "alpha"))
        transfer(plan, store, target, run=Run(jobs=2))

    for number in range(1, 100):
        root = f"{name}/{number}"
        struck = registry.faults.struck
        registry.faults.add(Fault(actions[number % len(actions)], nth=number))
        with suppress(MirrorError):
            push(root)
        registry.faults.clear()
        seen = stored(storage, root)
        assert list(seen.gaps()) == [], f"a tag dangles after a fault at request {number}"
        if "alpha" in seen.repository("release").tags:
            assert seen.repository("").tags == wanted.repository("").tags
        push(root)
        assert stored(storage, root) == wanted
        if registry.faults.struck == struck:
            assert number > 20  # there were no more requests to strike
            return
    pytest.fail("a push of ten things took a hundred requests")


@pytest.mark.parametrize("nth", range(1, 30, 4))
def test_one_fault_at_any_request_is_survived_by_one_retry(
    module_registry: EmbeddedRegistry, nth: int
) -> None:
    store = _small_store()
    wanted = store.inventory()
    module_registry.faults.clear()
    module_registry.faults.add(Fault(LoseAnswer(), nth=nth))
    with client_of(module_registry, attempts=3) as client:
        target = RegistryTarget(client, below(f"retry/{nth}"), run=Run(jobs=2))
        transfer(make_plan(wanted, target.held(wanted)), store, target, run=Run(jobs=2))
    module_registry.faults.clear()
    assert stored(_storage(module_registry), f"retry/{nth}") == wanted


def test_a_blob_that_a_source_cuts_short_is_continued_where_it_stopped(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    data = bytes(range(256)) * 4096
    store = MemoryStore()
    put_image(store, "", "big", layers=(data,))
    wanted = store.inventory()
    registry = make_embedded_registry()
    target = MemoryStore()
    with client_of(registry, attempts=2) as client:
        transfer(make_plan(wanted, Inventory()), store, RegistryTarget(client, below("source")))
        registry.faults.add(Fault(CutResponse(after=300_000), "GET", f"{Digest.of(data)}"))
        source = RegistrySource(client, below("source"))
        transfer(make_plan(wanted, Inventory()), source, target)
    assert target.inventory() == wanted
    reads = registry.requests.matching("GET", f"{Digest.of(data)}")
    first, second = (one.headers.get("range", "") for one in reads)
    assert first == ""
    assert second.startswith("bytes=")
    assert sum(one.sent for one in reads) < 1.5 * len(data)


# -- writing into memory ---------------------------------------------------------------------------


def test_memory_keeps_no_blob_whose_bytes_are_wrong() -> None:
    bad, size = _some_layer()
    target = MemoryStore()
    content = BlobContent(Faulty(bad), "", bad, size)
    with pytest.raises(DigestMismatchError, match="the faulty source: blob"):
        target.put_blob(CopyBlob(bad, size, ("",), ""), content)
    assert target.inventory() == Inventory()


def _storage(registry: EmbeddedRegistry) -> Store:
    assert isinstance(registry.storage, Store)
    return registry.storage


def test_tags_of_images_and_of_indexes_that_hold_them_turn_beside_each_other(
    real_registry: RealRegistry,
) -> None:
    """Distribution takes no index while the file of an image in it is written anew for a tag."""
    store = MemoryStore()
    images = [
        put_image(store, "", f"image-{n}", f"same-{n}", layers=[b"layer %d" % n]) for n in range(6)
    ]
    indexes = [put_index(store, "", f"index-{n}", children=images, note=f"{n}") for n in range(6)]
    put_index(store, "", "nested", children=[*indexes, images[0]])
    options = ConnectionOptions(plain_http=True, retries=RetryPolicy(attempts=1))
    with RegistryClient(real_registry.address, options=options) as client:
        for number in range(3):
            target = RegistryTarget(client, below(f"target-{number}"))
            transfer(make_plan(store.inventory(), Inventory()), store, target, run=Run(jobs=8))
            assert target.held(store.inventory()) == store.inventory()


def test_an_index_is_put_again_where_what_it_holds_was_being_written(
    embedded_registry: EmbeddedRegistry,
) -> None:
    """By another process, say; the registry says then that it does not know what it has."""
    refusal = Answer(400, {}, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}')
    embedded_registry.faults.add(Fault(refusal, "PUT", "/manifests/v1.0.0", times=2))
    with client_of(embedded_registry) as client:
        transfer(make_plan(WANTED, Inventory()), STORE, RegistryTarget(client, below("target")))
    assert stored(_storage(embedded_registry), "target") == WANTED


class Counting(MemoryStore):
    """How many blobs of each kind arrive at once: those of more than 256 KiB, and small ones."""

    def __init__(self, meeting: int) -> None:
        super().__init__("counting")
        self._guard, self._meeting = threading.Lock(), threading.Barrier(meeting)
        self._together = threading.Barrier(3)
        self.busy, self.most = 0, 0

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        if step.size <= 256 << 10:
            self._meeting.wait(PATIENCE_S)
            return super().put_blob(step, content)
        with self._guard:
            self.busy += 1
            self.most = max(self.most, self.busy)
        with suppress(threading.BrokenBarrierError):
            self._together.wait(0.05)  # for one more than may be here
        try:
            return super().put_blob(step, content)
        finally:
            with self._guard:
                self.busy -= 1


def test_more_threads_for_a_long_way_move_no_more_large_blobs_at_once() -> None:
    store = MemoryStore()
    large = [bytes([number]) * 300_000 for number in range(8)]
    put_image(store, "", "v1", layers=[*large, *(b"%d" % number for number in range(11))])
    run = Run(2, widest=12)
    run.width.bears = 12
    target = Counting(meeting=12)
    transfer(make_plan(store.inventory(), Inventory()), store, target, run=run)
    assert target.inventory() == store.inventory()
    assert 1 <= target.most <= 2
