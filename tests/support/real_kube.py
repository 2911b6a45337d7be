"""A real kube-apiserver with its etcd, for the long runs; as `KubeCluster` and `KubeServer` are.

There is nobody else: no controller, no kubelet, so that nothing changes but by the tests.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from mirror.controller.kube import RESOURCES, Resource
from tests.support.kube_api import ACCOUNT, TOKEN
from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_program, require_tool

ADMIN_TOKEN = "token-of-an-administrator"
_EXTRA = {
    "ClusterRole": Resource("rbac.authorization.k8s.io/v1", "clusterroles", namespaced=False),
    "ClusterRoleBinding": Resource(
        "rbac.authorization.k8s.io/v1", "clusterrolebindings", namespaced=False
    ),
    "CustomResourceDefinition": Resource(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
    ),
    "DaemonSet": Resource("apps/v1", "daemonsets"),
    "Namespace": Resource("v1", "namespaces", namespaced=False),
    "Role": Resource("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Resource("rbac.authorization.k8s.io/v1", "rolebindings"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
}
_STATUS = ("Deployment", "Node", "Pod")
"""The kinds whose status is written beside them."""
_START_S = 90.0


class RealCluster:
    """What `KubeCluster` is, in a real API: the objects as its administrator sees them."""

    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self.host = f"https://127.0.0.1:{port}"
        self._trust = trust
        self.on_change: Callable[[str, tuple[str, str, str]], None] = lambda how, key: None

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str = ADMIN_TOKEN, kind: str = ""
    ) -> tuple[int, Any]:
        """Status and answer of one request."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind or "application/json"}
        request = urllib.request.Request(
            self.host + path, data=content, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, context=self._trust, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as err:
            status, content = err.code, err.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")

    def get(self, kind: str, name: str, namespace: str = "d8-system") -> dict[str, Any] | None:
        """One object."""
        status, found = self.ask("GET", _resource(kind).path(namespace, name))
        assert status in (200, 404), found
        return found if status == 200 else None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        resource = _resource(kind)
        status, found = self.ask("GET", resource.path(None))
        assert status == 200, found
        return [{"apiVersion": resource.version, "kind": kind, **one} for one in found["items"]]

    def write(self, document: Mapping[str, Any], manager: str = "test") -> None:
        """Somebody else writes an object, and its status, whoever owns its fields."""
        metadata, kind = dict(document["metadata"]), document["kind"]
        space = metadata.setdefault("namespace", "d8-system") if self._spaced(kind) else ""
        path, query = _resource(kind).path(space), f"?fieldManager={manager}"
        there = self.get(kind, metadata["name"], space)
        for name in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
            metadata.pop(name, None)
        if there is None:
            status, done = self.ask("POST", path + query, {**document, "metadata": metadata})
        else:
            path += f"/{metadata['name']}"
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
            status, done = self.ask("PUT", path + query, {**document, "metadata": metadata})
        assert status in (200, 201), done
        wanted = document.get("status")
        if kind in _STATUS and wanted is not None and done.get("status") != wanted:
            at = _resource(kind).path(space, metadata["name"]) + "/status" + query
            status, done = self.ask("PUT", at, {**done, "status": wanted})
            assert status == 200, done
        self.on_change("WRITTEN", (kind, space, metadata["name"]))

    def remove(self, kind: str, name: str, namespace: str = "d8-system") -> None:
        """Somebody else deletes one, at once."""
        path = _resource(kind).path(namespace if self._spaced(kind) else "", name)
        status, done = self.ask("DELETE", path, {"gracePeriodSeconds": 0})
        assert status == 200, done
        self.on_change("DELETED", (kind, namespace, name))

    def clear(self) -> None:
        """Remove what tests wrote."""
        for kind in RESOURCES:
            for one in self.of(kind):
                space = one["metadata"].get("namespace", "")
                if space not in ("", "d8-system", "d8-monitoring", "other", "kube-system"):
                    continue
                if not one["metadata"]["name"].startswith(("kube-root-ca", "extension-apiserver")):
                    self.remove(kind, one["metadata"]["name"], space)

    @staticmethod
    def _spaced(kind: str) -> bool:
        return _resource(kind).namespaced


def _resource(kind: str) -> Resource:
    return RESOURCES.get(kind) or _EXTRA[kind]


class RealKube:
    """The API at work; `kubeconfig` leads to it with the rights of the controller's account."""

    def __init__(self, folder: Path, cluster: RealCluster, server: ServerProcess) -> None:
        self.cluster, self._server, self._folder = cluster, server, folder
        self.kubeconfig = self.kubeconfig_of("controller", TOKEN)
        self.administrators = self.kubeconfig_of("administrator", ADMIN_TOKEN)

    def kubeconfig_of(self, name: str, token: str) -> Path:
        """A file that leads to it, with a token."""
        certificate = self._folder / "certificates/apiserver.crt"
        where = {"server": self.cluster.host, "certificate-authority": str(certificate)}
        path = self._folder / f"kubeconfig-{name}"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": where}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def restart(self) -> None:
        """Start it anew: it has forgotten what it had told, and knows what it holds."""
        with self.down():
            pass

    @contextmanager
    def down(self) -> Iterator[None]:
        """It answers nobody."""
        self._server.kill()
        try:
            yield
        finally:
            self._server.start()
            _wait_until_ready(self.cluster, self._server)


@contextmanager
def real_kube(folder: Path) -> Iterator[RealKube]:
    """Start both on loopback, with the namespaces of Deckhouse and the kind ModuleConfig."""
    program = require_program("kube-api")
    folder.mkdir(parents=True, exist_ok=True)
    certificates = folder / "certificates"
    key, public = folder / "accounts.key", folder / "accounts.pub"
    openssl = require_tool("openssl")
    subprocess.run([openssl, "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    subprocess.run(
        [openssl, "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True
    )
    tokens = folder / "tokens.csv"
    groups = "system:serviceaccounts,system:serviceaccounts:d8-system"
    tokens.write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n{TOKEN},{ACCOUNT},2,"{groups}"\n')
    port, client, peer = free_port(), free_port(), free_port()
    etcd: list[str | Path] = [
        *(program, "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync"),
        *("--listen-client-urls", f"http://127.0.0.1:{client}"),
        *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
        *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
        *("--initial-cluster", f"default=http://127.0.0.1:{peer}", "--log-level", "error"),
    ]
    api: list[str | Path] = [
        *(program, "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}"),
        *("--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={certificates}"),
        *("--service-account-issuer=https://kubernetes.default.svc", "--v=1"),
        *(f"--service-account-key-file={public}", f"--service-account-signing-key-file={key}"),
        *(f"--token-auth-file={tokens}", "--authorization-mode=RBAC"),
        "--service-cluster-ip-range=10.222.0.0/16",
        # Accounts, priorities and node leases are made by controllers that do not run here.
        "--disable-admission-plugins=ServiceAccount,Priority,TaintNodesByCondition",
        "--endpoint-reconciler-type=none",
    ]
    with ExitStack() as stack:
        stack.enter_context(ServerProcess(etcd, port=client, log=folder / "etcd.log"))
        server = ServerProcess(api, port=port, log=folder / "kube-apiserver.log")
        stack.enter_context(server)
        trust = ssl.create_default_context(cafile=str(certificates / "apiserver.crt"))
        cluster = RealCluster(port, trust)
        _wait_until_ready(cluster, server)
        for name in ("d8-system", "d8-monitoring", "other"):
            cluster.write({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        cluster.write(MODULE_CONFIG)
        made = (RESOURCES["ModuleConfig"].path(None), _EXTRA["Namespace"].path(None, "kube-system"))
        while any(cluster.ask("GET", path)[0] != 200 for path in made):
            time.sleep(0.1)
        yield RealKube(folder, cluster, server)
    shutil.rmtree(folder / "etcd", ignore_errors=True)


def _wait_until_ready(cluster: RealCluster, server: ServerProcess) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            ready = cluster.ask("GET", "/readyz")[0] == 200
            answers = [cluster.ask("GET", one.path(None))[0] for one in RESOURCES.values()]
            # It says so before it can list everything.
            if ready and {*answers} <= {200, 404}:
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.2)


def _typed(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


MODULE_CONFIG = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "moduleconfigs.deckhouse.io", "labels": {"heritage": "deckhouse"}},
    "spec": {
        "group": "deckhouse.io",
        "scope": "Cluster",
        "names": {
            "kind": "ModuleConfig",
            "plural": "moduleconfigs",
            "singular": "moduleconfig",
            "shortNames": ["mc"],
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": _typed(
                        "object",
                        required=["spec"],
                        properties={
                            "spec": _typed(
                                "object",
                                properties={
                                    "enabled": _typed("boolean"),
                                    "maintenance": _typed(
                                        "string", enum=["NoResourceReconciliation"]
                                    ),
                                    "version": _typed("number"),
                                    "settings": {
                                        "type": "object",
                                        "x-kubernetes-preserve-unknown-fields": True,
                                    },
                                    "updatePolicy": _typed("string"),
                                    "source": _typed("string"),
                                },
                            ),
                            "status": _typed(
                                "object",
                                properties={
                                    "version": _typed("string"),
                                    "message": _typed("string"),
                                },
                            ),
                        },
                    )
                },
            }
        ],
    },
}
"""The kind as Deckhouse defines it: what of it the API checks, and what it drops."""


def with_rights_of(cluster: RealCluster, documents: list[Mapping[str, Any]]) -> None:
    """Bring the account, its roles and their bindings, and leave the workload out."""
    for one in documents:
        if one["kind"] != "Deployment":
            cluster.write(one)


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """The text of a Secret's keys."""
    return {key: base64.b64decode(one).decode() for key, one in secret.get("data", {}).items()}
