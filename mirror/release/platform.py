"""Which platform releases belong in a bundle. Pure: facts about the source in, selection out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from semver import Version

from mirror.errors import SourceContentError
from mirror.oci import Digest
from mirror.release.tree import DEFAULT_CHANNELS, LTS
from mirror.release.versions import latest_patches, versions_among


@dataclass(frozen=True, slots=True)
class ChannelFact:
    """What one release channel says: the version it leads to, and the image that says so."""

    name: str
    version: Version
    suspended: bool
    digest: Digest


@dataclass(frozen=True, slots=True)
class PlatformSelection:
    """The releases to take, oldest first, and the channels that may travel with them."""

    versions: tuple[Version, ...]
    channels: tuple[ChannelFact, ...]


def select_platform(
    channels: Mapping[str, ChannelFact],
    tags: Collection[str],
    *,
    ignore_suspend: bool = False,
) -> PlatformSelection:
    """The default selection: all channels' versions, and what lies between their ends.

    `channels` are those that exist, `tags` the tags of the release-channel repository. Between
    rock-solid and alpha the latest patch of each minor version is taken, so that a cluster can
    update step by step. A channel that leads further back than rock-solid stays out, and so does
    its version.

    Raises:
        SourceContentError: channels are missing, or suspended ones are not to be ignored.
    """
    missing = [name for name in DEFAULT_CHANNELS if name not in channels]
    if missing and LTS not in channels:
        raise SourceContentError(
            "the source publishes no release channel "
            f"{', '.join(missing)} (found: {', '.join(channels) or 'none'}); check that --source "
            "names an edition, such as registry.example.com/deckhouse/ee"
        )
    suspended = sorted(name for name, fact in channels.items() if fact.suspended)
    if suspended and not ignore_suspend:
        raise SourceContentError(
            f"release channel{'s' if len(suspended) > 1 else ''} {', '.join(suspended)} "
            "suspended at the source: its vendor asks not to install that version; wait, or take "
            "it all the same with --ignore-suspend"
        )
    oldest = channels.get("rock-solid")
    newest = channels.get("alpha")
    kept = [fact for fact in channels.values() if oldest is None or fact.version >= oldest.version]
    versions = {fact.version for fact in kept}
    if oldest is not None and newest is not None:
        between = [v for v in versions_among(tags) if oldest.version <= v <= newest.version]
        versions.update(latest_patches(between))
    return PlatformSelection(tuple(sorted(versions)), tuple(kept))
