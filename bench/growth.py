"""How cost grows with the number of tags: small images, everything the same but their number."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.inputs import Shape, build
from bench.measure import run
from bench.peers import Job, Mirror
from bench.servers import Registry


def growth(counts: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """One row for each number of images: what pull, push and syncs cost."""
    rows: list[dict[str, Any]] = []
    mirror, log = Mirror(), folder / "log"
    for count in counts:
        shutil.rmtree(folder, ignore_errors=True)
        depot = build(Shape(count, 1, 512, shared=True), folder / "source")
        with (
            Registry(depot.folder) as source,
            Registry(folder / "target") as target,
            Registry(folder / "replica") as replica,
        ):
            names = tuple(dict.fromkeys(one.partition(":")[0] for one in depot.references))
            job = Job(source.address, target.address, folder / "bundle", names, (), tls=False)
            again = replace(job, source=target.address, target=replica.address)
            row: dict[str, Any] = {"images": count}
            for name, script in (
                ("pull", mirror.pull(job)),
                ("push", mirror.push(job)),
                ("push again", mirror.push(job)),
                ("sync", mirror.sync(again)),
                ("sync again", mirror.sync(again)),
            ):
                sample = run(script, log=log, environment={})
                row[f"{name}: processor s"] = round(sample.processor_s, 2)
                row["memory MiB"] = max(row.get("memory MiB", 0), sample.memory >> 20)
            rows.append(row)
    shutil.rmtree(folder, ignore_errors=True)
    return rows
