"""The static pods of nginx on every node: balancer and relay."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RenderingError
from mirror.modes import Mode
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.pulling import Containerd, Nginx, balancer_files
from mirror.nodeconfig.render import Rendered, RenderOptions, render
from mirror.nodeconfig.tree import (
    BALANCER_FILE,
    BALANCER_POD,
    RELAY_FILE,
    RELAY_POD,
    STATIC_POD,
    STATIC_PODS,
    Tree,
)
from tests.support.rendered_cluster import (
    ALL_IMAGES,
    IMAGES,
    MASTERS,
    NODES,
    WORKER,
    direct,
    kept,
    legacy,
    local,
    proxy,
    unmanaged,
    upstream_ca,
)

FORK = RenderOptions(images=ALL_IMAGES)
STOCK = RenderOptions(Containerd.STOCK, images=ALL_IMAGES)
FLAVOURS = {"deckhouse": FORK, "stock": STOCK}
BALANCER, RELAY = BALANCER_POD, RELAY_POD
EVERY = {
    "Direct": direct(ca=upstream_ca()),
    "Direct, other path": direct("nexus.example:8443/dkp/fe"),
    "Direct, other login": direct(password="q", ca=upstream_ca()),
    "Proxy": proxy(),
    "Proxy, other login": proxy(password="q"),
    "Local": local(),
    "Unmanaged": unmanaged(),
    "legacy": legacy(),
}


@cache
def done(flavour: str, after: str, before: str | None = None) -> Rendered:
    previous = None if before is None else EVERY[before]
    options = FLAVOURS[flavour]
    return render(EVERY[after], NODES, kept(), previous=previous, options=options)


def test_nginx_may_open_as_many_files_as_it_takes_connections_and_ends_old_workers() -> None:
    """Each passed connection has two ends; 1,024 files, a usual limit, would be 512 of them."""
    for mode in ("Local", "Direct"):
        files = done("stock", mode).nodes[WORKER.name]
        for path in (BALANCER_FILE, RELAY_FILE):
            if path in files:
                text = files[path].content.decode()
                assert "\nworker_rlimit_nofile 130048;\n" in text
                assert "\nworker_shutdown_timeout 10s;\n" in text
                (most,) = re.findall(r"worker_connections (\d+);", text)
                assert 2 * int(most) < 130048


def document(files: Tree, path: PurePosixPath) -> dict[str, Any]:
    found = yaml.safe_load(files[path].content)
    assert isinstance(found, dict)
    return found


def pods(files: Tree) -> dict[PurePosixPath, bytes]:
    """The manifests of nginx."""
    return {path: files[path].content for path in (BALANCER, RELAY) if path in files}


# -- which node has which pod ----------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("before", "after"), [(None, one) for one in EVERY] + [*itertools.product(EVERY, EVERY)]
)
def test_a_pod_is_where_its_configuration_is_and_nowhere_else(
    flavour: str, before: str | None, after: str
) -> None:
    for files in done(flavour, after, before).nodes.values():
        assert (BALANCER in files) is (BALANCER_FILE in files)
        assert (RELAY in files) is (RELAY_FILE in files)


def test_balancers_are_of_proxy_and_local_and_relays_of_direct_with_stock_containerd() -> None:
    for name, settings in EVERY.items():
        for flavour in FLAVOURS:
            wanted = set()
            if settings.mode in (Mode.PROXY, Mode.LOCAL):
                wanted.add(BALANCER)
            if settings.mode is Mode.DIRECT and flavour == "stock":
                wanted.add(RELAY)
            for node in NODES:
                assert set(pods(done(flavour, name).nodes[node.name])) == wanted
    assert set(pods(done("stock", "Local", "Direct").nodes[WORKER.name])) == {BALANCER, RELAY}


@pytest.mark.parametrize("images", [Images(), IMAGES], ids=["no image", "services alone"])
@pytest.mark.parametrize("name", EVERY)
def test_without_the_image_of_nginx_there_is_no_pod_and_all_else_is_as_with_it(
    images: Images, name: str
) -> None:
    for options in FLAVOURS.values():
        bare = render(EVERY[name], NODES, kept(), options=replace(options, images=images))
        nginx = replace(images, nginx="r.example/nginx:1")
        full = render(EVERY[name], NODES, kept(), options=replace(options, images=nginx))
        for node in NODES:
            without, with_it = bare.nodes[node.name], full.nodes[node.name]
            assert not pods(without)
            added = set(with_it) - set(without)
            assert added == set(pods(with_it))
            for path in without:
                if path != STATIC_POD:  # where the version of all is noted
                    assert without[path] == with_it[path]


# -- the law of transitions ------------------------------------------------------------------------


def _slots(files: Tree) -> list[str]:
    """The ways in a relay's file."""
    conf = files[RELAY_FILE].content.decode()
    return sorted(set(re.findall(r"location = (/to-[0-9a-f]+)/v2/", conf)))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("before", "after"), [*itertools.product(EVERY, EVERY)])
