"""The programs of a mode, run on loopback from the files that were rendered for them in place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mirror.modes import DATA_ROOT, REGISTRY_PORT
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.pulling import Nginx
from mirror.nodeconfig.tree import BALANCER_CONFIG, SERVICE_CONFIG
from tests.support.patience import wait_until
from tests.support.processes import ServerProcess, free_loopback, free_port
from tests.support.program import ROOT
from tests.support.token_server import TokenServer
from tests.support.tools import require_tool

STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
DEBIAN_NGINX = Nginx(modules=(STREAM_MODULE,))
"""nginx-light with libnginx-mod-stream."""


def loopback_node(name: str, *, master: bool = True) -> Node:
    """A node at 127.0.0.1 with ports that nobody used a moment ago."""
    return Node(name, "127.0.0.1", master, Ports(*(free_port() for _ in range(6))))


def master_node(name: str) -> Node:
    """A master at an address of its own, with the registry at the port that it has in clusters."""
    ports = Ports(
        debug=free_port(), replication=free_port(), balancer=free_port(), relay=free_port()
    )
    return Node(name, free_loopback(REGISTRY_PORT), True, ports)


def in_tree(out: Path, tree: str, path: PurePosixPath) -> Path:
    """Where a rendered file of a tree lies below `out`."""
    return out / tree / path.relative_to("/")


class Registry(ServerProcess):
    """A master's `docker-registry`, from its rendered configuration."""

    tokens: TokenServer
    """The token server beside it."""

    def __init__(self, out: Path, node: Node, environment: Mapping[str, str] | None = None) -> None:
        self.tree = f"nodes/{node.name}"
        self.data = in_tree(out, self.tree, DATA_ROOT)
        self.data.mkdir(parents=True, exist_ok=True)
        config = in_tree(out, self.tree, SERVICE_CONFIG / "distribution/config.yaml")
        super().__init__(
            [require_tool("docker-registry"), "serve", config],
            port=node.ports.registry,
            host=node.address,
            log=out / f"{node.name}-registry.log",
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none", **(environment or {})},
        )


def fork(out: Path, node: Node) -> ServerProcess:
    """A master's registry as Deckhouse's fork, from its rendered configuration."""
    in_tree(out, f"nodes/{node.name}", DATA_ROOT).mkdir(parents=True, exist_ok=True)
    config = in_tree(out, f"nodes/{node.name}", SERVICE_CONFIG / "distribution/config.yaml")
    return ServerProcess(
        [sys.executable, "-m", "tests.support.fork_registry", "serve", config],
        port=node.ports.registry,
        host=node.address,
        log=out / f"{node.name}-fork.log",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class NginxProcess(ServerProcess):
    """nginx with a rendered configuration, in the foreground."""

    def __init__(self, config: Path, port: int) -> None:
        self.config = config
        program = require_tool("nginx")
        self._program = program
        prefix = config.parent
        super().__init__(
            [program, "-p", prefix, "-c", config, "-e", "stderr", "-g", "daemon off;"],
            port=port,
            log=config.with_suffix(".log"),
        )

    def reload(self) -> None:
        """Apply a changed configuration, as the reloader does, until no old worker accepts more."""
        self.check()
        before = self._workers()
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: not before & self._workers())

    def _workers(self) -> set[str]:
        """The workers that accept connections."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        titles: dict[str, str] = {}
        for child in children:
            with contextlib.suppress(OSError):  # it has just ended
                titles[child] = Path(f"/proc/{child}/cmdline").read_text()
        return {child for child, title in titles.items() if "shutting down" not in title}

    def check(self) -> None:
        """`nginx -t`: what the reloader asks before it applies a configuration."""
        done = subprocess.run(
            [self._program, "-p", self.config.parent, "-c", self.config, "-e", "stderr", "-t"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def balancer(out: Path, node: Node) -> NginxProcess:
    """The balancer of a node."""
    path = in_tree(out, f"nodes/{node.name}", BALANCER_CONFIG / "nginx_new.conf")
    return NginxProcess(path, node.ports.balancer)


def relay(out: Path, node: Node) -> NginxProcess:
    """The relay of a node, in Direct mode with stock containerd."""
    path = in_tree(out, f"nodes/{node.name}", BALANCER_CONFIG / "relay.conf")
    return NginxProcess(path, node.ports.relay)


def in_cluster_relay(out: Path, ports: Node) -> NginxProcess:
    """The stock flavour's in-cluster proxy; it listens on the registry port of `ports`."""
    path = in_tree(out, "in-cluster", SERVICE_CONFIG / "in-cluster/relay.conf")
    return NginxProcess(path, ports.ports.registry)


@contextlib.contextmanager
def master(
    out: Path, node: Node, environment: Mapping[str, str] | None = None
) -> Iterator[Registry]:
    """Registry and token server of a master while the block lasts."""
    path = in_tree(out, f"nodes/{node.name}", SERVICE_CONFIG / "auth/config.yaml")
    with (
        TokenServer(path) as tokens,
        contextlib.closing(_Stopping(Registry(out, node, environment))) as run,
    ):
        run.server.tokens = tokens
        run.server.start()
        yield run.server


class _Stopping:
    def __init__(self, server: Registry) -> None:
        self.server = server

    def close(self) -> None:
        self.server.stop()


class ContainerdProcess:
    """A containerd of its own below `folder`, which pulls by a rendered tree of hosts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "containerd.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._ctr = require_tool("ctr")
        # A copy: `ctr` is started by threads, while tests change this process's own environment.
        self._environment = dict(os.environ)

    def __enter__(self) -> ContainerdProcess:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{self._folder}/root"\nstate = "{self._folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self._socket}"\n'
        )
        with (self._folder / "containerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [require_tool("containerd"), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(200):
            if self.ctr("version").returncode == 0:
                return self
        self.__exit__()
        raise AssertionError((self._folder / "containerd.log").read_text()[-4000:])

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(20)

    def ctr(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `ctr` against it."""
        return subprocess.run(
            [str(self._ctr), "--address", str(self._socket), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environment,
        )

    def pull(
        self, reference: str, hosts: Path, *, login: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Pull and unpack an image as a node does. `login` is what a kubelet would hand over."""
        user = () if login is None else ("--user", login)
        return self.ctr(
            "images", "pull", "--snapshotter", "native", "--hosts-dir", hosts, *user, reference
        )

    def forget(self, reference: str) -> None:
        """Remove an image and its content, so that the next pull asks the registry again."""
        self.ctr("images", "rm", "--sync", reference)
        self.ctr("content", "prune", "references")
