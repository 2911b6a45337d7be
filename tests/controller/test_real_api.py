"""The controller leads a cluster whose API is a real kube-apiserver, with its own rights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mirror.controller.kube import KubeApi
from mirror.controller.leading import Lease
from mirror.errors import DeniedError, UnreachableError
from mirror.modes import ConditionType, Mode, ModeKind, conditions_of
from mirror.modes.state import RegistryState
from tests.controller.cluster_life import Life, intercept
from tests.controller.leading import controller
from tests.controller.test_controller import WALK, left_over
from tests.support.program import ROOT
from tests.support.real_kube import RealKube, real_kube, with_rights_of

pytestmark = [
    pytest.mark.usefixtures("quick_keys", "made_once"),
    pytest.mark.soak,
    pytest.mark.timeout(1800),
]


ROTATED = {"Local": ["", "authority,users"], "Proxy": ["", "token"]}


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealKube]:
    with real_kube(tmp_path / "kube") as running:
        for name in ("controller.yaml", "nodeservices-manager.yaml"):
            text = (ROOT / "deploy/kubernetes" / name).read_text()
            with_rights_of(running.cluster, [*yaml.safe_load_all(text)])
        yield running


def test_a_cluster_is_led_through_all_modes_with_new_secrets_and_the_api_is_down_on_the_way(
    real: RealKube,
) -> None:
    cluster = real.cluster
    life = Life(cluster)
    api = KubeApi.connect(real.kubeconfig, timeout_s=60)

    def seen(send: Callable[[], object], method: str, path: str) -> object:
        answer = send()
        if method != "GET":
            cluster.on_change(method, ("", "", path.rpartition("/")[2]))
        return answer

    intercept(api, seen)
    lease = Lease(api, "mirror-controller", "one", duration_s=3600)
    assert lease.renew()
    for mode, rotated in [(one, what) for one in WALK for what in ROTATED.get(one, [""])]:
        life.want(mode)
        if rotated:
            life.rotate(rotated)
        for number in range(30):
            if (mode, number) == ("Local", 4):
                with real.down(), pytest.raises(UnreachableError):
                    controller(api).reconcile()
            done = controller(api, may_act=lambda: lease.held).reconcile()
            assert not isinstance(done, str), done
            life.live()
            if done.reached:
                break
        state = RegistryState.load(cluster.get("Secret", "registry-state"))
        assert (state.mode, state.target_mode) == (mode, mode)
        kind = ModeKind.of(Mode(mode), configurable=True)
        types = [one.type for one in state.conditions if one.type is not ConditionType.ROTATION]
        assert types == list(conditions_of(kind))
        assert bool(rotated) is (len(types) < len(state.conditions))
        assert all(one.status for one in state.conditions)
        assert life.broken == life.untrue == []
        versions = {
            one["metadata"]["name"]: one["metadata"]["resourceVersion"]
            for one in cluster.of("Secret") + cluster.of("Service") + cluster.of("Deployment")
        }
        controller(api).reconcile()
        again = cluster.of("Secret") + cluster.of("Service") + cluster.of("Deployment")
        for one in again:
            name = one["metadata"]["name"]
            assert one["metadata"]["resourceVersion"] == versions[name], (
                "at rest nothing is touched"
            )
    assert left_over(cluster) == set()
    lease.release()
    with pytest.raises(DeniedError, match="cannot get resource"):
        api.get("Secret", "one", "other")
    api.close()
