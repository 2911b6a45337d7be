"""What runs on masters: registry, token server, replication, the static pod; and the balancer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import bcrypt
import pytest
import yaml
from starlette.routing import Route

from mirror.errors import RenderingError
from mirror.modes import RegistryUser
from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.pulling import Nginx
from mirror.nodeconfig.render import Rendered, RenderOptions, render
from mirror.nodeconfig.service_secrets import (
    ServiceSecrets,
    hashed,
    new_account,
    prepare_secrets,
    read_secrets,
    write_secrets,
)
from mirror.nodeconfig.services import NOTIFICATION_PATH, Distribution
from mirror.watch.cycle import CycleResult
from mirror.watch.daemon import Daemon, create_app
from mirror.watch.settings import WatchSettings
from tests.support.rendered_cluster import (
    IMAGES,
    MASTERS,
    NODES,
    NOW,
    WORKER,
    direct,
    kept,
    legacy,
    local,
    proxy,
    unmanaged,
    upstream_ca,
)

SERVICES = PurePosixPath("/etc/kubernetes/registry")
PKI = SERVICES / "pki"
IN_CLUSTER = SERVICES / "in-cluster"
POD = PurePosixPath("/etc/kubernetes/manifests/registry-nodeservices.yaml")
BALANCER = PurePosixPath("/etc/kubernetes/registry-proxy/nginx_new.conf")
FORK = RenderOptions(images=IMAGES)
STOCK = RenderOptions(distribution=Distribution.STOCK, images=IMAGES)


def done(
    settings: RegistrySettings,
    options: RenderOptions = FORK,
    previous: RegistrySettings | None = None,
) -> Rendered:
    return render(settings, NODES, kept(), previous=previous, options=options)


def document(rendered: Rendered, path: PurePosixPath, node: str = "master-0") -> dict[str, Any]:
    found = yaml.safe_load(rendered.nodes[node][path].content)
    assert isinstance(found, dict)
    return found


def registry(rendered: Rendered, node: str = "master-0") -> dict[str, Any]:
    return document(rendered, SERVICES / "distribution/config.yaml", node)


def in_cluster(rendered: Rendered, name: str) -> dict[str, Any]:
    found = yaml.safe_load(rendered.in_cluster[IN_CLUSTER / name].content)
    assert isinstance(found, dict)
    return found


# -- the registry ----------------------------------------------------------------------------------


def test_a_local_replica_of_the_fork_is_configured_as_the_module_does() -> None:
    config = registry(done(local()))
    notifications = config.pop("notifications")
    assert len(config["http"].pop("secret")) == 25
    # Ours alone: with it a replica that starts anew ends what it has begun.
    assert config["http"].pop("draintimeout") == "20s"
    assert config == {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": "/data"},
            "delete": {"enabled": True},
            "redirect": {"disable": True},
        },
        "http": {
            "addr": "10.0.0.1:5001",
            "prefix": "/",
            "debug": {
                "addr": "127.0.0.1:5002",
                "prometheus": {"enabled": True, "path": "/metrics"},
            },
            "tls": {"certificate": "/pki/distribution.crt", "key": "/pki/distribution.key"},
        },
        "auth": {
            "token": {
                "realm": "https://10.0.0.1:5051/auth",
                "service": "Deckhouse registry",
                "issuer": "Registry server",
                "rootcertbundle": "/pki/token.crt",
                "autoredirect": True,
                "proxy": {"url": "https://127.0.0.1:5051/auth", "ca": "/pki/ca.crt"},
            }
        },
    }
    (endpoint,) = notifications["endpoints"]
    assert endpoint["url"] == "http://127.0.0.1:5003/notify"


def test_the_push_ingress_is_trusted_only_in_local_mode() -> None:
    options = RenderOptions(images=IMAGES, ingress_client_ca=upstream_ca())
    config = registry(done(local(), options))
    assert config["http"]["realip"] == {
        "enabled": True,
        "clientcert": {
            "ca": "/pki/ingress-client-ca.crt",
            "cn": "kube-rbac-proxy-ca-key-pair",
        },
    }
    assert PKI / "ingress-client-ca.crt" in done(local(), options).nodes["master-0"]
    assert "realip" not in registry(done(proxy(), options))["http"]
    stock = RenderOptions(distribution=Distribution.STOCK, ingress_client_ca=upstream_ca())
    assert any("has no realip" in note for note in done(local(), stock).notes)


def test_a_cache_of_the_fork_maps_the_paths() -> None:
    rendered = done(proxy(ca=upstream_ca(), ttl="72h"))
    config = registry(rendered)
    assert config["proxy"] == {
        "remoteurl": "https://nexus.example:8443",
        "username": "u",
        "password": "p",
        "remotepathonly": "/dkp/ee",
        "localpathalias": "/system/deckhouse",
        "ca": "/pki/upstream-registry-ca.crt",
        "ttl": "72h",
    }
    assert "notifications" not in config
    assert (
        rendered.nodes["master-0"][PKI / "upstream-registry-ca.crt"].content.decode()
        == upstream_ca()
    )


def test_the_in_cluster_proxy_keeps_nothing() -> None:
    rendered = done(direct(ca=upstream_ca()))
    config = in_cluster(rendered, "distribution_config.yaml")
    assert config["proxy"]["nocache"] is True
    assert config["proxy"]["ca"] == "/config/upstream-registry-ca.crt"
    assert config["http"]["addr"] == ":5001"
    assert config["storage"]["maintenance"] == {
        "uploadpurging": {"enabled": False},
        "readonly": {"enabled": True},
    }
    assert config["auth"]["token"]["realm"] == "https://127.0.0.1:5051/auth"


def test_the_stock_registry_gets_only_keys_that_it_knows() -> None:
    rendered = done(local(), STOCK)
    config = registry(rendered)
    assert set(config["auth"]["token"]) == {"realm", "service", "issuer", "rootcertbundle"}
    auth = document(rendered, SERVICES / "auth/config.yaml")
    assert auth["server"]["addr"] == "10.0.0.1:5051", "clients reach it by its own port"
    # docker_auth refuses who comes without that header, and clients alone do not set it.
    assert "real_ip_header" not in auth["server"]
    behind = document(done(local()), SERVICES / "auth/config.yaml")["server"]
    assert (behind["addr"], behind["real_ip_header"]) == ("127.0.0.1:5051", "X-Forwarded-For")


def test_a_stock_cache_says_that_it_cannot_map_paths() -> None:
    with pytest.raises(RenderingError) as found:
        done(proxy(), STOCK)
    assert str(found.value) == (
        "Proxy mode with stock docker-registry: expected an upstream whose path is "
        "system/deckhouse, found nexus.example:8443/dkp/ee; a stock cache asks its upstream for "
        "the repository names that it is itself asked for. Publish the images under "
        "nexus.example:8443/system/deckhouse, use Direct mode, or render for the deckhouse flavour"
    )


def test_a_stock_cache_trusts_its_upstream_by_the_environment_and_says_what_it_ignores() -> None:
    settings = proxy("n.example/system/deckhouse", ca=upstream_ca(), ttl="72h")
    rendered = done(settings, STOCK)
    assert set(registry(rendered)["proxy"]) == {"remoteurl", "username", "password"}
    pod = document(rendered, POD)
    environment = pod["spec"]["containers"][1]["env"]
    assert environment == [{"name": "SSL_CERT_FILE", "value": "/pki/upstream-registry-ca.crt"}]
    assert any("168h whatever ttl says (found 72h)" in note for note in rendered.notes)


def test_proxy_variables_reach_caches_alone() -> None:
    options = RenderOptions(images=IMAGES, environment={"HTTPS_PROXY": "http://10.1.1.1:3128"})
    pod = document(done(proxy(), options), POD)
    assert pod["spec"]["containers"][1]["env"] == [
        {"name": "HTTPS_PROXY", "value": "http://10.1.1.1:3128"}
    ]
    assert "env" not in document(done(local(), options), POD)["spec"]["containers"][0]


# -- the token server ------------------------------------------------------------------------------


def test_the_access_list_of_local_mode() -> None:
    auth = document(done(local()), SERVICES / "auth/config.yaml")
    assert auth["acl"] == [
        {"match": {"account": "ro"}, "actions": ["pull"]},
        {"match": {"account": "rw"}, "actions": ["*"]},
        {"match": {"account": "mirror-pusher"}, "actions": ["*"]},
        {
            "match": {"account": "mirror-puller", "type": "registry", "name": "catalog"},
            "actions": ["*"],
        },
        {"match": {"account": "mirror-puller"}, "actions": ["pull"]},
    ]
    assert auth["token"]["expiration"] == 900
    assert auth["token"]["issuer"] == "Registry server"


def test_a_cache_knows_its_reader_alone() -> None:
    auth = document(done(proxy()), SERVICES / "auth/config.yaml")
    assert list(auth["users"]) == ["ro"]
    assert auth["acl"] == [{"match": {"account": "ro"}, "actions": ["pull"]}]


def test_users_are_known_by_bcrypt_of_cost_10_and_never_by_password() -> None:
    # Hashed here: what all tests share may have been made by one that hashes lightly.
    users = {user: hashed(one.account) for user, one in kept().users.items()}
    rendered = render(local(), NODES, replace(kept(), users=users))
    text = rendered.nodes["master-0"][SERVICES / "auth/config.yaml"].content.decode()
    for user, one in users.items():
        password = one.account.password.get_secret_value()
        assert password not in text
        wanted = yaml.safe_load(text)["users"][user.value]["password"]
        assert wanted.startswith("$2b$10$")
        assert bcrypt.checkpw(password.encode(), wanted.encode())


def test_the_in_cluster_proxy_asks_for_the_upstreams_own_login() -> None:
    auth = in_cluster(done(direct()), "auth_config.yaml")
    assert auth["acl"] == [{"match": {"account": "u"}, "actions": ["pull"]}]
    assert bcrypt.checkpw(b"p", auth["users"]["u"]["password"].encode())
    anonymous = in_cluster(done(direct(anonymous=True)), "auth_config.yaml")
    assert anonymous["users"] == {"": {}}
    assert anonymous["acl"] == [{"match": {"account": ""}, "actions": ["pull"]}]


def test_a_password_longer_than_bcrypt_reads_is_refused() -> None:
    with pytest.raises(RenderingError, match=r"at most 72 bytes, .* found 80"):
        done(direct(password="x" * 80))


# -- replication -----------------------------------------------------------------------------------


def test_replication_is_configured_in_the_mirrorers_keys() -> None:
    accounts = kept().accounts()
    assert document(done(local()), SERVICES / "mirrorer/config.yaml", "master-1") == {
        "ca": "/pki/ca.crt",
        "users": {
            name: {
                "name": accounts[user].name,
                "password": accounts[user].password.get_secret_value(),
            }
            for name, user in (
                ("puller", RegistryUser.MIRROR_PULLER),
                ("pusher", RegistryUser.MIRROR_PUSHER),
            )
        },
        "local": "10.0.0.2:5001",
        "remote": ["10.0.0.1:5001", "10.0.0.3:5001"],
        "sleep": 10,
        "parallelizm": 3,
        "listen": "127.0.0.1:5003",
    }


def test_the_daemon_runs_by_what_was_rendered_and_hears_of_pushes_where_it_listens(
    tmp_path: Path,
) -> None:
    rendered = done(local())
    path = tmp_path / "config.yaml"
    path.write_bytes(rendered.nodes["master-1"][SERVICES / "mirrorer/config.yaml"].content)
    settings = WatchSettings.load(path)
    assert (settings.leader, settings.followers) == ("auto", ("local",))
    assert str(settings.repository("local")) == "10.0.0.2:5001/system/deckhouse"
    host, port = settings.listener()
    notified = document(rendered, SERVICES / "distribution/config.yaml", "master-1")
    (endpoint,) = notified["notifications"]["endpoints"]
    assert endpoint["url"] == f"http://{host}:{port}{NOTIFICATION_PATH}"
    looks: dict[str, CycleResult] = {}
    pages = create_app(Daemon(["local"], lambda name, *_: looks[name], schedule=settings))
    assert NOTIFICATION_PATH in {route.path for route in pages.routes if isinstance(route, Route)}


def test_a_single_master_and_a_cache_have_no_replication() -> None:
    alone = render(local(), MASTERS[:1], kept(), options=FORK)
    cache = done(proxy())
    for rendered in (alone, cache):
        assert SERVICES / "mirrorer/config.yaml" not in rendered.nodes["master-0"]
        pod = document(rendered, POD)
        assert [one["name"] for one in pod["spec"]["containers"]] == ["auth", "distribution"]
    assert "notifications" not in registry(alone)


# -- the static pod --------------------------------------------------------------------------------


def test_the_static_pod_of_a_master() -> None:
    rendered = done(local())
    pod = document(rendered, POD)
    assert pod["metadata"]["name"] == "registry-nodeservices"
    assert pod["metadata"]["namespace"] == "d8-system"
    labels = pod["metadata"]["labels"]
    assert (labels["component"], labels["type"]) == ("registry-service", "node-services")
    notes = pod["metadata"]["annotations"]
    assert notes["registry.deckhouse.io/config-version"] == rendered.masters["master-0"]
    assert len(notes["registry.deckhouse.io/config-hash"]) == 64
    spec = pod["spec"]
    assert spec["hostNetwork"] is True
    assert spec["priorityClassName"] == "system-node-critical"
    auth, distribution, mirrorer = spec["containers"]  # as the kubelet starts them
    assert distribution["args"] == ["serve", "/config/config.yaml"]
    # The port by whose name Deckhouse's Services `registry` and `registry-push` find it.
    assert distribution["ports"] == [
        {"name": "distribution", "containerPort": 5001, "hostIP": "10.0.0.1"},
        {"name": "debug", "containerPort": 5002, "hostIP": "127.0.0.1"},
    ]
    assert auth["ports"] == [{"name": "auth", "containerPort": 5051, "hostIP": "127.0.0.1"}]
    # On a read-only root docker_auth ends at once if it is to write its log to a file.
    assert auth["args"] == ["-logtostderr", "/config/config.yaml"]
    # The cluster's DNS pulls its own image through this pod.
    assert spec["dnsPolicy"] == "Default"
    assert distribution["livenessProbe"]["httpGet"] == {
        "scheme": "HTTPS",
        "host": "10.0.0.1",
        "port": 5001,
        "path": "/",
    }
    assert auth["livenessProbe"]["httpGet"]["host"] == "127.0.0.1"
    assert mirrorer["image"] == IMAGES.mirror
    assert mirrorer["args"] == ["sync", "--watch", "--config", "/config/config.yaml"]
    volumes = {one["name"]: one["hostPath"]["path"] for one in spec["volumes"]}
    assert volumes["data"] == "/opt/deckhouse/registry/local_data"
    for container in spec["containers"]:
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= set(volumes)


def test_the_config_hash_changes_with_the_files_and_with_nothing_else() -> None:
    def note(rendered: Rendered, name: str) -> str:
        found = document(rendered, POD)["metadata"]["annotations"]
        return str(found[f"registry.deckhouse.io/config-{name}"])

    assert note(done(proxy()), "hash") == note(done(proxy()), "hash")
    assert note(done(proxy()), "hash") != note(done(proxy(password="q")), "hash")
    assert note(done(proxy()), "version") != note(done(proxy(password="q")), "version")


def test_the_services_of_a_master_restart_for_their_own_files_alone() -> None:
    """A way that nodes get or lose beside them changes nothing in their pod."""
    straight, way = done(local()), render(local(), NODES, kept(), previous=direct(), options=FORK)
    assert way.version != straight.version
    assert way.masters == straight.masters
    for node in MASTERS:
        assert way.nodes[node.name][POD] == straight.nodes[node.name][POD]
    moved = replace(kept(), nodes={**kept().nodes, "master-1": kept().nodes["master-2"]})
    after = render(local(), NODES, moved, options=FORK).masters
    assert [name for name in after if after[name] != straight.masters[name]] == ["master-1"]


@pytest.mark.parametrize(
    "changed",
    [
        lambda held: replace(held, token=pki.issue(held.authority, pki.TOKEN_NAME, (), NOW)),
        lambda held: replace(held, nodes={**held.nodes, "master-1": held.nodes["master-2"]}),
        lambda held: replace(held, former=(upstream_ca(),)),
        lambda held: replace(
            held, users={**held.users, RegistryUser.RO: hashed(new_account("ro"))}
        ),
    ],
    ids=["token pair", "leaf", "former authority", "user"],
)
def test_the_version_changes_with_every_secret_that_a_file_holds(
    changed: Callable[[ServiceSecrets], ServiceSecrets],
) -> None:
    other = render(local(), NODES, changed(kept()), options=FORK)
    assert other.nodes != done(local()).nodes
    assert other.version != done(local()).version


def test_the_version_is_that_of_the_files_and_of_nothing_else() -> None:
    forth = {"HTTPS_PROXY": "http://p.example:1", "NO_PROXY": "10.0.0.0/8"}
    for flavour in (FORK, STOCK):
        for settings in (direct(), proxy("nexus.example/system/deckhouse"), local()):
            one = render(settings, NODES, kept(), options=replace(flavour, environment=forth))
            back = dict(reversed(forth.items()))
            other = render(
                settings, NODES[::-1], kept(), options=replace(flavour, environment=back)
            )
            assert (one.nodes, one.in_cluster) == (other.nodes, other.in_cluster)
            assert one.version == other.version
    # How images are checked is written nowhere, so nobody has to apply it.
    assert done(proxy(checkMode="Relax")).version == done(proxy()).version


def test_the_version_tells_nothing_about_passwords() -> None:
    others = replace(kept(), http_secret="x" * 25)
    options = RenderOptions()  # without pods, so that worker and in-cluster files have no secret
    one, other = (render(unmanaged(), NODES, held, options=options) for held in (kept(), others))
    assert one.nodes == other.nodes
    assert one.version != other.version


def test_the_in_cluster_proxy_has_ports_of_its_own() -> None:
    apart = [Node("b", "10.0.0.2", ports=Ports(registry=6001)), Node("a", "10.0.0.1")]
    held = prepare_secrets(kept(), apart, NOW)
    own = replace(FORK, in_cluster_ports=Ports(registry=7001))
    for options, address in ((FORK, ":5001"), (own, ":7001")):
        rendered = render(direct(), apart, held, options=options)
        assert in_cluster(rendered, "distribution_config.yaml")["http"]["addr"] == address


def test_without_images_no_pod_is_written_and_that_is_said() -> None:
    rendered = done(local(), RenderOptions())
    assert POD not in rendered.nodes["master-0"]
    assert any("no static pod was written" in note for note in rendered.notes)
    assert done(unmanaged(), RenderOptions()).notes == ()


# -- which node has what ---------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [proxy(), local()], ids=["Proxy", "Local"])
def test_every_node_has_a_balancer_and_masters_alone_have_services_and_keys(
    settings: RegistrySettings,
) -> None:
    rendered = done(settings)
    assert not rendered.in_cluster
    for node in NODES:
        files = rendered.nodes[node.name]
        conf = files[BALANCER].content.decode()
        assert "listen 127.0.0.1:5001;" in conf
        assert [line.strip() for line in conf.splitlines() if " server 10." in line] == [
            f"server {master.address}:5001 fail_timeout=1s;" for master in MASTERS
        ]
        assert (POD in files) is node.master
        assert any(path.suffix == ".key" for path in files) is node.master


@pytest.mark.parametrize("settings", [direct(), unmanaged(), legacy()], ids=["D", "U", "legacy"])
def test_without_node_services_nodes_have_hosts_alone(settings: RegistrySettings) -> None:
    for files in done(settings).nodes.values():
        assert all(path.is_relative_to("/etc/containerd") for path in files)


def test_a_transition_keeps_the_services_of_both_sides() -> None:
    away = done(direct(), previous=local())
    assert POD in away.nodes["master-0"]
    assert BALANCER in away.nodes[WORKER.name]
    assert away.in_cluster
    back = done(local(), previous=direct())
    assert back.in_cluster
    assert registry(back) == registry(done(local()))


def test_every_file_with_a_secret_is_for_its_owner_alone() -> None:
    secrets = [one.account.password.get_secret_value() for one in kept().users.values()]
    secrets += [one.password_hash for one in kept().users.values()]
    secrets += [kept().http_secret, "PRIVATE KEY", "dTpw", "$2b$"]
    rendered = done(local(), previous=direct())
    trees = [*rendered.nodes.values(), rendered.in_cluster]
    seen = 0
    for files in trees:
        for path, file in files.items():
            if any(secret.encode() in file.content for secret in secrets):
                assert file.mode == 0o600, path
                seen += 1
            assert b"PRIVATE" not in repr(file).encode()
    assert seen > 20


# -- leaves and nodes ------------------------------------------------------------------------------


def test_what_was_prepared_is_kept_and_a_moved_node_gets_new_leaves() -> None:
    assert prepare_secrets(kept(), NODES, NOW) == kept()
    moved = prepare_secrets(kept(), [Node("master-0", "10.0.0.77"), *MASTERS[1:]], NOW)
    assert moved.nodes["master-0"] != kept().nodes["master-0"]
    assert moved.nodes["master-1"] == kept().nodes["master-1"]
    assert moved.authority == kept().authority


def test_authorities_before_and_after_the_signing_one_are_kept_in_the_file(tmp_path: Path) -> None:
    due = kept().authority.parsed().not_valid_after_utc - pki.AUTHORITY_LIFE / 3
    held = kept()
    for now in (due, due + pki.OVERLAP):
        held = prepare_secrets(held, NODES, now)
        write_secrets(held, tmp_path / "secrets.json")
        assert read_secrets(tmp_path / "secrets.json") == held
        files = render(local(), NODES, held, options=FORK).nodes["master-0"]
        assert files[PKI / "ca.crt"].content.decode() == held.trusted
        assert held.trusted.count("BEGIN CERTIFICATE") == 2
    assert held.former == (kept().authority.certificate,)


def test_mappings_of_frozen_values_are_read_only() -> None:
    options = RenderOptions(environment={"NO_PROXY": "x"})
    rendered = done(local())
    for mapping in (
        *(options.environment, options.sources, rendered.nodes),
        *(kept().users, kept().nodes),
    ):
        assert isinstance(mapping, MappingProxyType)


def test_impossible_clusters_are_refused() -> None:
    with pytest.raises(RenderingError, match="expected at least one, found none"):
        render(local(), [], kept())
    with pytest.raises(RenderingError, match="at least one master"):
        render(local(), [WORKER], kept())
    with pytest.raises(RenderingError, match="master-0 is given twice"):
        render(local(), [MASTERS[0], MASTERS[0]], kept())
    with pytest.raises(RenderingError, match=r"are both at 10\.0\.0\.1:5001"):
        render(local(), [MASTERS[0], Node("master-9", "10.0.0.1")], kept())
    loop = Node("master-0", "127.0.0.1")
    with pytest.raises(RenderingError, match=r"would both listen on 127\.0\.0\.1:5001"):
        render(local(), [loop], kept())
    apart = Node("master-0", "127.0.0.1", ports=Ports(balancer=5009))
    assert render(local(), [apart], kept()).nodes


def test_an_ipv6_address_is_written_in_brackets() -> None:
    six = Node("master-0", "fd00::1")
    rendered = render(local(), [six], kept(), options=FORK)
    assert registry(rendered)["http"]["addr"] == "[fd00::1]:5001"
    assert b"server [fd00::1]:5001 fail_timeout=1s;" in rendered.nodes["master-0"][BALANCER].content


def test_nginx_loads_the_modules_that_a_package_keeps_apart() -> None:
    options = RenderOptions(nginx=Nginx(modules=("/usr/lib/nginx/modules/ngx_stream_module.so",)))
    conf = done(local(), options).nodes["worker-0"][BALANCER].content.decode()
    assert conf.startswith("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n")
