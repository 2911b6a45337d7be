"""An API, or a proxy before it, whose answers are not what the API says."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from mirror.controller.cluster import Controller
from mirror.controller.kube import RESOURCES, KubeApi
from mirror.controller.leading import Lease
from mirror.errors import MirrorError
from mirror.modes.outcomes import StepOutcome
from mirror.nodeconfig.render import RenderOptions
from tests.controller.cluster_life import Life
from tests.support.kube_api import KubeCluster
from tests.support.rendered_cluster import ALL_IMAGES

pytestmark = pytest.mark.usefixtures("made_once")
ODD: tuple[Any, ...] = (None, 5, [], ["x"], {}, {"x": "y"}, "//79")  # the last is no UTF-8
_KINDS = {one.plural: kind for kind, one in RESOURCES.items()}
Objects = dict[tuple[str, str, str], dict[str, Any]]


class OddApi(KubeApi):
    """Has the objects of a cluster, as they are, and takes every change."""

    def __init__(self, cluster: KubeCluster) -> None:
        self.host, self.timeout_s, self.cluster = "http://api", 1.0, cluster

    def _send(self, method: str, path: str, query: Mapping[str, str], body: Any, *_: Any) -> Any:
        above, last = path.split("/")[-2:]
        kind, name = (_KINDS[last], "") if last in _KINDS else (_KINDS[above], last)
        if method in ("PUT", "POST", "PATCH"):
            name = body["metadata"]["name"]
            key = (kind, body["metadata"].get("namespace", ""), name)
            metadata = {**body["metadata"], "resourceVersion": "7"}
            self.cluster.objects[key] = {**body, "metadata": metadata}
        objects = self.cluster.objects.items()
        if method == "DELETE" or not name:
            items = [one for key, one in objects if key[0] == kind]
            found: Any = {"items": items, "metadata": {"resourceVersion": "7"}}
        else:
            found = next((one for key, one in objects if (key[0], key[2]) == (kind, name)), None)
        content = json.dumps(found).encode()
        return SimpleNamespace(status=404 if found is None else 200, read=lambda: content)


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in inner:
        yield (*above, key)
        yield from paths(one, (*above, key))


def altered(objects: Objects, every: int) -> Iterator[tuple[str, KubeCluster]]:
    """The objects, of which one has something odd at one place: every so many such cases."""
    places = [(key, path) for key, one in objects.items() for path in paths(one)]
    for number in range(every // 2, len(places), every):
        key, path = places[number]
        cluster = KubeCluster()
        cluster.objects = copy.deepcopy(objects)
        at: Any = cluster.objects[key]
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = odd = ODD[number // every % len(ODD)]
        yield f"{key[0]} {key[2]}: {path} is {odd!r}", cluster


def stages(cluster: KubeCluster, api: KubeApi, most: int) -> Iterator[Objects]:
    """What a cluster has at each stage of its way to Direct mode."""
    life = Life(cluster)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}
    cluster.write({**lease, "spec": {"holderIdentity": "one", "leaseDurationSeconds": 15}})
    life.want("Direct")
    for _ in range(most):
        done = controller(api).reconcile()
        assert not isinstance(done, str), done
        yield cluster.objects
        life.live()
        if done.reached:
            return


def controller(api: KubeApi) -> Controller:
    options = RenderOptions(images=ALL_IMAGES)
    return Controller(api, options, force=True, images=lambda _: StepOutcome(True))


def ends_of_passes(objects: Objects, every: int) -> list[str]:
    ended: list[str] = []
    for told, cluster in altered(objects, every):
        api = OddApi(cluster)
        lease = Lease(api, "l", "two")
        for attempt in (controller(api).reconcile, lease.renew, lease.release):
            try:
                attempt()
            except MirrorError as err:
                ended.append(str(err))
            except Exception as err:
                err.add_note(told)
                raise
    assert not any("//79" in one for one in ended)
    return ended


def test_whatever_an_object_has_a_pass_ends_with_one_of_our_errors(
    cluster: KubeCluster, api: KubeApi
) -> None:
    *_, objects = stages(cluster, api, 1)
    ended = ends_of_passes(objects, 13)
    assert any("the answer has not the form that the API gives it" in one for one in ended)


@pytest.mark.soak
def test_whatever_an_object_has_at_any_stage_a_pass_ends_with_one_of_our_errors(
    cluster: KubeCluster, api: KubeApi
) -> None:
    assert sum(len(ends_of_passes(objects, 3)) for objects in stages(cluster, api, 30)) > 100
