"""The table of modes: what each means for routes, logins, backends, switches and conditions.

Above it are the names and addresses that the cluster's registry module has fixed. No other module
looks at a mode: all ask a row of the table. docs/modes.md shows the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

NAMESPACE = "d8-system"
"""Where the module's objects live."""

MODULE_LABELS = {"heritage": "deckhouse", "module": "registry", "app": "registry"}
"""What its objects are labelled with."""

REGISTRY_PORT = 5001
"""The registry itself, with TLS: of a master's replica, of the balancer, of the Service."""

SERVICE_NAME = f"registry.{NAMESPACE}.svc"
"""The headless Service behind the logical host; certificates inside the cluster carry it."""
LOGICAL_HOST = f"{SERVICE_NAME}:{REGISTRY_PORT}"
"""The host of every image reference in a managed mode."""
LOGICAL_PATH = "system/deckhouse"
"""The repository below which all images lie, without a slash in front."""

LOGICAL_BASE = f"{LOGICAL_HOST}/{LOGICAL_PATH}"
"""What every image reference of a managed mode begins with."""


class RegistryUser(StrEnum):
    """The registry module's own users."""

    RO = "ro"
    RW = "rw"
    MIRROR_PULLER = "mirror-puller"
    MIRROR_PUSHER = "mirror-pusher"


DATA_ROOT = PurePosixPath("/opt/deckhouse/registry/local_data")
"""Mounted as `/data` into the replica."""
CONTAINERD_HOSTS = PurePosixPath("/etc/containerd/registry.d")
UNKNOWN_VERSION = "unknown"
"""Stands for the version of a node without the annotation `registry.deckhouse.io/version`."""

HASH_ANNOTATION = "registry.deckhouse.io/config-hash"
SECRET_STATE = "registry-state"  # noqa: S105 -- the names of Secrets are public
SECRET_USER_PREFIX = "registry-user-"  # noqa: S105


class ConditionType(StrEnum):
    """The conditions by their public names."""

    IMAGES = "RegistryContainsRequiredImages"
    PREFLIGHT = "ContainerdConfigPreflightReady"
    NODE_SERVICES = "NodeServicesReady"
    IN_CLUSTER_PROXY = "InClusterProxyReady"
    TRANSITION = "TransitionContainerdConfigReady"
    REGISTRY_SWITCH = "DeckhouseRegistrySwitchReady"
    FINAL = "FinalContainerdConfigReady"
    CLEANUP_NODE_SERVICES = "CleanupNodeServices"
    CLEANUP_IN_CLUSTER_PROXY = "CleanupInClusterProxy"
    ROTATION = "SecretsRotated"  # ours, where it was asked for; not a step of a switch
    READY = "Ready"
    NOT_SUPPORTED = "ErrTransitionNotSupported"


class Mode(StrEnum):
    """Where a cluster takes its images from."""

    DIRECT = "Direct"
    PROXY = "Proxy"
    LOCAL = "Local"
    UNMANAGED = "Unmanaged"


class ModeKind(StrEnum):
    """A mode as the table has it: Unmanaged is two kinds, and the legacy one is deprecated."""

    DIRECT = "Direct"
    PROXY = "Proxy"
    LOCAL = "Local"
    UNMANAGED = "Unmanaged"
    LEGACY = "Unmanaged (legacy)"

    @classmethod
    def of(cls, mode: Mode, *, configurable: bool) -> ModeKind:
        """The kind of a mode; `configurable`: an Unmanaged that has a section."""
        if mode is Mode.UNMANAGED and not configurable:
            return cls.LEGACY
        return cls(mode.value)

    @property
    def mode(self) -> Mode:
        """The mode that settings and state documents name."""
        return Mode.UNMANAGED if self is ModeKind.LEGACY else Mode(self.value)

    @property
    def row(self) -> ModeRow:
        """Its row of the table."""
        return TABLE[self]


class Plane(StrEnum):
    """Who asks, which decides the route."""

    CRI = "cri"
    """Containerd on a node."""
    API = "api"
    """A pod that speaks the registry protocol, as the controller does."""
    OPERATOR = "operator"
    """Whoever brings images in."""
    REPLICA = "replica"
    """A replica or a proxy of the module itself, which asks what is behind it."""


