"""The rest of a cluster, beside a controller: nodes, kubelets and Deckhouse do their part.

Each of them takes one step at a time, but masters know nothing of each other: all that have new
files start anew together. After every change somebody looks whether all images that are in use can
still be pulled: by what each has read, with its login, and whom it trusts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any

import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from mirror.controller.kube import KubeApi
from mirror.modes import LOGICAL_HOST, ConditionType, Mode
from mirror.modes.state import RegistryState
from mirror.nodeconfig.pods import PROXY_CONFIG, VERSION, VERSION_ANNOTATION
from tests.support.kube_api import KubeCluster
from tests.support.real_kube import RealCluster
from tests.support.rendered_cluster import NODES

UPSTREAM = "nexus.example:8443"
UPSTREAM_LOGIN = ("u", "secret-of-upstream")
_LABELS = {"component": "registry-service", "type": "node-services"}
_C = ConditionType
_CONFIG = {"apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig"}


class Life:
    """A static cluster of Deckhouse that was installed from `UPSTREAM`."""

    def __init__(self, cluster: KubeCluster | RealCluster) -> None:
        self.cluster = cluster
        self.routes: dict[str, Mapping[str, Any]] = {}
        """What each node has applied: hosts and their mirrors."""
        self.broken: list[str] = []
        """When images in use could not be pulled."""
        self.untrue: list[str] = []
        """When a condition was true of what was not so."""
        self.rolled: dict[str, str] = {}
        """Deployment → the version of its pods."""
        self.read: dict[str, Mapping[str, Any]] = {}
        """What each master's services, the in-cluster proxy and Deckhouse read as they started."""
        static = {"cluster-configuration.yaml": "clusterType: Static"}
        cluster.write(_secret("d8-cluster-configuration", static, "kube-system"))
        cluster.write(_object("v1", "ConfigMap", "d8-cluster-is-bootstraped", "kube-system"))
        login = {
            "auths": {
                UPSTREAM: {"auth": base64.b64encode(":".join(UPSTREAM_LOGIN).encode()).decode()}
            }
        }
        installed = {".dockerconfigjson": json.dumps(login), "address": UPSTREAM}
        installed |= {"path": "/dkp/ee", "scheme": "https"}
        kind = "kubernetes.io/dockerconfigjson"
        cluster.write({**_secret("deckhouse-registry", installed), "type": kind})
        for node in NODES:
            cluster.write(_node(node.name, node.address, node.master))
        cluster.write(_deckhouse())
        self.want("Unmanaged", configured=False)
        self.live()
        cluster.on_change = self._look

    def want(self, mode: str, path: str = "dkp/ee", *, configured: bool = True) -> None:
        """Change the ModuleConfig."""
        registry: dict[str, Any] = {"mode": mode}
        if configured and mode != "Local":
            login = dict(zip(("username", "password"), UPSTREAM_LOGIN, strict=True))
            registry[mode.lower()] = {"imagesRepo": f"{UPSTREAM}/{path}", **login}
        spec = {"version": 1, "enabled": True, "settings": {"registry": registry}}
        self.cluster.write({**_CONFIG, "metadata": {"name": "deckhouse"}, "spec": spec})

    def rotate(self, what: str) -> None:
        """Ask for other secrets, as `kubectl annotate` does."""
        state = self.cluster.get("Secret", "registry-state")
        assert state is not None
        state["metadata"].setdefault("annotations", {})["deckhouse-mirror/rotate"] = what
        self.cluster.write(state)

    # -- what others do ----------------------------------------------------------------------------

    def live(self) -> None:
        """Everybody does what is due, one step after the other."""
        for _ in range(200):
            if not any(step() for step in (self._kubelets, self._bashible, self._deployments)):
                return
        raise AssertionError("the cluster never comes to rest")

    def _kubelets(self) -> bool:
        """Start or restart what registries of masters have new files, or let one serve or end."""
        wanted = {
            one["metadata"]["name"].removeprefix("registry-node-config-"): one
            for one in self.cluster.of("Secret")
            if one["metadata"]["name"].startswith("registry-node-config-")
        }
        there = {one["spec"]["nodeName"]: one for one in self._replicas()}
        running = {
            node: pod["metadata"]["annotations"][VERSION_ANNOTATION] for node, pod in there.items()
        }
        new = [node for node in wanted if running.get(node) != _text(wanted[node], "version")]
        for node in new:
            self.read[node] = yaml.safe_load(_text(wanted[node], "config"))
            self.cluster.write(replica(node, _text(wanted[node], "version"), ready=False))
        if new:
            return True
        for node in wanted:
            if not _ready(there[node]):
                self.cluster.write(replica(node, running[node], ready=True))
                return True
        for node in there.keys() - wanted.keys():
            self.cluster.remove("Pod", f"registry-nodeservices-{node}")
            return True
        return False

    def _bashible(self) -> bool:
        """Let one node apply what there is for all."""
        secret = self.cluster.get("Secret", "registry-bashible-config")
        if secret is None:
            return False
        config = yaml.safe_load(_text(secret, "config"))
        for node in self.cluster.of("Node"):
            notes = node["metadata"].setdefault("annotations", {})
            if notes.get(VERSION) != config["version"]:
                self.routes[node["metadata"]["name"]] = config["hosts"]
                notes[VERSION] = config["version"]
                self.cluster.write(node)
                return True
        return False

    def _deployments(self) -> bool:
        """Roll one Deployment out."""
        for one in self.cluster.of("Deployment"):
            version = one["spec"]["template"]["metadata"].get("annotations", {}).get(VERSION, "")
            status = one.setdefault("status", {})
            count = one["spec"]["replicas"]
            done = {"replicas": count, "updatedReplicas": count, "readyReplicas": count}
            done["observedGeneration"] = one["metadata"]["generation"]
            name = one["metadata"]["name"]
            if {key: status.get(key) for key in done} != done or self.rolled.get(name) != version:
                self.rolled[name] = version
                self._reads(name)
                one["status"] = done
                self.cluster.write(one)
                if name == "deckhouse":
                    self.cluster.write(_pod("deckhouse-0", {"app": name}, {VERSION: version}))
                return True
        return False

    def _reads(self, name: str) -> None:
        """The pods of a Deployment start, and read what they use."""
        used = {"deckhouse": "deckhouse-registry", "registry-incluster-proxy": PROXY_CONFIG}
        secret = self.cluster.get("Secret", used[name])
        if secret is not None:
            self.read[name] = {key: _text(secret, key) for key in secret["data"]}

    # -- whether images can be pulled --------------------------------------------------------------

    def _look(self, how: str, key: tuple[str, str, str]) -> None:
        if what := self._unserved():
            self.broken.append(f"{how} {key[0]} {key[2]}: {what}")
        self.untrue += (f"{how} {key[0]} {key[2]}: {what}" for what in self._untrue(key[2]))

    def _untrue(self, changed: str) -> Iterator[str]:
        """The conditions that say what is not so, by what there is and not by what was rendered."""
        secret = self.cluster.get("Secret", "registry-state")
        if secret is None:
            return
        state = RegistryState.load(secret)
        registry = self.cluster.get("Secret", "deckhouse-registry") or {"data": {}}
        managed = state.target_mode is not Mode.UNMANAGED
        logical = LOGICAL_HOST if managed else UPSTREAM
        cached = state.target_mode in (Mode.PROXY, Mode.LOCAL)
        new = "127.0.0.1:5001" if cached else UPSTREAM
        mirrors = [
            [mirror["host"] for mirror in hosts.get(logical, {"mirrors": []})["mirrors"]]
            for hosts in self.routes.values()
        ]
        deployments = {one["metadata"]["name"]: one for one in self.cluster.of("Deployment")}
        proxy = deployments.get("registry-incluster-proxy")
        note = deployments["deckhouse"]["spec"]["template"]["metadata"].get("annotations", {})
        pods = {one["metadata"]["name"]: one for one in self.cluster.of("Pod")}
        masters = sum(node.master for node in NODES)
        holds = {
            # Later they restart one after the other, for files that change.
            _C.NODE_SERVICES: changed != "registry-state"
            or sum(map(_ready, self._replicas())) == masters,
            _C.TRANSITION: len(mirrors) == len(NODES) and all(new in each for each in mirrors),
            _C.IN_CLUSTER_PROXY: bool(proxy and proxy.get("status", {}).get("readyReplicas")),
            _C.REGISTRY_SWITCH: _text(registry, "address") == logical
            and pods["deckhouse-0"]["metadata"]["annotations"].items() >= note.items(),
            _C.FINAL: all(each == [new] for each in mirrors)
            and all(hosts.keys() == {logical} for hosts in self.routes.values()),
            _C.CLEANUP_NODE_SERVICES: not any(self._replicas()),
            _C.CLEANUP_IN_CLUSTER_PROXY: proxy is None,
            _C.ROTATION: all(
                one[key].count("BEGIN") == 1
                for node in (self.read if cached else ())
                for one in (self.read[node],)
                for key in ("ca", "token_cert")
                if key in one
            ),
            _C.READY: state.mode is state.target_mode
            and all(one.status or one.reason == "Error" for one in state.conditions),
        }
        for one in state.conditions:
            if one.status and not holds.get(one.type, True):
                yield f"{one.type} is told of {state.target_mode}"

    def _unserved(self) -> str:
        """Who cannot pull an image that is in use; empty where all can."""
        secret = self.cluster.get("Secret", "deckhouse-registry")
        now = {key: _text(secret, key) for key in secret["data"]} if secret else {}
        for given in (now, self.read.get("deckhouse", now)):
            if given.get("address") == LOGICAL_HOST and (why := self._unserved_components(given)):
                return f"components: {why}"
        host = now.get("address", "")
        for node, hosts in self.routes.items():
            mirrors = hosts.get(host, {"mirrors": []})["mirrors"]
            if not any(self._serves(one) for one in mirrors):
                return f"{node}: no route to {host} serves"
        return ""

    def _serves(self, mirror: Mapping[str, Any]) -> bool:
        login = (mirror["auth"]["username"], mirror["auth"]["password"])
        if mirror["host"] == UPSTREAM:
            return login == UPSTREAM_LOGIN
        return not self._unserved_by_masters(mirror.get("ca", ""), login)

    def _unserved_by_masters(self, authorities: str, login: tuple[str, str] | None) -> str:
        """What keeps a client from one of those masters that it may come to."""
        serving = [self.read[one["spec"]["nodeName"]] for one in self._replicas() if _ready(one)]
        for one in serving:
            if not trusts(authorities, one["distribution_cert"]):
                return "a master shows a certificate of an authority that is unknown"
            if login is not None and login not in logins_of(one):
                return f"a master refuses the login {login[0]}"
            if not all(_first(other["token_cert"]) in one["token_cert"] for other in serving):
                return "a master refuses the tokens of another"
        return "" if serving else "no master serves"

    def _unserved_components(self, given: Mapping[str, str]) -> str:
        service = self.cluster.get("Service", "registry")
        if service is None:
            return "there is no Service registry"
        if service["spec"]["selector"]["type"] == "node-services":
            known = json.loads(given[".dockerconfigjson"])["auths"][LOGICAL_HOST]
            login = (known["username"], known["password"])
            # A switch turns the Service before all have the login for it, as Deckhouse's does.
            return self._unserved_by_masters(
                given["ca"], None if login == UPSTREAM_LOGIN else login
            )
        proxy = self.cluster.get("Deployment", "registry-incluster-proxy") or {}
        if not proxy.get("status", {}).get("readyReplicas"):
            return "nothing is behind the Service registry"
        shown = self.read["registry-incluster-proxy"]["distribution.crt"]
        return "" if trusts(given["ca"], shown) else "the proxy's authority is unknown"

    def _replicas(self) -> Iterator[dict[str, Any]]:
        for pod in self.cluster.of("Pod"):
            if _LABELS.items() <= pod["metadata"]["labels"].items():
                yield pod