def test_no_transition_restarts_a_pod_unless_the_relay_gets_another_way(
    flavour: str, before: str, after: str
) -> None:
    """The kubelet restarts what has another manifest, so the same bytes are the same process."""
    between = done(flavour, after, before)
    sides = [done(flavour, name) for name in (before, after)]
    for node in NODES:
        now = pods(between.nodes[node.name])
        old, new = (pods(side.nodes[node.name]) for side in sides)
        assert set(now) == set(old) | set(new)
        for side in (old, new):
            assert side.get(BALANCER, now.get(BALANCER)) == now.get(BALANCER)
        files = [side.nodes[node.name] for side in sides if RELAY in side.nodes[node.name]]
        if RELAY in now:
            if all(one[RELAY_FILE] == files[0][RELAY_FILE] for one in files):
                assert all(one[RELAY].content == now[RELAY] for one in files)
            # Whenever it starts anew in between, it serves the ways of both sides.
            ways = {slot for one in files for slot in _slots(one)}
            assert set(_slots(between.nodes[node.name])) == ways
    said = any("the relay of each node restarts" in note for note in between.notes)
    relay = [side.nodes[WORKER.name].get(RELAY) for side in (done(flavour, before), between)]
    assert said is (relay[0] is not None and relay[0] != relay[1])


def test_a_relay_that_gets_another_way_restarts_and_that_is_said() -> None:
    between = done("stock", "Direct, other path", "Direct")
    relay, agent = between.notes[-2:]
    assert relay == (
        "the relay of each node restarts with this configuration, and with the next: what is "
        "pulled while it does fails, and the kubelet pulls it again"
    )
    assert agent.startswith("registry-bashible-config holds one way to nexus.example:8443")
    assert not any("restarts" in note for note in done("stock", "Direct", "Direct").notes)


@given(st.lists(st.integers(1, 250), min_size=1, max_size=5, unique=True), st.data())
def test_the_balancers_manifest_changes_with_the_masters_and_not_with_their_order(
    addresses: list[int], data: st.DataObject
) -> None:
    def manifest(masters: list[int]) -> bytes:
        nodes = [Node(f"m-{one}", f"10.0.0.{one}") for one in masters]
        files = balancer_files(WORKER, [WORKER, *nodes], Nginx(), "r.example/nginx:1")
        return files[BALANCER].content

    whole = manifest(addresses)
    assert manifest(data.draw(st.permutations(addresses))) == whole
    assert manifest([*addresses, 251]) != whole


# -- what is in them -------------------------------------------------------------------------------


