"""One vocabulary: paths of the release tree, archive names, digest tags, versions. Pure.

A repository goes by its path below the root of the tree: the empty path is the platform's own
repository, `modules/x/release` holds the channels of module `x`. The same paths name the layouts
inside the archives of a bundle (docs/bundle-format.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata

from semver import Version

from mirror.errors import InputError
from mirror.oci.reference import Digest, valid_repository

DEFAULT_CHANNELS = ("alpha", "beta", "early-access", "stable", "rock-solid")
"""The channels that every full edition publishes, from the newest releases to the oldest."""

LTS = "lts"
CHANNELS = (*DEFAULT_CHANNELS, LTS)

EDITIONS = frozenset({"ee", "fe", "se", "se-plus", "be", "ce"})

SECURITY_DATABASES = {
    "security/trivy-db": "2",
    "security/trivy-bdu": "1",
    "security/trivy-java-db": "1",
    "security/trivy-checks": "0",
}
"""Repository → its rolling tag, which names the schema and not a release."""

INSTALL = "install"
INSTALL_STANDALONE = "install-standalone"
RELEASE_CHANNEL = "release-channel"
INSTALLER = "installer"
MODULES = "modules"
PACKAGES = "packages"
PLUGINS = "deckhouse-cli/plugins"

INDEX_REPOSITORIES = (MODULES, PACKAGES, PLUGINS)
"""Repositories whose tags name all modules, packages and plugins: a cluster lists them."""

PLATFORM_REPOSITORIES = ("", INSTALL, INSTALL_STANDALONE, RELEASE_CHANNEL)

FIXED_REPOSITORIES = (
    *(*PLATFORM_REPOSITORIES, INSTALLER, *SECURITY_DATABASES),
    *INDEX_REPOSITORIES,
)
"""The repositories that every tree may have."""

RELEASES_LEAF = {MODULES: "release", PACKAGES: "version"}
"""Where the versions and channels of a module or package lie, below its own repository."""


# -- repositories ----------------------------------------------------------------------------------

KINDS = ("platform", "installer", "security", "module", "package", "plugin", "other")
"""What a component can be, in the order in which they are listed."""


def component_of(path: str) -> tuple[str, str]:
    """Return the (kind, name) of the component that a repository belongs to."""
    match path.split("/"):
        case _ if path in PLATFORM_REPOSITORIES:
            return "platform", "platform"
        case ["installer"]:
            return "installer", "installer"
        case ["security", name]:
            return "security", name
        case ["modules", name, *_]:
            return "module", name
        case ["packages", name, *_]:
            return "package", name
        case ["deckhouse-cli", "plugins", name]:
            return "plugin", name
    return "other", path


def repositories_of(index: str, name: str) -> tuple[str, ...]:
    """Return the repositories that a tree may have for something that `index` names."""
    path = f"{index}/{name}"
    return (path, f"{path}/{RELEASES_LEAF[index]}") if index in RELEASES_LEAF else (path,)


def names_component(tag: str) -> bool:
    """Whether a tag of an index names a module, package or plugin.

    Signatures of the index's images do not, nor do names that a repository cannot have.
    """
    return valid_repository(tag) and not is_attachment_tag(tag)


def holds_releases(path: str) -> bool:
    """Whether the tags of a repository are versions and channels: `modules/x/release` and so on."""
    match path.split("/"):
        case [name]:
            return name == RELEASE_CHANNEL
        case [index, _, leaf]:
            return RELEASES_LEAF.get(index) == leaf
    return False


def describes_package(path: str) -> bool:
    """Whether a repository is `packages/<name>/version`; a bundle has it for every package."""
    return holds_releases(path) and path.startswith(f"{PACKAGES}/")


def publication_stage(path: str, tag: str) -> int:
    """When a push or sync may set a tag: 0 images, 1 versions, 2 channels, 3 indexes.

    A version's metadata (`release-channel:v1.70.0`) promises its images to controllers, which list
    these tags, so it comes after the images. A channel leads to a version, so it turns when all of
    those are there; the index of modules, packages and plugins leads to channels.
    """
    if path in INDEX_REPOSITORIES:
        return 3
    if not holds_releases(path):
        return 0
    return 2 if tag in CHANNELS else 1


def stands_alone(path: str, tag: str) -> bool:
    """Whether a tag promises nothing but its own image; installers and channels promise others."""
    leads = path in (INSTALL, INSTALL_STANDALONE) or tag in CHANNELS
    return publication_stage(path, tag) == 0 and not leads


def join_path(*parts: str) -> str:
    """Join the parts of a repository's path, leaving out empty ones."""
    return "/".join(part for part in parts if part)


def with_modules_suffix(path: str, suffix: str) -> str:
    """Return `path` with `suffix` in place of its leading `modules`; other paths stay as they are.

    The suffix may be empty: modules then lie directly below the root.
    """
    if path == MODULES or path.startswith(f"{MODULES}/"):
        return join_path(suffix, path[len(MODULES) + 1 :])
    return path


def normalised_suffix(text: str) -> str:
    """Read `--modules-path-suffix` as a path without `/` at its ends; empty text is the default."""
    return text.strip("/") if text else MODULES


# -- archives --------------------------------------------------------------------------------------

_ARCHIVE = re.compile(
    r"(?:platform|installer|security|package-versions|(?:module|package|plugin)-[a-z0-9][a-z0-9._-]*)"
    r"\.tar"
)

