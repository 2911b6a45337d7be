"""How content is written to a registry: access proved first, mounts where there are any, and what
a registry lost brought again."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from mirror.errors import DeniedError, IncompleteError, RegistryError
from mirror.events import Event, ManifestDone, Warned, serialised
from mirror.oci import Digest, Manifest
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    OpenUpload,
    RegistryClient,
    RetryPolicy,
    UploadJournal,
    upload_sessions,
    uploads,
)
from mirror.run import Run
from mirror.serve import BasicAuth, MemoryStorage, TokenAuth, User
from mirror.sync import (
    CopyBlob,
    Inventory,
    InventoryBuilder,
    MemoryStore,
    Plan,
    PutManifest,
    make_plan,
    transfer,
)
from mirror.sync.observation import Depth
from mirror.sync.plan import places_written
from mirror.sync.tree import RegistryTarget
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry
from tests.support.inventories import put_image, put_index, sample_store
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.places import below, client_of, storage_of, stored
from tests.support.real_registry import RealRegistry

STORE = sample_store()
WANTED = STORE.inventory()
ROOT = "dkp/ee"
PLAIN = ConnectionOptions(plain_http=True, retries=RetryPolicy(attempts=1))


@pytest.fixture
def storage(embedded_registry: EmbeddedRegistry) -> MemoryStorage:
    return storage_of(embedded_registry)


# -- access ----------------------------------------------------------------------------------------


def test_one_repository_of_each_part_of_the_tree_is_tried() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    plan = Plan(
        blobs=(
            CopyBlob(one, 1, ("", "modules/b"), ""),
            CopyBlob(two, 1, ("modules/c", "modules/a"), "modules/a"),
            CopyBlob(two, 1, ("security/x",), "", "install"),
        ),
        manifests=((PutManifest("modules/a", one), PutManifest("release-channel", one)),),
    )
    # Where a blob is sent to, if there is such a place: the upload that proves it is used then.
    assert places_written(plan) == {
        "": True,
        "modules/c": True,
        "release-channel": False,
        "security/x": False,
    }
    assert places_written(Plan()) == {}


def test_proving_access_leaves_nothing_behind_and_costs_no_request_where_blobs_go(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    target = RegistryTarget(client, below(ROOT))
    plan = make_plan(WANTED, Inventory())
    target.check_access(plan)
    tried = embedded_registry.requests.matching("POST", "/blobs/uploads/")
    assert len(tried) == len({path.partition("/")[0] for path in WANTED.repositories})
    transfer(plan, STORE, target)
    uploads = embedded_registry.requests.matching("PUT", "/blobs/uploads/")
    opened = embedded_registry.requests.matching("POST", r"/blobs/uploads/\?$", 202)
    assert len(opened) == len(uploads)
    assert embedded_registry.requests.count("DELETE") == 0


def test_what_access_opened_and_nobody_used_is_cancelled(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    target = RegistryTarget(client, below(ROOT))
    target.check_access(make_plan(WANTED, Inventory()))
    opened = embedded_registry.requests.count("POST", "/blobs/uploads/")
    target.release()
    target.release()
    assert opened
    wait_until(lambda: embedded_registry.requests.count("DELETE", "/blobs/uploads/") == opened)


def test_tags_alone_are_proved_to_be_allowed_too(
    client: RegistryClient, embedded_registry: EmbeddedRegistry, storage: MemoryStorage
) -> None:
    target = RegistryTarget(client, below(ROOT))
    transfer(make_plan(WANTED, Inventory()), STORE, target)
    assert storage.delete_tag(f"{ROOT}/release-channel", "alpha")
    plan = make_plan(WANTED, target.held(WANTED, Depth.PROBE))
    assert (plan.size, plan.tag_count) == (0, 1)
    embedded_registry.requests.clear()
    target.check_access(plan)
    wait_until(lambda: embedded_registry.requests.count("DELETE") == 1)
    methods = [one.method for one in embedded_registry.requests]
    assert [method for method in methods if method not in ("GET", "HEAD")] == ["POST", "DELETE"]


def test_who_may_not_write_is_told_where_before_anything_was_sent(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    reader = User("right", frozenset({"pull"}))
    registry = make_embedded_registry(auth=BasicAuth({"ci": reader}))
    with RegistryClient(
        registry.address, options=PLAIN, credentials=Credentials("ci", "right")
    ) as client:
        target = RegistryTarget(client, below(ROOT))
        plan = make_plan(WANTED, target.held(WANTED, Depth.PROBE))
        with pytest.raises(DeniedError) as caught:
            target.check_access(plan)
    told = str(caught.value)
    place = f"you may not push to registry {registry.address}: {ROOT}"
    assert told.startswith(f"{place} may not be written to, so nothing was sent")
    assert caught.value.exit_code == 6
    assert not registry.requests.matching("PUT")
    assert not registry.requests.matching("PATCH")


def test_distribution_keeps_no_content_of_a_proof(real_registry: RealRegistry) -> None:
    with RegistryClient(real_registry.address, options=PLAIN) as client:
        target = RegistryTarget(client, below(ROOT))
        target.check_access(make_plan(WANTED, Inventory()))
        target.release()
        assert list(client.catalogue()) == []
    assert not list(real_registry.root.rglob("_uploads/*/data"))
    assert not list(real_registry.root.rglob("_uploads/*/startedat"))


# -- mounts ----------------------------------------------------------------------------------------


def shared_images(count: int) -> MemoryStore:
    store = MemoryStore()
    for number in range(count):
        put_image(store, f"image-{number}", "v1", layers=(b"shared " * 100, b"own %d" % number))
    return store


@pytest.mark.parametrize("status", [202, 405])
def test_a_registry_that_mounts_nothing_is_asked_a_few_times_and_told_of_once(
    status: int,
    client: RegistryClient,
    embedded_registry: EmbeddedRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = shared_images(20)
    wanted = store.inventory()
    if status == 405:
        embedded_registry.faults.add(Fault(Answer(405), "POST", "mount=", times=None))
    else:
        # Most registries open an upload instead, which is used.
        monkeypatch.setattr(embedded_registry.storage, "mount_blob", lambda *_: False)
    heard: list[Event] = []
    on_event = serialised(heard.append)
    target = RegistryTarget(client, below(ROOT), run=Run(1, on_event))
    report = transfer(make_plan(wanted, Inventory()), store, target, run=Run(jobs=1))
    assert embedded_registry.requests.count("POST", "mount=") == 3
    assert embedded_registry.requests.count("DELETE") == 0
    assert report.sent == sum(
        size for one in wanted.repositories.values() for size in one.blobs.values()
    )
    (warned,) = [event for event in heard if isinstance(event, Warned)]
    assert "what several of them share is sent to each" in warned.message
    assert target.held(wanted) == wanted


def test_one_refused_mount_does_not_end_all_mounting(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    store = shared_images(20)
    wanted = store.inventory()
    embedded_registry.faults.add(Fault(Answer(404), "POST", "mount=", nth=4, times=5))
    target = RegistryTarget(client, below(ROOT))
    report = transfer(make_plan(wanted, Inventory()), store, target, run=Run(jobs=1))
    distinct = sum(wanted.blob_sizes().values())
    assert distinct < report.sent <= distinct + 5 * 700
    assert embedded_registry.requests.count("POST", "mount=") > 30


# -- what a registry lost --------------------------------------------------------------------------


class Collector:
    """A target whose registry collects garbage at the worst moments, `times` for each manifest."""

    def __init__(self, target: RegistryTarget, storage: MemoryStorage, times: int = 1) -> None:
        self._target, self._storage, self._times = target, storage, times
        self._lock = threading.Lock()
        self._collected: Counter[tuple[str, Digest]] = Counter()
        self.name, self.held, self.put_blob = target.name, target.held, target.put_blob

    def _collect(self, repository: str, manifest: Manifest, *, tagged: bool = False) -> None:
        with self._lock:
            self._collected[repository, manifest.digest] += 1
            if self._collected[repository, manifest.digest] > self._times:
                return
        for blob in manifest.blobs:
            self._storage.delete_blob(self._target.locate(repository), blob.digest)
        for child in manifest.children if not tagged else ():
            self._storage.delete_manifest(self._target.locate(repository), child.descriptor.digest)

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        self._collect(repository, manifest)
        self._target.put_manifest(repository, manifest)

    def list_referrer(self, repository: str, manifest: Manifest) -> None:
        self._target.list_referrer(repository, manifest)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        self._collect(repository, manifest, tagged=True)
        self._target.put_tag(repository, tag, manifest)


@pytest.mark.parametrize("times", [1, 3, 1000])
def test_what_a_collector_takes_before_a_manifest_is_brought_again(
    times: int, client: RegistryClient, storage: MemoryStorage
) -> None:
    heard: list[Event] = []
    target = Collector(RegistryTarget(client, below(ROOT)), storage, times)
    plan = make_plan(WANTED, Inventory())
    if times == 1000:
        # It takes them each time: there is an end to patience, and no tag was set.
        with pytest.raises(IncompleteError, match="BLOB_UNKNOWN"):
            transfer(plan, STORE, target, run=Run(jobs=1))
        assert not any(storage.tags(name) for name in storage.repositories())
        return
    report = transfer(plan, STORE, target, run=Run(1, serialised(heard.append)))
    assert report.sent > plan.size
    assert stored(storage, ROOT) == WANTED
    warned = [event.message for event in heard if isinstance(event, Warned)]
    assert warned
    assert "let no garbage collector run" in warned[0]


def test_what_a_collector_takes_before_a_tag_is_brought_again(
    client: RegistryClient, storage: MemoryStorage
) -> None:
    inner = RegistryTarget(client, below(ROOT))
    plan = make_plan(WANTED, Inventory())
    target = Collector(inner, storage)
    transfer(Plan(plan.blobs, plan.manifests), STORE, inner)
    transfer(Plan(tags=plan.tags), STORE, target, run=Run(jobs=1))
    assert inner.held(WANTED) == WANTED


def test_a_manifest_that_is_refused_for_itself_stays_refused(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    embedded_registry.faults.add(Fault(Answer(400), "PUT", "/manifests/", times=None))
    with pytest.raises(IncompleteError, match="HTTP 400"):
        transfer(
            make_plan(WANTED, Inventory()),
            STORE,
            RegistryTarget(client, below(ROOT)),
            run=Run(jobs=1),
        )
    sent = embedded_registry.requests.count("PUT", "/manifests/")
    assert sent == len(make_plan(WANTED, Inventory()).manifests[0])


@pytest.mark.parametrize("what", ["blob", "tag"])
def test_distributions_own_loss_is_mended(real_registry: RealRegistry, what: str) -> None:
    """The files go behind its back, as its garbage collector takes them."""
    store = MemoryStore()
    image = put_image(store, "app", "v1", layers=(b"one" * 5000, b"two" * 3000))
    put_index(store, "app", "v2", children=[image])
    wanted = store.inventory()
    layer = Digest.of(b"one" * 5000)
    heard: list[Event] = []

    with RegistryClient(real_registry.address, options=PLAIN) as client:

        class Losing(RegistryTarget):
            lost = False

            def lose(self) -> None:
                if not self.lost:
                    self.lost = True
                    client.delete_blob(f"{ROOT}/app", layer)
                    shutil.rmtree(real_registry.blob_path(str(layer)).parent)

            def put_manifest(self, repository: str, manifest: Manifest) -> None:
                if what == "blob":
                    self.lose()
                super().put_manifest(repository, manifest)

            def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
                if what == "tag" and manifest.digest == image:
                    self.lose()
                super().put_tag(repository, tag, manifest)

        target = Losing(client, below(ROOT))
        plan = make_plan(wanted, target.held(wanted, Depth.PROBE))
        report = transfer(plan, store, target, run=Run(1, serialised(heard.append)))
        assert target.lost
        assert report.sent == plan.size + 15_000
        assert target.held(wanted) == wanted
        assert b"".join(client.blob(f"{ROOT}/app", layer)) == b"one" * 5000
    assert [event for event in heard if isinstance(event, Warned)]
    assert len([event for event in heard if isinstance(event, ManifestDone)]) == 2


def test_a_refusal_that_is_none_of_a_loss_is_not_asked_about(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    embedded_registry.faults.add(Fault(Answer(409), "PUT", "/manifests/", times=None))
    with pytest.raises(IncompleteError) as caught:
        transfer(
            make_plan(WANTED, Inventory()),
            STORE,
            RegistryTarget(client, below(ROOT)),
            run=Run(jobs=1),
        )
    assert all(isinstance(error, RegistryError) for _, error in caught.value.failures)
    assert embedded_registry.requests.count("GET", "/tags/list") == 0


# -- logins that expire ----------------------------------------------------------------------------


def test_a_token_that_expires_in_the_midst_of_a_blob_is_renewed(
    make_embedded_registry: MakeEmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_sessions, "CHUNK", 1 << 20)
    auth = TokenAuth({"ci": User("right")})
    registry = make_embedded_registry(auth=auth)

    class Slow(MemoryStore):
        """All tokens end once, while its bytes are on their way."""

        ended = False

        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            for piece in super().blob(repository, digest, size, offset):
                offset += len(piece)
                if offset == 3 << 20 and not self.ended:
                    self.ended = True
                    auth.revoke_all()
                yield piece

    store = Slow()
    put_image(store, "app", "v1", layers=(random.Random(1).randbytes(6 << 20),))
    with RegistryClient(
        registry.address, options=PLAIN, credentials=Credentials("ci", "right")
    ) as client:
        target = RegistryTarget(client, below(ROOT))
        plan = make_plan(store.inventory(), target.held(store.inventory(), Depth.PROBE))
        target.check_access(plan)
        transfer(plan, store, target, run=Run(jobs=1))
        assert target.held(store.inventory()) == store.inventory()
    refused = registry.requests.matching("PATCH", "/blobs/uploads/", 401)
    assert refused
    assert registry.requests.count("GET", "/token") > 1


def test_a_blob_is_mounted_into_many_repositories_at_a_time(
    embedded_registry: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Digest.of(b"shared by all")
    store, builder = MemoryStore(), InventoryBuilder()
    for number in range(8):
        store.add_blob(f"image-{number}", b"shared by all")
        builder.add_blob(f"image-{number}", digest, len(b"shared by all"))
    together, asked = threading.Barrier(3), []
    with client_of(embedded_registry) as client:
        mount = client.mount_or_open

        def mount_together(repository: str, digest: Digest, holder: str) -> bool | OpenUpload:
            asked.append(repository)
            if len(asked) > 1:  # the first one shows whether the registry mounts at all
                together.wait(PATIENCE_S)
            return mount(repository, digest, holder)

        monkeypatch.setattr(client, "mount_or_open", mount_together)
        target = RegistryTarget(client, below(ROOT), run=Run(jobs=3))
        transfer(make_plan(builder.build(), Inventory()), store, target)
    assert len(asked) == 7
    assert len(embedded_registry.requests.matching("POST", "mount=.*&from=", 201)) == 7


# -- the journal -----------------------------------------------------------------------------------


def test_what_turns_out_to_be_there_is_no_longer_in_the_journal(
    client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed between the registry's last answer and its own note of it."""
    monkeypatch.setattr(uploads, "_WORTH_KEEPING", 0)
    digest, size = max(WANTED.blob_sizes().items(), key=lambda blob: blob[1])
    paths = [path for path, one in WANTED.repositories.items() if digest in one.blobs]
    with UploadJournal(tmp_path, client.host) as journal:
        for path in paths:
            journal.note(below(ROOT)(path), digest, "http://x/", size)
        target = RegistryTarget(client, below(ROOT), journal=journal)
        transfer(make_plan(WANTED, target.held(WANTED, Depth.PROBE)), STORE, target)
        assert journal.find(below(ROOT)(paths[0]), digest) is None
        journal.note(below(ROOT)(paths[1]), digest, "http://x/", 0)
        assert target.held(WANTED, Depth.PROBE) == WANTED
    assert list(tmp_path.iterdir()) == []
