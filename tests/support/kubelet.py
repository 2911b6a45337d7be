"""A node's static pods, run from their manifests by runc, with this machine's programs as image."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from mirror.modes import constants
from tests.support.processes import ServerProcess, wait_for_port
from tests.support.tools import require_tool

_IMAGE = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")
_FROM_HOST = ("etc/ssl", "etc/hosts", "etc/resolv.conf", "etc/ld.so.cache")


class Kubelet:
    """Runs what lies in the manifests folder of a node's tree while the `with` block lasts.

    As the real one does, it knows a static pod by the bytes of its manifest: another manifest is
    another pod, and the old one ends, with all of its containers, before the new one starts.
    """

    def __init__(self, node: Path, folder: Path) -> None:
        self.node, self._folder = node, folder
        self._pods: dict[str, tuple[bytes, list[PodContainer]]] = {}
        self._runs = 0

    def __enter__(self) -> Self:
        self.sync()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for name in [*self._pods]:
            self._end(name)

    def sync(self) -> None:
        """Do as the manifests folder says now."""
        folder = self.node / constants.MANIFESTS.relative_to("/")
        wanted = {path.name: path.read_bytes() for path in folder.glob("*.yaml")}
        for name in [name for name, (text, _) in self._pods.items() if wanted.get(name) != text]:
            self._end(name)
        for name, text in wanted.items():
            if name not in self._pods:
                self._pods[name] = text, []
                self._start(name, yaml.safe_load(text))

    def pids(self) -> dict[str, list[int]]:
        """The manifest's name → the processes of its containers."""
        return {name: [one.inner_pid() for one in run] for name, (_, run) in self._pods.items()}

    def probe(self, name: str, kind: str) -> bool:
        """Whether all containers of a manifest pass their `livenessProbe` or `readinessProbe`."""
        (text, _) = self._pods[name]
        return all(_passes(one[kind]) for one in yaml.safe_load(text)["spec"]["containers"])

    def _start(self, name: str, pod: dict[str, Any]) -> None:
        self._runs += 1
        folder = self._folder / f"{self._runs}-{pod['metadata']['name']}"
        volumes: dict[str, Path] = {}
        for volume in pod["spec"]["volumes"]:
            if "hostPath" in volume:
                volumes[volume["name"]] = self.node / volume["hostPath"]["path"].lstrip("/")
            else:
                volumes[volume["name"]] = made = folder / f"volume-{volume['name']}"
                made.mkdir(parents=True)
                made.chmod(0o777)  # as an emptyDir is
        for container in pod["spec"]["containers"]:
            one = PodContainer(pod, container, volumes, folder / container["name"])
            self._pods[name][1].append(one)
            one.start()

    def _end(self, name: str) -> None:
        _, containers = self._pods.pop(name)
        for one in containers:
            one.stop()


class PodContainer(ServerProcess):
    """One container of a pod on the node's network."""

    def __init__(
        self,
        pod: dict[str, Any],
        container: dict[str, Any],
        volumes: dict[str, Path],
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(_spec(pod, container, volumes, folder)))
        self._id = f"mirror-{secrets.token_hex(6)}"  # one of the whole machine, for its cgroup
        self._runc = [str(require_tool("runc")), "--root", str(folder / "state")]
        live = container["livenessProbe"]
        where = live.get("tcpSocket") or live["httpGet"]
        super().__init__(
            [*self._runc, "run", "--bundle", str(folder), self._id],
            host=where["host"],
            port=where["port"],
            log=folder / "log",
        )

    def inner_pid(self) -> int:
        """The container's first process, as the machine numbers it."""
        command = [*self._runc, "state", self._id]
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
        return int(json.loads(done.stdout)["pid"])

    def stop(self) -> None:
        """End it, and forget it even if it had to be killed."""
        super().stop()
        command = [*self._runc, "delete", "--force", self._id]
        subprocess.run(command, capture_output=True, check=False, timeout=30)


def _spec(
    pod: dict[str, Any], container: dict[str, Any], volumes: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The OCI runtime's configuration of a container (runtime-spec, "Configuration")."""
    rootfs = folder / "rootfs"
    rootfs.mkdir()
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]

    def bind(source: Path, destination: str, *, readable_only: bool = True) -> None:
        options = ["rbind", "ro" if readable_only else "rw"]
        mounts.append(
            {
                "destination": destination,
                "type": "bind",
                "source": str(source),
                "options": options,
            }
        )

    for name in (*_IMAGE, *_FROM_HOST):
        host = Path("/") / name
        if host.is_symlink() and name in _IMAGE:
            (rootfs / name).symlink_to(host.readlink())
        elif host.exists():
            bind(host.resolve(), f"/{name}")
    for mount in container["volumeMounts"]:
        bind(volumes[mount["name"]], mount["mountPath"], readable_only=mount["readOnly"])
    user, own = pod["spec"]["securityContext"], container["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["hostNetwork"] is True
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs), "readonly": own["readOnlyRootFilesystem"]},
        "process": {
            "user": {"uid": user["runAsUser"], "gid": user["runAsGroup"]},
            "args": [*container["command"], *container.get("args", [])],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": not own["allowPrivilegeEscalation"],
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc")]},
    }


def _passes(probe: dict[str, Any]) -> bool:
    """As the kubelet asks: from the node, and without a look at certificates."""
    if ask := probe.get("tcpSocket"):
        return wait_for_port(ask["port"], timeout_s=1.0, host=ask["host"])
    ask = probe["httpGet"]
    url = f"{ask['scheme'].lower()}://{ask['host']}:{ask['port']}{ask['path']}"
    with contextlib.suppress(httpx.HTTPError):
        return 200 <= httpx.get(url, verify=False, timeout=5.0).status_code < 400
    return False