RELEASES_FILE = "deckhousereleases.yaml"
"""Beside the archives: the bundle's platform releases, as documents for the cluster."""

TOOL_FILE = "mirror"
"""The program itself, in a bundle that brings it."""

PACKAGE_VERSIONS_ARCHIVE = "package-versions.tar"
"""The descriptions of all packages, whichever of them the bundle holds."""


def archive_of(path: str) -> str:
    """Return the archive in which a repository travels, such as `module-x.tar`, or raise."""
    kind, name = component_of(path)
    if kind == "other":
        raise InputError(f"{path!r} has no place in a bundle")
    return f"{kind}-{name}.tar" if kind in ("module", "package", "plugin") else f"{kind}.tar"


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive of the format (`platform.tar`, `module-x.tar`)."""
    return _ARCHIVE.fullmatch(name) is not None


# -- tags made of digests --------------------------------------------------------------------------

_ATTACHMENT_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\.[A-Za-z0-9._-]*)?")
_BARE_HEX = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")


def is_attachment_tag(tag: str) -> bool:
    """Whether a tag names what is attached to an image: `sha256-<hex>`, `sha256-<hex>.sig`, ..."""
    return _ATTACHMENT_TAG.fullmatch(tag) is not None


def digest_of_tag(tag: str) -> Digest | None:
    """Return the digest whose bare hex a tag is: what goes by its digest alone has such a tag."""
    if not _BARE_HEX.fullmatch(tag):
        return None
    return Digest("sha256" if len(tag) == 64 else "sha512", tag)


def is_digest_tag(tag: str) -> bool:
    """Whether a tag is made of a digest: its bare hex, or an attachment's."""
    return _BARE_HEX.fullmatch(tag) is not None or is_attachment_tag(tag)


# -- versions --------------------------------------------------------------------------------------

MAX_VERSION_LENGTH = 255
"""Longer text is not read as a version; a tag has 128 characters at most."""

_PRE_RELEASE_STAGES = ("alpha", "beta", "rc", "pre", "preview", "snapshot")


def parse_version(text: str) -> Version | None:
    """Read a version from a tag or a `version.json`, with or without `v`; None for other text."""
    if len(text) > MAX_VERSION_LENGTH:
        return None
    try:
        return Version.parse(text.removeprefix("v"))
    except ValueError:
        return None


def version_tag(version: Version) -> str:
    """Return the tag under which a version is published."""
    return f"v{version}"


def tags_of_versions(tags: Iterable[str]) -> dict[Version, str]:
    """Map each version to the tag that spells it, oldest first; other tags are left out.

    Where two tags spell one version (`v1.2.3`, `1.2.3`), the one that `version_tag` gives counts.
    """
    found: dict[Version, str] = {}
    for tag in tags:
        version = parse_version(tag)
        if version is not None and found.get(version) != version_tag(version):
            found[version] = tag
    return {version: found[version] for version in in_order(found)}


def in_order(versions: Iterable[Version]) -> list[Version]:
    """Return every version once, oldest first, whatever the order they come in."""
    return sorted(set(versions), key=_precedence)


def _precedence(version: Version) -> tuple[object, ...]:
    """Semantic Versioning 2.0.0, 11, as a key: comparing versions themselves is thirty times as
    slow. Builds of one version rank equal there, so their text decides."""
    early = version.prerelease or ""
    parts = [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in (early.split(".") if early else ())
    ]
    return version.major, version.minor, version.patch, not early, parts, version.build or ""


def tags_in_order(tags: Iterable[str], *, newest_first: bool = False) -> tuple[str, ...]:
    """Return every tag once: versions, oldest or newest first, then all other tags by name."""
    spellings: dict[Version, list[str]] = {}
    others: list[str] = []
    for tag in sorted(set(tags)):
        version = parse_version(tag)
        spelled = others if version is None else spellings.setdefault(version, [])
        spelled.append(tag)
    numbered = [tag for version in in_order(spellings) for tag in spellings[version]]
    return (*(reversed(numbered) if newest_first else numbered), *others)


def latest_patches(versions: Iterable[Version], *, releases_first: bool = False) -> list[Version]:
    """Return the highest version of each major.minor, oldest first.

    With `releases_first` a pre-release is taken only where its minor version has no release.
    """
    newest: dict[tuple[int, int], Version] = {}
    for version in in_order(versions):
        before = newest.get((version.major, version.minor))
        if releases_first and version.prerelease and before and not before.prerelease:
            continue
        newest[version.major, version.minor] = version
    return in_order(newest.values())


def is_early(version: Version) -> bool:
    """Whether a version is not meant for use yet (`1.2.0-rc.1`).

    Other suffixes (`1.2.0-main`) only say where a build comes from.
    """
    stage = (version.prerelease or "").partition(".")[0].lower()
    return stage.startswith(_PRE_RELEASE_STAGES)


def comparable(version: Version) -> Version:
    """Return `version` as constraints judge it: without build or mark of origin (`-main`)."""
    keep = version.prerelease if is_early(version) else None
    return version.replace(prerelease=keep, build=None)


@cache
def tool_name() -> str:
    """What this program calls itself in what it writes: `mirror <version>`."""
    return f"mirror {metadata.version('deckhouse-mirror')}"
