"""A folder and memory are the same store to whoever uses them."""

from __future__ import annotations

import tempfile
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.serve import FolderStorage, MemoryStorage, Store, put_blob
from tests.support.sample_images import descriptor, image

NAMES = ["a", "a/b", "c"]
BLOBS = [b"", b"one", b"two"]
SUBJECT = image(layers=())
MANIFESTS = [
    Manifest.parse(SUBJECT),
    Manifest.parse(image(annotations={"n": "1"})),
    Manifest.parse(image(subject=descriptor(OCI_MANIFEST, SUBJECT))),
]
TAGS = ["v1", "v2"]

Step: TypeAlias = tuple[str, str, int, str, str]
steps = st.lists(
    st.tuples(
        st.sampled_from(["blob", "mount", "manifest", "rm-blob", "rm-manifest", "rm-tag"]),
        st.sampled_from(NAMES),
        st.integers(0, 2),
        st.sampled_from(TAGS),
        st.sampled_from(NAMES),
    ),
    max_size=12,
)


def take(store: Store, step: Step) -> object:
    what, name, number, tag, other = step
    blob = Digest.of(BLOBS[number])
    match what:
        case "blob":
            return put_blob(store, name, BLOBS[number])
        case "mount":
            return store.mount_blob(other, name, blob)
        case "manifest":
            store.put_manifest(name, MANIFESTS[number], tag)
            return None
        case "rm-blob":
            return store.delete_blob(name, blob)
        case "rm-manifest":
            return store.delete_manifest(name, MANIFESTS[number].digest)
        case _:
            return store.delete_tag(name, tag)


def seen(store: Store) -> object:
    """All that a store shows."""
    return [
        list(store.repositories()),
        [
            (
                store.has_repository(name),
                list(store.tags(name)),
                [store.resolve(name, tag) for tag in TAGS],
                [store.manifest(name, manifest.digest) for manifest in MANIFESTS],
                [store.blob_size(name, Digest.of(blob)) for blob in BLOBS],
                list(store.referrers(name, MANIFESTS[0].digest)),
            )
            for name in NAMES
        ],
    ]


@settings(max_examples=40)
@given(steps=steps)
def test_the_same_steps_lead_to_the_same_sight(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, disk = MemoryStorage(), FolderStorage(folder)
        for step in steps:
            assert take(memory, step) == take(disk, step)
        assert seen(memory) == seen(disk) == seen(FolderStorage(folder))
