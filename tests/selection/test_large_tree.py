"""Every kind of wish against trees of many modules, in the registry that people run.

What each must select is written out by hand, as versions and channels, from the reference's rules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from examples.release_tree import LARGE, ReleaseTree, TreeSpec, build
from mirror.oci import Digest
from mirror.sync import MemoryStore
from tests.support.depot import difference, dry_run, lay_out_storage, references
from tests.support.expected_bundle import ALL, FIVE, Truth, thinned
from tests.support.patience import wait_until
from tests.support.program import Finished
from tests.support.real_registry import RealRegistry

pytestmark = pytest.mark.timeout(120)

_ACCESS = re.compile(r'"([A-Z]+) (/v2/\S*) HTTP/1\.1" (\d{3}) ')


MANY = replace(
    LARGE,
    components=90,
    modules=(*LARGE.modules[:10], *LARGE.modules[15:17]),
    packages=LARGE.packages[:5],
)


@dataclass
class Served:
    """A tree in a `docker-registry` that notes every request."""

    tree: ReleaseTree
    store: MemoryStore
    registry: RealRegistry
    log: Path
    marks: int = 0

    def plan(self, *flags: str) -> Finished:
        return dry_run(f"{self.registry.address}/{self.tree.root}", *flags)

    def truth(self) -> Truth:
        """What is true about the tree, nothing of it expected yet."""
        return Truth(self.tree, self.store.manifest)

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of every request up to now."""
        self.marks += 1
        mark = f"/v2/mark-{self.marks}/tags/list"
        httpx.get(self.registry.url + mark)
        wait_until(lambda: mark in self.log.read_text())
        text = self.log.read_text()
        found = [(method, path, int(code)) for method, path, code in _ACCESS.findall(text)]
        return [one for one in found if "/v2/mark-" not in one[1]]


@contextmanager
def served(spec: TreeSpec, folder: Path) -> Iterator[Served]:
    store = MemoryStore()
    tree = build(spec, store)
    logging = {"log": {"level": "warn", "accesslog": {"disabled": False}}}
    server = RealRegistry(folder, read_only=True, extra=logging)
    lay_out_storage(store, list(tree.repositories), server.root)
    log = folder / "registry.log"
    with server:
        yield Served(tree, store, server, log)
        os.truncate(log, 0)  # or the server's end would print it