class Role(StrEnum):
    """What stands at the end of a route."""

    UPSTREAM = "upstream"
    """The registry outside of the cluster."""
    BALANCER = "balancer"
    """The node's own balancer, which passes on to any replica."""
    SERVICE = "service"
    """The Service in the cluster: the in-cluster proxy, or any replica."""
    MASTER = "master"
    """One replica."""
    PUBLIC = "public"
    """The public address for pushing, which leads to one replica."""
    FOREIGN = "foreign"
    """A registry that the settings do not name."""


ROLE_HOSTS: Final = {Role.BALANCER: f"127.0.0.1:{REGISTRY_PORT}", Role.SERVICE: LOGICAL_HOST}
"""Roles behind which one of several replicas answers, and not always the same; where they are."""

MODULE_ROLES: Final = frozenset({*ROLE_HOSTS, Role.MASTER})
"""Roles for which the module's own authority vouches."""


class ClusterBackend(StrEnum):
    """What the cluster itself runs."""

    PROXY = "in-cluster proxy"
    """Passes requests on to the upstream and keeps nothing."""
    CACHE = "Proxy replicas"
    """Fetch from the upstream what they are asked for, and keep it."""
    STORE = "Local replicas"
    """Hold what was pushed to them."""


class StoreContent(StrEnum):
    """What lies in a master's data folder, whatever runs there now."""

    EMPTY = "empty"
    PLAIN = "plain"
    """A registry's own images: what Local mode keeps, the pushed bundle above all."""
    CACHE = "cache"
    """Copies of an upstream's images: what Proxy mode keeps."""


class Verdict(StrEnum):
    """What a switch from one kind to another is."""

    SWITCH = "switch"
    PARAMETERS = "parameters"
    """The same kind with other parameters."""
    NOTHING = "nothing"
    """There is nothing to change."""
    UNDOCUMENTED = "undocumented"
    """The cluster would do it, and its documents say not to."""
    FORBIDDEN = "forbidden"
    """The cluster refuses it: ErrTransitionNotSupported."""


@dataclass(frozen=True, slots=True)
class PlaneRow:
    """How one plane reaches images in one mode.

    Attributes:
        roles: where to ask, in order; after a door the single replicas behind it.
        reader: the module's user to log in as; None stands for the upstream's own login.
        writer: the user to write as, where `writes`; None as for `reader`.
        writes: whether the route itself may be written to.
        refusal: why nothing may be pushed or deleted by the logical name; empty where it may.
        no_catalogue: why the list of repositories is refused; empty where it is given.
    """

    roles: tuple[Role, ...]
    reader: RegistryUser | None = None
    writer: RegistryUser | None = None
    writes: bool = False
    refusal: str = ""
    no_catalogue: str = ""


@dataclass(frozen=True, slots=True)
class ModeRow:
    """What one kind of mode means.

    Attributes:
        backend: what the cluster runs; None where images go by their real names.
        planes: how each plane reaches images.
        conditions: what a switch to it must reach, in order; `Ready` is last.
        switches: what a switch from here to each kind is.
        configurable: False for the deprecated kind, whose registry was set at installation.
        users: the module's users that its replicas know.
    """

    backend: ClusterBackend | None
    planes: Mapping[Plane, PlaneRow]
    conditions: tuple[ConditionType, ...]
    switches: Mapping[ModeKind, Verdict]
    configurable: bool = True
    users: tuple[RegistryUser, ...] = ()

    @property
    def managed(self) -> bool:
        """Whether images go by the logical address."""
        return self.backend is not None

    @property
    def store(self) -> StoreContent | None:
        """What the replicas on the masters keep; None where masters run no replica."""
        return _STORES.get(self.backend) if self.backend is not None else None

    @property
    def runs_replicas(self) -> bool:
        """Whether masters run a replica of the registry."""
        return self.store is not None

    @property
    def holds_own_images(self) -> bool:
        """Whether each replica holds what was pushed, by itself and with no upstream behind it."""
        return self.store is StoreContent.PLAIN

    @property
    def runs_in_cluster_proxy(self) -> bool:
        """Whether components reach the upstream through a proxy in the cluster."""
        return self.backend is ClusterBackend.PROXY


