"""A release tree like that of Deckhouse Kubernetes Platform, made up from nothing but a seed.

It is what demos pull from and what tests compare with. `build` fills a store and returns what is
true about the tree; the modules of this package show, one by one, how such a tree is laid out.
"""

from examples.release_tree.extras import build_databases, build_plugins
from examples.release_tree.modules import build_modules
from examples.release_tree.platform import build_platform
from examples.release_tree.spec import (
    CHANNELS,
    DEMO,
    LARGE,
    SMALL,
    ModuleSpec,
    PluginSpec,
    TreeSpec,
    needs,
    spread,
)
from examples.release_tree.tree import (
    ModuleVersion,
    PlatformVersion,
    PublishedModule,
    PublishedPlugin,
    PublishedRepository,
    ReleaseTree,
    Store,
    Workshop,
)

__all__ = [
    "CHANNELS",
    "DEMO",
    "LARGE",
    "SMALL",
    "ModuleSpec",
    "ModuleVersion",
    "PlatformVersion",
    "PluginSpec",
    "PublishedModule",
    "PublishedPlugin",
    "PublishedRepository",
    "ReleaseTree",
    "Store",
    "TreeSpec",
    "build",
    "needs",
    "spread",
]


def build(spec: TreeSpec, store: Store) -> ReleaseTree:
    """Build the tree that `spec` describes into `store`. Equal specs make equal bytes.

    Raises:
        ValueError: a channel names a version that is not to be built.
    """
    for name, versions, channels in (
        ("the platform", spec.versions, spec.channels),
        *((one.name, one.versions, one.channels) for one in (*spec.modules, *spec.packages)),
    ):
        missing = set(channels.values()) - set(versions)
        if missing:
            raise ValueError(f"channels of {name} name unknown versions: {sorted(missing)}")
    workshop = Workshop(spec, store)
    build_platform(workshop)
    build_modules(workshop)
    build_databases(workshop)
    build_plugins(workshop)
    return workshop.tree
