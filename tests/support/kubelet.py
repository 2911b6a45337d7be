"""A node's pods, run from their manifests, with this machine's programs as their images."""

from __future__ import annotations

import contextlib
import ipaddress
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from mirror.nodeconfig.tree import MANIFESTS
from tests.support.processes import ServerProcess, wait_for_port
from tests.support.tools import require_tool

_ROOT = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")
_FROM_HOST = ("etc/ssl", "etc/hosts", "etc/resolv.conf", "etc/ld.so.cache")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Image:
    """What an image brings beside this machine's programs: an entry point, variables, folders.

    A stand-in of several programs may talk to itself at the address `within`. `stop` is the signal
    that asks it to end.
    """

    entry_point: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    within: str = ""
    stop: signal.Signals = signal.SIGTERM

    @classmethod
    def of_module(
        cls, name: str, *more: Path, within: str = "", stop: signal.Signals = signal.SIGTERM
    ) -> Image:
        """One that runs a Python module of this repository; with `more` files or folders."""
        folders = [_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        inside = [one for one in folders if one.parts[1] not in _ROOT]
        covered = {one for one in inside for other in inside if other in one.parents}
        environment = {"PYTHONPATH": str(_REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        return cls(
            (sys.executable, "-m", name),
            environment,
            (*dict.fromkeys(one for one in inside if one not in covered), *more),
            within,
            stop,
        )


class Kubelet:
    """Runs what lies in the manifests folder of a node's tree while the `with` block lasts.

    As the real one does, it knows a static pod by the bytes of its manifest: another manifest is
    another pod, and the old one ends, with all of its containers, before the new one starts. It
    admits no pod that wants a port of the node which another one has, refuses a folder that is
    not there, and gives a container the root, the user, the mounts and the rights of its manifest.
    Stricter than the real one, it refuses a container that listens where its manifest does not say.
    """

    def __init__(self, node: Path, folder: Path, images: Mapping[str, Image] | None = None) -> None:
        self.node, self._folder, self._images = node, folder, images or {}
        self.secrets: dict[str, Mapping[str, bytes]] = {}
        """What Secrets hold, by their names."""
        self._pods: dict[str, tuple[bytes, list[PodContainer]]] = {}
        self._runs = 0

    def __enter__(self) -> Self:
        try:
            self.sync()
        except BaseException:
            self.__exit__(None, None, None)
            raise
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
        folder = self.node / MANIFESTS.relative_to("/")
        wanted = {path.name: path.read_bytes() for path in folder.glob("*.yaml")}
        for name in [name for name, (text, _) in self._pods.items() if wanted.get(name) != text]:
            self._end(name)
        for name, text in sorted(wanted.items()):
            if name not in self._pods:
                pod = yaml.safe_load(text)
                self._admit(name, pod)
                self._pods[name] = text, []
                self._start(name, pod)

    def run(self, name: str, template: Mapping[str, Any]) -> None:
        """Start a pod of the API, such as a Deployment's; it is on this machine's network too."""
        pod = {**template, "metadata": {"name": name, **template["metadata"]}}
        self._admit(name, pod)
        self._pods[name] = b"", []
        self._start(name, pod)

    def pids(self) -> dict[str, list[int]]:
        """The manifest's name → the processes of its containers."""
        return {name: [one.pid for one in run] for name, (_, run) in self._pods.items()}

    def probe(self, name: str, kind: str) -> bool:
        """Whether all containers of a manifest pass their `livenessProbe` or `readinessProbe`."""
        return all(one.probe(kind) for one in self._pods[name][1])

    def logs(self, name: str, container: str) -> str:
        """What a container of a manifest has printed."""
        (one,) = (one for one in self._pods[name][1] if one.name == container)
        return one.log.read_text(errors="replace")

    def cut(self) -> None:
        """End all containers at once, as a power cut does."""
        for _, containers in self._pods.values():
            for one in containers:
                one.kill()
        self._pods.clear()

    def check_ports(self, name: str) -> None:
        """Each container of a manifest listens where that says, and nowhere else."""
        for one in self._pods[name][1]:
            one.check_ports(all_of_them=True)

    def _admit(self, name: str, pod: Mapping[str, Any]) -> None:
        taken = {
            port: other
            for other, (_, run) in self._pods.items()
            for one in run
            for port in one.ports
        }
        for container in pod["spec"]["containers"]:
            for host, port in _declared(container):
                for (other_host, other_port), other in taken.items():
                    same = host == other_host or "0.0.0.0" in (host, other_host)
                    assert not (same and port == other_port), (
                        f"{name}: NodePorts: {host}:{port} is that of {other}"
                    )

    def _start(self, name: str, pod: dict[str, Any]) -> None:
        self._runs += 1
        folder = self._folder / f"{self._runs}-{pod['metadata']['name']}"
        volumes: dict[str, Path] = {}
        for volume in pod["spec"]["volumes"]:
            if (there := volume.get("hostPath")) is not None:
                path = volumes[volume["name"]] = self.node / there["path"].lstrip("/")
                if there["type"] == "DirectoryOrCreate":
                    path.mkdir(parents=True, exist_ok=True)
                assert path.is_dir(), f"{name}: hostPath type check failed: {there['path']}"
            else:
                volumes[volume["name"]] = made = folder / f"volume-{volume['name']}"
                made.mkdir(parents=True)
                made.chmod(0o777)  # as an emptyDir is
                if (secret := volume.get("secret")) is not None:
                    for key, content in self.secrets[secret["secretName"]].items():
                        (made / key).write_bytes(content)
                        (made / key).chmod(secret.get("defaultMode", 0o644))
        for container in pod["spec"]["containers"]:
            image = self._images.get(container["image"], Image())
            one = PodContainer(pod, container, image, volumes, folder / container["name"])
            self._pods[name][1].append(one)
            one.start()

    def _end(self, name: str) -> None:
        _, containers = self._pods.pop(name)
        for one in reversed(containers):  # what a request of the one needs of the other is there
            one.stop()


class PodContainer(ServerProcess):
    """One container of a pod: on the node's network, with a file system and rights of its own."""

    def __init__(
        self,
        pod: dict[str, Any],
        container: dict[str, Any],
        image: Image,
        volumes: dict[str, Path],
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True)
        self.name, self.ports = container["name"], _declared(container)
        self._container, self._within, self.stopped_by = container, image.within, image.stop
        where = self._asked("livenessProbe")
        given = {one["name"]: one["value"] for one in container.get("env", ())}
        super().__init__(
            _command(pod, container, image, volumes, folder / "rootfs"),
            host=where["host"],
            port=where["port"],
            log=folder / "log",
            env={"PATH": _PATH, **image.environment, **given},
        )

    def probe(self, kind: str) -> bool:
        """Whether it passes its `livenessProbe` or `readinessProbe`, as the kubelet asks.

        That is from the node, and without a look at certificates.
        """
        ask = self._asked(kind)
        if "path" not in ask:
            return wait_for_port(ask["port"], timeout_s=1.0, host=ask["host"])
        url = f"{ask['scheme'].lower()}://{ask['host']}:{ask['port']}{ask['path']}"
        with contextlib.suppress(httpx.HTTPError):
            return 200 <= httpx.get(url, verify=False, timeout=5.0).status_code < 400
        return False

    def _asked(self, kind: str) -> dict[str, Any]:
        """Where a probe goes: a port has a number or a name, and the host is the pod's own."""
        probe = self._container[kind]
        ask = probe.get("tcpSocket") or probe["httpGet"]
        named = {one["name"]: one["containerPort"] for one in self._container.get("ports", ())}
        return {"host": "127.0.0.1", **ask, "port": named.get(ask["port"], ask["port"])}

    def start(self) -> None:
        """Start it; it may listen where its manifest says, and nowhere else."""
        super().start()
        self.check_ports()

    def check_ports(self, *, all_of_them: bool = False) -> None:
        """Whether it listens only at its ports; `all_of_them`: at each."""
        try:
            found = {one for one in _listening(self.pid) if one[0] != self._within}
        except OSError as err:
            raise AssertionError(f"{self.name} has ended; its log:\n{self.log_tail()}") from err
        stray = found - self.ports
        assert not stray, f"{self.name} listens at {stray}, which its manifest does not declare"
        unused = self.ports - found
        assert not (all_of_them and unused), f"{self.name} declares {unused}, where nobody listens"


def _declared(container: Mapping[str, Any]) -> set[tuple[str, int]]:
    return {
        (port.get("hostIP", "0.0.0.0"), port["containerPort"])
        for port in container.get("ports", ())
    }


def _listening(pid: int) -> set[tuple[str, int]]:
    """The TCP sockets on which a container waits for connections, from the kernel's tables."""
    sockets = set()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *children):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(entry.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                address, _, port = local.partition(":")
                words = bytes.fromhex(address)
                packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                host = ipaddress.ip_address(packed)
                text = "0.0.0.0" if host.is_unspecified else str(host)
                found.add((text, int(port, 16)))
    return found


def _command(
    pod: dict[str, Any],
    container: dict[str, Any],
    image: Image,
    volumes: dict[str, Path],
    rootfs: Path,
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

    for name in _ROOT:
        host = Path("/") / name
        if host.is_symlink():
            (rootfs / name).symlink_to(host.readlink())
        elif host.exists():
            bind(host, name)
    for folder in image.folders:
        bind(folder, str(folder))
    for name in (*_FROM_HOST, "dev/null", "dev/urandom"):
        if (host := Path("/") / name).exists():
            bind(host.resolve(), name, read_only=name in _FROM_HOST)
    for mount in container["volumeMounts"]:
        bind(volumes[mount["name"]], mount["mountPath"], read_only=mount["readOnly"])
    user, own = pod["spec"]["securityContext"], container["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert user["runAsNonRoot"] is (user["runAsUser"] != 0)
    steps.append(["mount", "-o", "remount,bind,ro", rootfs])
    rights: list[str | Path] = [
        *("setpriv", f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}"),
        *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
    ]
    program = [*container.get("command", image.entry_point), *container.get("args", [])]
    steps.append(["exec", "chroot", rootfs, *rights, *program])
    script = "; ".join(["set -e", *(shlex.join(map(str, words)) for words in steps)])
    return [str(require_tool("unshare")), "--mount", "sh", "-c", script]
