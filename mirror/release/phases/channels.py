"""Reading release channels: of the platform, of modules and of packages alike."""

from __future__ import annotations

from collections.abc import Callable, Collection

from mirror.errors import SourceContentError
from mirror.layout import CHANNELS, RELEASE_CHANNEL, parse_version, version_tag
from mirror.oci import Manifest
from mirror.release.metadata import VERSION_JSON, ReleaseInfo, parse_release
from mirror.release.platform import ChannelFact
from mirror.release.source import ReleaseSource


def read_channel(source: ReleaseSource, repository: str, name: str) -> ChannelFact | None:
    """What a channel leads to, or None if there is no such channel.

    Raises:
        SourceContentError: its image does not say.
    """
    manifest = source.manifest(repository, name)
    if manifest is None:
        return None
    info = release_info(source, repository, manifest, source.where(repository, name))
    return ChannelFact(name, info.version, info.suspended, manifest.digest)


def release_info(
    source: ReleaseSource, repository: str, manifest: Manifest, where: str
) -> ReleaseInfo:
    """What a release image says of itself."""
    found = source.files(repository, manifest, (VERSION_JSON,))
    of_platform = repository == RELEASE_CHANNEL
    return parse_release(found.get(VERSION_JSON), where, version_only=not of_platform)


def read_channels(
    source: ReleaseSource, repository: str, tags: Collection[str] | None
) -> dict[str, ChannelFact]:
    """All channels of a repository; `tags` None asks for each instead of looking in the list."""
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

    Not, if there is no such image, or if a cluster that reads it would go for a version that the
    bundle does not have, as builds that are no releases make it; `warn` is told so.

    Raises:
        SourceContentError: `tag` is a version, and its image does not say which.
    """
    where = source.where(repository, tag)
    manifest = source.manifest(repository, tag)
    if manifest is None:
        warn(f"{where} is not there, so no release channel of the bundle leads to {tag}")
        return False
    try:
        version = release_info(source, repository, manifest, where).version
    except SourceContentError as err:
        if parse_version(tag) is not None:
            raise
        warn(f"no release channel of the bundle leads to {tag}: {err}")
        return False
    if version in map(parse_version, taken):
        return True
    warn(
        f"{where} leads to {version_tag(version)}, which is not in the bundle, so no release "
        f"channel of the bundle leads to {tag}"
    )
    return False
