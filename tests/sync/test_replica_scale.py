"""A hundred thousand tags: the arithmetic of a sync, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import time

from mirror.oci import Descriptor, Digest
from mirror.oci import manifest as types
from mirror.sync import Inventory, ManifestNode, make_plan
from mirror.sync.inventory import RepositoryContent
from mirror.sync.plan import differ, lacking
from mirror.sync.removal import plan_removal
from tests.support.measured import peak
from tests.support.program import ROOT

TAGS = 100_000
_REPOSITORIES = 1_000


def tree(*, changed: int) -> Inventory:
    """Every tag with an image of its own of three blobs; every `changed`-th one is different."""
    contents = {}
    config = Descriptor(types.OCI_CONFIG, Digest.of(b"config"), 100)
    for number in range(_REPOSITORIES):
        tags, manifests, blobs = {}, {}, {config.digest: 100}
        for index in range(TAGS // _REPOSITORIES):
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
            tags[f"v{index}"] = digest
        contents[f"modules/m{number}"] = RepositoryContent(tags, manifests, blobs)
    return Inventory(contents)


def main() -> None:
    """In a process of its own, so that its memory is that of this work alone."""
    wanted, held = tree(changed=10), tree(changed=0)
    started = time.process_time()  # others may use the machine, too
    rest = lacking(wanted, held)
    plan = make_plan(wanted, held)
    difference = differ(wanted, held)
    everything = make_plan(wanted, Inventory())
    removal = plan_removal(held, Inventory(), frozenset(held.repositories))
    took_s = time.process_time() - started
    assert plan.tag_count == plan.manifest_count == len(difference.tags) == TAGS // 10
    assert len(rest.repositories) == _REPOSITORIES
    assert len(removal.manifests) == everything.tag_count == TAGS
    assert len(everything.blobs) == 2 * TAGS + 1
    print(took_s, peak() >> 10)


def test_diff_and_plan_of_a_hundred_thousand_tags_take_ten_seconds_and_500_mb_at_most() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sync.test_replica_scale"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    took_s, kilobytes = map(float, done.stdout.split())
    assert took_s < 10.0
    assert kilobytes < 500 << 10


if __name__ == "__main__":
    main()
