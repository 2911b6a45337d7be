"""Many images that share layers cost their distinct bytes and few requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from mirror.registry import ConnectionOptions, RegistryClient
from mirror.sync import MemoryStore, Plan, make_plan, transfer
from mirror.sync.observation import Depth
from mirror.sync.tree import RegistryTarget
from tests.support.inventories import put_image
from tests.support.places import below
from tests.support.real_registry import RealRegistry
from tests.support.watched_client import watch

IMAGES = 30
SHARED = 3


def images() -> MemoryStore:
    """Images in repositories of their own, most of whose bytes all of them have."""
    dice = random.Random(5)
    shared = [dice.randbytes(400_000) for _ in range(SHARED)]
    store = MemoryStore()
    for number in range(IMAGES):
        own = dice.randbytes(20_000)
        put_image(
            store, f"image-{number}", "v1", layers=[*shared, own], config=b'{"n":%d}' % number
        )
    return store


class Counting:
    """Requests of a client, as they leave it."""

    def __init__(self, client: RegistryClient) -> None:
        self.methods: Counter[str] = Counter()
        self.uploaded = 0
        watch(client, sent=self._count)

    def _count(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        self.methods[method] += 1
        if "/blobs/uploads/" in url:
            self.uploaded += int(headers.get("Content-Length", "0"))

    @property
    def requests(self) -> int:
        return sum(self.methods.values())


def test_thirty_images_with_shared_layers_cost_their_distinct_bytes_and_eleven_requests_each(
    real_registry: RealRegistry,
) -> None:
    store = images()
    wanted = store.inventory()
    distinct = sum(wanted.blob_sizes().values())
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        counting = Counting(client)
        target = RegistryTarget(client, below("dkp"))
        client.ping()
        plan = make_plan(wanted, target.held(wanted, Depth.PROBE))
        target.check_access(plan)
        report = transfer(plan, store, target)
        target.release()
        assert report.sent == counting.uploaded == plan.size
        assert counting.uploaded <= 1.01 * distinct
        assert counting.requests <= 11 * IMAGES, counting.methods
        # No proof of access was wasted: each upload that it opened became a blob's.
        assert counting.methods["DELETE"] == 0
        print(f"{counting.requests / IMAGES:.2f} requests an image", dict(counting.methods))
        assert target.held(wanted) == wanted
        assert make_plan(wanted, target.held(wanted, Depth.PROBE)) == Plan()


def test_a_second_release_sends_only_what_is_new(real_registry: RealRegistry) -> None:
    store = images()
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        target = RegistryTarget(client, below("dkp"))
        transfer(
            make_plan(store.inventory(), target.held(store.inventory(), Depth.PROBE)), store, target
        )
        held = sum(store.inventory().blob_sizes().values())
        shared = [
            b"".join(store.blob("image-0", digest, size))
            for digest, size in store.inventory().repository("image-0").blobs.items()
            if size == 400_000
        ]
        put_image(store, "image-0", "v2", layers=[*shared, b"new" * 1000])
        put_image(store, "another", "v1", layers=[*shared, b"new" * 1000])
        wanted = store.inventory()
        plan = make_plan(wanted, target.held(wanted, Depth.PROBE))
        # What any repository has is mounted, also into one that was not there before.
        assert plan.size == sum(wanted.blob_sizes().values()) - held
        assert transfer(plan, store, target).sent == plan.size
        assert target.held(wanted) == wanted