@pytest.fixture(scope="module")
def many(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All versions of the large tree, with fewer components, modules and packages."""
    with served(MANY, tmp_path_factory.mktemp("many")) as source:
        yield source


@pytest.fixture(scope="module")
def large(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tree as large as real ones."""
    with served(LARGE, tmp_path_factory.mktemp("large")) as source:
        yield source


# -- the wishes ------------------------------------------------------------------------------------

CURRENT = [version for version in LARGE.versions if version != "v1.66.4"]
"""Of the platform, without any flag: the channels' versions and the latest patches."""

CHANNELS = {
    "alpha": "v1.2.0",
    "beta": "v1.2.0",
    "early-access": "v1.1.0",
    "stable": "v1.0.1",
    "rock-solid": "v1.0.1",
}
"""Where the channels of every module and package lead."""
LED_TO = ("v1.0.1", "v1.1.0", "v1.2.0")

MODULES, PACKAGES, PLUGINS = (
    [one.name for one in kind] for kind in (MANY.modules, MANY.packages, MANY.plugins)
)
VEX, SIGNATURES = (".att",), (".sig", ".sbom", "")

BARE = ("--no-modules", "--no-packages", "--no-security-db", "--no-installer")
"""Nothing but the platform, and what describes packages."""
ITEMS = ("--no-platform", "--no-security-db", "--no-installer")
"""Nothing but modules, packages and plugins."""


def modules(truth: Truth, names: Sequence[str] = MODULES) -> Truth:
    """Modules as without any flag, and the plugins that are made for them."""
    for name in names:
        truth.module(name, LED_TO, CHANNELS)
    for plugin in PLUGINS:
        if plugin.replace("plugin", "module") in names:
            truth.plugin(plugin, "v1.0.0", "v1.1.0")
    return truth


def packages(truth: Truth, names: Sequence[str] = PACKAGES) -> Truth:
    """Packages as without any flag, and what describes all of them."""
    for name in names:
        truth.package(name, LED_TO, CHANNELS)
    return truth.package_versions(names)


@dataclass(frozen=True)
class Case:
    """Flags, what they must select, and what the user must be told."""

    name: str
    flags: tuple[str, ...]
    expected: Callable[[Truth], Truth]
    suffixes: tuple[str, ...] = (*VEX, *SIGNATURES)
    told: tuple[str, ...] = ()
    versions: Sequence[str] | None = field(default=None)
    """The platform's versions by name, where the case is about them."""


def releases(name: str, flags: Sequence[str], versions: str, channels: str, told: str = "") -> Case:
    """A case about platform releases: the rest is left out."""
    return Case(
        name,
        (*BARE, *flags),
        lambda truth: truth.platform(versions.split(), channels.split()).package_versions(),
        told=(told,) if told else (),
        versions=versions.split(),
    )


def pinned(name: str, flags: Sequence[str], version: str, leads: str, own: str = "") -> Case:
    """A case about one release: five channels lead to the image of tag `leads`."""
    return Case(
        name,
        (*BARE, *flags),
        lambda truth: truth.platform([version], own.split()).led_to(leads, FIVE).package_versions(),
        versions=[version],
    )


def items(name: str, flags: str, expected: Callable[[Truth], Truth], *told: str) -> Case:
    """A case about modules alone."""
    return Case(
        name,
        (*ITEMS, "--no-packages", *flags.split(";")),
        lambda truth: expected(truth).package_versions(),
        told=told,
    )


def packs(name: str, flags: str, expected: Callable[[Truth], Truth]) -> Case:
    """A case about packages alone."""
    return Case(name, (*ITEMS, "--no-modules", *flags.split(";")), expected)


CASES = [
    # -- which releases
    Case(
        "since a version below rock-solid",
        ("--since-version", "1.66", *BARE),
        lambda truth: truth.platform(["v1.66.4", *CURRENT], ALL).package_versions(),
        versions=["v1.66.4", *CURRENT],
    ),
    releases(
        "a range whose upper bound is a minor version",
        ["--include-platform", ">=1.69 <=1.70"],
        "v1.69.0 v1.69.1 v1.70.0 v1.70.1",
        "early-access beta",
    ),
    releases(
        "an anchor that is there and one that is not",
        ["--include-platform", ">=1.68.1, <=1.69.0"],
        "v1.68.2 v1.69.0",
        "early-access",
    ),
    releases("a tilde", ["--include-platform", "~1.68.0"], "v1.68.0 v1.68.2", "stable"),
    releases(
        "alternatives, one behind rock-solid",
        ["--include-platform", ">=1.66.4 <1.67.0 || ~1.71.0"],
        "v1.66.4 v1.71.0",
        "alpha",
    ),
    releases(
        "a bare version", ["--include-platform", "1.70.0"], "v1.70.0 v1.70.1 v1.71.0", "beta alpha"
    ),
    # -- one release
    pinned("a channel", ["--deckhouse-tag", "stable"], "v1.68.0", "stable"),
    pinned(
        "a version with channels", ["--deckhouse-tag", "v1.67.0"], "v1.67.0", "v1.67.0", own="lts"
    ),
    pinned("a version without one", ["--deckhouse-tag", "v1.69.1"], "v1.69.1", "v1.69.1"),
    pinned("a version without its v", ["--include-platform", "=1.70.1"], "v1.70.1", "v1.70.1"),
    Case(
        "a tag that is no version",
        ("--deckhouse-tag", "pr12345", *BARE),
        lambda truth: truth.platform(["pr12345"]).package_versions(),
        told=("release-channel repository has no tag pr12345",),
        versions=["pr12345"],
    ),
    # -- parts left out
    Case("no platform", ITEMS[:1], lambda truth: packages(modules(truth.installer().databases()))),
    Case(
        "no plugins, an installer of another tag",
        (*BARE[:3], "--no-platform", "--no-plugins", "--installer-tag", "v1.69.1"),
        lambda truth: truth.installer("v1.69.1").package_versions(),
    ),
    # -- modules
    items("one module", "-i;module-03", lambda truth: modules(truth, ["module-03"])),
    items(
        "a module from an older version on",
        "-i;module-04@>=1.0.0 <1.1.0",
        lambda truth: truth.module("module-04", ("v1.0.0", *LED_TO), CHANNELS).plugin(
            "plugin-04", "v1.0.0", "v1.1.0"
        ),
    ),
    items(
        "a module named twice",
        "-i;module-15@=v0.9.0;-i;module-15@~1.1.0",
        lambda truth: truth.module("module-15", ("v0.9.0", *LED_TO), CHANNELS),
    ),
    items(
        "exact tags, published to one channel and to all",
        "-i;module-07@=v1.0.0+stable;-i;module-08@=v1.1.0;-i;module-16@=v0.9.0;"
        "-i;module-16@=v1.0.0+beta",
        lambda truth: (
            truth.module("module-07", ["v1.0.0"], {"stable": "v1.0.0"})
            .module("module-08", ["v1.1.0"], dict.fromkeys(ALL, "v1.1.0"))
            .module("module-16", ["v0.9.0", "v1.0.0"], {"beta": "v1.0.0"})
            .plugin("plugin-07", "v1.0.0")
            .plugin("plugin-08", "v1.1.0")
        ),
    ),
    items(
        "modules left out, and versions of modules",
        "-e;module-00;-e;module-01@1.2.0;-e;module-02@=v1.1.0",
        lambda truth: (
            modules(truth, MODULES[3:])
            .module("module-01", LED_TO[:2], without("v1.2.0"))
            .module("module-02", ["v1.0.1", "v1.2.0"], without("v1.1.0"))
            .plugin("plugin-01", "v1.0.0", "v1.1.0")
            .plugin("plugin-02", "v1.0.0", "v1.1.0")
        ),
    ),
    # -- packages
    packs(
        "packages that are named",
        "--include-package;package-03;--include-package;package-04@>=0.9.0 <1.0.0",
        lambda truth: (
            truth.package("package-03", LED_TO, CHANNELS)
            .package("package-04", ("v0.9.0", *LED_TO), CHANNELS)
            .package_versions(["package-03", "package-04"])
        ),
    ),
    packs(
        "packages left out",
        "--exclude-package;package-00;--exclude-package;package-01@=v1.2.0",
        lambda truth: (
            packages(truth, PACKAGES[2:])
            .package("package-01", LED_TO[:2], without("v1.2.0"))
            .package_versions(PACKAGES[1:])
            .forget("package-versions.tar", "packages/package-01/version", FIVE)
        ),
    ),
    # -- plugins
    Case(
        "plugins that are named",
        (
            *(*BARE, "--deckhouse-tag", "v1.71.0", "--include-plugin", "plugin-05"),
            *("--include-plugin", "plugin-06@=v1.0.0", "--include-plugin", "plugin-09@<1.1.0"),
        ),
        lambda truth: (
            truth.platform(["v1.71.0"])
            .led_to("v1.71.0")
            .plugin("plugin-05", "v1.1.0")
            .plugin("plugin-06", "v1.0.0")
            .plugin("plugin-09", "v1.0.0")
            .package_versions()
        ),
        told=("plugin-05@v1.1.0", "module-05"),
    ),
    # -- what travels along
    Case(
        "extra images only",
        (*ITEMS, "--only-extra-images", "--no-packages", "--no-modules"),
        lambda truth: extra_images(truth),
    ),
    Case(
        "no attestations",
        ("--skip-vex-images", "--deckhouse-tag", "v1.71.0", *BARE[1:], "-i", "module-00"),
        lambda truth: (
            modules(truth.platform(["v1.71.0"]), ["module-00"]).led_to("v1.71.0").package_versions()
        ),
        suffixes=SIGNATURES,
    ),
    Case(
        "no signatures",
        ("--no-signatures", "--deckhouse-tag", "v1.71.0", *BARE[1:], "-i", "module-00"),
        lambda truth: (
            modules(truth.platform(["v1.71.0"]), ["module-00"]).led_to("v1.71.0").package_versions()
        ),
        suffixes=VEX,
    ),
    Case(
        "one platform of multi-arch images",
        ("--platform", "linux/amd64", "--deckhouse-tag", "v1.71.0", *BARE[1:], "-i", "module-04"),
        lambda truth: thinned_plugins(
            modules(truth.platform(["v1.71.0"]), ["module-04"]).led_to("v1.71.0").package_versions()
        ),
    ),
]


def without(version: str) -> Mapping[str, str]:
    """The channels that do not lead to a version."""
    return {name: leads for name, leads in CHANNELS.items() if leads != version}


def extra_images(truth: Truth) -> Truth:
    for kind, names in (("modules", MODULES), ("packages", PACKAGES)):
        for name in names:
            truth.extra_images(f"{kind}/{name}")
    return truth


def thinned_plugins(truth: Truth) -> Truth:
    """Plugins are the only indexes that tags name."""
    for key, digest in truth.wanted.items():
        _, path, _ = key
        if path.startswith("deckhouse-cli/"):
            index = truth.read(f"deckhouse/{path}", digest)
            truth.replaced[key] = thinned(index, "amd64")
    assert truth.replaced
    return truth


# -- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_dry_run_lists_exactly_what_the_rules_select(many: Served, case: Case) -> None:
    run = many.plan(*case.flags).succeeded()
    expected = case.expected(many.truth()).references(case.suffixes)
    assert not difference(references(run.document), expected)
    if case.versions is not None:
        assert sorted(run.document["platform"]["versions"]) == sorted(case.versions)
    for words in case.told:
        assert words in run.stderr


@pytest.mark.parametrize(
    ("served_as", "spec"),
    [("many", MANY), pytest.param("large", LARGE, marks=pytest.mark.soak)],
    ids=["many modules", "as large as real ones"],
)
def test_without_flags_a_dry_run_lists_all_that_is_current_with_few_requests(
    served_as: str, spec: TreeSpec, request: pytest.FixtureRequest
) -> None:
    source: Served = request.getfixturevalue(served_as)
    before = len(source.requests())
    document = source.plan().succeeded().document
    asked = source.requests()[before:]
    truth = source.truth().platform(CURRENT, ALL).installer().databases()
    names = [[one.name for one in kind] for kind in (spec.modules, spec.packages)]
    expected = packages(modules(truth, names[0]), names[1]).references()
    assert not difference(references(document), expected)
    assert len(asked) <= 1.3 * document["manifests"], (len(asked), document["manifests"])
    assert {method for method, _, _ in asked} <= {"GET", "HEAD"}
    assert sorted(set(asked)) == sorted(asked), "something was asked twice"
    # Layers are read of images that describe others, and of no image that is only carried.
    read = {path.rpartition("/")[2] for _, path, _ in asked if "/blobs/" in path}
    describing = {
        str(layer.digest)
        for repository, digest in describing_images(source.tree)
        for layer in source.store.manifest(repository, digest).layers
    }
    assert read <= describing
    assert all("/extra/" not in path for _, path, _ in asked if "/blobs/" in path)


def describing_images(tree: ReleaseTree) -> Iterator[tuple[str, Digest]]:
    """Installers, release images, and the main images of modules and packages."""
    for released in tree.platform.values():
        yield f"{tree.root}/install", released.install
        if released.release is not None:
            yield f"{tree.root}/release-channel", released.release
    for item in (*tree.modules.values(), *tree.packages.values()):
        for version in item.versions.values():
            yield item.repository, version.image
            yield item.release_repository, version.release


def test_a_plan_is_the_same_every_time(many: Served) -> None:
    flags = ("--include-platform", "~1.71.0", "-i", "module-00", "-i", "module-01@<1", *BARE[1:])
    runs = [many.plan(*flags, *jobs).succeeded() for jobs in ((), ("--jobs=1",), ("--jobs=16",))]
    documents = [run.document for run in runs]
    for document in documents:
        del document["elapsedSeconds"]
    assert documents[0] == documents[1] == documents[2]
    assert len({run.stderr for run in runs}) == 1