@cache
def intercept(api: KubeApi, around: Callable[[Callable[[], Any], str, str], Any]) -> None:
    """Call `around` in place of each request, with what sends it, its method and its path."""
    original = api._send

    def send(method: str, path: str, *rest: Any, **more: Any) -> Any:
        return around(partial(original, method, path, *rest, **more), method, path)

    api._send = send  # type: ignore[method-assign]  # a test's own wire would not be the real one


def trusts(authorities: str, certificate: str) -> bool:
    """Whether one of some authorities has signed a certificate."""
    (leaf,) = x509.load_pem_x509_certificates(certificate.encode())
    for one in x509.load_pem_x509_certificates(authorities.encode()):
        with suppress(InvalidSignature, ValueError):
            leaf.verify_directly_issued_by(one)
            return True
    return False


def logins_of(config: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Who may pull from a master by what its agent writes: one login for each user it knows."""
    users = [config["user_ro"]]
    users += (one for key, one in config.get("local_mode", {}).items() if key.startswith("user_"))
    return {(one["name"], one["password"]) for one in users}


def _first(certificates: str) -> str:
    end = "-----END CERTIFICATE-----"
    return certificates.partition(end)[0] + end


def _ready(pod: Mapping[str, Any]) -> bool:
    return any(one["status"] == "True" for one in pod.get("status", {}).get("conditions", ()))


def _text(secret: Mapping[str, Any], key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


def _object(version: str, kind: str, name: str, space: str = "d8-system") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if space:
        metadata["namespace"] = space
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _secret(name: str, data: Mapping[str, str], space: str = "d8-system") -> dict[str, Any]:
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    return {**_object("v1", "Secret", name, space), "type": "Opaque", "data": encoded}


def _node(name: str, address: str, master: bool) -> dict[str, Any]:
    one = _object("v1", "Node", name, "")
    one["metadata"]["labels"] = {"node.deckhouse.io/containerd-config-registry": "default"}
    if master:
        one["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = ""
    one["status"] = {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"containerRuntimeVersion": "containerd://1.7.29"},
    }
    return one


def _pod(
    name: str, labels: Mapping[str, str], notes: Mapping[str, str], *, ready: bool = True
) -> dict[str, Any]:
    one = _object("v1", "Pod", name)
    one["metadata"] |= {"labels": dict(labels), "annotations": dict(notes)}
    one["spec"] = {"containers": [{"name": "main", "image": "r.example/main:1"}]}
    one["status"] = {"conditions": [{"type": "Ready", "status": str(ready)}]}
    return one


def replica(node: str, version: str, *, ready: bool) -> dict[str, Any]:
    notes = {VERSION_ANNOTATION: version}
    pod = _pod(f"registry-nodeservices-{node}", _LABELS, notes, ready=ready)
    pod["spec"]["nodeName"] = node
    return pod


def _deckhouse() -> dict[str, Any]:
    one = _object("apps/v1", "Deployment", "deckhouse")
    labels = {"app": "deckhouse"}
    container = {"name": "deckhouse", "image": f"{UPSTREAM}/dkp/ee:v1.70.0"}
    one["spec"] = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    return one
