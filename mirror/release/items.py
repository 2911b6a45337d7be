"""Which versions and channels of one module or package belong in a bundle. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from semver import Version

from mirror.layout import CHANNELS, tags_in_order, tags_of_versions, version_tag
from mirror.release.filters import ItemFilter, select_versions


@dataclass(frozen=True, slots=True)
class ItemSelection:
    """The tags to take of a module or package, oldest version first, and its channels.

    `channels` lead to tags of the selection only. `aliases` are channels that the bundle publishes
    though the source's lead elsewhere: channel → the tag of the release repository whose image it
    gets, if that is there.
    """

    tags: tuple[str, ...]
    channels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def select_item(
    wanted: ItemFilter,
    channels: Mapping[str, Version],
    tags: Collection[str],
    *,
    left_out: Callable[[str], bool] = lambda _: False,
) -> ItemSelection:
    """What to take of an item: what its channels lead to, and what the filter names.

    `channels` says where each existing channel leads, `tags` are the item's; neither counts where
    the filter names exact tags only, and `tags` may be empty where it has no constraint. `left_out`
    says which tags were excluded: a channel that leads to one is not taken either.
    """
    if wanted.is_exact:
        kept = [tag for tag in select_versions(wanted, tags) if not left_out(tag)]
        aliases = {name: tag for name, tag in _aliases(wanted).items() if tag in kept}
        return ItemSelection(tags_in_order(kept), (), aliases)
    spelled = tags_of_versions(tags)
    leads = {
        name: spelled.get(channels[name], version_tag(channels[name]))
        for name in CHANNELS
        if name in channels
    }
    chosen = [tag for tag in (*leads.values(), *select_versions(wanted, tags)) if not left_out(tag)]
    warnings = tuple(
        f"{wanted.name}@{one}: +{one.channel} has no effect, because {wanted.name} is asked for by "
        "constraint too and then keeps its own channels"
        for one in wanted.exact_tags
        if one.channel
    )
    kept_channels = tuple(name for name, tag in leads.items() if tag in chosen)
    return ItemSelection(tags_in_order(chosen), kept_channels, {}, warnings)


def _aliases(wanted: ItemFilter) -> dict[str, str]:
    """Channel → exact tag that is published to it; of several the last that names a channel."""
    exact = wanted.exact_tags
    if len(exact) == 1 and exact[0].channel is None:
        return dict.fromkeys(CHANNELS, exact[0].tag)
    return {one.channel: one.tag for one in exact if one.channel is not None}
