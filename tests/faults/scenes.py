"""The commands under test: how registries begin, what runs, and what must be there then."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from examples.release_tree import TreeSpec, build, spread
from mirror.bundle.reader import BundleReader
from mirror.errors import common_exit_code
from mirror.events import Event, Warned
from mirror.oci import Digest, Repository
from mirror.operations.prune import prune
from mirror.operations.pull import pull
from mirror.operations.push import push, push_to_all
from mirror.operations.rollback import rollback
from mirror.operations.sync import sync_replicas
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy, upload_sessions
from mirror.release.selection import Selection
from mirror.release.source import SourceTree
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from mirror.sync.publication_state import read_state
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTarget, RegistryTree
from tests.faults.shelves import Kind, Shelf
from tests.support.bundles import pack_store
from tests.support.inventories import put_image, put_index
from tests.support.places import stored

ROOT = "dkp/ee"
DEADLINE_S = 30.0
JOBS = 2
STALL_S = 0.4
PATIENT_S = 10.0
"""How long a run without faults waits: a busy machine is no fault."""

SMALL_CHUNKS = mock.patch.multiple(upload_sessions, CHUNK=400, SHORT_CHUNK=100, SMALLEST_CHUNK=50)
"""So that small images have layers that travel in chunks."""
LARGE_LAYER = b"layer in chunks " * 70

SPEC = TreeSpec(
    versions=("v1.70.0",),
    channels=spread(("v1.70.0",)),
    dev_tags=(),
    components=1,
    layer_bytes=300,
    multi_arch=0,
)
WANTED = Selection(installer_tag=None, security=False, modules=None, packages=None, plugins=None)


def options(stall_s: float = STALL_S) -> ConnectionOptions:
    """Patience as people have it, without the time that it takes."""
    retries = RetryPolicy(attempts=3, jitter=0, patience_s=30, sleep=lambda _seconds: None)
    return ConnectionOptions(
        plain_http=True,
        retries=retries,
        connect_timeout_s=5,
        stall_timeout_s=stall_s,
        stall_min_bytes=1,
        answer_timeout_s=stall_s,
    )


def releases() -> tuple[MemoryStore, MemoryStore]:
    """Two successive releases of three images each, one of them an index."""
    made = []
    base = b"base layer " * 20
    for number in (0, 1):
        store, version = MemoryStore(), f"v1.{number}.0"
        child = put_image(store, "", layers=(base, b"component %d" % number, LARGE_LAYER))
        put_index(store, "", version, children=[child], note=version)
        channel = (version, "stable")
        put_image(store, "release-channel", *channel, layers=(b"version: %d" % number,))
        made.append(store)
    return made[0], made[1]


@dataclass
class Stage:
    """One case under way."""

    shelves: list[Shelf]
    folder: Path
    bundles: tuple[Path, Path]
    stack: ExitStack
    warnings: list[str] = field(default_factory=list)
    stall_s: float = STALL_S

    @property
    def run(self) -> Run:
        """How one run of the command works; its warnings are kept."""
        self.warnings.clear()
        return Run(jobs=JOBS, on_event=self._hear).with_deadline(DEADLINE_S)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)

    def client(self, number: int) -> RegistryClient:
        """A client that goes through the faults of a shelf."""
        address = self.shelves[number].server.address
        return self.stack.enter_context(RegistryClient(address, options=options(self.stall_s)))

    def tree(self, number: int) -> RegistryTree:
        """The tree on a shelf, reached through its faults."""
        client = self.client(number)
        return RegistryTree(client, Repository(client.host, ROOT))

    def bundle(self, number: int) -> BundleReader:
        """One of the two releases."""
        return self.stack.enter_context(BundleReader([self.bundles[number]]))


Work = Callable[[Stage], int]
"""Runs a command and answers its exit code, or raises."""


@dataclass(frozen=True)
class Scene:
    """A command under test.

    `states` are what its registries hold at first; the faults are those of number `faulty`. At
    least `needed` registries must be complete when it says that it succeeded (None: all). `exact`
    ones have nothing beside what they should; with `leftovers` newer tags may have stayed.
    """

    name: str
    states: tuple[str, ...]
    work: Work
    faulty: int = 0
    needed: int | None = None
    exact: bool = False
    leftovers: bool = False


def _pull(stage: Stage) -> int:
    client = stage.client(0)
    source = SourceTree(Repository(client.host, SPEC.root))
    pull(client, source, WANTED, stage.folder / "bundle", run=stage.run)
    return 0


def _push(stage: Stage) -> int:
    push(stage.bundle(1), stage.tree(0), run=stage.run)
    return 0


def _push_to_all(stage: Stage) -> int:
    push_to_all(stage.bundle(1), [stage.tree(n) for n in range(3)], quorum=2, run=stage.run)
    return 0


def _sync(stage: Stage) -> int:
    report = sync_replicas(stage.tree(0), [stage.tree(1)], run=stage.run)
    return report.exit_code


def _sync_and_prune(stage: Stage) -> int:
    report = sync_replicas(stage.tree(0), [stage.tree(1)], audit=True, prune=True, run=stage.run)
    return report.exit_code


def _prune(stage: Stage) -> int:
    report = prune(stage.tree(0), [2], run=stage.run)
    return common_exit_code(failure.error for failure in report.failures)


def _rollback(stage: Stage) -> int:
    rollback(stage.tree(0), to=1, run=stage.run)
    return 0


SCENES = (
    Scene("pull", ("source",), _pull),
    Scene("push", ("empty",), _push),
    Scene("push of the next release", ("early",), _push),
    Scene("quorum push", ("early", "early", "empty"), _push_to_all, needed=2),
    Scene("sync, its leader fails", ("both", "early"), _sync),
    Scene("sync, its replica fails", ("both", "empty"), _sync, faulty=1),
    Scene("sync with prune", ("late", "both"), _sync_and_prune, faulty=1, exact=True),
    Scene("sync with prune, its leader fails", ("late", "both"), _sync_and_prune, exact=True),
    Scene("prune", ("both",), _prune, exact=True),
    Scene("rollback", ("both",), _rollback, leftovers=True),
)


@dataclass(frozen=True)
class Goal:
    """What a registry must hold: content, and the digest of the inventory that it states."""

    held: Inventory
    stated: Digest | None


class Workshop:
    """The states that scenes begin with, and what they lead to, at one kind of registry."""

    def __init__(self, kind: Kind, work: Path) -> None:
        self.kind, self._work = kind, work
        self._count = 0
        early, late = releases()
        self._bundles = (work / "bundles" / "0", work / "bundles" / "1")
        for store, folder in zip((early, late), self._bundles, strict=True):
            pack_store(store, folder)
        self._save("source", None, ())
        self._save("early", "empty", (0,))
        self._save("late", "empty", (1,))
        self._save("both", "early", (1,))

    def _save(self, name: str, begin: str | None, numbers: tuple[int, ...]) -> None:
        with self.staged((begin or "empty",)) as stage:
            if begin is None:
                _fill(stage.client(0))
            for number in numbers:
                push(stage.bundle(number), stage.tree(0), run=stage.run)
            self.kind.save(name, stage.shelves[0])

    @contextmanager
    def staged(self, states: tuple[str, ...]) -> Iterator[Stage]:
        """Fresh registries in these states, and a folder of its own."""
        with SMALL_CHUNKS, ExitStack() as shelves, ExitStack() as clients:
            opened = [shelves.enter_context(self.kind.open(name)) for name in states]
            self._count += 1
            folder = self._work / f"case-{self._count}"
            yield Stage(opened, folder, self._bundles, clients)


def _fill(client: RegistryClient) -> None:
    store = MemoryStore()
    build(SPEC, store)
    wanted = store.inventory()
    target = RegistryTarget(client, lambda path: path)
    transfer(make_plan(wanted, target.held(wanted)), store, target)


def goals(stage: Stage) -> list[Goal]:
    """What the registries of a stage hold now."""
    return [_goal(shelf) for shelf in stage.shelves]


def _goal(shelf: Shelf) -> Goal:
    held = stored(shelf.store, ROOT).filtered(lambda path: path != REPOSITORY)
    with RegistryClient(shelf.direct, options=ConnectionOptions(plain_http=True)) as client:
        state = read_state(RegistryTree(client, Repository(client.host, ROOT)))
    if state.pending is not None or state.notices:
        return Goal(held, None)
    current = state.current
    return Goal(held, current.statement.inventory.digest() if current else None)


def lacking(scene: Scene, goal: Goal, found: Goal) -> list[str]:
    """How a registry differs from what it must hold; empty if it does not."""
    wrong = []
    if found.stated != goal.stated:
        wrong.append(f"it states {found.stated} instead of {goal.stated}")
    for path in sorted({*goal.held.repositories, *found.held.repositories}):
        wanted, there = goal.held.repository(path), found.held.repository(path)
        tags = dict(there.tags)
        if scene.leftovers:
            tags = {tag: digest for tag, digest in tags.items() if tag in wanted.tags}
        if tags != wanted.tags:
            wrong.append(f"tags of {path!r}: {sorted(tags)} instead of {sorted(wanted.tags)}")
        for name in ("manifests", "blobs"):
            one, other = set(getattr(wanted, name)), set(getattr(there, name))
            if one - other or (scene.exact and other - one):
                wrong.append(f"{name} of {path!r}: {len(one - other)} lack, {len(other)} are there")
    return wrong


def files(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of all files in a bundle."""
    if not folder.exists():
        return {}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
