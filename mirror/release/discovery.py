"""What tells a cluster what there is.

* The index of what exists: `modules:<name>`, `packages:<name>`, `deckhouse-cli/plugins:<name>`. A
  cluster lists the tags of these repositories to learn which modules, packages and plugins there
  are. It does not read the images that these tags name, so one tiny image does for all of them.
* Release images, to which release channels lead: their `version.json` and `changelog.yaml`.
* The file that describes a bundle's releases to a cluster without channels.
* An installer's list of the components of its release.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from semver import Version

from mirror.documents import parse_json, parse_yaml, problems
from mirror.errors import InvalidDigestError, MirrorError, SourceContentError
from mirror.layout import (
    CHANNELS,
    INDEX_REPOSITORIES,
    INSTALL,
    RELEASE_CHANNEL,
    RELEASES_FILE,
    describes_package,
    is_digest_tag,
    parse_version,
    version_tag,
)
from mirror.oci import Descriptor, Digest, Manifest, verified
from mirror.oci.layers import read_files
from mirror.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, descriptor_json
from mirror.oci.reference import valid_tag
from mirror.sync import Finding, Inventory, MemoryStore, Source
from mirror.sync.plan import Tags

if TYPE_CHECKING:
    from mirror.release.source import ReleaseSource  # commands on bundles do not load it


# -- the index of what exists ----------------------------------------------------------------------


def discovery_images(bundle: Inventory) -> MemoryStore:
    """Make a store with one tag for each module, package and plugin that `bundle` has."""
    store = MemoryStore("index of modules, packages and plugins")
    # A bundle describes every package, also those that it does not have.
    described = {path for path in bundle.repositories if describes_package(path)}
    for index in INDEX_REPOSITORIES:
        names = {
            path[len(index) + 1 :].partition("/")[0]
            for path, content in bundle.repositories.items()
            if path.startswith(f"{index}/") and content.tags and path not in described
        }
        if names:
            _add_placeholder(store, index, sorted(names))
    return store


def index_of(bundle: Inventory, named: Tags) -> Inventory:
    """The index that a registry with the tags `named` must have to hold `bundle`.

    A bundle has no index; a push makes it. A tag that names what another tool put there will do.
    """
    wanted = {}
    for path, content in discovery_images(bundle).inventory().repositories.items():
        there = named.get(path, {})
        tags = {tag: ours for tag, ours in content.tags.items() if there.get(tag, ours) == ours}
        if tags:
            wanted[path] = replace(content, tags=tags)
    return Inventory(wanted)


def has_index(inventory: Inventory) -> bool:
    """Whether an inventory has an index of what exists. A registry's has, a bundle's has not."""
    return any(inventory.repository(path).tags for path in INDEX_REPOSITORIES)


def _add_placeholder(store: MemoryStore, repository: str, tags: Iterable[str]) -> None:
    """Add an image of one layer with one empty file; every byte of it is fixed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as layer:
        layer.addfile(tarfile.TarInfo(".index"))
    plain = buffer.getvalue()
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(plain))]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}

    def added(media_type: str, data: bytes) -> dict[str, object]:
        digest = store.add_blob(repository, data)
        return descriptor_json(Descriptor(media_type, digest, len(data)))

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": added(OCI_CONFIG, _json(config)),
        "layers": [added(OCI_LAYER_GZIP, gzip.compress(plain, mtime=0))],
    }
    store.add_manifest(repository, _json(manifest), OCI_MANIFEST, tags=tags)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


# -- release images --------------------------------------------------------------------------------

VERSION_JSON = "version.json"
CHANGELOG_YAML = "changelog.yaml"


class _VersionDocument(BaseModel):
    """`version.json` of a module's release image; other keys are ignored."""

    version: str


class _ReleaseDocument(_VersionDocument):
    """`version.json` of a platform release image.

    Programs in Go write null for what is empty, and people write versions as numbers.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

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
    """Read a release image's `version.json`; `data` is None if the image does not have the file.

    With `version_only`, as for modules and packages, other keys are ignored. A document without a
    semantic version that can be a tag raises SourceContentError.
    """
    if data is None:
        raise SourceContentError(f"{where}: the image has no {VERSION_JSON}")
    at = f"{where}: {VERSION_JSON}"
    kind = _VersionDocument if version_only else _ReleaseDocument
    try:
        document = kind.model_validate_json(data)
    except ValidationError as err:
        raise SourceContentError(f"{at} cannot be read: {problems(err)[0]}") from err
    version = parse_version(document.version)
    if version is None:
        raise SourceContentError(
            f"{at} names {document.version!r}, which is not a semantic version"
        )
    if version.build:
        raise SourceContentError(
            f"{at} names {document.version!r}, which no tag can spell, since '+' is not allowed "
            "there; the source must name a version that it can publish"
        )
    if not isinstance(document, _ReleaseDocument):
        return ReleaseInfo(version)
    return ReleaseInfo(version, document.suspend, document.requirements, document.disruptions)


def parse_changelog(data: bytes, where: str) -> Mapping[str, Any]:
    """A release image's `changelog.yaml`: a mapping of modules to their changes."""
    try:
        document = parse_yaml(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} cannot be read: {err}") from err
    if not isinstance(document, dict | None):
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} is not a mapping")
    return document or {}


