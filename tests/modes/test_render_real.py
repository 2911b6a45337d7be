"""Rendered files at work: docker-registry, a token server, nginx and containerd on loopback."""

from __future__ import annotations

import dataclasses
import datetime
import http.server
import json
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest

from mirror.errors import DeniedError
from mirror.modes import constants
from mirror.modes.render import (
    Containerd,
    Distribution,
    Node,
    RenderOptions,
    ServiceSecrets,
    prepare,
    render,
    write_cluster,
)
from mirror.modes.settings import RegistrySettings
from mirror.modes.sites import Account, User
from mirror.oci import Digest
from tests.modes.images import Image, client, image, push
from tests.support.mode_stack import (
    DEBIAN_NGINX,
    ContainerdProcess,
    Registry,
    balancer,
    in_cluster_relay,
    in_tree,
    loopback_node,
    master,
    relay,
)
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.tls import Authority

LOGICAL = "registry.d8-system.svc:5001/system/deckhouse"
NAMES = ("master-0", "master-1", "master-2")


@dataclass
class Cluster:
    """Nodes, secrets, and the trees that were rendered for them below `out`."""

    out: Path
    nodes: tuple[Node, ...]
    kept: ServiceSecrets
    options: RenderOptions
    registries: dict[str, Registry] = field(default_factory=dict)

    @classmethod
    def create(cls, out: Path, masters: int) -> Cluster:
        nodes = tuple(loopback_node(NAMES[number]) for number in range(masters))
        nodes = (*nodes, loopback_node("worker-0", master=False))
        options = RenderOptions(
            Containerd.STOCK,
            Distribution.STOCK,
            DEBIAN_NGINX,
            in_place_root=PurePosixPath(out),
        )
        now = datetime.datetime.now(datetime.UTC)
        return cls(out, nodes, prepare(None, nodes, now), options)

    def render(self, settings: RegistrySettings, previous: RegistrySettings | None = None) -> None:
        rendered = render(settings, self.nodes, self.kept, previous=previous, options=self.options)
        write_cluster(rendered, self.out)

    @property
    def worker(self) -> Node:
        return self.nodes[-1]

    @property
    def masters(self) -> tuple[Node, ...]:
        return self.nodes[:-1]

    @property
    def hosts(self) -> Path:
        """The worker's tree for containerd."""
        return in_tree(self.out, "nodes/worker-0", constants.CONTAINERD_HOSTS)

    @property
    def ca(self) -> Path:
        path = self.out / "ca.crt"
        path.write_text(self.kept.authority.certificate)
        return path

    def account(self, user: User) -> Account:
        return self.kept.users[user].account

    def login(self, user: User) -> str:
        one = self.account(user)
        return f"{one.name}:{one.password.get_secret_value()}"


def direct(repo: str, account: tuple[str, str], ca: Path) -> RegistrySettings:
    return _with_upstream("Direct", repo, account, ca)


def _with_upstream(mode: str, repo: str, account: tuple[str, str], ca: Path) -> RegistrySettings:
    section = {
        "imagesRepo": repo,
        "username": account[0],
        "password": account[1],
        "ca": ca.read_text(),
    }
    return RegistrySettings.load({"mode": mode, mode.lower(): section})


LOCAL = RegistrySettings.load({"mode": "Local"})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas with TLS and tokens; nothing is in them yet."""
    cluster = Cluster.create(tmp_path_factory.mktemp("local"), 3)
    cluster.render(LOCAL)
    with ExitStack() as running:
        for node in cluster.masters:
            cluster.registries[node.name] = running.enter_context(master(cluster.out, node))
        yield cluster


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdProcess]:
    with ContainerdProcess(tmp_path_factory.mktemp("containerd")) as process:
        yield process


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry outside, with a login and a certificate of its own authority."""
    authority = Authority.create(tmp_path / "authority")
    registry = RealRegistry(tmp_path / "up", tls=authority.issue(), htpasswd=HTPASSWD)
    registry.start()
    yield registry
    registry.stop()


def upstream_ca(registry: RealRegistry) -> Path:
    assert registry.tls is not None
    return registry.tls.certificate.with_name("ca.crt")


