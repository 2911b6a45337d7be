"""How the arithmetic of one process grows: inventories, plans, layouts and seals, without I/O.

`python -m bench.scale 10000 100000 --blobs 10` prints, for each number of images, the processor
seconds of each step, the most memory that the process had in it, and what the inventory itself
takes. Each number gets a process of its own.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from mirror.bundle.seal import Seal, lay_out_all
from mirror.documents import parse_json
from mirror.layout import archive_of
from mirror.oci import Descriptor, Digest, ManifestNode
from mirror.oci import manifest as types
from mirror.sync import Inventory, InventoryBuilder, make_plan
from mirror.sync.plan import differ, missing_content
from mirror.sync.statement import Statement

T = TypeVar("T")

_IN_EACH = 1000
"""Images of one repository."""


def pieces(images: int, blobs: int, *, changed: int = 0) -> Iterator[tuple[str, str, ManifestNode]]:
    """(repository, tag, image), each image with a config that all share and `blobs` of its own.

    Every `changed`-th image is another one.
    """
    config = Descriptor(types.OCI_CONFIG, Digest.of(b"config"), 100)
    for number in range(images):
        salt = b"new" if changed and number % changed == 0 else b""
        layers = [
            Descriptor(
                types.OCI_LAYER_GZIP,
                Digest.of(b"%d %d %s" % (number, each, salt)),
                10_000 + number + each,
            )
            for each in range(blobs)
        ]
        descriptor = Descriptor(
            types.OCI_MANIFEST, Digest.of(b"manifest %d %s" % (number, salt)), 500 + number % 999
        )
        path = f"modules/m{number // _IN_EACH}"
        yield path, f"v{number}", ManifestNode(descriptor, (config, *layers))


def tree(images: int, blobs: int, *, changed: int = 0) -> Inventory:
    """An inventory of those."""
    builder = InventoryBuilder()
    for path, tag, node in pieces(images, blobs, changed=changed):
        builder.add_manifest(path, node)
        builder.add_tag(path, tag, node.descriptor.digest)
    return builder.build()


def seal_over(inventory: Inventory) -> Seal:
    """The seal of the bundle that holds `inventory`."""
    names: dict[str, set[str]] = {}
    for path in inventory.repositories:
        names.setdefault(archive_of(path), set()).add(path)
    parts = {name: inventory.filtered(paths.__contains__) for name, paths in names.items()}
    origins = {
        name: {path: f"registry.example.com/ee/{path}" for path in part.repositories}
        for name, part in parts.items()
    }
    return Seal.over(lay_out_all(parts, origins), {}, "mirror")


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


class Steps:
    """Measures steps of this process: processor seconds, and the largest resident set in bytes."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, int]] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.process_time()
        done = work()
        self.rows[name] = (time.process_time() - began, _status("VmHWM"))
        return done


def measure(images: int, blobs: int) -> dict[str, Any]:
    """All steps in this process."""
    gc.set_threshold(50_000)
    step = Steps()
    before = _status("VmRSS")
    wanted = step("build", lambda: tree(images, blobs))
    held = _status("VmRSS") - before
    step("digest", wanted.digest)
    step("digest again", wanted.digest)
    changed = tree(images, blobs, changed=100)
    step("diff", partial(differ, wanted, changed))
    step("missing_content", partial(missing_content, wanted, changed))
    step("plan of changes", partial(make_plan, wanted, changed))
    del changed
    step("plan of all", partial(make_plan, wanted, Inventory()))
    data = step("inventory to JSON", wanted.to_json)
    read = step("inventory from JSON", lambda: Inventory.from_document(parse_json(data)))
    assert read == wanted
    statement = Statement(read, 1)
    del data, read
    data = step("statement to JSON", statement.to_json)
    del statement
    step("statement from JSON", partial(Statement.from_json, data))
    seal = step("lay out", partial(seal_over, wanted))
    del data, wanted
    data = step("seal to JSON", seal.to_json)
    size = len(data)
    del seal
    step("seal from JSON", partial(Seal.from_json, data))
    return {"images": images, "blobs": blobs, "held": held, "seal": size, "steps": step.rows}


def _show(found: dict[str, Any]) -> None:
    images, blobs = found["images"], found["blobs"]
    entries = images * (1 + blobs) + 1
    click.echo(
        f"{images:,} images, {images * blobs + 1:,} blobs: "
        f"inventory {found['held'] / 1e6:.0f} MB ({found['held'] / entries:.0f} bytes for each "
        f"manifest and blob), seal {found['seal'] / 1e6:.0f} MB"
    )
    for name, (seconds, peak) in found["steps"].items():
        click.echo(f"  {name:22} {seconds:7.2f} s  {peak / 1e6:7.0f} MB")
    total = sum(seconds for seconds, _ in found["steps"].values())
    most = max(peak for _, peak in found["steps"].values())
    click.echo(f"  {'in all':22} {total:7.2f} s  {most / 1e6:7.0f} MB")


@click.command()
@click.argument("counts", nargs=-1, type=int)
@click.option("--blobs", default=10, show_default=True, help="Blobs of its own that an image has.")
@click.option("--here", is_flag=True, hidden=True)
def main(counts: tuple[int, ...], blobs: int, here: bool) -> None:
    """Measure the arithmetic over trees of so many images each."""
    for count in counts:
        if here:
            click.echo(json.dumps(measure(count, blobs)))
            continue
        line = [sys.executable, "-m", "bench.scale", str(count), "--blobs", str(blobs), "--here"]
        done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        _show(json.loads(done.stdout))


if __name__ == "__main__":
    main()