def json_object(data: bytes, where: str, file: str) -> dict[str, Any]:
    """Read a JSON object of an image, or raise SourceContentError with `where` and `file`."""
    try:
        document = parse_json(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {file} cannot be read: {err}") from err
    if not isinstance(document, dict):
        raise SourceContentError(f"{where}: {file} is not a JSON object")
    return document


# -- release channels ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelFact:
    """The version that a release channel leads to, and the digest of the image that says so."""

    name: str
    version: Version
    suspended: bool
    digest: Digest


def read_channel(source: ReleaseSource, repository: str, name: str) -> ChannelFact | None:
    """Find out where a channel leads; None if it does not exist."""
    manifest = source.manifest(repository, name)
    if manifest is None:
        return None
    info = _release_info(source, repository, manifest, name)
    return ChannelFact(name, info.version, info.suspended, manifest.digest)


def _release_info(
    source: ReleaseSource, repository: str, manifest: Manifest, tag: str
) -> ReleaseInfo:
    found = source.files(repository, manifest, (VERSION_JSON,))
    of_item = repository != RELEASE_CHANNEL
    where = source.where(repository, tag)
    return parse_release(found.get(VERSION_JSON), where, version_only=of_item)


def read_channels(
    source: ReleaseSource, repository: str, tags: Collection[str] | None
) -> dict[str, ChannelFact]:
    """Read all channels of a repository that are among `tags`; None tries every channel."""
    names = [name for name in CHANNELS if tags is None or name in tags]
    facts = (read_channel(source, repository, name) for name in names)
    return {fact.name: fact for fact in facts if fact is not None}


def can_lead(
    source: ReleaseSource,
    repository: str,
    tag: str,
    taken: Collection[str],
    warn: Callable[[str], None],
) -> bool:
    """Whether a bundle with the tags `taken` may publish the release image `tag` to channels.

    It may not if the image does not exist, or if it leads clusters to a version that the bundle
    does not have, as the images of development builds do. The user is then warned by `warn`. A
    `tag` that is a version, and whose image does not say which, raises SourceContentError.
    """
    where = source.where(repository, tag)
    manifest = source.manifest(repository, tag)
    reason = f"{where} is not there"
    if manifest is not None:
        try:
            version = _release_info(source, repository, manifest, tag).version
        except SourceContentError as err:
            if parse_version(tag) is not None:
                raise
            reason = str(err)
        else:
            if version in map(parse_version, taken):
                return True
            reason = f"{where} leads to {version_tag(version)}, which is not in the bundle"
    warn(f"no release channel of the bundle leads to {tag}: {reason}")
    return False


# -- the list of releases --------------------------------------------------------------------------


def releases_file(source: ReleaseSource, tags: Collection[str]) -> dict[str, bytes]:
    """Write the file that describes the releases to a cluster, from their release images."""

    def describe(tag: str) -> tuple[ReleaseInfo, Mapping[str, Any]]:
        where = source.where(RELEASE_CHANNEL, tag)
        manifest = source.required(RELEASE_CHANNEL, tag, f"platform release {tag}")
        found = source.files(RELEASE_CHANNEL, manifest, (VERSION_JSON, CHANGELOG_YAML))
        info = parse_release(found.get(VERSION_JSON), where)
        return info, parse_changelog(found.get(CHANGELOG_YAML, b""), where)

    releases = source.each("release descriptions", tags, describe)
    return {RELEASES_FILE: deckhouse_releases(releases)} if releases else {}


def deckhouse_releases(releases: Iterable[tuple[ReleaseInfo, Mapping[str, Any]]]) -> bytes:
    """Write `deckhousereleases.yaml`, from which a cluster without channels learns its releases.

    `releases` are what their images say in `version.json` and `changelog.yaml`. The file has one
    YAML document per release, oldest first, with sorted keys; each begins with `---`.
    """
    ordered = sorted(releases, key=lambda release: release[0].version)
    text: str = yaml.safe_dump_all(
        [_document(info, changelog) for info, changelog in ordered],
        explicit_start=True,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text.encode()


def _document(info: ReleaseInfo, changelog: Mapping[str, Any]) -> dict[str, Any]:
    tag = version_tag(info.version)
    disruptions = info.disruptions.get(f"{info.version.major}.{info.version.minor}")
    spec = {
        "changelog": dict(changelog),
        "changelogLink": f"https://github.com/deckhouse/deckhouse/releases/tag/{tag}",
        "version": tag,
        **({"disruptions": list(disruptions)} if disruptions else {}),
        **({"requirements": dict(info.requirements)} if info.requirements else {}),
    }
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "approved": False,
        "kind": "DeckhouseRelease",
        "metadata": {"name": tag},
        "spec": spec,
        "status": {"approved": False, "message": "", "transitionTime": "0001-01-01T00:00:00Z"},
    }


# -- the components of a release -------------------------------------------------------------------

IMAGES_DIGESTS = "deckhouse/candi/images_digests.json"
IMAGES_TAGS = "deckhouse/candi/images_tags.json"


def components_of(files: Mapping[str, bytes], where: str) -> dict[Digest | str, str]:
    """Read the lists among an installer's files: digest or tag → `module/image`.

    Old releases list tags, and that list counts even if a list of digests lies beside it.
    """
    listed = parse_components(files.get(IMAGES_TAGS, b"{}"), where, IMAGES_TAGS)
    return listed or parse_components(files.get(IMAGES_DIGESTS, b"{}"), where, IMAGES_DIGESTS)


def parse_components(data: bytes, where: str, file: str) -> dict[Digest | str, str]:
    """Read one list, in its order: digest, or tag in `IMAGES_TAGS` → `module/image`."""
    found: dict[Digest | str, str] = {}
    for module, images in json_object(data, where, file).items():
        if not isinstance(images, dict):
            raise SourceContentError(f"{where}: {file}: {module}: not a mapping of images")
        for image, text in images.items():
            at = f"{where}: {file}: {module}/{image}"
            if not isinstance(text, str):
                raise SourceContentError(f"{at}: not a string")
            if file == IMAGES_TAGS and not valid_tag(text):
                raise SourceContentError(f"{at}: {text!r} is not a tag")
            try:
                reference = text if file == IMAGES_TAGS else Digest.parse(text)
            except InvalidDigestError as err:
                raise SourceContentError(f"{at}: {err}") from err
            found.setdefault(reference, f"{module}/{image}")
    return found


def component_names(content: Source, inventory: Inventory) -> dict[Digest, str]:
    """Return the name of each image that an installer in `inventory` lists.

    Layers of the installers are read, as far down as their lists lie, and of a delta those that it
    carries. An installer that cannot be read names nothing.
    """
    names: dict[Digest, str] = {}
    tags, carried = inventory.repository("").tags, inventory.blob_sizes().keys()
    for digest in dict.fromkeys(inventory.repository(INSTALL).tags.values()):
        with suppress(MirrorError):
            for name, component in _listed(content, digest, carried).items():
                image = name if isinstance(name, Digest) else tags.get(name)
                if image is not None:
                    names.setdefault(image, component)
    return names


def with_components(
    findings: Sequence[Finding], content: Source, inventory: Callable[[], Inventory]
) -> tuple[Finding, ...]:
    """Return `findings` with what the installers in `inventory()` call the images that they affect.

    Nothing is read where no finding is about an image of the platform that goes by its digest.
    """
    if not any(one.repository == "" and any(map(is_digest_tag, one.tags)) for one in findings):
        return tuple(findings)
    names = {image.encoded: name for image, name in component_names(content, inventory()).items()}

    def called(one: Finding) -> tuple[str, ...]:
        # An attachment's tag has the digest of its image between `sha256-` and `.`.
        images = (tag.removeprefix("sha256-").partition(".")[0] for tag in one.tags)
        return tuple(sorted({names[image] for image in images if image in names}))

    return tuple(
        one if one.repository else replace(one, components=called(one)) for one in findings
    )


def _listed(
    content: Source, digest: Digest, carried: Collection[Digest]
) -> Mapping[Digest | str, str]:
    image = content.manifest(INSTALL, digest)
    while image.is_index:
        if not image.children:
            return {}
        image = content.manifest(INSTALL, image.children[0].descriptor.digest)

    def opened(layer: Descriptor) -> Iterator[bytes]:
        where = f"{content.name}: layer {layer.digest}"
        chunks = content.blob(INSTALL, layer.digest, layer.size)
        return verified(chunks, layer.digest, layer.size, where=where)

    where = f"{content.name}: {INSTALL}@{digest}"
    layers = [partial(opened, one) for one in image.layers if one.digest in carried]
    return components_of(read_files(layers, (IMAGES_DIGESTS, IMAGES_TAGS), where=where), where)
