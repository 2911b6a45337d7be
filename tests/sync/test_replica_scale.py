"""Very many tags: the arithmetic of a sync, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mirror.oci import Descriptor, Digest
from mirror.oci import manifest as types
from mirror.sync import Inventory, ManifestNode, make_plan
from mirror.sync.inventory import RepositoryContent
from mirror.sync.plan import differ, missing_content
from mirror.sync.removal import plan_removal
from tests.support.measured import peak
from tests.support.program import ROOT

_TAGS_OF_EACH = 100


def tree(tags: int, *, changed: int) -> Inventory:
    """So many tags with an image of three blobs each; every `changed`-th one is different."""
    contents = {}
    config = Descriptor(types.OCI_CONFIG, Digest.of(b"config"), 100)
    for number in range(tags // _TAGS_OF_EACH):
        names, manifests, blobs = {}, {}, {config.digest: 100}
        for index in range(_TAGS_OF_EACH):
            serial = number * 1000 + index
            salt = b"new" if changed and serial % changed == 0 else b""
            layers = [
                Descriptor(types.OCI_LAYER_GZIP, Digest.of(b"%d %d %s" % (serial, n, salt)), 1000)
                for n in range(2)
            ]
            digest = Digest.of(b"manifest %d %s" % (serial, salt))
            descriptor = Descriptor(types.OCI_MANIFEST, digest, 500)
            manifests[digest] = ManifestNode(descriptor, (config, *layers))
            blobs.update((layer.digest, layer.size) for layer in layers)
            names[f"v{index}"] = digest
        contents[f"modules/m{number}"] = RepositoryContent(names, manifests, blobs)
    return Inventory(contents)


def main(tags: int) -> None:
    """In a process of its own, so that its memory is that of this work alone."""
    began = time.process_time()  # others may use the machine, too
    wanted, held = tree(tags, changed=10), tree(tags, changed=0)
    made_s = time.process_time() - began
    rest = missing_content(wanted, held)
    plan = make_plan(wanted, held)
    difference = differ(wanted, held)
    everything = make_plan(wanted, Inventory())
    removal = plan_removal(held, Inventory(), frozenset(held.repositories))
    took_s = time.process_time() - began - made_s
    assert plan.tag_count == plan.manifest_count == len(difference.tags) == tags // 10
    assert len(rest.repositories) == tags // _TAGS_OF_EACH
    assert len(removal.manifests) == everything.tag_count == tags
    assert len(everything.blobs) == 2 * tags + 1
    print(made_s, took_s, peak())


@pytest.mark.parametrize(
    ("tags", "most_memory"),
    [(20_000, 140_000_000), pytest.param(100_000, 500_000_000, marks=pytest.mark.soak)],
)
def test_diff_and_plan_of_very_many_tags_cost_little_more_than_the_inventories_themselves(
    tags: int, most_memory: int
) -> None:
    """The making of the inventories measures how fast this machine is."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sync.test_replica_scale", str(tags)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    made_s, took_s, most = map(float, done.stdout.split())
    assert took_s < 3 * made_s
    assert most < most_memory


if __name__ == "__main__":
    main(int(sys.argv[1]))
