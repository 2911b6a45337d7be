"""A node's static pods, run from their manifests, with this machine's programs as their image."""

from __future__ import annotations

import contextlib
import shlex
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
        return {name: [one.pid for one in run] for name, (_, run) in self._pods.items()}

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
    """One container of a pod: on the node's network, with a file system and rights of its own."""

    def __init__(
        self,
        pod: dict[str, Any],
        container: dict[str, Any],
        volumes: dict[str, Path],
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True)
        live = container["livenessProbe"]
        where = live.get("tcpSocket") or live["httpGet"]
        super().__init__(
            _command(pod, container, volumes, folder / "rootfs"),
            host=where["host"],
            port=where["port"],
            log=folder / "log",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )


def _command(
    pod: dict[str, Any], container: dict[str, Any], volumes: dict[str, Path], rootfs: Path
) -> list[str]:
    """A container as a command line: what it mounts is gone with its mount namespace.

    Each program starts the next in its own place, so the first process is the container's.
    """
    rootfs.mkdir()
    steps: list[list[str | Path]] = [["mount", "--bind", rootfs, rootfs]]

    def bind(source: Path, destination: str, *, read_only: bool = True) -> None:
        inside = rootfs / destination.lstrip("/")
        if source.is_dir():
            inside.mkdir(parents=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        steps.append(["mount", "--bind", source, inside])
        if read_only:
            steps.append(["mount", "-o", "remount,bind,ro", inside])

    for name in _IMAGE:
        host = Path("/") / name
        if host.is_symlink():
            (rootfs / name).symlink_to(host.readlink())
        elif host.exists():
            bind(host, name)
    for name in (*_FROM_HOST, "dev/null"):
        if (host := Path("/") / name).exists():
            bind(host.resolve(), name, read_only=name in _FROM_HOST)
    for mount in container["volumeMounts"]:
        bind(volumes[mount["name"]], mount["mountPath"], read_only=mount["readOnly"])
    user, own = pod["spec"]["securityContext"], container["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert pod["spec"]["hostNetwork"] is True
    steps.append(["mount", "-o", "remount,bind,ro", rootfs])
    rights: list[str | Path] = [
        *("setpriv", f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}"),
        *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
    ]
    program = [*container["command"], *container.get("args", [])]
    steps.append(["exec", "chroot", rootfs, *rights, *program])
    script = "; ".join(["set -e", *(shlex.join(map(str, words)) for words in steps)])
    return [str(require_tool("unshare")), "--mount", "sh", "-c", script]


def _passes(probe: dict[str, Any]) -> bool:
    """As the kubelet asks: from the node, and without a look at certificates."""
    if ask := probe.get("tcpSocket"):
        return wait_for_port(ask["port"], timeout_s=1.0, host=ask["host"])
    ask = probe["httpGet"]
    url = f"{ask['scheme'].lower()}://{ask['host']}:{ask['port']}{ask['path']}"
    with contextlib.suppress(httpx.HTTPError):
        return 200 <= httpx.get(url, verify=False, timeout=5.0).status_code < 400
    return False
