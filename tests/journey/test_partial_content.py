"""Images that are whole in parts: layers that registries need not hold, and sparse indexes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.journey.test_content_kinds import PARTS_LEFT_OUT, ROOT, SPEC, repository, with_extras
from tests.support.content_kinds import FOREIGN, Content, sparse_index
from tests.support.program import Finished, call_mirror
from tests.support.release_source import publish

URLS = ["http://192.0.2.1/layer"]
KIND = "image"


@dataclass(frozen=True)
class Place:
    """A registry of this process."""

    address: str
    http: httpx.Client
    registry: EmbeddedRegistry

    @property
    def root(self) -> str:
        return f"{self.address}/{ROOT}"


@dataclass(frozen=True)
class Stage:
    """A source with one image of a module beside the usual, and two empty registries."""

    source: Place
    target: Place
    replica: Place
    from_root: str
    bundle: Path

    def hold(self, content: Content, kind: str = KIND) -> None:
        """Let the source hold `content` as an extra image of the module."""
        content.put(self.source.http, repository("deckhouse/ee", kind))

    def pull(self, *options: str) -> Finished:
        at = ("--source", self.from_root, "--insecure")
        return call_mirror("pull", self.bundle, *at, *PARTS_LEFT_OUT, *options)

    def push(self) -> Finished:
        return call_mirror("push", self.bundle, self.target.root, "--insecure")

    def sync(self, *options: str) -> Finished:
        to = ("--to", self.replica.root)
        return call_mirror("sync", "--from", self.from_root, *to, "--insecure", *options)

    def arrived(self, content: Content, place: Place) -> list[str]:
        """What of `content` the place does not hold."""
        return content.differences(place.http, repository(ROOT, KIND))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as opened:

        def start() -> Place:
            registry = opened.enter_context(EmbeddedRegistry(MemoryStorage(), sparse_indexes=True))
            http = opened.enter_context(httpx.Client(base_url=f"http://{registry.address}"))
            return Place(registry.address, http, registry)

        source, target, replica = start(), start(), start()
        root = publish(with_extras(SPEC, KIND, "second", "third"), source.address).root
        yield Stage(source, target, replica, root, tmp_path / "bundle")


def with_foreign_layer(*, there: bool) -> Content:
    content = Content()
    foreign = content.blob(b"windows base", FOREIGN, there=there, urls=URLS)
    content.image(foreign, content.blob(b"own layer"), tag="v1")
    return content


# -- foreign layers --------------------------------------------------------------------------------


def test_a_foreign_layer_that_the_source_holds_is_carried(stage: Stage) -> None:
    content = with_foreign_layer(there=True)
    stage.hold(content)
    assert "non-distributable" not in stage.pull().succeeded().text
    call_mirror("verify", stage.bundle).succeeded()
    stage.push().succeeded()
    stage.sync().succeeded()
    assert not stage.arrived(content, stage.target)
    assert not stage.arrived(content, stage.replica)


def test_a_foreign_layer_that_the_source_does_not_hold_is_told_and_the_image_is_carried(
    stage: Stage,
) -> None:
    content = with_foreign_layer(there=False)
    stage.hold(content)
    pulled, synced = stage.pull().succeeded(), stage.sync().succeeded()
    stage.push().succeeded()
    assert not stage.arrived(content, stage.target)
    assert not stage.arrived(content, stage.replica)
    for run in (pulled, synced):
        assert "does not hold a non-distributable layer of the images: left out" in run.stderr
        assert "from the addresses that the images name" in run.stderr


def test_foreign_layers_are_left_out_where_that_is_asked_for(stage: Stage) -> None:
    content = with_foreign_layer(there=True)
    stage.hold(content)
    asked = ("--foreign-layers", "leave-out")
    for run in (stage.pull(*asked), stage.sync(*asked)):
        told = "a non-distributable layer: left out, as --foreign-layers says"
        assert told in run.succeeded().stderr
    stage.push().succeeded()
    (layer,) = (digest for digest, data in content.blobs.items() if data == b"windows base")
    for place in (stage.target, stage.replica):
        assert stage.arrived(content, place) == [f"blob {layer}: HTTP 404"]


def test_foreign_layers_of_a_stated_inventory_are_left_out_and_nothing_false_is_stated(
    stage: Stage,
) -> None:
    content = with_foreign_layer(there=True)
    stage.hold(content)
    stage.pull().succeeded()
    stage.push().succeeded()
    to = ("--to", stage.replica.root, "--insecure", "--json")
    less = call_mirror("sync", "--from", stage.target.root, *to, "--foreign-layers", "leave-out")
    (replica,) = less.succeeded().document["replicas"]
    assert replica["statement"] is None
    assert len(stage.arrived(content, stage.replica)) == 1
    whole = call_mirror("sync", "--from", stage.target.root, *to)
    (replica,) = whole.succeeded().document["replicas"]
    assert replica["sent"]["blobs"] == 1
    assert not stage.arrived(content, stage.replica)


def test_nothing_is_ever_fetched_from_the_addresses_that_a_layer_names(stage: Stage) -> None:
    content = Content()
    elsewhere = EmbeddedRegistry(MemoryStorage())
    with elsewhere as server:
        urls = [f"http://{server.address}/v2/a/blobs/x"]
        content.image(content.blob(b"remote", FOREIGN, there=False, urls=urls), tag="v1")
        stage.hold(content)
        stage.pull().succeeded()
        stage.sync().succeeded()
        assert len(server.requests) == 0


def test_a_foreign_layer_that_a_bundle_lost_is_noticed(stage: Stage) -> None:
    stage.hold(with_foreign_layer(there=True))
    stage.pull().succeeded()
    (archive,) = stage.bundle.glob("*.tar")
    data = archive.read_bytes()
    at = data.index(b"windows base")
    archive.write_bytes(data[:at] + b"WINDOWS" + data[at + 7 :])
    call_mirror("verify", stage.bundle).failed(4)


# -- sparse indexes --------------------------------------------------------------------------------


def test_a_sparse_index_is_refused_with_the_flag_that_takes_it(stage: Stage) -> None:
    stage.hold(sparse_index())
    stage.pull().failed(1, "is not there, though index sha256:", "--sparse-indexes carry")
    assert not stage.bundle.exists()
    refused = stage.sync()
    assert refused.code == 1
    assert "let --sparse-indexes carry take the index without it" in refused.text


def test_a_sparse_index_is_carried_as_it_is_where_that_is_asked_for(
    stage: Stage, tmp_path: Path
) -> None:
    content = sparse_index()
    stage.hold(content)
    for run in (stage.pull("--sparse-indexes", "carry"), stage.sync("--sparse-indexes=carry")):
        assert "does not have all images of sparse indexes: sha256:" in run.succeeded().stderr
    call_mirror("verify", stage.bundle).succeeded()
    merged = tmp_path / "merged"
    call_mirror("merge", stage.bundle, merged).succeeded()
    call_mirror("push", merged, stage.target.root, "--insecure").succeeded()
    stage.push().succeeded()
    against = ("--against", stage.target.root, "--deep", "--insecure")
    call_mirror("verify", stage.bundle, *against).succeeded()
    for place in (stage.target, stage.replica):
        assert not stage.arrived(content, place)
    to = ("--to", stage.replica.root, "--insecure", "--audit")
    call_mirror("sync", "--from", stage.target.root, *to).succeeded()


def test_a_registry_that_refuses_a_sparse_index_costs_that_index_alone(
    stage: Stage, make_embedded_registry: Callable[..., EmbeddedRegistry]
) -> None:
    content = sparse_index()
    stage.hold(content)
    strict = make_embedded_registry()
    to = ("--to", f"{strict.address}/{ROOT}", "--insecure", "--json", "--sparse-indexes", "carry")
    run = call_mirror("sync", "--from", stage.from_root, *to)
    assert run.code != 0
    (failure,) = run.document["failures"]
    assert "is not in this repository; push it first" in failure["message"]


def test_a_pull_names_all_that_the_source_lacks_at_once(stage: Stage) -> None:
    missing: list[str] = []
    for kind in (KIND, "second", "third"):
        content = sparse_index()
        stage.hold(content, kind)
        missing += content.absent
    error = stage.pull("--json")
    text = error.document["error"]["message"]
    assert "the source lacks 3 images:" in text
    assert text.count(missing[0]) == 3


def test_a_pull_names_all_blobs_that_the_source_lacks_at_once_and_seals_nothing(
    stage: Stage,
) -> None:
    content = Content()
    content.image(content.blob(b"one"), content.blob(b"two"), content.blob(b"three"), tag="v1")
    stage.hold(content)
    lost = [digest for digest, data in content.blobs.items() if data in (b"one", b"two")]
    for digest in lost:
        where = repository("deckhouse/ee", KIND)
        assert stage.source.http.delete(f"/v2/{where}/blobs/{digest}").status_code == 202
    failures = json.loads(stage.pull("--json").stdout)["error"]["failures"]
    assert {digest for digest in lost for one in failures if digest in one["item"]} == set(lost)
    assert not (stage.bundle / "inventory.json").exists()
