"""A fleet: who takes a new generation when, and from whom; the others are only asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml

from mirror.errors import (
    CancelledError,
    DeadlineError,
    InputError,
    MirrorError,
    UnreachableError,
)
from mirror.oci import Digest
from mirror.operations.trees import registry_inventory
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync import Inventory, make_plan
from mirror.sync.publication_state import statement_digest
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree
from mirror.testing import Answer, CorruptBody, Delay, EmbeddedRegistry, Fault, FaultyProxy
from mirror.watch.cycle import CycleResult, Replicator
from mirror.watch.daemon import running
from mirror.watch.fleet import (
    MOST_FAILED,
    Fleet,
    MemberState,
    Rollout,
    Rollouts,
    StagedRollout,
    advanced,
    reason_to_wait,
)
from mirror.watch.settings import CheckLevel, WatchSettings, Window
from tests.conftest import MakeRealRegistry
from tests.support.inventories import newer_store, sample_store
from tests.support.patience import wait_until
from tests.support.places import tree_of
from tests.support.replicas import ROOT, Replica, replicas

STORE = sample_store()
OLD, NEWS, LATER = (Digest.of(one) for one in (b"old", b"news", b"later"))
THREE_RINGS: dict[str, Any] = {
    "root": "dkp",
    "hub": {"address": "hub.example.com"},
    "rings": [
        {"name": "canary"},
        {"name": "early", "after": "1h", "may-lack": 1},
        {"name": "rest", "after": "1d"},
    ],
    "members": {
        name: {"address": f"{name}.example.com", "ring": ring}
        for name, ring in (
            ("c1", "canary"),
            ("c2", "canary"),
            ("e1", "early"),
            ("e2", "early"),
            ("r1", "rest"),
        )
    },
}
FLEET = Fleet.model_validate(THREE_RINGS)
HELD, BEHIND = MemberState(NEWS, 2), MemberState(OLD, 1)


def complaint(tmp_path: Path, **changes: Any) -> str:
    """The message for a fleet file with `changes`."""
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump({**THREE_RINGS, **changes}))
    with pytest.raises(InputError) as caught:
        Fleet.load(path)
    return str(caught.value)


# -- rings -----------------------------------------------------------------------------------------


def decided(ring: str, *looks: tuple[float, dict[str, MemberState]]) -> str | None:
    """Why `ring` still waits after looks at (seconds, who was seen how)."""
    rollout, reason = Rollout(NEWS, 2), None
    for now_s, seen in looks:
        rollout = advanced(rollout, FLEET, ring, seen, now_s)
        reason = reason_to_wait(rollout, FLEET, ring, seen, now_s)
    return reason


def test_the_first_ring_takes_what_is_new_at_once() -> None:
    assert decided("canary", (0.0, {})) is None


def test_a_ring_waits_until_the_one_before_holds_what_is_new_for_its_time() -> None:
    seen = {"c1": HELD, "c2": BEHIND}
    reason = "ring canary does not hold generation 2: c2 states generation 1"
    assert decided("early", (0.0, seen)) == reason
    seen = {"c1": HELD, "c2": HELD}
    reason = "ring early takes it 3600 s from now, if canary keeps it"
    assert decided("early", (9.0, seen)) == reason
    assert decided("early", (9.0, seen), (3608.0, seen)) is not None
    assert decided("early", (9.0, seen), (3609.0, seen)) is None


def test_a_ring_that_is_not_complete_any_more_stops_the_rings_behind_it() -> None:
    good, bad = {"c1": HELD, "c2": HELD}, {"c1": HELD, "c2": MemberState()}
    reason = "ring canary does not hold generation 2: c2 states nothing"
    assert decided("early", (0.0, good), (3000.0, bad)) == reason
    assert decided("early", (0.0, good), (3000.0, bad), (3600.0, good)) is not None, "time anew"
    assert decided("early", (0.0, good), (3000.0, bad), (3600.0, good), (7200.0, good)) is None


def test_a_ring_may_lack_as_many_members_as_it_says() -> None:
    canaries = {"c1": HELD, "c2": HELD}
    gone = MemberState(error=UnreachableError("no route", where="e2"))
    day = 86400.0
    assert decided("rest", (0.0, {**canaries, "e1": HELD, "e2": gone})) is not None
    seen = {**canaries, "e1": HELD, "e2": gone}
    assert decided("rest", (0.0, seen), (day, seen)) is None
    both = {**canaries, "e1": BEHIND, "e2": gone}
    assert decided("rest", (0.0, both), (day, both)) == (
        "ring early does not hold generation 2: e1 states generation 1, and 1 more do not hold it"
    )
    canary_gone = {**seen, "c1": gone}
    reason = decided("rest", (0.0, seen), (day, canary_gone))
    assert reason == ("ring canary does not hold generation 2: c1 does not answer (no route)"), (
        "each ring before counts"
    )


def test_a_member_that_holds_a_later_generation_holds_this_one_back_from_nobody() -> None:
    seen = {"c1": MemberState(LATER, 3), "c2": HELD}
    assert decided("early", (0.0, seen), (3600.0, seen)) is None
    unknown = {"c1": MemberState(LATER, None), "c2": HELD}
    assert decided("early", (0.0, unknown), (3600.0, unknown)) is not None


def test_a_fleet_file_is_checked_as_a_whole(tmp_path: Path) -> None:
    twice = [{"name": "canary"}, {"name": "canary"}]
    assert "rings: a name is there twice" in complaint(tmp_path, rings=twice)
    stray = {"a": {"address": "a.example.com", "ring": "late"}}
    assert "members.a.ring: 'late' is not a ring (canary, early, rest)" in complaint(
        tmp_path, members=stray
    )
    assert "canary has 0 members and may lack 0" in complaint(
        tmp_path, members={"a": {"address": "a.example.com", "ring": "rest"}}
    )
    assert "hub.address" in complaint(tmp_path, hub={"address": "hub.example.com/UPPER"})


def test_defaults_fill_in_what_a_registry_does_not_say_and_are_never_shown() -> None:
    document = {**THREE_RINGS, "defaults": {"login": "reader", "password": "a-secret"}}
    fleet = Fleet.model_validate(document)
    for place in (fleet.hub, fleet.members["r1"]):
        assert (place.login, place.secret()) == ("reader", "a-secret")
    assert "a-secret" not in repr(fleet)
    assert fleet.members_of("early") == ["e1", "e2"]
    assert [ring.name for ring in fleet.before("rest")] == ["canary", "early"]


# -- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "at", "left_s"),
    [
        ("22:00-05:00", "2026-03-01T21:59:59+00:00", None),
        ("22:00-05:00", "2026-03-01T22:00:00+00:00", 7 * 3600),
        ("22:00-05:00", "2026-03-02T04:59:30+00:00", 30),
        ("22:00-05:00", "2026-03-02T05:00:00+00:00", None),
        ("22:00-05:00", "2026-03-02T01:00:00+03:00", 7 * 3600),
        ("22:00-05:00 Europe/Moscow", "2026-03-01T19:00:00+00:00", 7 * 3600),
        ("01:30-01:31", "2026-03-01T01:30:59+00:00", 1),
    ],
)
def test_a_window_is_open_between_its_times(window: str, at: str, left_s: float | None) -> None:
    assert Window.parse(window).left_s(datetime.fromisoformat(at)) == left_s


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("24:00-05:00", "a window is needed"),
        (7, "a window is needed"),
        ("22:00-22:00", "leave it out"),
        ("22:00-05:00 Nowhere/Atlantis", "this machine knows no time zone Nowhere/Atlantis"),
        ("22:00-05:00 ../../etc/passwd", "this machine knows no time zone"),
    ],
)
def test_what_is_no_window_is_refused(text: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Window.parse(text)


# -- cycles ----------------------------------------------------------------------------------------


class Edges:
    """Registries, the first of which is the hub, and cycles of the others at times that we set."""

    def __init__(self, members: list[Replica]) -> None:
        self.hub, *self.edges = members
        self.now_s = self.passes_s = 0.0
        self._replicators: dict[int, Replicator] = {}

    def wall(self) -> datetime:
        """The time of day, which passes while it is asked for."""
        now = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)
        self.now_s += self.passes_s
        return now

    def join(
        self,
        edge: int,
        *,
        upstreams: tuple[int, ...] = (),
        members: dict[str, int] | None = None,
        **plan: Any,
    ) -> None:
        """Let an edge follow the hub in a way of its own."""
        staging = StagedRollout(
            Rollouts(**plan),
            members={name: self.edges[n].tree for name, n in (members or {}).items()},
            upstreams=[self.edges[number].tree for number in upstreams],
            clock=lambda: self.now_s,
            now=self.wall,
        )
        trees = {"hub": self.hub.tree, "edge": self.edges[edge].tree}
        self._replicators[edge] = Replicator(trees, "hub", staging=staging)

    def look(self, edge: int, level: CheckLevel = CheckLevel.STATEMENT) -> CycleResult:
        """One cycle of an edge; nobody says that it is complete and is not."""
        look = self._replicators[edge]("edge", level, Run())
        held = self.edges[edge].held()
        assert look.complete == (held == self.hub.held()), look
        return look

    def clear(self) -> None:
        """Forget all requests."""
        for one in (self.hub, *self.edges):
            one.registry.requests.clear()


class RealReplica(Replica):
    """A registry in another process, behind a proxy that keeps its requests; not those of `past`,
    the tree behind it."""

    def __init__(self, proxy: FaultyProxy, tree: RegistryTree, past: RegistryTree) -> None:
        super().__init__(cast(EmbeddedRegistry, proxy), tree)  # of both only requests are asked
        self._past = past

    def held(self) -> Inventory:
        found = registry_inventory(self._past).inventory
        return found.filtered(lambda path: path != REPOSITORY)


@contextmanager
def edges(count: int) -> Iterator[Edges]:
    """A hub that states the sample as generation 1, and empty edges."""
    with replicas(count + 1) as made:
        made[0].fill(STORE, 1)
        yield Edges(made)


def asked(registry: EmbeddedRegistry) -> list[tuple[str, int | None]]:
    """Method and status of what a registry was asked."""
    return [(one.method, one.status) for one in registry.requests]


def test_an_edge_waits_for_the_ring_before_and_asks_each_of_its_members_once() -> None:
    fleet = Fleet.model_validate(
        {
            "hub": {"address": "hub.example.com/dkp"},
            "rings": [{"name": "canary"}, {"name": "rest", "after": "1h"}],
            "members": {
                "c": {"address": "c.example.com/dkp", "ring": "canary"},
                "r": {"address": "r.example.com/dkp", "ring": "rest"},
            },
        }
    )
    with edges(2) as found:
        found.join(0, fleet=fleet, ring="canary")
        found.join(1, fleet=fleet, ring="rest", members={"c": 0})
        waits = found.look(1)
        assert waits.waiting == "ring canary does not hold generation 1: c states nothing"
        assert (waits.errors, waits.generation, waits.leader_generation) == ((), None, 1)
        assert found.look(0).complete
        assert "takes it 3600 s from now" in found.look(1).waiting
        found.clear()
        found.now_s = 3599.0
        assert "takes it 1 s from now" in found.look(1).waiting
        assert asked(found.hub.registry) == [("HEAD", 304)]
        assert asked(found.edges[0].registry) == [("GET", 200)]
        found.now_s = 3600.0
        assert found.look(1).complete
        found.clear()
        assert found.look(1).complete
        assert asked(found.hub.registry) == [("HEAD", 304)]
        assert asked(found.edges[0].registry) == [], "only while something new waits"


def test_an_edge_that_waits_keeps_what_it_has_and_is_compared_with_that() -> None:
    with edges(1) as found:
        found.join(0, window=Window.parse("22:00-05:00"))
        assert found.look(0).complete
        found.now_s = 12 * 3600.0
        found.hub.fill(newer_store(), 2)
        look = found.look(0, CheckLevel.AUDIT)
        assert look.waiting == "the window 22:00-05:00 is closed"
        assert (look.errors, look.generation, look.leader_generation, look.lag) == ((), 1, 2, 1)
        assert found.look(0).waiting
        for digest in STORE.inventory().repository("modules/console").manifests:
            found.edges[0].storage.delete_manifest("system/deckhouse/modules/console", digest)
        assert "modules/console" in found.look(0, CheckLevel.AUDIT).errors[0]
        found.now_s = 22 * 3600.0
        assert found.look(0, CheckLevel.AUDIT).complete


def test_what_a_window_cuts_short_goes_on_in_the_next() -> None:
    with edges(1) as found:
        found.join(0, window=Window.parse("00:00-05:00"))
        found.now_s, found.passes_s = 5 * 3600.0 - 0.5, 0.5
        found.hub.registry.faults.add(Fault(Delay(60.0), method="GET", path="/blobs/", times=None))
        look = found.look(0)
        assert look.waiting == "the window 00:00-05:00 is closed; what arrived is kept"
        assert look.errors == ()
        found.hub.registry.faults.clear()
        found.now_s = 24 * 3600.0
        assert found.look(0).complete


def test_an_edge_takes_everything_from_an_upstream_that_states_what_the_hub_states() -> None:
    with edges(2) as found:
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        waits = found.look(1)
        assert "no upstream states it yet; the leader gives it 600 s from now" in waits.waiting
        assert found.look(0).complete
        found.clear()
        look = found.look(1)
        assert look.complete
        assert look.leader == found.edges[0].name
        assert asked(found.hub.registry) == [("HEAD", 304)], "one question, and no byte"
        found.clear()
        assert found.look(1, CheckLevel.AUDIT).complete
        assert asked(found.hub.registry) == [("HEAD", 304)]


def test_edges_of_docker_registries_follow_each_other_in_tiers(
    make_real_registry: MakeRealRegistry,
) -> None:
    """The hub sends each byte once, of a bundle and of the next one, and each edge holds it all."""
    with ExitStack() as opened:
        members: list[Replica] = []
        for _ in range(3):
            real = make_real_registry()
            proxy = opened.enter_context(FaultyProxy(real.url))
            plain = ConnectionOptions(plain_http=True)
            before_it, behind = (
                tree_of(opened.enter_context(RegistryClient(one, options=plain)), ROOT)
                for one in (proxy.address, real.address)
            )
            members.append(RealReplica(proxy, before_it, behind))
        found, before = Edges(members), Inventory()
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        for generation, store in enumerate((STORE, newer_store()), 1):
            found.hub.fill(store, generation)
            assert "no upstream states it yet" in found.look(1).waiting
            found.clear()
            assert found.look(0).complete
            carried = make_plan(store.inventory(), before).blobs
            blobs = found.hub.registry.requests.matching(
                "GET", rf"{ROOT}/(?!{REPOSITORY}/).*blobs/"
            )
            assert sum(one.sent for one in blobs) == sum(step.size for step in carried)
            found.clear()
            look = found.look(1)
            assert (look.complete, look.leader) == (True, found.edges[0].name)
            assert asked(found.hub.registry) == [("HEAD", 304)], "one question, and no byte"
            assert found.edges[1].held() == store.inventory()
            before = store.inventory()


def test_what_an_upstream_lost_comes_from_the_hub() -> None:
    with edges(2) as found:
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        assert found.look(0).complete
        lost = next(iter(STORE.inventory().blob_sizes()))
        for repository in found.edges[0].storage.repositories():
            found.edges[0].storage.delete_blob(repository, lost)
        found.clear()
        assert found.look(1).complete
        assert found.hub.registry.requests.count("GET", f"/blobs/{lost}") == 1
        assert found.hub.registry.requests.count("GET", "/blobs/") == 1


def test_an_upstream_is_waited_for_only_so_long_and_then_the_hub_is_asked() -> None:
    with edges(2) as found:
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        found.edges[0].registry.__exit__(None, None, None)
        assert found.look(1).waiting
        found.now_s = 600.0
        look = found.look(1)
        assert look.complete
        assert look.leader == found.hub.name


def test_an_upstream_that_states_anything_else_is_not_followed() -> None:
    """Whoever may write to an edge cannot lead the edges behind it."""
    with edges(2) as found:
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        found.edges[0].fill(newer_store(), 9)
        assert found.look(1).waiting
        found.now_s = 600.0
        assert found.look(1).leader == found.hub.name


def test_an_upstream_whose_tags_contradict_its_statement_is_left_and_the_hub_gives_it() -> None:
    with edges(2) as found:
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        assert found.look(0).complete
        near = found.edges[0]
        manifests = near.held().repository("").manifests
        tag, digest = next(iter(STORE.inventory().repository("").tags.items()))
        other = next(one for one in manifests if one != digest)
        near.tree.client.put_manifest(ROOT, tag, near.tree.client.manifest(ROOT, other))
        look = found.look(1)
        assert not look.complete
        assert "its statement contradicts its tags" in look.errors[0]
        assert "no upstream states it yet" in found.look(1).waiting
        found.now_s = 600.0
        look = found.look(1)
        assert (look.complete, look.leader) == (True, found.hub.name)


BAD = {
    "its statement": Fault(Answer(500), "GET", "/mirror/inventory/blobs/", times=None),
    "its manifests": Fault(Answer(404), "GET", "/manifests/sha256", times=None),
    "its tags": Fault(Answer(403), "GET", "/tags/list", times=None),
    "its blobs": Fault(Answer(403), "GET", "/blobs/", times=None),
    "its bytes": Fault(CorruptBody(0), "GET", "/blobs/", times=None),
}


@pytest.mark.parametrize("refused", BAD)
def test_an_upstream_that_only_says_that_it_has_it_keeps_nobody_from_it(refused: str) -> None:
    with edges(2) as found:
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        assert found.look(0).complete
        found.edges[0].registry.faults.add(BAD[refused])
        looks, is_complete = 0, False
        while not is_complete and looks < MOST_FAILED + 1:
            looks, found.now_s = looks + 1, found.now_s + 600.0
            with suppress(MirrorError):
                is_complete = found.look(1).complete
        assert is_complete


@pytest.mark.parametrize("trouble", ["full", "denies"])
def test_a_failure_of_the_replica_does_not_count_against_the_upstream(trouble: str) -> None:
    answers = {"full": Fault(Answer(507), "POST", "/blobs/", times=None)}
    fault = answers.get(trouble, Fault(Answer(403), "PUT", "/manifests/", times=None))
    with edges(2) as found:
        found.join(0)
        found.join(1, upstreams=(0,), upstream_wait_s=600.0)
        assert found.look(0).complete
        found.edges[1].registry.faults.add(fault)
        for _ in range(MOST_FAILED):
            assert found.edges[1].name in found.look(1).errors[0]
        found.edges[1].registry.faults.clear()
        look = found.look(1)
        assert (look.complete, look.leader) == (True, found.edges[0].name)


@pytest.mark.parametrize("error", [DeadlineError("late"), CancelledError("stopped")])
def test_a_look_that_was_stopped_does_not_count_against_the_upstream(error: MirrorError) -> None:
    with replicas(1) as (upstream,):
        upstream.fill(STORE, 1)
        news = statement_digest(upstream.tree)
        assert news is not None
        staging = StagedRollout(Rollouts(), upstreams=[upstream.tree])
        own = MirrorError("is broken", where=f"GET {upstream.name}/a")

        def is_followed() -> bool:
            return staging.source(news, statement_digest, Run()) is not None

        for errors in ([own], [own], [error], []):
            staging.note_outcome(upstream.tree, news, errors)
        for _ in range(MOST_FAILED):
            assert is_followed(), "the look that succeeded cleared what was counted"
            staging.note_outcome(upstream.tree, news, [own])
        assert not is_followed()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ring": "rest"}, "fleet and ring go together"),
        ({"leader": "auto", "window": "22:00-05:00"}, "need a leader by name"),
        ({"upstreams": ["hub"]}, "upstreams: hub is the leader or a replica"),
        ({"upstreams": ["edge"]}, "upstreams: edge is the leader or a replica"),
        ({"upstreams": ["far"]}, "upstreams: 'far' is not one of the registries"),
        ({"window": "night"}, "window: a window is needed: 22:00-05:00"),
    ],
)
def test_settings_that_make_no_sense_together_are_told(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    names = ("hub", "near", "edge")
    document = {
        "leader": "hub",
        "this": "edge",
        "root": "dkp",
        "registries": {name: {"address": f"{name}.example.com"} for name in names},
        "upstreams": ["near"],
        "window": "22:00-05:00",
    }
    path = tmp_path / "replication.yaml"
    path.write_text(yaml.safe_dump(document))
    settings = WatchSettings.load(path)
    assert settings.followers == ("edge",)
    path.write_text(yaml.safe_dump({**document, **changes}))
    with pytest.raises(InputError, match=problem):
        WatchSettings.load(path)


def test_upstreams_are_no_replicas_of_a_daemon_that_names_none() -> None:
    names = ("hub", "near", "one", "two")
    settings = WatchSettings.model_validate(
        {
            "leader": "hub",
            "root": "dkp",
            "registries": {name: {"address": f"{name}.example.com"} for name in names},
            "upstreams": ["near"],
        }
    )
    assert settings.followers == ("one", "two")


# -- the daemon ------------------------------------------------------------------------------------


def test_a_daemon_follows_its_fleet_file_and_says_at_readyz_what_it_waits_for(
    tmp_path: Path,
) -> None:
    with edges(2) as found:
        canary, rest = found.edges
        places = {"insecure": True}
        fleet = {
            "defaults": places,
            "hub": {"address": found.hub.name},
            "rings": [{"name": "canary"}, {"name": "rest"}],
            "members": {
                "c": {"address": canary.name, "ring": "canary"},
                "r": {"address": rest.name, "ring": "rest"},
            },
        }
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet))
        settings = WatchSettings.model_validate(
            {
                "leader": "hub",
                "this": "r",
                "interval": 0.1,
                "listen": "127.0.0.1:0",
                "fleet": str(tmp_path / "fleet.yaml"),
                "ring": "rest",
                "upstreams": ["near"],
                "registries": {
                    "hub": {"address": found.hub.name, **places},
                    "near": {"address": canary.name, **places},
                    "r": {"address": rest.name, **places},
                },
            }
        )
        with running(settings) as (_, url):

            def told(key: str) -> Any:
                answer = httpx.get(f"{url}/readyz")
                one = answer.json()["replicas"]["r"] or {}
                assert (answer.status_code == 200) == bool(one.get("complete"))
                return one.get(key)

            wait_until(lambda: told("waiting"))
            assert told("waiting") == "ring canary does not hold generation 1: c states nothing"
            assert 'mirror_replica_waiting{replica="r"} 1.0' in httpx.get(f"{url}/metrics").text
            canary.fill(STORE, 1)
            wait_until(lambda: told("complete"))
            page = httpx.get(f"{url}/readyz").json()
            assert page["progress"].keys() == {"r"}
        assert rest.held() == found.hub.held()
        assert found.hub.registry.requests.count("GET", "/blobs/") == 0
