"""What people mistype about a source is told as that, with what the source has instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mirror.testing import Answer, Fault
from tests.selection.conftest import TINY, MakeOffer
from tests.support.depot import Offer, release_image
from tests.support.program import call_mirror

HAS = (
    "its release channels are alpha, beta, early-access, stable, rock-solid",
    "its newest versions are v1.70.0, v1.69.1",
    "name one of these with --deckhouse-tag",
)


@pytest.fixture
def source(offer: MakeOffer) -> Offer:
    return offer(TINY)


# -- releases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "nearest"),
    [
        ("stabel", "stable"),
        ("rocksolid", "rock-solid"),
        ("v1.99.0", "v1.70.0"),
        ("v1.70.1", "v1.70.0"),
        ("1.70", "v1.70.0"),
        ("pr999", None),
    ],
)
def test_a_release_that_is_not_there_is_told_with_those_that_are(
    source: Offer, tag: str, nearest: str | None
) -> None:
    run = source.plan("--deckhouse-tag", tag).failed(1, *HAS)
    guess = f" (did you mean {nearest}?)" if nearest else ""
    assert f"error: the source has no platform release {tag}{guess}; its release" in run.stderr
    assert "ask its owner" not in run.stderr
    source.plan("--include-platform", f"={tag}").failed(1, *HAS)


def test_a_release_that_channels_or_release_images_promise_is_the_sources_fault(
    source: Offer,
) -> None:
    for path in ("", "install"):
        source.depot.drop(source.at(path), "v1.70.0")
    for tag in ("alpha", "v1.70.0"):
        source.plan("--deckhouse-tag", tag).failed(1, "v1.70.0 is not there", "ask its owner")


def test_a_build_without_a_release_image_is_no_mistake(source: Offer) -> None:
    source.depot.drop(source.at("release-channel"), "v1.70.0")
    for channel in ("alpha", "beta", "early-access"):
        source.depot.drop(source.at("release-channel"), channel)
    source.plan("--deckhouse-tag", "v1.70.0").succeeded()
    source.depot.drop(source.at("install"), "v1.70.0")
    source.plan("--deckhouse-tag", "v1.70.0").failed(1, "install:v1.70.0 is not there")


def test_a_source_without_any_release_says_so(source: Offer) -> None:
    root = f"{source.registry.address}/deckhouse"
    run = call_mirror(
        *("pull", "never", "--source", root, "--insecure", "--dry-run"),
        *("--deckhouse-tag", "pr1"),
    )
    run.failed(1, "the source has no platform release pr1", f"{root}/ee")


# -- editions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["deckhouse", "deckhouse/eee", "deckhouse/fe"])
def test_a_path_without_an_edition_is_answered_with_the_editions_beside_it(
    offer: MakeOffer, path: str
) -> None:
    source = offer(TINY)
    root = f"{source.registry.address}/{path}"
    run = call_mirror("pull", "never", "--source", root, "--insecure", "--dry-run")
    run.failed(1, f"{root}/release-channel does not exist")
    there = f"{source.registry.address}/deckhouse/ee"
    assert f"check that --source names an edition: there is {there};" in run.stderr
    source.depot.put("deckhouse/se-plus/release-channel", release_image("v1.70.0"), "alpha")
    run = call_mirror("pull", "never", "--source", root, "--insecure", "--dry-run")
    ee, se_plus = (f"{source.registry.address}/deckhouse/{one}" for one in ("ee", "se-plus"))
    assert f"check that --source names an edition: there are {ee}, {se_plus};" in run.stderr


def test_where_no_edition_is_found_the_message_says_what_an_edition_is(source: Offer) -> None:
    for path, told in (
        ("company/mirror", "company/mirror ends in no edition (be, ce, ee, fe, se, se-plus)"),
        ("company/ee", "check that --source names an edition's repository"),
    ):
        root = f"{source.registry.address}/{path}"
        run = call_mirror("pull", "never", "--source", root, "--insecure", "--dry-run")
        run.failed(1, f"{root}/release-channel does not exist", told, "your licence covers it")


def test_looking_for_editions_never_hides_what_is_wrong(source: Offer) -> None:
    source.registry.faults.add(Fault(Answer(403), path="/deckhouse/ee/release-channel", times=None))
    root = f"{source.registry.address}/deckhouse"
    run = call_mirror("pull", "never", "--source", root, "--insecure", "--dry-run")
    run.failed(1, f"{root}/release-channel does not exist", "ends in no edition")


# -- modules ---------------------------------------------------------------------------------------


def test_a_path_of_modules_that_is_given_must_exist(source: Offer, tmp_path: Path) -> None:
    flags = ("--modules-path-suffix", "/moduls")
    where = f"{source.root}/moduls does not exist"
    source.plan(*flags).failed(1, where, "--modules-path-suffix")
    source.plan(*flags, "--no-modules").succeeded()
    file = tmp_path / "mirror.yaml"
    file.write_text("modules-path-suffix: moduls\n")
    source.plan("--config", file).failed(1, where)


def test_the_usual_path_of_modules_may_be_missing_unless_it_is_given(offer: MakeOffer) -> None:
    source = offer(replace(TINY, modules=()))
    run = source.plan().succeeded()
    assert f"{source.root}/modules does not exist; no modules are taken" in run.stderr
    source.plan("--modules-path-suffix", "modules").failed(1, "modules does not exist")


def test_another_path_of_modules_is_told(offer: MakeOffer) -> None:
    source = offer(TINY, moved={f"{TINY.root}/modules": f"{TINY.root}/my/mods"})
    run = source.plan("--modules-path-suffix", "/my/mods/").succeeded()
    assert "modules are read from my/mods below the source, not from modules" in run.stderr
    assert run.document["modules"] == {"console": list(run.document["modules"]["console"])}
    run = offer(TINY).plan("--modules-path-suffix", "/modules").succeeded()
    assert "are read from" not in run.stderr