_STORES = {ClusterBackend.CACHE: StoreContent.CACHE, ClusterBackend.STORE: StoreContent.PLAIN}


# -- the planes of each mode -----------------------------------------------------------------------

_READ_ONLY_CACHE = "the cluster's registry is a read-only cache"
_ONLY_PULLS = f"user {RegistryUser.RO} may only pull"
_PASSES_ON = "the route through the cluster only passes reads on to the external registry"
_SERVED = {
    Plane.CRI: "this address only serves the nodes' pulls and accepts no writes",
    Plane.API: "this address only serves the cluster's components and accepts no writes",
    Plane.REPLICA: "this address only serves replication and accepts no writes",
}
_UPSTREAM = (Role.UPSTREAM,)
_PUSHED = PlaneRow(_UPSTREAM, writes=True)


def _through_replicas(door: Role, refusal: str) -> PlaneRow:
    return PlaneRow((door, Role.MASTER), RegistryUser.RO, refusal=refusal, no_catalogue=_ONLY_PULLS)


def _planes(
    cri: PlaneRow, api: PlaneRow, operator: PlaneRow, replica: PlaneRow
) -> Mapping[Plane, PlaneRow]:
    return MappingProxyType(dict(zip(Plane, (cri, api, operator, replica), strict=True)))


_UNMANAGED_PLANES = _planes(
    PlaneRow(_UPSTREAM, refusal=_SERVED[Plane.CRI]),
    PlaneRow(_UPSTREAM, refusal=_SERVED[Plane.API]),
    _PUSHED,
    PlaneRow(_UPSTREAM, refusal=_SERVED[Plane.REPLICA]),
)
_DIRECT_PLANES = _planes(
    PlaneRow(_UPSTREAM, refusal="containerd only reads"),
    PlaneRow(
        (Role.SERVICE,), refusal=_PASSES_ON, no_catalogue="the in-cluster proxy grants pulls only"
    ),
    _PUSHED,
    PlaneRow(_UPSTREAM, refusal=_PASSES_ON),
)
_PROXY_PLANES = _planes(
    _through_replicas(Role.BALANCER, _READ_ONLY_CACHE),
    _through_replicas(Role.SERVICE, _READ_ONLY_CACHE),
    # The upstream takes pushes under its own name; the logical one would mean a cache.
    PlaneRow(_UPSTREAM, writes=True, refusal=_READ_ONLY_CACHE),
    PlaneRow(_UPSTREAM, refusal=_READ_ONLY_CACHE),
)
_LOCAL_PLANES = _planes(
    _through_replicas(Role.BALANCER, _SERVED[Plane.CRI]),
    _through_replicas(Role.SERVICE, _SERVED[Plane.API]),
    # Without a public domain, images are pushed to a master.
    PlaneRow((Role.PUBLIC,), RegistryUser.RW, RegistryUser.RW, writes=True),
    # A replica reads its peers as the puller, and writes its own store as the pusher.
    PlaneRow(
        (Role.MASTER,),
        RegistryUser.MIRROR_PULLER,
        RegistryUser.MIRROR_PUSHER,
        writes=True,
        refusal=_SERVED[Plane.REPLICA],
    ),
)

# -- switches and conditions -----------------------------------------------------------------------

VIA_KINDS: Final = (ModeKind.DIRECT, ModeKind.UNMANAGED)
"""Every kind can be left for these and reached from these."""

_C = ConditionType


def _to(*cells: str) -> Mapping[ModeKind, Verdict]:
    words = {"yes": Verdict.SWITCH, "other": Verdict.PARAMETERS, "same": Verdict.NOTHING}
    words |= {"no": Verdict.FORBIDDEN, "docs": Verdict.UNDOCUMENTED}
    verdicts = {kind: words[cell] for kind, cell in zip(ModeKind, cells, strict=True)}
    return MappingProxyType(verdicts)