def test_the_balancers_pod() -> None:
    pod = document(done("deckhouse", "Local").nodes[WORKER.name], BALANCER)
    digest = pod["metadata"]["annotations"].pop("registry.deckhouse.io/config-hash")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert pod == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "registry-proxy",
            "namespace": "d8-system",
            "labels": {
                "heritage": "deckhouse",
                "module": "registry",
                "component": "registry-proxy",
            },
            "annotations": {},
        },
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "priorityClassName": "system-node-critical",
            "securityContext": {
                "runAsUser": 64535,
                "runAsGroup": 64535,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "nginx",
                    "image": "r.example/nginx:1",
                    "imagePullPolicy": "IfNotPresent",
                    "command": [
                        *("nginx", "-e", "stderr"),
                        *("-c", "/etc/kubernetes/registry-proxy/nginx_new.conf"),
                        *("-g", "daemon off;"),
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "livenessProbe": {
                        "tcpSocket": {"host": "127.0.0.1", "port": 5001},
                        "initialDelaySeconds": 5,
                        "periodSeconds": 10,
                    },
                    "readinessProbe": {
                        "httpGet": {
                            "scheme": "HTTPS",
                            "host": "127.0.0.1",
                            "port": 5001,
                            "path": "/",
                        },
                        "periodSeconds": 5,
                    },
                    "ports": [{"name": "balancer", "containerPort": 5001, "hostIP": "127.0.0.1"}],
                    "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}},
                    "volumeMounts": [
                        {
                            "name": "config",
                            "mountPath": "/etc/kubernetes/registry-proxy",
                            "readOnly": True,
                        },
                        {"name": "runtime", "mountPath": "/tmp", "readOnly": False},
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "config",
                    "hostPath": {"path": "/etc/kubernetes/registry-proxy", "type": "Directory"},
                },
                {"name": "runtime", "emptyDir": {}},
            ],
        },
    }


def test_the_relays_pod_asks_nobody_outside_for_its_probes() -> None:
    files = done("stock", "Direct").nodes[WORKER.name]
    pod = document(files, RELAY)
    assert pod["metadata"]["name"] == pod["metadata"]["labels"]["component"] == "registry-relay"
    (nginx,) = pod["spec"]["containers"]
    assert str(RELAY_FILE) in nginx["command"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert nginx[probe]["tcpSocket"] == {"host": "127.0.0.1", "port": 5004}


def test_the_service_of_the_registry_selects_no_nginx() -> None:
    selector = {"component": "registry-service"}
    for path in (BALANCER, RELAY):
        pod = document(done("stock", "Local", "Direct").nodes[WORKER.name], path)
        assert not selector.items() & pod["metadata"]["labels"].items()


def test_the_relays_hash_changes_with_its_authorities() -> None:
    with_ca, without = direct(ca=upstream_ca()), direct()
    first, second = (
        document(render(one, NODES, kept(), options=STOCK).nodes[WORKER.name], RELAY)
        for one in (with_ca, without)
    )
    assert first["metadata"]["annotations"] != second["metadata"]["annotations"]


def test_a_nodes_ports_are_those_of_its_probes_and_nginxs_runtime_is_its_volume() -> None:
    node = replace(WORKER, ports=Ports(balancer=6001, relay=6004))
    options = replace(STOCK, nginx=Nginx(runtime="/var/run/nginx"))
    files = render(local(), [*MASTERS, node], kept(), previous=direct(), options=options).nodes[
        node.name
    ]
    for path, port, conf in (
        (BALANCER, 6001, BALANCER_FILE),
        (RELAY, 6004, RELAY_FILE),
    ):
        (nginx,) = document(files, path)["spec"]["containers"]
        assert nginx["livenessProbe"]["tcpSocket"]["port"] == port
        assert f"listen 127.0.0.1:{port};" in files[conf].content.decode()
        assert "pid /var/run/nginx/" in files[conf].content.decode()
        assert nginx["volumeMounts"][1]["mountPath"] == "/var/run/nginx"


@pytest.mark.parametrize("which", ["balancer", "relay"])
def test_a_port_that_needs_roots_rights_is_refused_for_a_pod_alone(which: str) -> None:
    node = replace(WORKER, ports=Ports(**{which: 443}))
    nodes = [*MASTERS, node]
    with pytest.raises(RenderingError) as found:
        render(local(), nodes, kept(), previous=direct(), options=STOCK)
    assert str(found.value) == (
        f"node worker-0: {which} port: expected 1024 or above, found 443; in its static pod nginx "
        "has no rights to listen below. Give another port, or leave the image nginx out"
    )
    bare = replace(STOCK, images=IMAGES)
    assert render(local(), nodes, kept(), previous=direct(), options=bare).nodes


@pytest.mark.parametrize("runtime", ["/", "/etc/kubernetes", "/etc/kubernetes/registry-proxy/run"])
def test_nginx_writes_nowhere_near_its_configuration(runtime: str) -> None:
    with pytest.raises(RenderingError, match="nginx runtime folder: expected one apart from"):
        render(local(), NODES, kept(), options=replace(FORK, nginx=Nginx(runtime=runtime)))


def test_pods_hold_no_secrets_and_say_no_more_than_a_kubelet_knows() -> None:
    secrets = [one.account.password.get_secret_value() for one in kept().users.values()]
    secrets += [kept().http_secret, "PRIVATE KEY", "dTpw", "$2b$"]
    seen = 0
    for flavour, before, after in itertools.product(FLAVOURS, EVERY, EVERY):
        rendered = done(flavour, after, before)
        for node in ("master-0", WORKER.name):
            files = rendered.nodes[node]
            for path in STATIC_PODS:
                if path in files:
                    text = files[path].content.decode()
                    assert not any(secret in text for secret in secrets)
                    assert files[path].mode == 0o644
                    check_pod(document(files, path), files, node)
                    seen += 1
    assert seen > 250


# -- a pod's own rules -----------------------------------------------------------------------------

PROBE = {
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "tcpSocket": {"host": str, "port": int},
    "httpGet": {"scheme": str, "host": str, "port": int, "path": str},
}
POD: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}},
    "spec": {
        "hostNetwork": bool,
        "dnsPolicy": str,
        "priorityClassName": str,
        "terminationGracePeriodSeconds": int,
        "securityContext": {
            "runAsUser": int,
            "runAsGroup": int,
            "runAsNonRoot": bool,
            "seccompProfile": {"type": str},
        },
        "containers": [
            {
                "name": str,
                "image": str,
                "imagePullPolicy": str,
                "command": [str],
                "args": [str],
                "env": [{"name": str, "value": str}],
                "ports": [{"name": str, "containerPort": int, "hostIP": str}],
                "securityContext": {
                    "allowPrivilegeEscalation": bool,
                    "readOnlyRootFilesystem": bool,
                    "capabilities": {"drop": [str]},
                },
                "livenessProbe": PROBE,
                "readinessProbe": PROBE,
                "resources": {"requests": {str: str}},
                "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
            }
        ],
        "volumes": [{"name": str, "hostPath": {"path": str, "type": str}, "emptyDir": {}}],
    },
}
"""The part of core/v1 that is used. The kubelet ignores a key that it does not know, silently."""


