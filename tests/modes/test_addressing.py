"""Addressing: the whole table, its worked examples, and what is impossible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InvalidReferenceError, RouteError
from mirror.modes import ModeKind, Plane, RegistryUser, Role
from mirror.modes.addressing import Route, logical, master_host, routes_for
from mirror.modes.settings import NO_ACCESS, ClusterAccess, RegistrySettings
from mirror.oci import Reference, Repository
from tests.support.mode_samples import ACCOUNTS, SETTINGS, SITES
from tests.support.tls import Authority

BASE = "registry.d8-system.svc:5001/system/deckhouse"
DIGEST = "sha256:" + "a" * 64
NEXUS = "nexus.corp.example:8443"


def login(route: Route) -> tuple[str, str] | None:
    account = route.credential
    return None if account is None else (account.name, account.password.get_secret_value())


def settings(mode: str, repo: str, **fields: str) -> RegistrySettings:
    return RegistrySettings.load({"mode": mode, mode.lower(): {"imagesRepo": repo, **fields}})


UPSTREAM = (Role.UPSTREAM, NEXUS, "dkp/ee", None, ("u", "p"))
PROXY = (Role.SERVICE, "registry.d8-system.svc:5001", "system/deckhouse", "MODULE CA", ("u", "p"))
RO = ("ro", "ro-password")
BALANCER = (Role.BALANCER, "127.0.0.1:5001", "system/deckhouse", "MODULE CA", RO)
SERVICE = (Role.SERVICE, "registry.d8-system.svc:5001", "system/deckhouse", "MODULE CA", RO)
PUBLIC = (
    *(Role.PUBLIC, "registry.corp.example", "system/deckhouse", "PUBLIC CA"),
    ("rw", "rw-password"),
)
PEER = (
    *(Role.MASTER, "10.0.0.1:5001", "system/deckhouse", "MODULE CA"),
    ("mirror-puller", "mirror-puller-password"),
)

TABLE = {
    (ModeKind.UNMANAGED, Plane.CRI): UPSTREAM,
    (ModeKind.UNMANAGED, Plane.API): UPSTREAM,
    (ModeKind.UNMANAGED, Plane.OPERATOR): UPSTREAM,
    (ModeKind.UNMANAGED, Plane.REPLICA): UPSTREAM,
    (ModeKind.DIRECT, Plane.CRI): UPSTREAM,
    (ModeKind.DIRECT, Plane.API): PROXY,
    (ModeKind.DIRECT, Plane.OPERATOR): UPSTREAM,
    (ModeKind.DIRECT, Plane.REPLICA): UPSTREAM,
    (ModeKind.PROXY, Plane.CRI): BALANCER,
    (ModeKind.PROXY, Plane.API): SERVICE,
    (ModeKind.PROXY, Plane.OPERATOR): UPSTREAM,
    (ModeKind.PROXY, Plane.REPLICA): UPSTREAM,
    (ModeKind.LOCAL, Plane.CRI): BALANCER,
    (ModeKind.LOCAL, Plane.API): SERVICE,
    (ModeKind.LOCAL, Plane.OPERATOR): PUBLIC,
    (ModeKind.LOCAL, Plane.REPLICA): PEER,
}
"""Mode and plane → role, host, repository of the base, trust, login of the first route."""


def test_the_table_has_every_mode_and_plane() -> None:
    kinds = set(ModeKind) - {ModeKind.LEGACY}
    assert TABLE.keys() == {(kind, plane) for kind in kinds for plane in Plane}


@pytest.mark.parametrize("below", ["", "/install", "/modules/console/release"])
@pytest.mark.parametrize(("kind", "plane"), TABLE)
def test_an_image_goes_the_way_of_the_table(kind: ModeKind, plane: Plane, below: str) -> None:
    role, host, repository, ca, account = TABLE[kind, plane]
    route = routes_for(f"{BASE}{below}:v1.74.0", SETTINGS[kind], plane, SITES)[0]
    assert (route.role, route.host, route.repository) == (role, host, f"{repository}{below}")
    assert (route.scheme, route.ca, login(route)) == ("https", ca, account)
    assert route.reference == "v1.74.0"


@pytest.mark.parametrize(("kind", "plane"), TABLE)
def test_only_who_brings_images_in_may_write_and_replicas_into_their_own(
    kind: ModeKind, plane: Plane
) -> None:
    route = routes_for(f"{BASE}:x", SETTINGS[kind], plane, SITES)[0]
    writes = plane is Plane.OPERATOR or (kind, plane) == (ModeKind.LOCAL, Plane.REPLICA)
    assert route.writes is writes
    writer = route.writer and route.writer.name
    if not writes:
        assert writer is None
    elif kind is ModeKind.LOCAL:
        assert writer == ("rw" if plane is Plane.OPERATOR else "mirror-pusher")
    else:
        assert writer == "u"


@pytest.mark.parametrize("kind", [ModeKind.PROXY, ModeKind.LOCAL])
@pytest.mark.parametrize("plane", [Plane.CRI, Plane.API])
def test_single_replicas_stand_in_for_the_address_before_them(kind: ModeKind, plane: Plane) -> None:
    _, *rest = routes_for(f"{BASE}/install:x", SETTINGS[kind], plane, SITES)
    assert [route.host for route in rest] == ["10.0.0.1:5001", "10.0.0.2:5001", "10.0.0.3:5001"]
    assert {(r.role, r.repository, r.ca, login(r)) for r in rest} == {
        (Role.MASTER, "system/deckhouse/install", "MODULE CA", RO)
    }


def test_the_worked_examples_come_out_as_written() -> None:
    direct, proxy = SETTINGS[ModeKind.DIRECT], SETTINGS[ModeKind.PROXY]
    (by_digest,) = routes_for(f"{BASE}@{DIGEST}", direct, Plane.CRI)
    assert by_digest.url == f"https://{NEXUS}/v2/dkp/ee/manifests/{DIGEST}"
    (by_tag,) = routes_for(f"{BASE}/install:v1.74.0", direct, Plane.CRI)
    assert by_tag.repository == "dkp/ee/install"
    assert by_tag.scope == "repository:dkp/ee/install:pull"
    first, *_ = routes_for(f"{BASE}/install:v1.74.0", proxy, Plane.CRI, SITES)
    assert first.url == ("https://127.0.0.1:5001/v2/system/deckhouse/install/manifests/v1.74.0")
    (replica,) = routes_for(f"{BASE}/install:v1.74.0", proxy, Plane.REPLICA)
    assert replica.repository == "dkp/ee/install"


def test_scheme_and_authority_of_the_upstream_are_kept(authority_pem: str) -> None:
    plain = settings("Direct", "10.0.0.9:5000/dkp", scheme="HTTP")
    (route,) = routes_for(f"{BASE}:x", plain, Plane.CRI)
    assert (route.scheme, route.ca, route.credential) == ("http", None, None)
    own = settings("Direct", "reg.example/dkp", ca=authority_pem)
    assert routes_for(f"{BASE}:x", own, Plane.CRI)[0].ca == authority_pem
    # The module vouches for the in-cluster proxy, which may pass the upstream's challenge on: the
    # way to its token server.
    assert routes_for(f"{BASE}:x", own, Plane.API, SITES)[0].ca == f"MODULE CA\n{authority_pem}"


@pytest.fixture
def authority_pem(authority: Authority) -> str:
    return authority.certificate.read_text()


def test_the_digest_decides_and_a_repository_is_asked_for_without_either() -> None:
    direct = SETTINGS[ModeKind.DIRECT]
    both = Reference.parse(f"{BASE}:v1@{DIGEST}")
    assert str(routes_for(both, direct, Plane.CRI)[0].reference) == DIGEST
    for repository in (Repository.parse(f"{BASE}/install"), f"{BASE}/install"):
        (route,) = routes_for(repository, direct, Plane.CRI)
        assert (route.reference, route.repository) == (None, "dkp/ee/install")
        assert route.url.endswith("/v2/dkp/ee/install/tags/list")


# -- names that are not ours -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ModeKind)
@pytest.mark.parametrize("plane", Plane)
@pytest.mark.parametrize(
    "path",
    ["system/deckhouse-evil/x", "system/deckhousex", "system", "other", "x/system/deckhouse"],
)
def test_the_prefix_ends_where_a_path_does(kind: ModeKind, plane: Plane, path: str) -> None:
    with pytest.raises(RouteError, match="all of the cluster's images lie at"):
        routes_for(f"registry.d8-system.svc:5001/{path}:x", SETTINGS[kind], plane, SITES)


@pytest.mark.parametrize("kind", [ModeKind.DIRECT, ModeKind.PROXY, ModeKind.LOCAL])
@pytest.mark.parametrize("plane", Plane)
@pytest.mark.parametrize(
    "name", ["docker.io/library/nginx:1", "registry.d8-system.svc/system/deckhouse:x"]
)
def test_a_real_name_has_no_way_where_images_go_by_logical_ones(
    kind: ModeKind, plane: Plane, name: str
) -> None:
    with pytest.raises(RouteError, match="go by their logical names, which begin with"):
        routes_for(name, SETTINGS[kind], plane, SITES)


def test_the_logical_name_is_told_where_there_is_one() -> None:
    with pytest.raises(RouteError, match=f"here {BASE}/install"):
        routes_for(f"{NEXUS}/dkp/ee/install:x", SETTINGS[ModeKind.DIRECT], Plane.CRI)


@pytest.mark.parametrize("kind", [ModeKind.UNMANAGED, ModeKind.LEGACY])
@pytest.mark.parametrize("plane", Plane)
def test_real_names_are_left_alone_in_unmanaged(kind: ModeKind, plane: Plane) -> None:
    (route,) = routes_for("docker.io/library/nginx:1", SETTINGS[kind], plane)
    assert route == Route(Role.FOREIGN, "https", "docker.io", "library/nginx", "1")


def test_a_login_goes_to_its_own_host_alone_in_unmanaged() -> None:
    unmanaged = SETTINGS[ModeKind.UNMANAGED]
    (ours,) = routes_for(f"{NEXUS}/dkp/ee/install:x", unmanaged, Plane.OPERATOR)
    assert (login(ours), ours.repository, ours.writes) == (("u", "p"), "dkp/ee/install", True)
    (beside,) = routes_for(f"{NEXUS}/other/x:x", unmanaged, Plane.OPERATOR)
    assert (login(beside), beside.writes) == (("u", "p"), False)
    (other_port,) = routes_for("nexus.corp.example/dkp/ee:x", unmanaged, Plane.OPERATOR)
    assert login(other_port) is None


def test_logical_names_lead_to_the_installations_registry_where_that_is_known() -> None:
    with pytest.raises(RouteError, match="name no registry outside of the cluster; give the sec"):
        routes_for(f"{BASE}:x", SETTINGS[ModeKind.LEGACY], Plane.CRI)
    known = RegistrySettings.load(
        {"kind": "InitConfiguration", "deckhouse": {"imagesRepo": "reg.example/dkp"}}
    )
    (route,) = routes_for(f"{BASE}/install:x", known, Plane.CRI)
    assert (route.host, route.repository) == ("reg.example", "dkp/install")


# -- what is impossible ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "plane"),
    [
        *(("Direct", plane) for plane in Plane),
        *(("Proxy", plane) for plane in Plane),
        *(("Unmanaged", plane) for plane in Plane),
    ],
)
def test_an_upstream_without_a_path_has_no_place_for_the_base(mode: str, plane: Plane) -> None:
    bare = settings(mode, "reg.example")
    with pytest.raises(RouteError, match=r"has no path behind the host.*reg.example/deckhouse/ee"):
        routes_for(f"{BASE}@{DIGEST}", bare, plane, SITES)
    below = routes_for(f"{BASE}/install:x", bare, plane, SITES)
    if below[0].role is Role.UPSTREAM:
        assert below[0].repository == "install"


def test_an_upstream_that_no_registry_could_have_is_told() -> None:
    with pytest.raises(RouteError, match=r"leads nowhere.*lower-case"):
        routes_for(f"{BASE}:x", settings("Direct", "reg.example/Upper"), Plane.CRI)


@pytest.mark.parametrize(
    ("kind", "plane", "user"),
    [
        (ModeKind.PROXY, Plane.CRI, RegistryUser.RO),
        (ModeKind.LOCAL, Plane.API, RegistryUser.RO),
        (ModeKind.LOCAL, Plane.OPERATOR, RegistryUser.RW),
        (ModeKind.LOCAL, Plane.REPLICA, RegistryUser.MIRROR_PULLER),
        (ModeKind.LOCAL, Plane.REPLICA, RegistryUser.MIRROR_PUSHER),
    ],
)
def test_a_password_that_is_not_known_is_told_with_its_place(
    kind: ModeKind, plane: Plane, user: RegistryUser
) -> None:
    accounts = {name: account for name, account in ACCOUNTS.items() if name is not user}
    sites = ClusterAccess(SITES.masters, SITES.ca, SITES.public_host, None, accounts)
    with pytest.raises(RouteError, match=f"Secret registry-user-{user} in d8-system"):
        routes_for(f"{BASE}:x", SETTINGS[kind], plane, sites)


def test_pushing_goes_to_a_replica_where_the_cluster_has_no_public_address() -> None:
    sites = ClusterAccess(masters=("10.0.0.1", "fd00::1"), ca="MODULE CA", accounts=ACCOUNTS)
    routes = routes_for(f"{BASE}:x", SETTINGS[ModeKind.LOCAL], Plane.OPERATOR, sites)
    assert [route.host for route in routes] == ["10.0.0.1:5001", "[fd00::1]:5001"]
    assert all(route.writes and route.writer == ACCOUNTS[RegistryUser.RW] for route in routes)
    nowhere = ClusterAccess(accounts=ACCOUNTS)
    with pytest.raises(RouteError, match="give the cluster's public domain, or the addresses"):
        routes_for(f"{BASE}:x", SETTINGS[ModeKind.LOCAL], Plane.OPERATOR, nowhere)
    with pytest.raises(RouteError, match="addresses of the masters"):
        routes_for(f"{BASE}:x", SETTINGS[ModeKind.LOCAL], Plane.REPLICA, nowhere)


@pytest.mark.parametrize("text", ["", "nginx", "a b/c:d", f"u:p@{BASE}:x", "/x:y"])
def test_no_reference_is_no_route(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        routes_for(text, SETTINGS[ModeKind.DIRECT], Plane.CRI)


# -- back again ------------------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from(["install", "modules", "a-b", "system", "deckhouse"]), max_size=4)


@given(
    parts=PARTS,
    kind=st.sampled_from([ModeKind.DIRECT, ModeKind.PROXY, ModeKind.UNMANAGED]),
    what=st.sampled_from([":v1.0.0", f"@{DIGEST}"]),
)
def test_from_the_upstream_back_to_the_logical_name(
    parts: list[str], kind: ModeKind, what: str
) -> None:
    reference = Reference.parse("/".join([BASE, *parts]) + what)
    (route,) = routes_for(reference, SETTINGS[kind], Plane.REPLICA)
    real = Reference(Repository(route.host, route.repository), reference.tag, reference.digest)
    assert logical(real, SETTINGS[kind]) == reference
    assert logical(reference, SETTINGS[kind]) == reference


def test_a_foreign_image_has_no_logical_name() -> None:
    for name in (f"{NEXUS}/dkp/eex:1", f"{NEXUS}/dkp:1", "docker.io/dkp/ee:1"):
        with pytest.raises(RouteError, match="does not lie below nexus"):
            logical(Reference.parse(name), SETTINGS[ModeKind.DIRECT])


def test_no_route_shows_a_password() -> None:
    for kind, plane in TABLE:
        for route in routes_for(f"{BASE}:x", SETTINGS[kind], plane, SITES):
            assert "password='" not in repr(route)
            assert "-password" not in repr(route)
    assert "-password" not in repr(SITES)
    assert NO_ACCESS.account(RegistryUser.RO) is None


def test_an_address_is_bracketed_where_it_must_be() -> None:
    assert master_host("10.0.0.1") == "10.0.0.1:5001"
    assert master_host("fd00::1") == master_host("[fd00::1]") == "[fd00::1]:5001"
