"""What is measured: inputs, lines to carry them over, and operations, tool by tool in turn."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from bench.inputs import MIB, Shape, build
from bench.measure import Sample, run
from bench.peers import Job, Mirror, Peer
from bench.servers import NOTHING, Load, Registry, Tls

SHAPES = {
    "a": Shape(images=1, layers=8, layer_bytes=128 * MIB),
    "b": Shape(images=400, layers=2, layer_bytes=8 << 10, shared=True),
    "c": Shape(images=60, layers=2, layer_bytes=4 * MIB),
}
TITLES = {
    "a": "one image of 8 layers of 128 MiB",
    "b": "400 images of 3 layers of 8 KiB, one of them shared by all",
    "c": "60 images of 2 layers of 4 MiB",
}
LINES = {"": "", "tls": "by TLS", "slow": "40 ms of round trip, 200 Mbit/s"}

OPERATIONS = {
    "pull": "pull into a bundle",
    "dry pull": "dry run of that",
    "verify": "verify the bundle",
    "push": "push into an empty registry",
    "push again": "the same push again",
    "sync": "sync to an empty registry",
    "sync again": "the same sync again",
    "sync one": "sync with one image changed",
}


@dataclass(frozen=True)
class Scenario:
    """A shape carried over a line."""

    name: str
    shape: Shape
    line: str = ""

    @property
    def title(self) -> str:
        """In words."""
        words = TITLES[self.name[0]]
        return f"{words}, {LINES[self.line]}" if self.line else words


def scenario(name: str, *, quick: bool) -> Scenario:
    """`a`, `b`, `c`, or one of them over another line, such as `a-tls`; `quick` makes it tiny."""
    letter, _, line = name.partition("-")
    shape = SHAPES[letter]
    if quick:
        shape = replace(shape, images=min(shape.images, 3), layer_bytes=min(shape.layer_bytes, MIB))
    return Scenario(name, shape, line)


@dataclass
class Measurement:
    """All samples of one scenario: operation → tool → one sample per round."""

    scenario: Scenario
    size: int
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)


def measure(
    wanted: Scenario, peers: Sequence[Peer], operations: Sequence[str], pairs: int, folder: Path
) -> Measurement:
    """Run all `operations` of all tools, in turn, `pairs` times; `folder` is for scratch."""
    found = Measurement(wanted, wanted.shape.size)
    with ExitStack() as opened:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        places = _Places.prepare(wanted, folder, opened)
        for number in range(pairs):
            # Whoever came first comes last in the next round.
            for peer in peers if number % 2 == 0 else [*reversed(peers)]:
                say(f"{wanted.name}: round {number + 1} of {pairs}: {peer.name}")
                course = places.course(peer, operations, folder / "work")
                for operation, tool, sample in course:
                    found.samples.setdefault(operation, {}).setdefault(tool, []).append(sample)
    return found


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Places:
    """The registries that all tools read from, and how they are reached."""

    source: Registry
    leader: Registry
    """Holds what a push of the source's bundle made."""
    leader_changed: Registry
    """The same, after a push of a bundle in which one image differs."""
    job: Job
    tls: Tls | None
    slow: bool
    environment: dict[str, str]

    @classmethod
    def prepare(cls, wanted: Scenario, folder: Path, opened: ExitStack) -> Self:
        """Make content and start the registries."""
        slow = wanted.line == "slow"
        tls = Tls.make(folder) if wanted.line == "tls" else None
        environment = {"SSL_CERT_FILE": str(tls.certificate)} if tls else {}
        depot = build(wanted.shape, folder / "source")
        build(wanted.shape, folder / "changed", changed=(0,))
        names = ("source", "changed", "leader", "leader-changed")
        source, changed, leader, leader_changed = (
            opened.enter_context(Registry(folder / name, tls, slow=slow)) for name in names
        )
        repositories = dict.fromkeys(one.partition(":")[0] for one in depot.references)
        bundle = folder / "bundle"
        job = Job(
            source.address,
            leader.address,
            bundle,
            tuple(repositories),
            tuple(depot.references),
            tls is not None,
        )
        later = replace(
            job,
            source=changed.address,
            target=leader_changed.address,
            bundle=folder / "bundle-changed",
        )
        mirror = Mirror()
        for script in (
            mirror.pull(job),
            mirror.push(job),
            mirror.push(replace(later, bundle=bundle)),
            mirror.pull(later),
            mirror.push(later),
        ):
            run(script, log=folder / "log", environment=environment)
        for made in (bundle, later.bundle, changed.folder):
            shutil.rmtree(made)
        return cls(source, leader, leader_changed, job, tls, slow, environment)

    def course(
        self, peer: Peer, operations: Sequence[str], folder: Path
    ) -> Iterator[tuple[str, str, Sample]]:
        """One tool's way through the operations, with registries of its own to write to."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with ExitStack() as opened:
            opened.callback(shutil.rmtree, folder, ignore_errors=True)
            registry = partial(Registry, tls=self.tls, slow=self.slow)
            target = opened.enter_context(registry(folder / "target"))
            replica = opened.enter_context(registry(folder / "replica"))
            registries = (self.source, self.leader, self.leader_changed, target, replica)
            job = replace(self.job, target=target.address, bundle=folder / "bundle")
            sync = replace(job, source=self.leader.address, target=replica.address)
            later = replace(sync, source=self.leader_changed.address)
            steps: dict[str, Callable[[], str | None]] = {
                "pull": lambda: peer.pull(job),
                "dry pull": lambda: _dry(peer, peer.pull(job)),
                "verify": lambda: _verify(peer, job),
                "push": lambda: peer.push(job),
                "push again": lambda: peer.push(job),
                "sync": lambda: peer.sync(sync),
                "sync again": lambda: peer.sync(sync),
                "sync one": lambda: peer.sync(later),
            }
            needed = _with_what_they_need(operations)
            for operation, script_of in steps.items():
                if operation not in needed or (script := script_of()) is None:
                    continue
                before = _load(registries)
                sample = run(script, log=folder / "log", environment=self.environment)
                did = _load(registries) - before
                if operation in operations:
                    yield operation, peer.name, sample.beside(did)
                    # What ours has on the disk when it ends is in memory when a peer does.
                    if operation == "pull" and not isinstance(peer, Mirror):
                        script = f"sync {job.bundle}/bundle.tar"
                        flush = run(script, log=folder / "log", environment={})
                        yield operation, f"{peer.name} + sync", sample.beside(did).then(flush)
                if operation == "verify":
                    hashing = f"{sys.executable} -m bench.hashing {job.bundle}"
                    yield operation, "hashlib", run(hashing, log=folder / "log", environment={})


_BEFORE = {
    "dry pull": ("pull",),
    "verify": ("pull",),
    "push": ("pull",),
    "push again": ("pull", "push"),
    "sync again": ("sync",),
    "sync one": ("sync",),
}


def _with_what_they_need(operations: Sequence[str]) -> set[str]:
    return {*operations, *(one for operation in operations for one in _BEFORE.get(operation, ()))}


def _load(registries: Sequence[Registry]) -> Load:
    return sum((one.load() for one in registries), NOTHING)


def _dry(peer: Peer, script: str | None) -> str | None:
    return f"{script} --dry-run --force" if isinstance(peer, Mirror) else None


def _verify(peer: Peer, job: Job) -> str | None:
    return peer.verify(job) if isinstance(peer, Mirror) else None