def check_shape(found: Any, wanted: Any, where: str) -> None:
    """Whether a document has known keys alone, with values of their types."""
    if isinstance(wanted, list):
        assert isinstance(found, list), where
        for number, one in enumerate(found):
            check_shape(one, wanted[0], f"{where}[{number}]")
    elif isinstance(wanted, Mapping):
        assert isinstance(found, dict), where
        for key, one in found.items():
            assert isinstance(key, str)
            assert key in wanted or str in wanted, f"{where}.{key}"
            check_shape(one, wanted.get(key, wanted.get(str)), f"{where}.{key}")
    else:
        assert type(found) is wanted, where


def check_pod(pod: dict[str, Any], files: Tree, node: str) -> None:
    """What the API's validation and the node itself ask of a static pod."""
    check_shape(pod, POD, node)
    spec = pod["spec"]
    for text in (pod["metadata"]["name"], *(one["name"] for one in spec["containers"])):
        assert re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text)
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert len(volumes) == len(spec["volumes"])
    mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
    assert mounted == set(volumes), "each volume is mounted, and each mount has its volume"
    for one in spec["volumes"]:
        assert len({"hostPath", "emptyDir"} & set(one)) == 1
        if one.get("hostPath", {}).get("type") == "Directory":
            folder = PurePosixPath(one["hostPath"]["path"])
            assert any(path.parent == folder for path in files), "it must be there on the node"
    assert len({one["name"] for one in spec["containers"]}) == len(spec["containers"])
    for one in spec["containers"]:
        paths = [mount["mountPath"] for mount in one["volumeMounts"]]
        assert len(set(paths)) == len(paths)
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
        for probe in ("livenessProbe", "readinessProbe"):
            assert len({"httpGet", "tcpSocket"} & set(one[probe])) == 1
