from __future__ import annotations

import json

from examples.release_tree.images import Layer, image, layer
from mirror.oci import Digest
from mirror.release.discovery import component_names, with_components
from mirror.sync import Finding, Inventory, MemoryStore

DIGESTS, TAGS = (f"deckhouse/candi/images_{kind}.json" for kind in ("digests", "tags"))
BASHIBLE, AGENT = Digest.of(b"bashible"), Digest.of(b"agent")


def installer(store: MemoryStore, tag: str, *layers: Layer) -> None:
    made = image([layer({"bin/dhctl": tag}), *layers])
    for blob in made.blobs.values():
        store.add_blob("install", blob)
    store.add_manifest("install", made.raw, made.media_type, tags=[tag])


def test_images_are_called_as_the_installers_list_them() -> None:
    store = MemoryStore()
    listed = {"nodeManager": {"bashible": str(BASHIBLE)}, "istio": {"agent": str(AGENT)}}
    installer(store, "v1.70.0", layer({DIGESTS: json.dumps(listed)}))
    names = component_names(store, store.inventory())
    assert names == {BASHIBLE: "nodeManager/bashible", AGENT: "istio/agent"}


def test_an_installer_that_cannot_be_read_names_nothing_and_the_others_do() -> None:
    store = MemoryStore()
    installer(store, "v1.69.0", layer({DIGESTS: "["}))
    installer(store, "v1.70.0", layer({DIGESTS: json.dumps({"istio": {"agent": str(AGENT)}})}))
    installer(store, "v1.71.0")
    assert component_names(store, store.inventory()) == {AGENT: "istio/agent"}
    assert component_names(store, Inventory()) == {}


def test_what_a_delta_leaves_to_its_base_is_not_asked_for() -> None:
    store, carried = MemoryStore(), MemoryStore()
    upper = layer({DIGESTS: json.dumps({"istio": {"agent": str(AGENT)}})})
    installer(store, "v1.70.0", upper)
    carried.add_blob("install", upper.blob)
    made = store.inventory().repository("install").manifests
    for digest in made:
        known = store.manifest("install", digest)
        carried.add_manifest("install", known.raw, known.media_type, tags=["v1.70.0"])
    assert component_names(carried, carried.inventory()) == {AGENT: "istio/agent"}


def test_what_is_damaged_is_called_as_the_installer_calls_it_with_its_attachments() -> None:
    store = MemoryStore()
    listed = {"istio": {"agent": str(AGENT)}}
    installer(store, "v1.70.0", layer({DIGESTS: json.dumps(listed)}))
    findings = (
        Finding("platform.tar", "a blob is damaged", "", (AGENT.encoded, "v1.70.0")),
        Finding("platform.tar", "a blob is damaged", "", (f"sha256-{AGENT.encoded}.att",)),
        Finding("platform.tar", "a blob is missing", "install", ("v1.70.0",)),
        Finding("inventory.json", "it is damaged"),
    )
    found = with_components(findings, store, store.inventory)
    assert [one.components for one in found] == [("istio/agent",), ("istio/agent",), (), ()]
    shown = f"tags v1.70.0, {AGENT.encoded[:19]}… (istio/agent): a blob is damaged"
    assert str(found[0]).endswith(shown)
    assert found[2:] == findings[2:]
