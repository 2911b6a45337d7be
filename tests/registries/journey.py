"""Two releases on their way through three registries of one kind, and what was seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from examples.release_tree import ModuleSpec, TreeSpec, spread
from tests.support.program import Finished, call_mirror
from tests.support.registries import FRONTS, Kind, Reached
from tests.support.release_source import TINY, publish
from tests.support.tls import Authority
from tests.support.walker import Walk
from tests.support.wire import joined, sealed_repositories

ROOT = "dkp/ee"


def _release(version: str, module: str) -> TreeSpec:
    versions, modules = (version,), (module,)
    console = ModuleSpec("console", modules, spread(modules))
    return replace(
        TINY, versions=versions, channels=spread(versions), components=2, modules=(console,)
    )


RELEASES = (_release("v1.70.0", "v1.0.0"), _release("v1.71.0", "v1.1.0"))
"""Each turns all channels."""
UNSEALED = ("modules", "packages", "deckhouse-cli/plugins")
"""Repositories that a push makes by itself; what is in them is followed like everything else."""

Tags = Mapping[str, Mapping[str, str]]


@dataclass
class Journey:
    """What each step ended with. `walks` are what a registry served after it."""

    kind: Kind
    source: Reached
    target: Reached
    other: Reached
    folder: Path
    releases: list[Tags] = field(default_factory=list)
    """Repository → tag → digest of each bundle, as sealed."""
    runs: dict[str, Finished] = field(default_factory=dict)
    walks: dict[str, Walk] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def commands(self) -> int:
        """How many command lines it took."""
        return len(self.runs)

    @property
    def hashed(self) -> int:
        """How many manifests and blobs the walker hashed."""
        return sum(walk.manifests + walk.blobs for walk in self.walks.values())

    @property
    def wrong(self) -> list[str]:
        """All that the walker found wrong, with the step after which it did."""
        return [f"{step}: {one}" for step, walk in self.walks.items() for one in walk.wrong]

    def bundle(self, number: int) -> Path:
        """The folder of a release's bundle."""
        return self.folder / f"bundle-{number}"

    def mirror(self, step: str, *args: str | Path, code: int = 0) -> Finished:
        """One command; it must end with `code`."""
        flags = self.target.flags
        if self.target.certificate and args[0] in ("sync", "diff"):
            flags += ("--same-login",)  # one certificate for both
        env = {"DOCKER_CONFIG": str(self.folder / "login")}
        done = call_mirror(*args, *flags, "--json", env=env)
        assert done.code == code, (step, done)
        self.runs[step] = done
        return done

    def walk(self, step: str, registry: Reached, wanted: Tags) -> None:
        """Hash everything that a registry serves; `wanted` must be among it."""
        below = {joined(ROOT, path): tags for path, tags in wanted.items()}
        below |= {f"{ROOT}/{path}": {} for path in UNSEALED}
        with registry.walker() as walker:
            self.walks[step] = walker.walk(below)

    def log_in(self) -> None:
        """Store the logins where docker does."""
        folder = self.folder / "login"
        folder.mkdir()
        every = (self.source, self.target, self.other)
        auths = {one.address: one.docker_auth for one in every if one.login}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))


@contextmanager
def travelled(kind: Kind, front: str, folder: Path, authority: Authority) -> Iterator[Journey]:
    """The journey through registries of `kind` behind `front`, which run while the block lasts."""
    with ExitStack() as running:
        source, target, other = (
            running.enter_context(FRONTS[front](kind, folder / name, authority))
            for name in ("source", "target", "other")
        )
        journey = Journey(kind, source, target, other, folder)
        journey.log_in()
        started = time.monotonic()
        _travel(journey)
        journey.seconds = time.monotonic() - started
        yield journey


def _travel(journey: Journey) -> None:
    target, other = (f"{one.address}/{ROOT}" for one in (journey.target, journey.other))
    _pull(journey, 0)
    first = journey.releases[0]
    journey.mirror("push", "push", journey.bundle(0), target)
    journey.mirror("push again", "push", journey.bundle(0), target)
    journey.mirror("verify", "verify", journey.bundle(0), "--against", target, "--deep")
    journey.walk("push", journey.target, first)

    _pull(journey, 1)
    second = journey.releases[1]
    journey.mirror("next push", "push", journey.bundle(1), target)
    journey.walk("next push", journey.target, second)
    journey.mirror("rollback", "rollback", target)
    journey.walk("rollback", journey.target, first)

    journey.mirror("sync", "sync", "--from", target, "--to", other)
    journey.walk("sync", journey.other, first)
    # What the rollback could not take away is in the target alone.
    journey.mirror("diff", "diff", target, other, code=0 if journey.kind.deletes_tags else 3)
    journey.mirror("push to other", "push", journey.bundle(1), other)
    journey.mirror("sync back", "sync", "--from", other, "--to", target)
    journey.walk("sync back", journey.target, second)

    journey.mirror("prune", "prune", other, "--keep", journey.bundle(1))
    journey.walk("prune", journey.other, second)
    journey.mirror("sync and prune", "sync", "--from", other, "--to", target, "--prune")
    journey.walk("sync and prune", journey.target, second)
    journey.mirror("diff of the pruned", "diff", target, other)


def _pull(journey: Journey, number: int) -> None:
    """Publish a release at the source and pull it."""
    source = journey.source
    published = publish(
        RELEASES[number], source.address, options=source.options, credentials=source.credentials
    )
    bundle = journey.bundle(number)
    journey.mirror(f"pull {number}", "pull", bundle, "--source", published.root)
    sealed = sealed_repositories(bundle)
    journey.releases.append({path: content.tags for path, content in sealed.items()})
