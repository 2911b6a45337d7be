"""What tree to build: which versions, channels, modules, packages and plugins, and how big."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

EDITIONS = frozenset({"ee", "fe", "se", "se-plus", "be", "ce"})
CHANNELS = ("alpha", "beta", "early-access", "stable", "rock-solid")
"""The five default channels, the boldest first. `lts` is a sixth that few editions have."""


def spread(versions: Sequence[str]) -> dict[str, str]:
    """Give the five channels to `versions` (oldest first): the newest to alpha, then downwards."""
    newest_first = list(reversed(versions))
    return {
        channel: newest_first[at * len(newest_first) // len(CHANNELS)]
        for at, channel in enumerate(CHANNELS)
    }


@dataclass(frozen=True)
class ModuleSpec:
    """A module or a package.

    `versions` run from the oldest to the newest. `channels` may be some of the five and `lts`.
    `internal` is how many images it uses by digest. `extra` maps names of extra images to their
    tags, numbers or text, as the module's `extra_images.json` has them. `tags` are tags of the
    newest version besides `vX.Y.Z`.
    """

    name: str
    versions: tuple[str, ...]
    channels: Mapping[str, str] = field(default_factory=dict)
    internal: int = 2
    extra: Mapping[str, int | str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class PluginSpec:
    """A plugin of the `d8` command line.

    `versions` maps each version to the `requirements` of its contract; None stands for an image
    without a contract. `platforms`: an index for several platforms, with the contract on the index
    (`on_index`) or on its children only; else a single image.
    """

    name: str
    versions: Mapping[str, Mapping[str, object] | None]
    platforms: bool = True
    on_index: bool = True


def needs(
    modules: Mapping[str, str] | None = None, *, plugins: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Requirements of a plugin: mandatory modules and plugins, each with a constraint."""

    def mandatory(wanted: Mapping[str, str]) -> dict[str, object]:
        return {"mandatory": [{"name": name, "constraint": wanted[name]} for name in wanted]}

    requirements: dict[str, object] = {}
    if modules:
        requirements["modules"] = mandatory(modules)
    if plugins:
        requirements["plugins"] = mandatory(plugins)
    return requirements


@dataclass(frozen=True)
class TreeSpec:
    """A whole release tree.

    `root` is the edition's path in the registry; what lies outside of editions goes to `bare`.
    `versions` are the platform's, oldest first. `suspended` names channels whose release is not to
    be taken for now. `components` counts the component images of one version. `layer_bytes` is the
    typical size of a component's own layer; real ones are between a fifth and eight times of it.
    `minor_changes` and `patch_changes` are the shares of components that a minor and a patch
    release change.
    `multi_arch` is the share of components that are indexes. `dev_tags` are builds of the platform
    that no channel knows.
    """

    root: str = "deckhouse/ee"
    versions: tuple[str, ...] = ("v1.68.0", "v1.69.0", "v1.70.0")
    channels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    suspended: frozenset[str] = frozenset()
    dev_tags: tuple[str, ...] = ("pr12345",)
    components: int = 12
    layer_bytes: int = 2048
    modules: tuple[ModuleSpec, ...] = ()
    packages: tuple[ModuleSpec, ...] = ()
    plugins: tuple[PluginSpec, ...] = ()
    minor_changes: float = 0.3
    patch_changes: float = 0.06
    multi_arch: float = 0.15
    seed: int = 1

    @property
    def bare(self) -> str:
        """`root` without the edition at its end, if it has one."""
        head, _, last = self.root.rpartition("/")
        return head if head and last in EDITIONS else self.root


