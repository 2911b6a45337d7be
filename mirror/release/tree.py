"""The release tree: which repositories a Deckhouse registry has, and where each lies.

Inside a bundle, and below a push's target, a repository goes by its path there: the empty path is
the platform's own repository, `modules/x/release` a module's channels. At the source most of them
lie below the edition (`deckhouse/ee`), a few beside it (`deckhouse/installer`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror.oci import Repository

DEFAULT_CHANNELS = ("alpha", "beta", "early-access", "stable", "rock-solid")
"""The channels that every full edition publishes, from the newest releases to the oldest."""

LTS = "lts"
CHANNELS = (*DEFAULT_CHANNELS, LTS)

EDITIONS = frozenset({"ee", "fe", "se", "se-plus", "be", "ce"})

SECURITY_DATABASES = {
    "security/trivy-db": "2",
    "security/trivy-bdu": "1",
    "security/trivy-java-db": "1",
    "security/trivy-checks": "0",
}
"""Repository → its rolling tag, which names the schema and not a release."""

INSTALL = "install"
INSTALL_STANDALONE = "install-standalone"
RELEASE_CHANNEL = "release-channel"
INSTALLER = "installer"
MODULES = "modules"
PACKAGES = "packages"
PLUGINS = "deckhouse-cli/plugins"

_METADATA_LEAF = {MODULES: "release", PACKAGES: "version"}
_INDEX_REPOSITORIES = frozenset({MODULES, PACKAGES, PLUGINS})


@dataclass(frozen=True, slots=True)
class SourceTree:
    """Where a source registry keeps its release tree. `root` is what `--source` names."""

    root: Repository
    modules_suffix: str = MODULES

    @property
    def edition(self) -> str | None:
        """The edition that the root's last part names, or None where it names none."""
        last = self.root.path.rpartition("/")[2]
        return last if last in EDITIONS else None

    @property
    def bare(self) -> str:
        """The path that editions share: the root's without its edition."""
        if self.edition is None:
            return self.root.path
        return self.root.path.removesuffix(self.edition).removesuffix("/")

    def locate(self, path: str) -> str:
        """The registry's repository for a path of the bundle."""
        if path in (INSTALLER, PLUGINS) or path.startswith(f"{PLUGINS}/"):
            return _join(self.bare, path)
        if path == MODULES or path.startswith(f"{MODULES}/"):
            return _join(self.root.path, self.modules_suffix, path[len(MODULES) + 1 :])
        return _join(self.root.path, path)

    def origin(self, path: str) -> str:
        """The same with the registry's host: what images of that path are called there."""
        return f"{self.root.host}/{self.locate(path)}"


@dataclass(frozen=True, slots=True)
class TargetTree:
    """Where a push puts things: everything below `root`, modules below a suffix of choice."""

    root: Repository
    modules_suffix: str = MODULES

    def locate(self, path: str) -> str:
        """The registry's repository for a path of the bundle."""
        if path == MODULES or path.startswith(f"{MODULES}/"):
            return _join(self.root.path, self.modules_suffix, path[len(MODULES) + 1 :])
        return _join(self.root.path, path)

    def path_of(self, repository: str) -> str | None:
        """The path of the bundle that `locate` puts at `repository`; None if there is none."""
        for below, path in ((self.locate(MODULES), MODULES), (self.root.path, "")):
            if repository == below or repository.startswith(f"{below}/"):
                found = f"{path}{repository[len(below) :]}".lstrip("/")
                # What lies where modules would go, were it not for the suffix, has no path.
                if self.locate(found) == repository:
                    return found
        return None


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def normalised_suffix(text: str) -> str:
    """`--modules-path-suffix` as a path: no `/` at either end; empty text is the default."""
    return text.strip("/") if text else MODULES


def publication_stage(repository: str, tag: str) -> int:
    """When a push or sync may set a tag: 0 images, 1 versions, 2 channels, 3 what exists.

    A version's metadata (`release-channel:v1.70.0`) promises its images to controllers, which list
    these tags, so it comes after the images. A channel leads to a version, so it turns when all of
    those are there; the index of modules, packages and plugins leads to channels.
    """
    if repository in _INDEX_REPOSITORIES:
        return 3
    if not _tells_versions(repository):
        return 0
    return 2 if tag in CHANNELS else 1


def _tells_versions(repository: str) -> bool:
    """Whether its tags are versions and channels: `release-channel`, `modules/x/release`, ..."""
    match repository.split("/"):
        case [name]:
            return name == RELEASE_CHANNEL
        case [root, _, leaf]:
            return _METADATA_LEAF.get(root) == leaf
    return False
