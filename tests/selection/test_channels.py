"""Release channels: in a bundle, each leads to something that is in the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.release_tree import CHANNELS, SMALL
from mirror.config import PullConfig
from mirror.errors import NotFoundError, SourceContentError
from mirror.oci import Descriptor, Digest
from mirror.oci.layers import read_files
from mirror.operations.pull import PullPlan, plan_pull
from mirror.registry import ConnectionOptions, RegistryClient
from tests.selection.conftest import TINY, MakeOffer
from tests.support.depot import Offer, difference, references, release_image
from tests.support.expected_bundle import ALL, FIVE, Truth
from tests.support.program import call_mirror

PLATFORM = ("--no-modules", "--no-packages", "--no-security-db", "--no-installer")
ITEMS = ("--no-platform", "--no-security-db", "--no-installer", "--no-plugins")


def planned(source: Offer, **flags: object) -> PullPlan:
    """What flags select, by the names of the settings."""
    config = PullConfig.load(None, {"source": source.root, **flags})
    selection, _ = config.selection()
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(source.registry.address, options=options) as client:
        return plan_pull(client, config.tree(), selection)


def strays(source: Offer, plan: PullPlan) -> list[str]:
    """Channels of the plan that lead to a version whose image is not in it.

    Where packages are only described nobody follows their channels; a package that is in the
    bundle has them in its own archive alone.
    """
    found = []
    for one in plan.references():
        item, _, last = one.repository.rpartition("/")
        if last not in ("release-channel", "release", "version") or one.tag not in ALL:
            continue
        if one.archive == "package-versions.tar":
            assert f"package-{item.rpartition('/')[2]}.tar" not in plan.archives
            continue
        version = said(source, one.repository, one.digest)
        if version not in plan.inventory.repository(item).tags:
            found.append(f"{one.archive} {one.repository}:{one.tag} leads to {version}")
    return found


def said(source: Offer, path: str, digest: Digest) -> str:
    """The version that a release image names."""
    repository = source.at(path)

    def opened(layer: Descriptor) -> Iterator[bytes]:
        reader = source.depot.storage.open_blob(repository, layer.digest)
        assert reader is not None
        yield reader.read_at(0, reader.size)

    layers = source.depot.manifest(repository, digest).layers
    files = read_files([partial(opened, layer) for layer in layers], ["version.json"])
    version = str(json.loads(files["version.json"])["version"])
    return version if version.startswith("v") else f"v{version}"


# -- for every wish --------------------------------------------------------------------------------

BOUNDS = [version.removeprefix("v") for version in SMALL.versions]
CONSTRAINTS = st.builds(
    "{}{}{}".format,
    st.sampled_from([">=", "<=", "~", "^", ">", "<"]),
    st.sampled_from([*BOUNDS, "1.68", "1.70"]),
    st.sampled_from(["", " || ~1.71.0", ", <1.71"]),
)
PLATFORMS: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.just({}),
    st.builds(dict, deckhouse_tag=st.sampled_from([*SMALL.versions, "pr12345", *CHANNELS])),
    st.builds(dict, since_version=st.sampled_from(["1.67", "v1.67.5", "1.68.1", "1.70"])),
    st.builds(dict, include_platform=CONSTRAINTS),
)
VERSIONS = ["", "@=v1.0.0", "@=v1.0.0+beta", "@=main", "@>=1.0.0 <1.5.0", "@~1.0", "@<=1.0"]
MODULES = st.builds(
    "{}{}".format, st.sampled_from([one.name for one in SMALL.modules]), st.sampled_from(VERSIONS)
)
PACKAGES = st.sampled_from(
    ["grafana", "grafana@=v0.5.0", "grafana@=v0.6.0+stable", "redis", "grafana@<0.6.0"]
)


def listed(noun: str, texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, object]]:
    """Some items that are taken, or some that are left out, or neither."""
    some = st.lists(texts, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.just({}),
        some.map(lambda texts: {f"include_{noun}": texts}),
        some.map(lambda texts: {f"exclude_{noun}": texts}),
    )


@settings(max_examples=8)
@given(platform=PLATFORMS, modules=listed("module", MODULES), packages=listed("package", PACKAGES))
def test_every_channel_of_a_bundle_leads_into_the_bundle(
    small: Offer,
    platform: dict[str, object],
    modules: dict[str, object],
    packages: dict[str, object],
) -> None:
    try:
        plan = planned(small, **platform, **modules, **packages)
    except (NotFoundError, SourceContentError):
        return  # what is named need not be there, which is another story
    assert strays(small, plan) == []


# -- tags that are no versions ---------------------------------------------------------------------


def test_a_build_that_says_it_is_another_version_gets_no_channels(offer: MakeOffer) -> None:
    source = offer(TINY)
    releases = source.at("release-channel")
    source.depot.put(releases, release_image("v1.69.1"), "pr12345")
    run = source.plan(*PLATFORM, "--deckhouse-tag", "pr12345").succeeded()
    assert {tag for _, path, tag in references(run.document) if path == "release-channel"} == {
        "pr12345"
    }
    for words in ("release-channel:pr12345", "v1.69.1", "not in the bundle", "no release channel"):
        assert words in run.stderr
    assert strays(source, planned(source, deckhouse_tag="pr12345")) == []


def test_a_module_build_that_says_it_is_another_version_gets_no_channels(offer: MakeOffer) -> None:
    source = offer(TINY)
    releases = source.at("modules/console/release")
    source.depot.put(releases, release_image("v1.1.0"), "main")
    run = source.plan(*ITEMS, "--no-packages", "-i", "console@=main").succeeded()
    found = {tag for _, path, tag in references(run.document) if path == "modules/console/release"}
    assert found == {"main"}
    for words in ("modules/console/release:main", "v1.1.0", "not in the bundle"):
        assert words in run.stderr
    both = ("-i", "console@=main", "-i", "console@=v1.1.0+stable")
    document = source.plan(*ITEMS, "--no-packages", *both).succeeded().document
    assert ("module-console.tar", "modules/console/release", "stable") in references(document)
    # With the version itself in the bundle, its build may lead a channel.
    both = ("-i", "console@=main+stable", "-i", "console@=v1.1.0")
    document = source.plan(*ITEMS, "--no-packages", *both).succeeded().document
    assert ("module-console.tar", "modules/console/release", "stable") in references(document)


def test_a_pinned_module_without_a_release_image_says_that_no_channel_leads_to_it(
    offer: MakeOffer,
) -> None:
    source = offer(TINY)
    run = source.plan(*ITEMS, "--no-packages", "-i", "console@=main").succeeded()
    assert not [tag for _, path, tag in references(run.document) if path.endswith("/release")]
    for words in ("modules/console/release:main", "is not there", "channel"):
        assert words in run.stderr


# -- suspended channels ----------------------------------------------------------------------------


@pytest.fixture
def suspended(offer: MakeOffer) -> Offer:
    return offer(replace(TINY, suspended=frozenset({"alpha", "beta"})))


def test_suspended_channels_refuse_a_pull_of_what_is_current(suspended: Offer) -> None:
    words = ('release channels "alpha", "beta" are suspended', "--ignore-suspend")
    suspended.plan().failed(1, *words)
    suspended.plan("--include-platform", ">=1.69").failed(1, *words)


@pytest.mark.parametrize("tag", ["alpha", "v1.70.0"])
def test_a_suspended_release_is_refused_by_channel_and_by_version(
    suspended: Offer, tag: str
) -> None:
    suspended.plan("--deckhouse-tag", tag).failed(1, '"alpha"', "--ignore-suspend")


def test_other_releases_can_be_pinned_while_a_channel_is_suspended(suspended: Offer) -> None:
    for tag in ("stable", "v1.69.1"):
        suspended.plan("--deckhouse-tag", tag).succeeded()


def test_suspended_channels_are_taken_on_request(suspended: Offer) -> None:
    document = suspended.plan("--ignore-suspend").succeeded().document
    truth = Truth(suspended.tree, suspended.depot.manifest)
    truth.platform(["v1.69.1", "v1.70.0"], FIVE).installer().databases()
    console = suspended.tree.modules["console"]
    truth.module("console", console.versions, console.channels)
    grafana = suspended.tree.packages["grafana"]
    truth.package("grafana", grafana.versions, grafana.channels).package_versions(["grafana"])
    assert not difference(references(document), truth.references())


# -- editions with lts -----------------------------------------------------------------------------


@pytest.fixture
def lts_only(offer: MakeOffer) -> Offer:
    return offer(replace(TINY, channels={"lts": "v1.69.1"}))


def test_an_edition_may_publish_nothing_but_lts(lts_only: Offer) -> None:
    document = lts_only.plan(*PLATFORM).succeeded().document
    truth = Truth(lts_only.tree, lts_only.depot.manifest)
    expected = truth.platform(["v1.69.1"], ["lts"]).package_versions().references()
    assert not difference(references(document), expected)
    assert document["platform"] == {"versions": ["v1.69.1"], "channels": ["lts"]}


def test_lts_as_a_tag_leads_all_channels_to_it_in_one_repository(lts_only: Offer) -> None:
    document = lts_only.plan(*PLATFORM, "--deckhouse-tag", "lts").succeeded().document
    truth = Truth(lts_only.tree, lts_only.depot.manifest)
    truth.platform(["v1.69.1"], ["lts"]).led_to("lts").package_versions()
    assert not difference(references(document), truth.references())
    assert document["platform"]["channels"] == list(ALL)


def test_since_a_version_of_an_edition_with_lts_alone(lts_only: Offer) -> None:
    document = lts_only.plan(*PLATFORM, "--since-version", "1.68").succeeded().document
    assert document["platform"]["versions"] == ["v1.69.1"]


# -- channels that are missing ---------------------------------------------------------------------


def test_a_channel_that_is_not_published_is_named_with_those_that_are(offer: MakeOffer) -> None:
    source = offer(TINY)
    for channel in ("alpha", "beta"):
        source.depot.drop(source.at("release-channel"), channel)
    found = "early-access, stable, rock-solid"
    source.plan("--deckhouse-tag", "beta").failed(
        1, "no release channel beta", f"available: {found}", "--deckhouse-tag"
    )
    source.plan().failed(1, "no release channel alpha, beta", f"found: {found}")
    source.plan("--deckhouse-tag", "stable").succeeded()


def test_a_source_without_any_channel_is_probably_no_edition(offer: MakeOffer) -> None:
    source = offer(TINY)
    for channel in CHANNELS:
        source.depot.drop(source.at("release-channel"), channel)
    source.plan().failed(1, "no release channel", *ALL, "check that --source names an edition")
    elsewhere = f"{source.registry.address}/deckhouse/fe"
    call_mirror("pull", "x", "--source", elsewhere, "--insecure", "--dry-run").failed(
        1, f"{elsewhere}/release-channel does not exist", "check that --source names an edition"
    )


# -- what tells a cluster of its releases ----------------------------------------------------------


def pulled(source: Offer, folder: Path, *flags: str) -> Path:
    call_mirror("pull", folder, "--source", source.root, "--insecure", *flags).succeeded()
    return folder


def test_releases_are_described_beside_the_archives(offer: MakeOffer, tmp_path: Path) -> None:
    source = offer(TINY)
    folder = pulled(source, tmp_path / "bundle", *PLATFORM)
    text = (folder / "deckhousereleases.yaml").read_text()
    documents = list(yaml.safe_load_all(text))
    assert text.startswith("---\n")
    assert [one["metadata"]["name"] for one in documents] == ["v1.69.1", "v1.70.0"]
    for one in documents:
        version = one["spec"]["version"]
        assert one["apiVersion"] == "deckhouse.io/v1alpha1"
        assert one["kind"] == "DeckhouseRelease"
        assert one["approved"] is False
        assert one["spec"]["changelogLink"].endswith(f"/releases/tag/{version}")
        assert f"Fix of {version}." in json.dumps(one["spec"]["changelog"])
        assert one["spec"]["requirements"]
        assert one["status"] == {
            "approved": False,
            "message": "",
            "transitionTime": "0001-01-01T00:00:00Z",
        }
    sealed = json.loads((folder / "inventory.json").read_bytes())["files"]
    assert list(sealed) == ["deckhousereleases.yaml"]


@pytest.mark.parametrize("flags", [("--deckhouse-tag", "stable"), ("--no-platform",)])
def test_a_pinned_release_and_none_are_not_described(
    offer: MakeOffer, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    folder = pulled(offer(TINY), tmp_path / "bundle", *flags, "--no-packages")
    assert not (folder / "deckhousereleases.yaml").exists()


# -- what describes all packages -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        (("--no-packages",), set()),
        (("--include-package", "grafana"), {"grafana"}),
        (("--exclude-package", "grafana"), {"redis"}),
        ((), {"grafana", "redis"}),
    ],
)
def test_all_packages_are_described_whichever_are_taken(
    small: Offer, flags: tuple[str, ...], own: set[str]
) -> None:
    document = small.plan("--no-platform", "--no-modules", *flags).succeeded().document
    found = {
        key: digest
        for key, digest in references(document).items()
        if key[0] == "package-versions.tar"
    }
    truth = Truth(small.tree, small.depot.manifest).package_versions(own)
    assert not difference(found, truth.references())
    assert {one for one in document["archives"] if one.startswith("package-")} == {
        "package-versions.tar",
        *(f"package-{name}.tar" for name in own),
    }


def test_a_source_without_packages_has_none_described(offer: MakeOffer) -> None:
    source = offer(replace(TINY, packages=()))
    run = source.plan(*ITEMS).succeeded()
    assert "package-versions.tar" not in run.document["archives"]
    assert "packages does not exist" in run.stderr


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "at"),
    [("/extensions/mods/", "deckhouse/ee/extensions/mods"), ("mods", "deckhouse/ee/mods")],
)
def test_modules_may_lie_elsewhere_at_the_source(offer: MakeOffer, suffix: str, at: str) -> None:
    source = offer(TINY, moved={"deckhouse/ee/modules": at})
    flags = (*ITEMS, "--no-packages")
    run = source.plan(*flags, "--modules-path-suffix", suffix).succeeded()
    console = source.tree.modules["console"]
    truth = Truth(source.tree, source.depot.manifest)
    truth.module("console", console.versions, console.channels).package_versions()
    assert not difference(references(run.document), truth.references())
    origins = {one["source"] for one in run.document["references"] if one["tag"] == "v1.1.0"}
    assert f"{source.registry.address}/{at}/console:v1.1.0" in origins
    assert "modules does not exist" in source.plan(*flags).succeeded().stderr