TABLE: Final[Mapping[ModeKind, ModeRow]] = MappingProxyType(
    {
        ModeKind.DIRECT: ModeRow(
            ClusterBackend.PROXY,
            _DIRECT_PLANES,
            (
                *(_C.IMAGES, _C.PREFLIGHT, _C.TRANSITION, _C.IN_CLUSTER_PROXY),
                *(_C.REGISTRY_SWITCH, _C.FINAL, _C.CLEANUP_NODE_SERVICES, _C.READY),
            ),
            #   to: Direct Proxy  Local  Unmanaged legacy
            _to("other", "yes", "yes", "yes", "docs"),
        ),
        ModeKind.PROXY: ModeRow(
            ClusterBackend.CACHE,
            _PROXY_PLANES,
            (
                *(_C.IMAGES, _C.PREFLIGHT, _C.NODE_SERVICES, _C.TRANSITION),
                *(_C.REGISTRY_SWITCH, _C.FINAL, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
            ),
            _to("yes", "other", "no", "yes", "docs"),
            users=(RegistryUser.RO,),
        ),
        ModeKind.LOCAL: ModeRow(
            ClusterBackend.STORE,
            _LOCAL_PLANES,
            (
                *(_C.PREFLIGHT, _C.NODE_SERVICES, _C.IMAGES, _C.TRANSITION),
                *(_C.REGISTRY_SWITCH, _C.FINAL, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
            ),
            _to("yes", "no", "same", "yes", "no"),
            users=tuple(RegistryUser),
        ),
        ModeKind.UNMANAGED: ModeRow(
            None,
            _UNMANAGED_PLANES,
            (
                *(_C.IMAGES, _C.PREFLIGHT, _C.TRANSITION, _C.REGISTRY_SWITCH, _C.FINAL),
                *(_C.CLEANUP_NODE_SERVICES, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
            ),
            _to("yes", "yes", "yes", "other", "yes"),
        ),
        ModeKind.LEGACY: ModeRow(
            None,
            _UNMANAGED_PLANES,
            (
                *(_C.IMAGES, _C.TRANSITION, _C.REGISTRY_SWITCH, _C.FINAL),
                *(_C.CLEANUP_NODE_SERVICES, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
            ),
            _to("yes", "yes", "yes", "yes", "same"),
            configurable=False,
        ),
    }
)


def conditions_of(target: ModeKind, *, saved_parameters: bool = True) -> tuple[ConditionType, ...]:
    """What a switch to `target` must reach, in order; `Ready` is last."""
    order = target.row.conditions
    if target.row.configurable or saved_parameters:
        return order
    # Parameters of an earlier mode are what the deprecated kind does these three with.
    with_saved = {_C.IMAGES, _C.TRANSITION, _C.REGISTRY_SWITCH}
    return tuple(one for one in order if one not in with_saved)


def allowed(before: ModeKind, after: ModeKind, *, strict: bool = True) -> bool:
    """Whether `after` can follow `before` directly; `strict`: documented switches alone."""
    verdict = before.row.switches[after]
    if verdict is Verdict.UNDOCUMENTED:
        return not strict
    return verdict is not Verdict.FORBIDDEN


def legal_path(
    current: ModeKind, target: ModeKind, aborted: ModeKind | None = None, *, strict: bool = True
) -> tuple[ModeKind, ...]:
    """The fewest allowed switches that lead from `current` to `target`.

    The first must also be allowed from `aborted`, whose replicas and routes may be in place.
    """
    origins = (current,) if aborted is None else (current, aborted)
    paths: deque[tuple[ModeKind, ...]] = deque()
    for kind in _candidates(target, current if aborted else None):
        if all(allowed(origin, kind, strict=strict) for origin in origins):
            paths.append((kind,))
    while paths:
        path = paths.popleft()
        if path[-1] is target:
            return path
        paths += (
            (*path, kind)
            for kind in _candidates(target, None)
            if kind not in path and allowed(path[-1], kind, strict=strict)
        )
    raise AssertionError("Unmanaged can be reached from every mode and leads to every mode")


def _candidates(target: ModeKind, back: ModeKind | None) -> Iterator[ModeKind]:
    """Where to go next, best first: the target; where one came from; the usual stopovers."""
    yield from dict.fromkeys(kind for kind in (target, back, *VIA_KINDS) if kind is not None)


def not_supported(before: ModeKind, after: ModeKind) -> str:
    """The message of a forbidden switch."""
    return f"mode transition from {before} to {after} not supported"