_VERSIONS = (
    "v1.67.4",
    "v1.67.5",
    "v1.68.0",
    "v1.68.1",
    "v1.68.2",
    "v1.69.0",
    "v1.69.1",
    "v1.70.0",
    "v1.70.1",
    "v1.71.0",
)
_CHANNELS = {
    "alpha": "v1.71.0",
    "beta": "v1.70.1",
    "early-access": "v1.70.1",
    "stable": "v1.69.1",
    "rock-solid": "v1.68.2",
}
_POSTGRES = ("v1.0.0", "v1.5.0", "v1.5.1", "v1.10.0")
_CONSOLE = ("v0.9.0", "v1.0.0", "v1.1.0-rc.1", "v1.1.0")
_POSTGRES_PLUGIN = {
    "v1.1.0": needs({"postgresql": ">=1.0.0 <1.5.0"}),
    "v1.2.0": needs({"postgresql": ">=1.5.0"}),
    "v1.3.0-beta.1": needs({"postgresql": ">=1.10.0"}),
}

SMALL = TreeSpec(
    versions=_VERSIONS[1:],
    channels=_CHANNELS,
    components=12,
    layer_bytes=1500,
    modules=(
        ModuleSpec("console", _CONSOLE, spread(_CONSOLE), tags=("main",)),
        ModuleSpec(
            "postgresql",
            _POSTGRES,
            {**spread(_POSTGRES), "lts": "v1.0.0"},
            extra={"trivy-db": 2, "backup-agent": "v1.2.3"},
        ),
        ModuleSpec("operator-argo", ("v1.0.0",), {"alpha": "v1.0.0"}, internal=0),
    ),
    packages=(
        ModuleSpec("grafana", ("v0.5.0", "v0.6.0"), spread(("v0.5.0", "v0.6.0"))),
        ModuleSpec("redis", ("v7.0.1",), spread(("v7.0.1",)), extra={"exporter": "v1.58.0"}),
    ),
    plugins=(
        PluginSpec("postgresql-mgr", _POSTGRES_PLUGIN),
        PluginSpec(
            "db-connector", {"v0.9.0": {}, "v1.0.0": needs(plugins={"netcheck": ">=0.1.0"})}
        ),
        PluginSpec("netcheck", {"v0.1.0": None}, platforms=False),
    ),
)
"""For tests: every kind of thing, less than 1 MB in all."""

DEMO = TreeSpec(
    versions=_VERSIONS,
    channels=_CHANNELS,
    components=60,
    layer_bytes=450_000,
    modules=SMALL.modules,
    packages=SMALL.packages,
    plugins=SMALL.plugins,
)
"""For people to look at: about 200 MB."""


def _numbered(kind: str, count: int) -> tuple[ModuleSpec, ...]:
    versions = ("v0.9.0", "v1.0.0", "v1.0.1", "v1.1.0", "v1.2.0")
    channels = {
        "alpha": "v1.2.0",
        "beta": "v1.2.0",
        "early-access": "v1.1.0",
        "stable": "v1.0.1",
        "rock-solid": "v1.0.1",
    }
    return tuple(
        ModuleSpec(
            f"{kind}-{number:02}",
            versions,
            channels,
            internal=3,
            extra={"scanner": number, "agent": f"v0.{number}.0"} if number % 4 == 0 else {},
        )
        for number in range(count)
    )


LARGE = TreeSpec(
    versions=(
        "v1.66.4",
        "v1.67.0",
        "v1.67.5",
        "v1.68.0",
        "v1.68.2",
        "v1.69.0",
        "v1.69.1",
        "v1.70.0",
        "v1.70.1",
        "v1.71.0",
    ),
    channels={
        "alpha": "v1.71.0",
        "beta": "v1.70.0",
        "early-access": "v1.69.0",
        "stable": "v1.68.0",
        "rock-solid": "v1.67.0",
        "lts": "v1.67.0",
    },
    components=300,
    layer_bytes=600,
    minor_changes=1.0,  # a new base image rebuilds them all
    patch_changes=0.2,
    modules=_numbered("module", 40),
    packages=_numbered("package", 20),
    plugins=tuple(
        PluginSpec(
            f"plugin-{number:02}",
            {
                "v1.0.0": needs({f"module-{number:02}": ">=0.9.0 <1.1.0"}),
                "v1.1.0": needs({f"module-{number:02}": ">=1.1.0"}),
            },
            platforms=number % 2 == 0,
            on_index=number % 4 == 0,
        )
        for number in range(10)
    ),
)
"""As many images as a real tree has, with next to nothing in them."""
