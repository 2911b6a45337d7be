"""What travels with images: signatures, attestations, SBOMs, referrers; whole indexes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.release_tree import SMALL
from examples.release_tree.images import AMD64, ARM64, DARWIN, image, index, layer
from mirror.oci import Digest
from mirror.testing import Answer, Fault
from tests.conftest import MakeEmbeddedRegistry, MakeRealRegistry
from tests.selection.conftest import TINY, MakeOffer
from tests.support.depot import Offer, cosign, difference, references
from tests.support.expected_bundle import Truth
from tests.support.program import call_mirror
from tests.support.wire import Wire

PINNED = ("--deckhouse-tag", "v1.70.0")
PLATFORM = (*PINNED, "--no-modules", "--no-packages", "--no-security-db", "--no-installer")


def names(source: Offer, *flags: str, path: str = "") -> dict[str, str]:
    """Tag → digest of what a plan has of one repository."""
    document = source.plan(*PLATFORM, *flags).succeeded().document
    return {tag: digest for (_, at, tag), digest in references(document).items() if at == path}


def indexes(source: Offer) -> list[Digest]:
    """The multi-arch components of the newest release."""
    released = source.tree.platform["v1.70.0"]
    components = dict.fromkeys(released.components.values())
    return [one for one in components if source.depot.manifest(source.at(""), one).is_index]


@pytest.fixture
def source(offer: MakeOffer) -> Offer:
    """With some multi-arch components."""
    made = offer(replace(TINY, components=8, multi_arch=0.5))
    assert indexes(made)
    return made


# -- cosign's tags ---------------------------------------------------------------------------------


def test_all_of_cosigns_tags_travel_with_what_they_speak_of(source: Offer) -> None:
    root, depot = source.at(""), source.depot
    multi = indexes(source)[0]
    child = depot.manifest(root, multi).children[1].descriptor.digest
    wanted = {}
    for subject in (multi, child, source.tree.platform["v1.70.0"].image):
        for suffix in (".att", ".sig", ".sbom"):
            tag = cosign(subject, suffix)
            wanted[tag] = str(depot.refer(root, subject, tag, native=False, text=suffix))
    stray = cosign(Digest.of(b"something else"), ".sig")
    depot.refer(root, multi, stray, native=False, text="stray")
    found = names(source)
    assert wanted.items() <= found.items()
    assert stray not in found
    assert {tag for tag in wanted if tag.endswith(".att")} & names(
        source, "--skip-vex-images"
    ).keys() == set()
    kept = names(source, "--no-signatures").keys()
    assert kept & wanted.keys() == {tag for tag in wanted if tag.endswith(".att")}
    neither = names(source, "--no-signatures", "--skip-vex-images")
    assert not [tag for tag in neither if tag.startswith("sha256-")]


def test_signatures_of_other_repositories_and_archives_travel_too(small: Offer) -> None:
    document = small.plan("--no-platform").succeeded().document
    truth = Truth(small.tree, small.depot.manifest).installer().databases()
    for name, item in small.tree.modules.items():
        truth.module(name, dict.fromkeys(item.channels.values()), item.channels)
    for name, item in small.tree.packages.items():
        truth.package(name, dict.fromkeys(item.channels.values()), item.channels)
    truth.package_versions(small.tree.packages)
    truth.plugin("postgresql-mgr", "v1.1.0", "v1.2.0")
    assert not difference(references(document), truth.references())
    assert [tag for _, path, tag in references(document) if tag.endswith(".att") if path]


def test_signatures_are_signed_in_turn(source: Offer) -> None:
    root, depot = source.at(""), source.depot
    subject = indexes(source)[0]
    chain = []
    for step in range(3):
        tag = cosign(subject, ".sig")
        subject = depot.refer(root, subject, tag, native=False, text=str(step))
        chain.append(tag)
    assert set(chain) <= names(source).keys()


# -- referrers -------------------------------------------------------------------------------------


def signed(source: Offer) -> tuple[Digest, Digest, Digest, Digest]:
    """A component, a child of it, their native referrers, and a referrer of the first of those."""
    root, depot = source.at(""), source.depot
    subject = indexes(source)[0]
    child = depot.manifest(root, subject).children[0].descriptor.digest
    first = depot.refer(root, subject)
    return (
        subject,
        first,
        depot.refer(root, child, text="child"),
        depot.refer(root, first, text="again"),
    )


def reach(source: Offer, folder: Path, *flags: str) -> dict[str, list[str]]:
    """Pull the platform; tag → what the manifest under it names, of the root repository."""
    call_mirror(
        "pull", folder, "--source", source.root, "--insecure", *PLATFORM, *flags
    ).succeeded()
    seal = json.loads((folder / "inventory.json").read_bytes())
    held = seal["archives"]["platform.tar"]["repositories"][""]
    return {
        tag: [one[1] for one in seal["manifests"][digest].get("children", ())]
        for tag, digest in held["tags"].items()
    }


def test_referrers_travel_under_the_tags_of_the_tag_schema(source: Offer, tmp_path: Path) -> None:
    subject, first, of_child, again = signed(source)
    child = source.depot.manifest(source.at(""), subject).children[0].descriptor.digest
    found = reach(source, tmp_path / "bundle")
    assert found[cosign(subject)] == [str(first)]
    assert found[cosign(child)] == [str(of_child)]
    assert found[cosign(first)] == [str(again)]
    call_mirror("verify", tmp_path / "bundle").succeeded()
    assert cosign(subject) not in reach(source, tmp_path / "without", "--no-signatures")


def test_the_referrers_api_is_asked_once_where_it_is_not(source: Offer) -> None:
    signed(source)
    source.registry.faults.add(Fault(Answer(404), path="/referrers/", times=None))
    source.registry.requests.clear()
    names(source)
    assert source.registry.requests.count(path="/referrers/") == 1


def test_registries_without_the_api_keep_referrers_under_tags(
    source: Offer, tmp_path: Path
) -> None:
    root, depot = source.at(""), source.depot
    subject = indexes(source)[0]
    first = depot.refer(root, subject, native=False)
    second = depot.refer(root, first, native=False, text="again")
    listed = depot.list_referrers(root, subject, first)
    depot.list_referrers(root, first, second)
    source.registry.faults.add(Fault(Answer(404), path="/referrers/", times=None))
    assert names(source)[cosign(subject)] == str(listed)
    found = reach(source, tmp_path / "bundle")
    assert found[cosign(subject)] == [str(first)]
    assert found[cosign(first)] == [str(second)]


def test_referrers_from_before_the_source_had_the_api_travel_with_the_others(
    source: Offer, tmp_path: Path
) -> None:
    root, depot = source.at(""), source.depot
    subject = indexes(source)[0]
    new = depot.refer(root, subject)
    old = depot.refer(root, subject, native=False, text="from before")
    depot.list_referrers(root, subject, old)
    found = reach(source, tmp_path / "bundle")
    assert sorted(found[cosign(subject)]) == sorted([str(new), str(old)])
    call_mirror("verify", tmp_path / "bundle").succeeded()


def test_a_chain_of_signatures_without_end_is_cut_with_a_word(source: Offer) -> None:
    root, depot = source.at(""), source.depot
    subject = indexes(source)[0]
    for step in range(12):
        tag = cosign(subject, ".sig")
        subject = depot.refer(root, subject, tag, native=False, text=str(step))
    run = source.plan(*PLATFORM).succeeded()
    assert "signatures of signatures were followed 8 times" in run.stderr


def test_thinning_says_nothing_of_signatures(source: Offer) -> None:
    signed(source)
    run = source.plan(*PLATFORM, "--platform", "linux/amd64").succeeded()
    assert "stays whole" not in run.stderr


# -- indexes ---------------------------------------------------------------------------------------


def test_a_component_that_is_an_index_is_in_the_target_under_its_very_digest(
    source: Offer, tmp_path: Path, make_real_registry: MakeRealRegistry
) -> None:
    subject, *_ = signed(source)
    target = make_real_registry()
    folder = tmp_path / "bundle"
    flags = ("--platform", "linux/amd64")  # which concerns what is named by tags
    reach(source, folder, *flags)
    call_mirror("push", folder, f"{target.address}/dkp/mirror", "--insecure").succeeded()
    with httpx.Client(base_url=target.url) as http:
        wire = Wire(http)
        for multi in indexes(source):
            manifest = source.depot.manifest(source.at(""), multi)
            assert wire.manifest("dkp/mirror", str(multi)) == manifest.raw
            assert wire.manifest("dkp/mirror", multi.encoded) == manifest.raw
            for child in manifest.children:
                assert wire.manifest("dkp/mirror", str(child.descriptor.digest)) is not None
        listed = wire.manifest("dkp/mirror", cosign(subject))
        assert listed is not None
        for repository in wire.repositories():
            assert wire.dangling(repository) == []


@pytest.mark.parametrize("asked", ["linux/arm64", "linux/arm64/v8"])
def test_indexes_that_tags_name_are_thinned_on_request(source: Offer, asked: str) -> None:
    three = [
        (platform, image([layer({"arch": str(platform)})], platform=platform))
        for platform in (AMD64, ARM64, DARWIN)
    ]
    made = index(three)
    source.depot.put(source.at("install-standalone"), made, "v1.70.0")
    flags = ("--platform", asked)
    found = names(source, *flags, path="install-standalone")["v1.70.0"]
    manifest = source.depot.manifest(source.at("install-standalone"), made.digest)
    linux = json.loads(manifest.raw)
    linux["manifests"] = linux["manifests"][1:2]
    raw = json.dumps(linux, sort_keys=True, separators=(",", ":"))
    assert found == str(Digest.of(raw.encode()))
    assert names(source, path="install-standalone")["v1.70.0"] == str(made.digest)
    both = names(source, *flags, "--platform", "linux/amd64", path="install-standalone")
    assert both["v1.70.0"] not in (found, str(made.digest))
    # Components are named by digest and stay whole.
    whole = names(source)
    assert {one.encoded: str(one) for one in indexes(source)}.items() <= whole.items()
    assert names(source, *flags) == whole


def test_an_index_without_the_platform_asked_for_stays_whole(source: Offer) -> None:
    made = index([(DARWIN, image([layer({"arch": "arm"})], platform=DARWIN))])
    source.depot.put(source.at("install-standalone"), made, "v1.70.0")
    run = source.plan(*PLATFORM, "--platform", "linux/riscv64").succeeded()
    assert references(run.document)["platform.tar", "install-standalone", "v1.70.0"] == str(
        made.digest
    )
    assert "has no image for the platforms asked for; it stays whole" in run.stderr


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [True, False], ids=["with the API", "without it"])
def test_a_pull_from_the_target_gives_the_same_content(
    offer: MakeOffer,
    make_real_registry: MakeRealRegistry,
    make_embedded_registry: MakeEmbeddedRegistry,
    tmp_path: Path,
    api: bool,
) -> None:
    source = offer(replace(SMALL, versions=SMALL.versions[3:], components=8, multi_arch=0.4))
    root, depot = source.at(""), source.depot
    subject = source.tree.platform["v1.71.0"].image
    depot.refer(root, subject)
    depot.refer(root, subject, cosign(subject, ".sbom"), native=False, text="sbom")
    target = make_embedded_registry() if api else make_real_registry()
    to = f"{target.address}/dkp/mirror"
    first = pull(tmp_path / "first", source.root)
    call_mirror("push", tmp_path / "first", to, "--insecure").succeeded()
    second = pull(tmp_path / "second", to)
    assert contents(second) == contents(first)
    call_mirror("verify", tmp_path / "second", "--against", to, "--insecure").succeeded()


def pull(folder: Path, root: str) -> dict[str, Any]:
    """Pull all there is; answer the seal."""
    call_mirror("pull", folder, "--source", root, "--insecure").succeeded()
    seal: dict[str, Any] = json.loads((folder / "inventory.json").read_bytes())
    return seal


def contents(seal: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle holds, wherever it is from."""
    return {
        "inventory": seal["inventory"],
        "files": seal["files"],
        "archives": {name: one["repositories"] for name, one in seal["archives"].items()},
    }


# -- what a registry denies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "/tags/list",
            "404); what vouches for them was not looked for",
        ),
        (r"/manifests/sha256-.*\.sig", "is not there (what vouches for sha256:"),
        ("/referrers/", "denies to know it of this one (HTTP 404)"),
    ],
)
def test_what_vouches_for_images_is_never_left_out_in_silence(
    source: Offer, path: str, told: str
) -> None:
    root, depot = source.at(""), source.depot
    subject = source.tree.platform["v1.70.0"].image
    depot.refer(root, subject, cosign(subject, ".sig"), native=False)
    depot.refer(root, subject)
    # The first question about referrers finds out whether the registry knows any.
    nth = 2 if path == "/referrers/" else 1
    source.registry.faults.add(Fault(Answer(404), "GET", path, nth=nth, times=None))
    run = source.plan(*PLATFORM).succeeded()
    assert told in run.stderr
