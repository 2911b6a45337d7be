"""Files inside images that describe releases: parsed, with errors that say where they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from semver import Version

from mirror.documents import parse_json, parse_yaml, problems
from mirror.errors import InvalidDigestError, InvalidReferenceError, SourceContentError
from mirror.layout import parse_version, version_tag
from mirror.oci import Digest
from mirror.oci.reference import check_repository, valid_tag

VERSION_JSON = "version.json"
CHANGELOG_YAML = "changelog.yaml"
IMAGES_DIGESTS = "deckhouse/candi/images_digests.json"
IMAGES_TAGS = "deckhouse/candi/images_tags.json"
MODULE_IMAGES_DIGESTS = "images_digests.json"
EXTRA_IMAGES = "extra_images.json"

_MOST_DIGITS = 18
"""The most digits of a number that stands for a tag."""

_SHA256 = re.compile(rb"sha256:[a-f0-9]{64}")


class _VersionDocument(BaseModel):
    """`version.json` of a module's release image; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str


class _ReleaseDocument(_VersionDocument):
    """`version.json` of a platform release image.

    Programs in Go write null for what is empty, and people write versions as numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    suspend: bool = False
    requirements: dict[str, str] = Field(default_factory=dict)
    disruptions: dict[str, list[str]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {key: value for key, value in document.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """What a release image says in its `version.json`.

    Attributes:
        requirements: what a cluster needs → the version that it needs.
        disruptions: `major.minor` → the modules that the update to it disrupts.
    """

    version: Version
    suspended: bool = False
    requirements: Mapping[str, str] = field(default_factory=dict)
    disruptions: Mapping[str, Sequence[str]] = field(default_factory=dict)


def parse_release(data: bytes | None, where: str, *, version_only: bool = False) -> ReleaseInfo:
    """Read a release image's `version.json`; None if the image does not have the file.

    With `version_only`, as for modules and packages, other keys are ignored.

    Raises:
        SourceContentError: the file is missing, is not JSON, or does not name a semantic version
            that can be a tag.
    """
    if data is None:
        raise SourceContentError(f"{where}: the image has no {VERSION_JSON}")
    kind = _VersionDocument if version_only else _ReleaseDocument
    try:
        document = kind.model_validate_json(data)
    except ValidationError as err:
        raise SourceContentError(
            f"{where}: {VERSION_JSON} cannot be read: {problems(err)[0]}"
        ) from err
    version = parse_version(document.version)
    if version is None:
        raise SourceContentError(
            f"{where}: {VERSION_JSON} names {document.version!r}, which is not a semantic version"
        )
    if version.build:
        raise SourceContentError(
            f"{where}: {VERSION_JSON} names {document.version!r}, which no tag can spell, since "
            "'+' is not allowed there; the source must name a version that it can publish"
        )
    if not isinstance(document, _ReleaseDocument):
        return ReleaseInfo(version)
    return ReleaseInfo(version, document.suspend, document.requirements, document.disruptions)


def parse_changelog(data: bytes, where: str) -> Mapping[str, Any]:
    """A release image's `changelog.yaml`: a mapping of modules to their changes.

    Raises:
        SourceContentError: it is no YAML, or no mapping.
    """
    try:
        document = parse_yaml(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} cannot be read: {err}") from err
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} is not a mapping")
    return document


def parse_component_digests(data: bytes, where: str) -> dict[Digest, str]:
    """Read an installer's list of digests, in its order: digest → `module/image`.

    Raises:
        SourceContentError: it is not a mapping of modules to mappings of images to digests.
    """
    found: dict[Digest, str] = {}
    for name, text in _component_items(data, where, IMAGES_DIGESTS):
        try:
            found.setdefault(Digest.parse(text), name)
        except InvalidDigestError as err:
            raise SourceContentError(f"{where}: {IMAGES_DIGESTS}: {name}: {err}") from err
    return found


def parse_component_tags(data: bytes, where: str) -> dict[str, str]:
    """Read an old installer's list of tags, in its order: tag → `module/image`.

    Raises:
        SourceContentError: it is not a mapping of modules to mappings of images to tags.
    """
    found: dict[str, str] = {}
    for name, text in _component_items(data, where, IMAGES_TAGS):
        if not valid_tag(text):
            raise SourceContentError(f"{where}: {IMAGES_TAGS}: {name}: {text!r} is not a tag")
        found.setdefault(text, name)
    return found


def _component_items(data: bytes, where: str, file: str) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = []
    for module, images in _json_object(data, where, file).items():
        if not isinstance(images, Mapping):
            raise SourceContentError(f"{where}: {file}: {module}: not a mapping of images")
        for image, text in images.items():
            if not isinstance(text, str):
                raise SourceContentError(f"{where}: {file}: {module}/{image}: not a string")
            items.append((f"{module}/{image}", text))
    return items


def find_digests(data: bytes) -> list[Digest]:
    """Find every SHA-256 digest in a module's `images_digests.json`, once, in order.

    Modules nest them as they like, so digests are recognised by their form, not by their place.
    """
    return [Digest.parse(text.decode()) for text in dict.fromkeys(_SHA256.findall(data))]


def parse_extra_images(data: bytes, where: str) -> dict[str, str]:
    """Extra image → tag, from a module's `extra_images.json`; a number counts as its digits.

    Raises:
        SourceContentError: it is not a JSON object, or a name or tag is none.
    """
    extras: dict[str, str] = {}
    for name, value in _json_object(data, where, EXTRA_IMAGES).items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            continue  # other kinds of values are not images
        tag = value if isinstance(value, str) else _number_tag(value)
        if not valid_tag(tag):
            raise SourceContentError(f"{where}: {EXTRA_IMAGES}: {name}: {tag!r} is not a tag")
        try:
            check_repository(name)
        except InvalidReferenceError as err:
            raise SourceContentError(f"{where}: {EXTRA_IMAGES}: {err}") from err
        extras[name] = tag
    return extras


def _number_tag(value: float) -> str:
    """A number's digits; an empty text, which is not a tag, for a number that cannot be one."""
    whole = math.isfinite(value) if isinstance(value, float) else True
    return f"{value:.0f}" if whole and abs(value) < 10**_MOST_DIGITS else ""


