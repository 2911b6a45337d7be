"""Sources that cannot list tags: what is there is found by asking for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from examples.release_tree import SMALL
from mirror.testing import Answer, Fault
from tests.selection.conftest import MakeOffer
from tests.support.depot import Offer, cosign, difference, references
from tests.support.expected_bundle import FIVE, Truth

PROBING = ("--proxy-registry", "--no-security-db", "--no-installer")
SPEC = replace(
    SMALL,
    # Every series of patches begins where a walk looks for it.
    versions=("v1.67.0", "v1.68.0", "v1.68.1", "v1.69.0", "v1.69.1", "v1.70.0", "v1.71.0"),
    channels={
        "alpha": "v1.71.0",
        "beta": "v1.70.0",
        "early-access": "v1.69.1",
        "stable": "v1.69.0",
        "rock-solid": "v1.68.0",
    },
    components=5,
)


@pytest.fixture(params=[404, 405], ids=["404", "405"])
def source(request: pytest.FixtureRequest, offer: MakeOffer) -> Offer:
    """A tree in a registry that lists no tags and has no referrers API."""
    made = offer(SPEC)
    for path in ("/tags/list", "/_catalog", "/referrers/"):
        made.registry.faults.add(Fault(Answer(request.param), path=path, times=None))
    return made


def names(source: Offer, *flags: str) -> set[str]:
    """The tags of the platform's own repository in a plan."""
    document = source.plan(*flags).succeeded().document
    return {tag for _, path, tag in references(document) if not path}


def probed(source: Offer) -> set[str]:
    """Tags of release images that were asked for."""
    return {
        request.path.rpartition("/")[2]
        for request in source.registry.requests.matching(path="/release-channel/manifests/v")
    }


def test_platform_releases_are_found_by_walking(source: Offer) -> None:
    flags = (*PROBING, "--no-modules", "--include-platform", ">=1.68.0 <1.70.0")
    source.registry.requests.clear()
    document = source.plan(*flags).succeeded().document
    truth = Truth(source.tree, source.depot.manifest)
    truth.platform(
        ["v1.68.0", "v1.68.1", "v1.69.0", "v1.69.1"], ["rock-solid", "stable", "early-access"]
    )
    assert not difference(references(document), truth.references())
    # Nothing outside the constraint is asked for, and every series once beyond its end.
    assert probed(source) == {"v1.68.0", "v1.68.1", "v1.68.2", "v1.69.0", "v1.69.1", "v1.69.2"}
    assert source.registry.requests.count(path="/tags/list") == 0


def test_modules_and_packages_are_found_by_walking(source: Offer) -> None:
    document = (
        source.plan(
            *(
                *PROBING,
                "--no-platform",
                "-i",
                "postgresql@>=1.0.0 <1.2.0",
                "-i",
                "console@=v0.9.0",
            ),
            *("--include-package", "grafana@>=0.5.0 <1.0.0"),
        )
        .succeeded()
        .document
    )
    truth = Truth(source.tree, source.depot.manifest)
    postgresql = source.tree.modules["postgresql"]
    truth.module("postgresql", dict.fromkeys(postgresql.channels.values()), postgresql.channels)
    truth.module("console", ["v0.9.0"], dict.fromkeys((*FIVE, "lts"), "v0.9.0"))
    grafana = source.tree.packages["grafana"]
    truth.package("grafana", ["v0.5.0", "v0.6.0"], grafana.channels)
    assert not difference(references(document), truth.references())
    assert "package-versions.tar" not in document["archives"]


def test_plugins_that_are_pinned_are_taken_and_no_others(source: Offer) -> None:
    flags = (*PROBING, "--no-platform", "-i", "postgresql@=v1.5.0")
    document = source.plan(*flags).succeeded().document
    assert document["plugins"] == {}
    document = source.plan(*flags, "--include-plugin", "netcheck@=v0.1.0").succeeded().document
    assert set(document["plugins"]) == {"netcheck"}
    source.plan(*flags, "--include-plugin", "netcheck@=v9.0.0").failed(1, "netcheck@=v9.0.0")
    source.plan(*flags, "--include-plugin", "db-connector@=v1.0.0").failed(
        1, "netcheck", "--include-plugin netcheck@=v1.0.0"
    )


def test_extra_images_are_found_through_the_channels(source: Offer) -> None:
    flags = ("--proxy-registry", "--only-extra-images", "--no-platform", "--no-security-db")
    run = source.plan(*flags, "--no-installer", "-i", "postgresql", "--include-package", "redis")
    found = {(path, tag) for _, path, tag in references(run.succeeded().document)}
    assert found == {
        ("modules/postgresql/extra/trivy-db", "2"),
        ("modules/postgresql/extra/backup-agent", "v1.2.3"),
        ("packages/redis/extra/exporter", "v1.58.0"),
    }


def test_all_that_vouches_for_images_is_asked_for_by_name(offer: MakeOffer) -> None:
    source = offer(SPEC)
    root, depot = source.at(""), source.depot
    image = source.tree.platform["v1.71.0"].image
    by_cosign = depot.refer(root, image, cosign(image, ".sbom"), native=False, text="sbom")
    listed = depot.refer(root, image, native=False)
    depot.list_referrers(root, image, listed)
    depot.refer(root, by_cosign)
    source.registry.faults.add(Fault(Answer(405), path="/tags/list", times=None))
    flags = (*PROBING, "--no-modules", "--include-platform", ">=1.71.0 <1.72.0")
    tags = {
        tag for _, path, tag in references(source.plan(*flags).succeeded().document) if not path
    }
    # The registry has the referrers API, which then knows all of them.
    assert {cosign(image, ".sbom"), cosign(image, ".sig"), cosign(by_cosign)} <= tags
    source.registry.faults.add(Fault(Answer(404), path="/referrers/", times=None))
    tags = {
        tag for _, path, tag in references(source.plan(*flags).succeeded().document) if not path
    }
    assert {cosign(image, ".sbom"), cosign(image, ".sig"), cosign(image)} <= tags
    assert cosign(by_cosign) not in tags


def test_a_refusal_is_no_end_of_a_series(source: Offer) -> None:
    source.registry.faults.add(
        Fault(Answer(403), path="release-channel/manifests/v1.69.0", times=None)
    )
    source.plan(*PROBING, "--no-modules", "--include-platform", ">=1.68.0 <1.70.0").failed(
        6, "release-channel"
    )


def test_without_the_flag_a_source_that_cannot_list_is_an_error(offer: MakeOffer) -> None:
    source = offer(SPEC)
    source.registry.faults.add(Fault(Answer(405), path="/tags/list", times=None))
    source.plan().failed(1, "tags/list", "--proxy-registry")


def test_a_pinned_release_needs_no_list(source: Offer) -> None:
    flags = (*PROBING, "--no-modules", "--include-platform", "=v1.69.0")
    document = source.plan(*flags).succeeded().document
    assert document["platform"]["versions"] == ["v1.69.0"]
    assert set(document["platform"]["channels"]) >= {"alpha", "stable", "rock-solid"}
    source.plan(*PROBING, "--no-modules", "--include-platform", "=v9.9.9").failed(1, "v9.9.9")
