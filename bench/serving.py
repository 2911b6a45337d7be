"""`python -m bench.serving`: bytes per second out of `mirror serve` and out of a docker-registry.

The same blobs, in turn: from the archives of a bundle, and from the registry that the bundle was
pulled from. Clients are processes of curl, which throw the bytes away.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import click

from bench.inputs import MIB, ROOT, Shape, build
from bench.peers import CACHE, Job, Mirror
from bench.servers import Registry, processor_s


def _fetch(urls: list[str], clients: int) -> float:
    """Fetch all `urls`, `clients` at a time; return the seconds that it took."""
    begun = time.monotonic()
    lists = (urls[number::clients] for number in range(clients))
    running = [
        subprocess.Popen(
            ["curl", "-sf", *(part for url in one for part in ("-o", "/dev/null", url))]
        )
        for one in lists
    ]
    assert [one.wait() for one in running] == [0] * clients
    return time.monotonic() - begun


@click.command()
@click.option("--mib", default=2048, show_default=True, help="Size of the bundle.")
@click.option("--clients", default=4, show_default=True, help="Processes that fetch.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=CACHE / "serving")
def main(mib: int, clients: int, rounds: int, folder: Path) -> None:
    """Measure both on this machine."""
    with ExitStack() as opened:
        folder = folder.absolute()
        shutil.rmtree(folder, ignore_errors=True)
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        layer = max(1, mib // 16)
        depot = build(Shape(images=2, layers=8, layer_bytes=layer * MIB), folder / "registry")
        theirs = opened.enter_context(Registry(folder / "registry"))
        repositories = tuple(dict.fromkeys(one.partition(":")[0] for one in depot.references))
        bundle = folder / "bundle"
        job = Job(
            theirs.address, theirs.address, bundle, repositories, tuple(depot.references), False
        )
        subprocess.run(Mirror().pull(job), shell=True, check=True, stdout=subprocess.DEVNULL)
        begun = time.monotonic()
        program = [sys.executable, "-m", "mirror", "serve", str(bundle), "--listen", "127.0.0.1:0"]
        ours = opened.enter_context(
            subprocess.Popen([*program, "--json"], stdout=subprocess.PIPE, text=True)
        )
        opened.callback(ours.terminate)
        assert ours.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            text += ours.stdout.readline()
        address = json.loads(text)["url"]
        seal = json.loads((bundle / "inventory.json").read_bytes())
        blobs = [
            digest
            for archive in seal["archives"].values()
            for digest, size in archive["repositories"][""].get("blobs", {}).items()
            if size >= layer * MIB // 2
        ]
        urls = {
            name: [f"{base}/v2/{ROOT}/blobs/{digest}" for digest in dict.fromkeys(blobs)]
            for name, base in (
                ("mirror serve", address),
                ("docker-registry", f"http://{theirs.address}"),
            )
        }
        subprocess.run(
            ["curl", "-sf", "-r", "0-0", "-o", "/dev/null", urls["mirror serve"][0]], check=True
        )
        print(f"first byte {time.monotonic() - begun:.2f} s after the start of the program")
        rates: dict[str, list[float]] = {name: [] for name in urls}
        size = len(urls["mirror serve"]) * layer
        pids = {"mirror serve": ours.pid, "docker-registry": theirs._process.pid}
        before = {name: processor_s(pid) for name, pid in pids.items()}
        for number in range(rounds):
            for name in urls if number % 2 else reversed(urls):
                rates[name].append(size / _fetch(urls[name], clients))
        for name, found in rates.items():
            used = (processor_s(pids[name]) - before[name]) / (rounds * size / 1024)
            print(
                f"{name}: {statistics.median(found):.0f} MiB/s, {used:.2f} s of processor per GiB"
            )
        ratio = statistics.median(
            a / b for a, b in zip(rates["mirror serve"], rates["docker-registry"], strict=True)
        )
        print(f"mirror serve has {ratio:.0%} of the bytes per second of docker-registry")


if __name__ == "__main__":
    main()