def by_name(registry: RealRegistry) -> str:
    """nginx verifies certificates for names alone."""
    return f"localhost:{registry.port}"


def fill(registry: RealRegistry, repository: str, tag: str, one: Image) -> None:
    from pydantic import SecretStr

    account = Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))
    with client(registry.address, upstream_ca(registry), account) as to:
        push(to, repository, tag, one)


@contextmanager
def running(*servers: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            server.check()
            server.start()
            stack.callback(server.stop)
        yield


# -- Local -----------------------------------------------------------------------------------------


def test_containerd_pulls_by_tag_and_digest_and_goes_on_when_a_replica_dies(
    local: Cluster, containerd: ContainerdProcess
) -> None:
    one = image("local")
    for node in local.masters:
        with client(node.registry, local.ca, local.account(User.RW)) as to:
            push(to, "system/deckhouse/install", "v1.70.0", one)
    by_tag, by_digest = f"{LOGICAL}/install:v1.70.0", f"{LOGICAL}/install@{one.digest}"
    login = local.login(User.RO)
    with running(balancer(local.out, local.worker)):
        for reference in (by_tag, by_digest):
            done = containerd.pull(reference, local.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(reference)
        dead = local.registries["master-1"]
        dead.kill()
        for _ in range(3):
            done = containerd.pull(by_tag, local.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(by_tag)
        dead.start()


def test_each_user_may_do_what_the_access_list_says(local: Cluster) -> None:
    node = local.masters[0]
    one = image("access")
    with client(node.registry, local.ca, local.account(User.RW)) as to:
        push(to, "system/deckhouse/access", "v1", one)
    with client(node.registry, local.ca, local.account(User.RO)) as reader:
        assert reader.manifest("system/deckhouse/access", "v1").raw == one.manifest
        with pytest.raises(DeniedError):
            push(reader, "system/deckhouse/access", "v2", one)
        with pytest.raises(DeniedError):
            list(reader.catalogue())
    with client(node.registry, local.ca, local.account(User.MIRROR_PULLER)) as puller:
        assert "system/deckhouse/access" in list(puller.catalogue())
        assert puller.resolve("system/deckhouse/access", "v1")
        with pytest.raises(DeniedError):
            push(puller, "system/deckhouse/access", "v2", one)
    with client(node.registry, local.ca, local.account(User.MIRROR_PUSHER)) as pusher:
        push(pusher, "system/deckhouse/access", "v2", one)
        pusher.delete_manifest("system/deckhouse/access", Digest.parse(one.digest))
    wrong = dataclasses.replace(local.account(User.RO), name="rw")
    with (
        client(node.registry, local.ca, wrong) as stranger,
        pytest.raises(DeniedError),
    ):
        stranger.manifest("system/deckhouse/access", "v1")
    with client(node.registry, local.ca, None) as nobody, pytest.raises(DeniedError):
        nobody.manifest("system/deckhouse/access", "v1")


def test_metrics_are_on_the_loopback_port(local: Cluster) -> None:
    node = local.masters[2]
    answer = httpx.get(f"http://127.0.0.1:{node.ports.debug}/metrics")
    assert answer.status_code == 200
    assert "registry_http" in answer.text


def test_pythons_strictest_verification_accepts_the_replica(local: Cluster) -> None:
    context = ssl.create_default_context(cadata=local.kept.authority.certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    answer = httpx.get(f"https://{local.masters[0].registry}/v2/", verify=context)
    assert answer.status_code == 401
    challenge = answer.headers["www-authenticate"]
    assert f'realm="https://{local.masters[0].token}/auth"' in challenge


def test_a_push_is_told_to_replication(local: Cluster) -> None:
    node = local.masters[0]
    events: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.put((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", node.ports.replication), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        with client(node.registry, local.ca, local.account(User.RW)) as to:
            push(to, "system/deckhouse/told", "v1", image("told"))
            push(to, "system/deckhouse/told", "v2", image("told again"))
        # It was away during the tests before, and what it missed then is told now too.
        told: list[dict[str, Any]] = []
        while not any(one["target"].get("tag") == "v2" for one in told):
            path, body = events.get(timeout=30)
            assert path == "/notify"
            told += [one for one in body["events"] if "told" in one["target"]["repository"]]
        assert "push" in {one["action"] for one in told}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- Proxy -----------------------------------------------------------------------------------------


def test_a_cache_fetches_once_and_serves_without_its_upstream(
    tmp_path: Path, containerd: ContainerdProcess
) -> None:
    one = image("cached")
    source = Cluster.create(tmp_path / "upstream", 1)
    source.render(LOCAL)
    (outside,) = source.masters
    reader = source.account(User.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "proxy", 2)
    repo = f"{outside.registry}/system/deckhouse"
    cluster.render(_with_upstream("Proxy", repo, login, source.ca))
    trust = {"SSL_CERT_FILE": str(source.ca)}
    reference = f"{LOGICAL}/install@{one.digest}"
    with ExitStack() as stack:
        with master(source.out, outside):  # caches want their upstream when they start
            with client(outside.registry, source.ca, source.account(User.RW)) as to:
                push(to, "system/deckhouse/install", "v1", one)
            for node in cluster.masters:
                stack.enter_context(master(cluster.out, node, trust))
            stack.enter_context(running(balancer(cluster.out, cluster.worker)))
            for node in cluster.masters:  # the balancer chooses: both have it then
                with client(node.registry, cluster.ca, cluster.account(User.RO)) as reading:
                    found = reading.manifest("system/deckhouse/install", "v1")
                    assert found.raw == one.manifest
                    for blob in found.blobs:
                        body = reading.blob("system/deckhouse/install", blob.digest, size=blob.size)
                        assert sum(map(len, body)) == blob.size
            _until_cached(cluster, one)
        done = containerd.pull(reference, cluster.hosts, login=cluster.login(User.RO))
        assert done.returncode == 0, done.stderr
        containerd.forget(reference)
        with (
            client(cluster.masters[0].registry, cluster.ca, cluster.account(User.RO)) as reading,
            pytest.raises(DeniedError),
        ):
            push(reading, "system/deckhouse/install", "v2", one)


def _until_cached(cluster: Cluster, one: Image) -> None:
    """Caches store blobs behind the client's back."""
    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    for node in cluster.masters:
        data = in_tree(cluster.out, f"nodes/{node.name}", constants.DATA_ROOT)
        while len(list(data.rglob("blobs/sha256/*/*/data"))) < 1 + len(one.blobs):
            assert datetime.datetime.now(datetime.UTC) < deadline, "the cache stays empty"
            threading.Event().wait(0.05)


# -- Direct ----------------------------------------------------------------------------------------


def test_containerd_reaches_another_path_through_the_relay_with_its_own_login(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    one = image("direct")
    fill(upstream, "dkp/ee/install", "v1", one)
    fill(upstream, "dkp/ee-evil/x", "v1", image("evil"))
    cluster = Cluster.create(tmp_path / "direct", 1)
    cluster.render(direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream)))
    with running(relay(cluster.out, cluster.worker)):
        for reference in (f"{LOGICAL}/install:v1", f"{LOGICAL}/install@{one.digest}"):
            done = containerd.pull(reference, cluster.hosts)
            assert done.returncode == 0, done.stderr
            containerd.forget(reference)
        slot = "/".join(_only_url(cluster).split("/")[:4])
        evil = httpx.get(f"{slot}/v2/system/deckhouse-evil/x/manifests/v1", auth=ACCOUNT)
        assert evil.status_code == 404
        assert "only system/deckhouse is here" in evil.text
        assert httpx.get(f"{slot}/v2/", auth=ACCOUNT).status_code == 200
        assert httpx.get(f"{slot}/v2/").status_code == 401
        base = f"{slot}/v2/system/deckhouse/install"
        assert httpx.post(f"{base}/blobs/uploads/", auth=ACCOUNT).status_code == 403


def _only_url(cluster: Cluster) -> str:
    import tomllib

    text = (cluster.hosts / constants.LOGICAL_HOST / "hosts.toml").read_text()
    (url,) = tomllib.loads(text)["host"]
    assert isinstance(url, str)
    return url


def test_containerd_reaches_a_prefixed_path_without_a_relay(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "a/b/system/deckhouse/install", "v1", image("prefixed"))
    cluster = Cluster.create(tmp_path / "direct", 1)
    repo = f"{by_name(upstream)}/a/b/system/deckhouse"
    cluster.render(direct(repo, ACCOUNT, upstream_ca(upstream)))
    reference = f"{LOGICAL}/install:v1"
    done = containerd.pull(reference, cluster.hosts)
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)


def test_the_api_plane_passes_through_to_a_token_server_that_knows_the_real_path(
    tmp_path: Path, local: Cluster
) -> None:
    one = image("api")
    node = local.masters[0]
    with client(node.registry, local.ca, local.account(User.RW)) as to:
        push(to, "dkp/ee/install", "v1", one)
    reader = local.account(User.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "direct", 1)
    repo = f"localhost:{node.ports.registry}/dkp/ee"
    cluster.render(direct(repo, login, local.ca))
    # One file of authorities for both: the proxy's own, and the token server's beyond it.
    both = tmp_path / "both.crt"
    both.write_text(cluster.kept.authority.certificate + local.kept.authority.certificate)
    with running(in_cluster_relay(cluster.out, cluster.nodes[0])):
        address = f"127.0.0.1:{cluster.nodes[0].ports.registry}"
        with client(address, both, reader) as through:
            found = through.manifest("system/deckhouse/install", "v1")
            assert found.raw == one.manifest
            for blob in found.blobs:
                body = through.blob("system/deckhouse/install", blob.digest, size=blob.size)
                assert sum(map(len, body)) == blob.size
        wrong = dataclasses.replace(reader, name="rw")
        with client(address, both, wrong) as stranger, pytest.raises(DeniedError):
            stranger.manifest("system/deckhouse/install", "v1")


# -- transitions -----------------------------------------------------------------------------------


def test_during_a_transition_each_side_serves_what_the_other_lacks(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "dkp/ee/old", "v1", image("old"))
    cluster = Cluster.create(tmp_path / "switch", 1)
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    cluster.render(LOCAL, before)
    login = cluster.login(User.RO)
    (node,) = cluster.masters
    with master(cluster.out, node):
        with client(node.registry, cluster.ca, cluster.account(User.RW)) as to:
            push(to, "system/deckhouse/new", "v1", image("new"))
        with running(relay(cluster.out, cluster.worker), balancer(cluster.out, cluster.worker)):
            for name in ("old", "new"):
                done = containerd.pull(f"{LOGICAL}/{name}:v1", cluster.hosts, login=login)
                assert done.returncode == 0, done.stderr
                containerd.forget(f"{LOGICAL}/{name}:v1")
            cluster.render(LOCAL)
            done = containerd.pull(f"{LOGICAL}/new:v1", cluster.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(f"{LOGICAL}/new:v1")
            relay_conf = constants.BALANCER_CONFIG / "relay.conf"
            assert not in_tree(cluster.out, "nodes/worker-0", relay_conf).exists()


def test_two_spellings_of_one_registry_are_two_ways_for_containerd(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    """What keeps the old path in a transition: `https://host/v2` is `https://host`, once more."""
    fill(upstream, "system/deckhouse/only", "v1", image("spelling"))
    folder = tmp_path / "hosts" / constants.LOGICAL_HOST
    folder.mkdir(parents=True)
    ca = upstream_ca(upstream)
    (folder / "hosts.toml").write_text(
        "".join(
            f'[host."https://{upstream.address}{suffix}"]\ncapabilities = ["pull", "resolve"]\n'
            f'ca = ["{ca}"]\n[host."https://{upstream.address}{suffix}".header]\n'
            f'Authorization = "Basic {"dGVzdGVyOnMzY3JldA==" if works else "bm86bm8="}"\n'
            for suffix, works in (("/v2", False), ("", True))
        )
    )
    reference = f"{LOGICAL}/only:v1"
    done = containerd.pull(reference, tmp_path / "hosts")
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)
