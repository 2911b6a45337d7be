"""A pull into a bucket beside the same pull into a folder: seconds, processor time, memory.

`nice -n -20 python -m bench.storage --pairs 5` pulls from a `docker-registry`, in turn into a
folder and into a bucket of `versitygw` over the same disk, all on this machine: what the server
takes of the processors is missing in the pull.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from bench.inputs import MIB, build
from bench.measure import Sample, run
from bench.peers import CACHE, Job, Mirror
from bench.programs import built
from bench.scenarios import LINES, SHAPES, TITLES, say
from bench.servers import Registry, free_port, processor_s, serving

_LOGIN = ("bench", "bench-secret")
_BUCKET = "bundles"


@contextmanager
def storage(folder: Path) -> Iterator[tuple[dict[str, str], int]]:
    """versitygw over a folder: the variables by which AWS's tools reach it, and its process."""
    (folder / "data" / _BUCKET).mkdir(parents=True)
    (folder / "beside").mkdir()
    port, (access, secret) = free_port(), _LOGIN
    argv = [str(built("versitygw")), "--access", access, "--secret", secret]
    argv += ["--region", "us-east-1", "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive"]
    argv += ["posix", "--sidecar", str(folder / "beside"), str(folder / "data")]
    with serving(argv, port) as process:
        login = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
        yield {**login, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}, process.pid


def measure(name: str, pairs: int, jobs: int, slow: bool, folder: Path) -> dict[str, list[Sample]]:
    """Pull so often into each; the server's processor time is that of the registries."""
    found: dict[str, list[Sample]] = {"folder": [], "bucket": []}
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        depot = build(SHAPES[name], folder / "source")
        source = opened.enter_context(Registry(folder / "source", slow=slow))
        environment, server = opened.enter_context(storage(folder / "storage"))
        repositories = tuple(dict.fromkeys(one.partition(":")[0] for one in depot.references))
        job = Job(source.address, "", folder / "bundle", repositories, (), False)
        script = Mirror().pull(job) + f" --jobs {jobs}"
        objects = folder / "storage/data" / _BUCKET
        for number in range(pairs):
            order = list(found.items())
            for kind, samples in order if number % 2 == 0 else reversed(order):
                say(f"round {number + 1} of {pairs}: {kind}")
                before = processor_s(server)
                place = str(job.bundle) if kind == "folder" else f"s3://{_BUCKET}/{number}"
                line = script.replace(str(job.bundle), place)
                sample = run(line, log=folder / "log", environment=environment)
                samples.append(replace(sample, registry_s=processor_s(server) - before))
                shutil.rmtree(job.bundle, ignore_errors=True)
                shutil.rmtree(objects / str(number), ignore_errors=True)
    return found


@click.command()
@click.option("--scenario", "name", type=click.Choice(list(SHAPES)), default="a", show_default=True)
@click.option("--pairs", default=5, show_default=True, help="Rounds of both in turn.")
@click.option("--jobs", default=8, show_default=True)
@click.option("--slow", is_flag=True, help="With a slow line before the source (`bench.line`).")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=CACHE / "work",
    show_default=True,
    help="For scratch: up to 8 GiB.",
)
def main(name: str, pairs: int, jobs: int, slow: bool, folder: Path) -> None:
    """Measure a pull into a bucket beside the same pull into a folder."""
    size, found = SHAPES[name].size, measure(name, pairs, jobs, slow, folder.absolute())
    line = f", {LINES['slow']}" if slow else ""
    click.echo(f"{TITLES[name]}{line}, {jobs} jobs, {pairs} pairs")
    for kind, samples in found.items():
        seconds, own = (
            statistics.median(one)
            for one in zip(*((s.seconds, s.processor_s) for s in samples), strict=True)
        )
        memory = max(one.memory for one in samples)
        server_s = statistics.median(one.registry_s for one in samples)
        click.echo(
            f"  {kind:6}  {size / MIB / seconds:6.0f} MiB/s  {seconds:5.2f} s  processor "
            f"{own:5.2f} s, of the server {server_s:5.2f} s  memory {memory / 1e6:4.0f} MB"
        )
    pairs_of = zip(found["folder"], found["bucket"], strict=True)
    ratios = sorted(one.seconds / other.seconds for one, other in pairs_of)
    shown = ", ".join(f"{one:.2f}" for one in ratios)
    click.echo(f"  a bucket has {statistics.median(ratios):.0%} of a folder's rate ({shown})")


if __name__ == "__main__":
    main()