def _json_object(data: bytes, where: str, file: str) -> dict[str, Any]:
    try:
        document = parse_json(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {file} cannot be read: {err}") from err
    if not isinstance(document, dict):
        raise SourceContentError(f"{where}: {file} is not a JSON object")
    return document


# -- what a bundle tells a cluster -----------------------------------------------------------------

_CHANGELOG = "https://github.com/deckhouse/deckhouse/releases/tag/"
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class DescribedRelease:
    """A release, and what its image says in `version.json` and `changelog.yaml`."""

    info: ReleaseInfo
    changelog: Mapping[str, Any] = field(default_factory=dict)


def deckhouse_releases(releases: Iterable[DescribedRelease]) -> bytes:
    """Write `deckhousereleases.yaml`, from which a cluster without channels learns its releases.

    It has one YAML document per release, oldest first, with sorted keys; each begins with `---`.
    """
    documents = [
        _document(release) for release in sorted(releases, key=lambda one: one.info.version)
    ]
    text: str = yaml.safe_dump_all(
        documents, explicit_start=True, sort_keys=True, allow_unicode=True, default_flow_style=False
    )
    return text.encode()


def _document(release: DescribedRelease) -> dict[str, Any]:
    info = release.info
    tag = version_tag(info.version)
    spec: dict[str, Any] = {
        "changelog": dict(release.changelog),
        "changelogLink": f"{_CHANGELOG}{tag}",
        "version": tag,
    }
    disruptions = info.disruptions.get(f"{info.version.major}.{info.version.minor}")
    if disruptions:
        spec["disruptions"] = list(disruptions)
    if info.requirements:
        spec["requirements"] = dict(info.requirements)
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "approved": False,
        "kind": "DeckhouseRelease",
        "metadata": {"name": tag},
        "spec": spec,
        "status": {"approved": False, "message": "", "transitionTime": _NEVER},
    }
