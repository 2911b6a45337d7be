"""What release images say of themselves is read, or refused as a fault of the source."""

from __future__ import annotations

import base64
import contextlib

from hypothesis import given
from semver import Version

from mirror.errors import SourceContentError
from mirror.release.contracts import parse_contract
from mirror.release.discovery import (
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    ReleaseInfo,
    deckhouse_releases,
    parse_changelog,
    parse_components,
    parse_release,
)
from mirror.release.items import find_digests, parse_extra_images
from tests.support.hostile import json_documents, yaml_documents
from tests.support.strategies import MORE_EXAMPLES

WHERE = "registry.example.com/deckhouse/ee/release-channel:alpha"
_VERSION_KEYS = ["version", "suspend", "requirements", "disruptions"]
_CONTRACT_KEYS = [
    *("name", "version", "requirements", "modules", "plugins", "deckhouse", "constraint"),
    *("mandatory", "conditional", "anyOf", "noneOf"),
]


@MORE_EXAMPLES
@given(json_documents(_VERSION_KEYS))
def test_any_version_json_is_read_or_refused(data: bytes) -> None:
    for version_only in (True, False):
        with contextlib.suppress(SourceContentError):
            info = parse_release(data, WHERE, version_only=version_only)
            deckhouse_releases([(info, {})])


@MORE_EXAMPLES
@given(yaml_documents(["ingress", "fixes"]))
def test_any_changelog_is_read_and_can_be_written_down_or_is_refused(data: bytes) -> None:
    try:
        changelog = parse_changelog(data, WHERE)
    except SourceContentError as err:
        assert str(err).startswith(f"{WHERE}: changelog.yaml ")  # noqa: PT017 - or it is read
        return
    assert deckhouse_releases([(ReleaseInfo(Version(1)), changelog)])


@MORE_EXAMPLES
@given(json_documents(["module", "image"]))
def test_any_list_of_images_is_read_or_refused(data: bytes) -> None:
    for file in (IMAGES_DIGESTS, IMAGES_TAGS):
        with contextlib.suppress(SourceContentError):
            parse_components(data, WHERE, file)
    with contextlib.suppress(SourceContentError):
        parse_extra_images(data, WHERE)
    find_digests(data)


@MORE_EXAMPLES
@given(yaml_documents(_CONTRACT_KEYS))
def test_any_contract_is_read_or_refused(data: bytes) -> None:
    annotation = base64.b64encode(data).decode()
    with contextlib.suppress(SourceContentError):
        contract = parse_contract(annotation, name="pg", version="v1.0.0", where=WHERE)
        str(contract)
