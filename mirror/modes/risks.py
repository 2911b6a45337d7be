"""What a person should know before a switch begins: what is lost, restarted, or renewed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mirror.modes.constants import DATA_ROOT
from mirror.modes.facts import ClusterFacts, StoreContent
from mirror.modes.matrix import Kind, kind_of
from mirror.modes.routing import layouts
from mirror.modes.settings import RegistrySettings


class Risk(StrEnum):
    """The kinds of warning."""

    DATA_LOSS = "DataLoss"
    RESTART = "Restart"
    CREDENTIALS = "Credentials"
    GAP = "Gap"
    ADVICE = "Advice"


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """What a person should know before the switch begins."""

    risk: Risk
    message: str


def warnings_of(
    current: RegistrySettings,
    target: RegistrySettings,
    path: tuple[Kind, ...],
    facts: ClusterFacts,
) -> tuple[PlanWarning, ...]:
    """What is to be known of a switch by the kinds of `path`, the last of which is the target's."""
    warnings = _store_warnings(current, path, facts)
    before, after = kind_of(current), path[-1]
    there, wanted = layouts(current, target, facts)
    names = {layout.names for layout in there}
    if names != {wanted.names} or (len(path) > 1 and any(not kind.managed for kind in path)):
        warnings.append(
            PlanWarning(
                Risk.RESTART,
                "image references change, so all components of the platform restart and are "
                "pulled anew",
            )
        )
    if before.managed and any(not kind.managed for kind in path):
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                "leaving the managed modes drops the registry's certificates and the passwords of "
                "its users; a return makes new ones",
            )
        )
    elif before.node_services and Kind.DIRECT in path:
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                "mode Direct drops the passwords of the registry's users; a return to Proxy or "
                "Local makes new ones",
            )
        )
    if _one_instance(before, after, path, facts):
        warnings.append(
            PlanWarning(
                Risk.GAP,
                "with one master the registry's service is restarted with its new parameters "
                "while nothing stands in for it; pulls in that moment are tried again",
            )
        )
    if before is Kind.LEGACY and after.managed:
        warnings.append(
            PlanWarning(
                Risk.ADVICE,
                "the cluster's documents advise to switch to configurable Unmanaged first; the "
                "nodes' old parameters are recovered from the Secret deckhouse-registry",
            )
        )
    return tuple(warnings)


def _one_instance(before: Kind, after: Kind, path: tuple[Kind, ...], facts: ClusterFacts) -> bool:
    masters = facts.masters
    in_place = before is after and after.managed and len(path) == 1
    return in_place and masters is not None and len(masters) == 1


def _store_warnings(
    current: RegistrySettings, path: tuple[Kind, ...], facts: ClusterFacts
) -> list[PlanWarning]:
    """What the replicas of each step of the way do with the store that they find."""
    stores, certain = _stores(current, facts)
    warnings = []
    for kind in path:
        if not kind.node_services:
            continue
        keeps = StoreContent.PLAIN if kind is Kind.LOCAL else StoreContent.CACHE
        if stores - {keeps, StoreContent.EMPTY}:
            warnings.append(PlanWarning(Risk.DATA_LOSS, _loss(kind, certain)))
        elif StoreContent.PLAIN in stores and kind_of(current) is not Kind.LOCAL:
            message = (
                f"mode Local goes on with the images that an earlier one left in {DATA_ROOT}; "
                "what was pushed since is not among them, so push the bundle again"
            )
            warnings.append(PlanWarning(Risk.ADVICE, message))
        stores, certain = frozenset({keeps}), True
    if kind_of(current) is Kind.LOCAL and not any(kind.node_services for kind in path):
        message = (
            f"the pushed images stay in {DATA_ROOT} of the masters; a later switch to mode Proxy "
            "deletes them"
        )
        warnings.append(PlanWarning(Risk.ADVICE, message))
    return warnings


def _stores(current: RegistrySettings, facts: ClusterFacts) -> tuple[frozenset[StoreContent], bool]:
    """What can lie on the masters' disks, and whether that is known.

    Replicas leave their store behind when they stop. So where none runs, anything can be there: by
    a mode before the current one, or by a switch that was begun and not completed.
    """
    if facts.stores is not None:
        return facts.stores, True
    match kind_of(current):
        case Kind.LOCAL:
            return frozenset({StoreContent.PLAIN}), True
        case Kind.PROXY:
            return frozenset({StoreContent.CACHE}), True
        case _:
            return frozenset(StoreContent), False


def _loss(kind: Kind, certain: bool) -> str:
    if kind is Kind.LOCAL:
        found = "what a Proxy cache left" if certain else "what a Proxy cache may have left"
        return (
            f"starting the Local replicas deletes {found} in {DATA_ROOT} of the masters, and they "
            "start empty: push the bundle only after NodeServicesReady"
        )
    found = "all images" if certain else "all images, if any,"
    return (
        f"starting the Proxy replicas deletes {found} that mode Local keeps in {DATA_ROOT} of the "
        "masters, the pushed bundle included; keep the bundle, for a return to Local starts empty"
    )
