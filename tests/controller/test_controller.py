"""The controller leads a cluster from mode to mode, whatever dies meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.controller import Switch
from mirror.controller.cluster import Controller, _ApiObserver
from mirror.controller.kube import KubeApi
from mirror.controller.leading import Lease, lead
from mirror.errors import CancelledError, ConflictError, InvalidStateError, UnreachableError
from mirror.modes import ConditionType, Mode, ModeKind, RegistryUser, conditions_of
from mirror.modes.outcomes import ReplicaPod, StepOutcome
from mirror.modes.settings import ClusterFacts, NodeFacts
from mirror.modes.state import RegistryState, inputs_hash
from mirror.nodeconfig.service_secrets import ServiceSecrets, parse_secrets
from tests.conftest import MakeEmbeddedRegistry
from tests.controller.cluster_life import Life, intercept, replica
from tests.controller.leading import OPTIONS, controller, settle, state_of
from tests.support.cluster_replicas import image, put
from tests.support.kube_api import KubeCluster, KubeServer, kube_server
from tests.support.patience import ends_within
from tests.support.program import ROOT
from tests.support.real_kube import RealCluster
from tests.support.rendered_cluster import NODES, kept, local

pytestmark = pytest.mark.usefixtures("made_once")


@pytest.fixture
def life(cluster: KubeCluster) -> Life:
    return Life(cluster)


def left_over(cluster: KubeCluster | RealCluster) -> set[str]:
    """What the modes that are no more had in the cluster."""
    return {
        one["metadata"]["name"]
        for kind in ("Secret", "Service", "Deployment", "Ingress", "PodDisruptionBudget")
        for one in cluster.of(kind)
        if one["metadata"].get("labels", {}).get("module") == "registry"
    } - {"registry-config", "registry-state", "deckhouse-registry", "registry-bashible-config"}


WALK = ("Unmanaged", "Direct", "Local", "Direct", "Proxy", "Unmanaged")


def test_a_cluster_is_led_through_all_modes_and_back_without_a_route_missing(
    tmp_path: Path, cluster: KubeCluster, life: Life
) -> None:
    text = (ROOT / "deploy/kubernetes/controller.yaml").read_text()
    with kube_server(tmp_path, cluster, list(yaml.safe_load_all(text))) as server:
        api = KubeApi.connect(server.kubeconfig)
        for mode in WALK:
            life.want(mode)
            done = settle(controller(api), life)
            state = state_of(cluster)
            assert (state.mode, state.target_mode) == (mode, mode)
            kind = ModeKind.of(Mode(mode), configurable=True)
            assert [one.type for one in state.conditions] == list(conditions_of(kind))
            assert all(one.status for one in state.conditions)
            assert "secret-of-upstream" not in done.summary()
            written = cluster.version
            controller(api).reconcile()
            assert cluster.version == written, "at rest nothing is touched"
        api.close()
    assert life.broken == life.untrue == []
    assert left_over(cluster) == set()
    secret, pods = cluster.get("Secret", "deckhouse-registry"), cluster.get("Pod", "deckhouse-0")
    assert secret is not None
    assert pods is not None
    note = pods["metadata"]["annotations"]["registry.deckhouse.io/version"]
    assert note != inputs_hash(secret["data"]), "nobody can try passwords by it"


def test_masters_take_new_files_one_after_the_other_and_only_while_all_others_serve(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Proxy")
    settle(controller(api), life)
    life.want("Proxy", "dkp/fe")
    given = []
    for _ in range(4):
        done = controller(api).reconcile()
        assert not isinstance(done, str)
        given.append(sorted(done.waiting))
        cluster.write(replica("master-0", "being-restarted", ready=False))
        held = controller(api).reconcile()
        assert not isinstance(held, str)
        assert held.waiting >= done.waiting - {"master-0"}
        life.live()
    assert given == [["master-1", "master-2"], ["master-2"], [], []]
    assert settle(controller(api), life).reached
    assert life.broken == life.untrue == []


PHASES = ("trust what is new beside the old", "use what is new", "trust the old no more")


@pytest.mark.usefixtures("quick_keys")
@pytest.mark.parametrize(
    ("mode", "what"),
    [
        ("Local", "authority,users"),
        pytest.param("Proxy", "authority", marks=pytest.mark.soak),
        pytest.param("Direct", "token,users", marks=pytest.mark.soak),
    ],
)
def test_authority_token_keys_and_passwords_change_in_steps_and_no_pull_fails(
    cluster: KubeCluster, life: Life, api: KubeApi, mode: str, what: str
) -> None:
    life.want(mode)
    settle(controller(api), life)
    before = kept_by(cluster)
    life.rotate(what)
    told: list[str] = []
    for _ in range(40):
        done = controller(api).reconcile()
        assert not isinstance(done, str)
        life.live()
        found = {one.type: one for one in state_of(cluster).conditions}
        if done.reached:
            break
        assert found[ConditionType.READY].message in (
            "Rotating secrets",
            f"Transitioning to {mode}",
        )
        if (message := found[ConditionType.ROTATION].message.partition(":")[0]) not in told:
            told.append(message)
    assert [one.partition(",")[0] for one in told] == [*PHASES]
    assert all(one.status for one in found.values())
    assert [*found][-2:] == [ConditionType.ROTATION, ConditionType.READY]
    assert life.broken == life.untrue == []
    after = kept_by(cluster)
    assert (after.authority != before.authority) is ("authority" in what)
    assert (after.users != before.users) is ("users" in what)
    assert after.token != before.token
    assert (after.rotation, after.beside, after.former, after.token_former) == (None, {}, (), ())
    state = cluster.get("Secret", "registry-state")
    assert state is not None
    assert "deckhouse-mirror/rotate" not in state["metadata"]["annotations"]
    written = cluster.version
    controller(api).reconcile()
    assert cluster.version == written, "it was asked for once"


@pytest.mark.soak
def test_a_rotation_that_cannot_be_is_told_with_the_way_and_carried_out_where_it_can_be(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Proxy")
    settle(controller(api), life)

    def asked(what: str) -> tuple[bool, str]:
        life.rotate(what)
        done = controller(api).reconcile()
        assert not isinstance(done, str)
        written = cluster.version
        controller(api).reconcile()
        assert cluster.version == written
        found = {one.type: one for one in state_of(cluster).conditions}
        one = found[ConditionType.ROTATION]
        assert (one.status, one.reason) == (False, "Error")
        return done.reached, one.message

    reached, message = asked("token,all")
    assert reached
    assert message == "rotation: expected authority, token, users, found 'all'; correct it"
    reached, message = asked("users")
    assert reached
    assert message == (
        "rotation: the masters' agent lets one login of each user in, and caches have no user "
        "whose place a second one could take; switch to Direct, where it is carried out, and back"
    )
    life.want("Direct")
    settle(controller(api), life)
    assert kept_by(cluster).users[RegistryUser.RO].account.name == "ro-2"
    assert life.broken == life.untrue == []


@pytest.mark.soak
@pytest.mark.usefixtures("quick_keys")
@pytest.mark.parametrize("passes", [1, 4, 8, 12])
def test_a_switch_in_the_midst_of_a_rotation_comes_first_and_the_rotation_goes_on(
    cluster: KubeCluster, life: Life, api: KubeApi, passes: int
) -> None:
    life.want("Local")
    settle(controller(api), life)
    before = kept_by(cluster)
    life.rotate("authority,users")
    for _ in range(passes):
        controller(api).reconcile()
        life.live()
    held = kept_by(cluster).rotation  # None in the last step
    life.want("Direct")
    for _ in range(20):
        controller(api).reconcile()
        life.live()
        if state_of(cluster).mode is Mode.DIRECT:
            break
        assert kept_by(cluster).rotation == held
    settle(controller(api), life)
    after = kept_by(cluster)
    assert (after.rotation, after.beside) == (None, {})
    assert after.authority != before.authority
    life.want("Local")
    settle(controller(api), life)
    assert life.broken == life.untrue == []


def test_a_request_is_withdrawn_by_removing_it(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Direct")
    settle(controller(api), life)
    life.rotate("nothing")
    controller(api).reconcile()
    told = state_of(cluster).conditions[-2]
    assert (told.type, told.status, told.reason) == (ConditionType.ROTATION, False, "Error")
    assert told.message == "rotation: expected authority, token, users, found 'nothing'; correct it"
    life.rotate("")
    controller(api).reconcile()
    kind = ModeKind.of(Mode.DIRECT, configurable=True)
    assert [one.type for one in state_of(cluster).conditions] == list(conditions_of(kind))


def kept_by(cluster: KubeCluster) -> ServiceSecrets:
    private = state_of(cluster).private
    assert private is not None
    return parse_secrets(json.loads(private.get_secret_value())["secrets"], "registry-state")


class Crash(BaseException):
    """The process died."""


def dying(api: KubeApi, left: list[int]) -> Controller:
    """A controller that dies when as many more requests, and one, have been answered."""

    def counted(send: Callable[[], Any], _method: str, _path: str) -> Any:
        answer = send()
        left[0] -= 1
        if left[0] < 0:
            raise Crash
        return answer

    intercept(api, counted)
    return controller(api)


def test_one_that_dies_after_every_request_comes_to_the_same(
    server: KubeServer, cluster: KubeCluster, life: Life
) -> None:
    ends = []
    for mode in ("Direct", "Local"):
        life.want(mode)
        for after in range(200):
            api = KubeApi.connect(server.kubeconfig)
            try:
                done = dying(api, [after]).reconcile()
                assert not isinstance(done, str), done
                if done.reached:
                    break
            except Crash:
                pass
            finally:
                api.close()
            life.live()
        ends.append(after)
        assert state_of(cluster).mode == mode
    assert min(ends) > 20
    assert life.broken == life.untrue == []


def test_an_api_that_is_down_for_a_while_delays_and_changes_nothing(
    server: KubeServer, cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Local")
    one = controller(api)
    for _ in range(30):
        with server.down(), pytest.raises(UnreachableError):
            one.reconcile()
        done = one.reconcile()
        life.live()
        if not isinstance(done, str) and done.reached:
            break
    assert state_of(cluster).mode is Mode.LOCAL
    assert life.broken == life.untrue == []


def test_settings_that_cannot_be_read_are_told_and_nothing_is_changed(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Direct")
    settle(controller(api), life)
    before = {key: one for key, one in cluster.objects.items() if key[2] != "registry-state"}
    config = cluster.get("ModuleConfig", "deckhouse", "")
    assert config is not None
    config["spec"]["settings"]["registry"] = {"mode": "Local", "direct": {"password": "s3cret"}}
    cluster.write(config)
    assert isinstance(controller(api).reconcile(), str)
    last = state_of(cluster).conditions[-1]
    assert (last.type, last.status, last.reason) == (ConditionType.READY, False, "Error")
    assert "ModuleConfig deckhouse cannot be read, and nothing is changed" in last.message
    assert "s3cret" not in last.message
    cluster.remove("ModuleConfig", "deckhouse", "")
    assert isinstance(controller(api).reconcile(), str)
    after = {key: one for key, one in cluster.objects.items() if key[2] != "registry-state"}
    assert {k: v for k, v in after.items() if k[0] != "ModuleConfig"} == {
        k: v for k, v in before.items() if k[0] != "ModuleConfig"
    }
    life.want("Direct")
    assert settle(controller(api), life).reached


def test_a_switch_that_is_not_supported_is_refused_with_the_way_that_is_open(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Local")
    settle(controller(api), life)
    life.want("Proxy")
    done = controller(api).reconcile()
    assert not isinstance(done, str)
    assert "go Local → Direct → Proxy" in done.summary()
    assert state_of(cluster).conditions[-1].type is ConditionType.NOT_SUPPORTED
    life.want("Local")
    assert settle(controller(api), life).reached
    assert ConditionType.NOT_SUPPORTED not in [one.type for one in state_of(cluster).conditions]


def test_a_state_of_another_program_is_left_alone(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    secret = RegistryState(mode=Mode.LOCAL, target_mode=Mode.LOCAL).to_secret()
    cluster.write(secret)
    written = cluster.version
    with pytest.raises(InvalidStateError, match="another program wrote it"):
        controller(api).reconcile()
    assert cluster.version == written


def test_what_somebody_else_manages_is_told_and_taken_over_only_by_force(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Direct")
    one = controller(api, force=False)
    for _ in range(8):
        one.reconcile()
        life.live()
    last = state_of(cluster).conditions[-1]
    assert last.reason == "Error"
    assert 'conflict with "test" using v1: .data' in last.message
    assert life.broken == life.untrue == []
    assert settle(controller(api), life).reached


def test_a_switch_that_was_begun_can_be_withdrawn(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Unmanaged")
    settle(controller(api), life)
    for passes in (1, 3, 5):
        life.want("Local")
        for _ in range(passes):
            controller(api).reconcile()
            life.live()
        life.want("Unmanaged")
        settle(controller(api), life)
        assert left_over(cluster) == set()
    assert life.broken == life.untrue == []


def test_the_end_waits_for_the_masters_registries_and_says_so() -> None:
    class Starting:
        def replicas(self, switch: Switch) -> list[ReplicaPod]:
            return [
                ReplicaPod(name, True, False, switch.final.masters[name]) for name in switch.masters
            ]

    def switch(version: str) -> Switch:
        nodes = tuple(NodeFacts(node.name, node.master, version=version) for node in NODES)
        observer: Any = Starting()
        facts = ClusterFacts(nodes=nodes)
        return Switch(local(), None, facts, NODES, kept(), observer, OPTIONS)

    outcome = switch(switch("").final.version).observe(ConditionType.FINAL)
    assert not outcome.ready
    assert outcome.message.startswith("0/3 node(s) ready. Waiting:\n- master-0: services pod(s)")


# -- one of several --------------------------------------------------------------------------------


def test_a_lease_is_one_s_at_a_time_and_goes_over_when_it_is_not_renewed(
    api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("mirror.controller.leading.time.monotonic", lambda: now[0])
    one, two = Lease(api, "l", "one"), Lease(api, "l", "two")
    assert one.renew()
    assert not two.renew()
    now[0] += 9
    assert one.held
    assert one.renew()
    now[0] += 9
    assert not two.renew(), "it saw a renewal since"
    now[0] += 2
    assert not one.held, "the holder stops before another may begin"
    now[0] += 5
    assert not two.renew()
    now[0] += 9
    assert two.renew()
    assert not one.renew()
    assert not one.held
    two.release()
    assert not two.held
    assert one.renew(), "what was given back is free at once"
    assert not two.renew(), "who gave it back takes it no more"


def test_a_late_request_does_not_undo_what_the_next_leader_did(
    cluster: KubeCluster, api: KubeApi
) -> None:
    def secret(text: str) -> dict[str, Any]:
        metadata = {"name": "routes", "namespace": "d8-system"}
        kind = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}
        return {**kind, "metadata": metadata, "stringData": {"config": text}}

    def hangs() -> bool:
        """The process stands still right after it was told that it may act."""
        api.apply(secret("new"), force=True)
        return True

    api.apply(secret("old"))
    former = controller(api, may_act=hangs)
    with pytest.raises(CancelledError, match="Secret routes changed while this pass worked"):
        former._apply(secret("between"))
    there = cluster.get("Secret", "routes")
    assert there is not None
    assert there["stringData"] == {"config": "new"}


def test_a_late_request_does_not_start_deckhouse_anew_for_what_was_before(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    def noted(version: str) -> dict[str, Any]:
        note = {"registry.deckhouse.io/version": version}
        return {"spec": {"template": {"metadata": {"annotations": note}}}}

    def hangs() -> bool:
        api.merge("Deployment", "deckhouse", noted("new"))
        return True

    late = _ApiObserver(controller(api, may_act=hangs), [])
    with pytest.raises(ConflictError, match="the object has been modified"):
        late._restart("old")
    there = cluster.get("Deployment", "deckhouse")
    assert there is not None
    assert there["spec"]["template"]["metadata"]["annotations"] == {
        "registry.deckhouse.io/version": "new"
    }


def test_what_comes_back_late_goes_again_also_where_nothing_is_managed_any_more(
    cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    life.want("Unmanaged")
    settle(controller(api), life)
    labels = {"heritage": "deckhouse", "module": "registry"}
    late = {"metadata": {"name": "registry-pki", "namespace": "d8-system", "labels": labels}}
    api.apply({"apiVersion": "v1", "kind": "Secret", "type": "registry/pki", **late})
    cluster.write({"apiVersion": "v1", "kind": "Secret", **_named(late, "registry-theirs")})
    settle(controller(api), life)
    assert cluster.get("Secret", "registry-pki") is None
    assert cluster.get("Secret", "registry-theirs") is not None, "what others made stays"
    assert cluster.get("Secret", "deckhouse-registry") is not None


def _named(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "name": name}}


def test_of_two_that_run_one_acts_and_the_other_goes_on_when_it_ends(
    server: KubeServer, cluster: KubeCluster, life: Life
) -> None:
    acted: list[str] = []
    ended = threading.Event()

    def of(name: str) -> tuple[threading.Thread, threading.Event]:
        api, stop = KubeApi.connect(server.kubeconfig), threading.Event()

        def noted(send: Callable[[], Any], method: str, path: str) -> Any:
            if method != "GET" and "/leases" not in path:
                acted.append(name)
            return send()

        intercept(api, noted)
        lease = Lease(api, "mirror-controller", name)
        work = (controller(api), lease, stop)
        thread = threading.Thread(target=lead, args=work, kwargs={"pace": 0.05})
        thread.start()
        return thread, stop

    def until(reached: Callable[[], bool]) -> None:
        for _ in range(1000):
            life.live()
            if reached():
                return
            ended.wait(0.05)
        raise AssertionError(state_of(cluster))

    def at_rest(mode: Mode) -> bool:
        state = state_of(cluster)
        return state.mode is mode and not state.in_flight

    running = {"one": of("one")}
    life.want("Direct")
    until(lambda: bool(acted))
    running["two"] = of("two")
    until(lambda: at_rest(Mode.DIRECT))
    assert set(acted) == {"one"}
    thread, stop = running.pop("one")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    life.want("Local")
    until(lambda: at_rest(Mode.LOCAL))
    thread, stop = running.pop("two")
    stop.set()
    thread.join(10)
    first_of_two = acted.index("two")
    assert set(acted[:first_of_two]) == {"one"}
    assert set(acted[first_of_two:]) == {"two"}
    lease = cluster.get("Lease", "mirror-controller")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""
    assert life.broken == life.untrue == []


def test_a_bug_ends_the_program_and_an_api_that_hangs_does_not_hold_up_its_end(
    api: KubeApi, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> StepOutcome:
        raise KeyError("bug")

    never = threading.Event()
    monkeypatch.setattr(Lease, "release", lambda _: never.wait(60))
    life.want("Direct")
    with ends_within(30.0), pytest.raises(KeyError, match="bug"):
        lead(controller(api, images=broken), Lease(api, "l", "one"), threading.Event(), pace=0.05)
    never.set()


# -- the required images ---------------------------------------------------------------------------


def test_required_are_the_images_that_the_platform_runs_or_those_of_a_list(
    make_embedded_registry: MakeEmbeddedRegistry, cluster: KubeCluster, life: Life, api: KubeApi
) -> None:
    upstream = make_embedded_registry()
    here, gone, foreign = image(1), image(2), image(3)
    put(upstream, "dkp/ee", here, "v1.70.0")
    life.want("Direct")
    config = cluster.get("ModuleConfig", "deckhouse", "")
    assert config is not None
    section = {"imagesRepo": f"{upstream.address}/dkp/ee", "scheme": "HTTP"}
    config["spec"]["settings"]["registry"] = {"mode": "Direct", "direct": section}
    cluster.write(config)
    for number, (base, one) in enumerate(
        (("nexus.example:8443/dkp/ee", here), ("elsewhere.example/app", foreign))
    ):
        pod = running_pod(f"p{number}", f"{base}@{one.manifest.digest}")
        cluster.write(pod)

    def checked(**more: Any) -> tuple[bool, str]:
        one = controller(api, images=None, **more)
        one.reconcile()
        found = {each.type: each for each in state_of(cluster).conditions}
        outcome = found[ConditionType.IMAGES]
        return outcome.status, outcome.message

    assert checked()[0]
    absent, message = checked(digests=f"{here.manifest.digest}\n{gone.manifest.digest}\n")
    assert not absent
    assert "items with errors" in message
    cluster.write(running_pod("p2", f"nexus.example:8443/dkp/ee@{gone.manifest.digest}"))
    missing, message = checked()
    assert not missing
    assert "source: pod d8-monitoring/p2" in message


def running_pod(name: str, reference: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "d8-monitoring", "labels": {"app": "x"}}
    spec = {"containers": [{"name": "main", "image": reference}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
