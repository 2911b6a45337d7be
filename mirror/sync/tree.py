"""A registry with one release tree in it: what every operation on a registry is about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mirror.layout import MODULES, join_path, with_modules_suffix
from mirror.oci import Repository
from mirror.registry import RegistryWriter, UploadJournal
from mirror.run import Run
from mirror.sync.observe import listed_tags
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.repair import Storage


@dataclass(frozen=True, slots=True)
class RegistryTree:
    """The tree of repositories below `root` in the registry that `client` speaks with.

    The client belongs to the caller, who closes it.

    Attributes:
        modules_suffix: the path below `root` that takes the place of `modules`; "" is `root`.
        storage: the registry's data folder, where this machine can reach it. A repair replaces
            damaged files there.
        journal: writes unfinished uploads down, so that the next process continues them.
    """

    client: RegistryWriter
    root: Repository
    modules_suffix: str = MODULES
    storage: Path | None = None
    journal: UploadJournal | None = None

    @property
    def name(self) -> str:
        """What messages and reports call it: `host[:port]/path`."""
        return str(self.root)

    @property
    def files(self) -> Storage | None:
        """The registry's data folder, if `storage` names it."""
        return None if self.storage is None else Storage(self.storage)

    def locate(self, path: str) -> str:
        """The registry's repository for `path`, a repository path of an inventory."""
        return join_path(self.root.path, with_modules_suffix(path, self.modules_suffix))

    def path_of(self, repository: str) -> str | None:
        """The path that `locate` maps to `repository`; None if no path is mapped to it."""
        for below, path in ((self.locate(MODULES), MODULES), (self.root.path, "")):
            if repository == below or repository.startswith(f"{below}/"):
                found = f"{path}{repository[len(below) :]}".lstrip("/")
                # With another suffix no path is mapped to where modules would lie without it.
                if self.locate(found) == repository:
                    return found
        return None

    def within(self, run: Run) -> RegistryTree:
        """The same tree for one run: every wait for the registry listens to it.

        Whoever made the client closes it; this view need not be closed.
        """
        return replace(self, client=self.client.within(run))

    def listed_tags(self, path: str) -> frozenset[str]:
        """All tags of the repository at `path`; see `mirror.sync.observe.listed_tags`."""
        return listed_tags(self.client, self.locate(path))

    def source(self) -> RegistrySource:
        """A reader of the tree, which keeps the manifests that it has read."""
        return RegistrySource(self.client, self.locate, self.name)

    def target(self, run: Run | None = None) -> RegistryTarget:
        """A writer to the tree for one operation: it learns whether mounts work, and so on."""
        return RegistryTarget(self.client, self.locate, self.name, run=run, journal=self.journal)
