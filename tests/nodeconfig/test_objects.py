"""The cluster's objects: in the module's own forms, valid, and leading to pods that are there."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from mirror.errors import RenderingError
from mirror.modes import RegistryUser
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.objects import PushIngress
from mirror.nodeconfig.pulling import Containerd
from mirror.nodeconfig.render import Rendered, RenderOptions, render, write_cluster
from mirror.nodeconfig.services import Distribution
from mirror.nodeconfig.tree import STATIC_PODS
from tests.support.kubernetes import check_object, endpoints, pods_of
from tests.support.rendered_cluster import (
    ALL_IMAGES,
    LOGICAL,
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
from tests.support.schemas import jsonschema

PUSH = PushIngress("registry.example.com", allow=("10.0.0.0/8", "192.0.2.7"))
FORK = RenderOptions(images=ALL_IMAGES, push_ingress=PUSH)
STOCK = replace(FORK, containerd=Containerd.STOCK, distribution=Distribution.STOCK)
FLAVOURS = {"deckhouse": FORK, "stock": STOCK}
REPO = "nexus.example:8443/system/deckhouse"  # which a stock cache can serve
EVERY = {
    "Direct": direct(REPO, ca=upstream_ca()),
    "Direct, other path": direct(),
    "Direct, anonymous": direct(REPO, anonymous=True),
    "Proxy": proxy(REPO, ttl="72h", ca=upstream_ca()),
    "Local": local(),
    "Unmanaged": unmanaged(),
    "legacy": legacy(),
}
CASES: list[tuple[str | None, str]] = [
    *((None, one) for one in EVERY),
    *[("Direct", "Local"), ("Local", "Direct"), ("Direct", "Direct, other path")],
    *[("Proxy", "Direct, anonymous"), ("legacy", "Proxy"), ("Unmanaged", "Direct")],
    *[("Local", "Unmanaged"), ("Proxy", "legacy")],
]
"""Each object comes, stays and goes in one of these."""
TWO = (MASTERS[0], MASTERS[1], WORKER)


@cache
def done(after: str, before: str | None = None, flavour: str = "deckhouse") -> Rendered:
    previous = None if before is None else EVERY[before]
    return render(EVERY[after], TWO, kept(), previous=previous, options=FLAVOURS[flavour])


def one(rendered: Rendered, kind: str, name: str) -> Mapping[str, Any]:
    found = [
        each
        for each in rendered.objects
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def names(rendered: Rendered, kind: str) -> list[str]:
    return [each["metadata"]["name"] for each in rendered.objects if each["kind"] == kind]


def data(rendered: Rendered, name: str) -> dict[str, str]:
    content = one(rendered, "Secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in content.items()}


def static_pods(rendered: Rendered) -> list[Mapping[str, Any]]:
    return [
        yaml.safe_load(files[path].content)
        for files in rendered.nodes.values()
        for path in STATIC_PODS
        if path in files
    ]


# -- the API's own rules ---------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_api_takes_every_object_and_every_pod(flavour: str) -> None:
    kinds = set()
    for before, after in CASES:
        rendered = done(after, before, flavour)
        for each in (*rendered.objects, *static_pods(rendered)):
            kinds.add(each["kind"])
            # Secrets differ in their data, which has one form.
            if each["kind"] != "Secret" or before is None:
                check_object(each)
        found = [(each["kind"], each["metadata"]["name"]) for each in rendered.objects]
        assert len(set(found)) == len(found)
        assert {each["metadata"]["namespace"] for each in rendered.objects} == {"d8-system"}
    assert kinds == {
        *("Secret", "Service", "Deployment", "PodDisruptionBudget", "Ingress", "Pod"),
    }


def test_the_api_takes_the_state() -> None:
    secret = RegistryState().to_secret()
    check_object(secret)
    assert secret["type"] == "registry/state"
    assert secret["metadata"]["labels"] == {
        "heritage": "deckhouse",
        "module": "registry",
        "app": "registry",
        "type": "registry-state",
    }


# -- what the module's own templates name, label and select ---------------------------------------

MODULE = yaml.safe_load(Path(__file__).with_name("module_objects.yaml").read_text())
del MODULE["$defs"]


def as_the_module_has_it(each: Mapping[str, Any]) -> None:
    (rules,) = (
        schema
        for what, schema in MODULE.items()
        if re.fullmatch(what, f"{each['kind']} {each['metadata']['name']}")
    )
    plain = json.loads(json.dumps(each))
    jsonschema.Draft202012Validator(rules).validate(plain)


def of_the_module() -> list[Mapping[str, Any]]:
    """What is rendered in every mode and transition, of each kind and name one."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for before, after in CASES:
        rendered = done(after, before)
        own = [pod for pod in static_pods(rendered) if "component" in pod["metadata"]["labels"]]
        masters = [
            pod for pod in own if pod["metadata"]["labels"]["component"] == "registry-service"
        ]
        for each in (*rendered.objects, *masters):
            as_the_module_has_it(each)
            found[each["kind"], each["metadata"]["name"]] = each
    return [*found.values(), replace(RegistryState("a" * 64), private=SecretStr("{}")).to_secret()]


def test_objects_are_named_labelled_and_selected_as_in_the_modules_templates() -> None:
    every = of_the_module()
    for each in every:
        as_the_module_has_it(each)
        assert each["metadata"]["namespace"] == "d8-system"
    met = {
        what
        for what in MODULE
        for each in every
        if re.fullmatch(what, f"{each['kind']} {each['metadata']['name']}")
    }
    assert met == {*MODULE}, "each form was met"


def test_another_label_type_selector_or_port_is_not_the_modules() -> None:
    for each in of_the_module():
        for path in (
            ["metadata", "labels", "module"],
            ["type"],
            ["spec", "selector", "type"],
            ["spec", "selector", "matchLabels", "type"],
            ["spec", "ports", 0, "targetPort"],
            ["spec", "template", "metadata", "labels", "app"],
            ["spec", "template", "spec", "containers", 0, "ports", 0, "name"],
            ["spec", "containers", 1, "ports", 0, "name"],
        ):
            other = json.loads(json.dumps(each))
            inner = other
            with suppress(KeyError):
                for step in path[:-1]:
                    inner = inner[step]
                inner[path[-1]] += "-other"
                with pytest.raises(jsonschema.ValidationError):
                    as_the_module_has_it(other)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("switched", [False, True])
def test_every_service_leads_to_a_pod_and_the_ingress_to_a_service(
    flavour: str, switched: bool
) -> None:
    for before, after in CASES:
        if before is None and switched:
            continue
        rendered = done(after, before, flavour)
        if switched:
            assert before is not None
            rendered = render(
                *(EVERY[after], TWO, kept()),
                previous=EVERY[before],
                switched=True,
                options=FLAVOURS[flavour],
            )
        pods = [*pods_of([*static_pods(rendered), *rendered.objects])]
        services = {name: one(rendered, "Service", name) for name in names(rendered, "Service")}
        for name, service in services.items():
            behind = endpoints(service, pods)
            assert behind, f"{before} → {after}: {name} leads nowhere"
            assert {one.rpartition(":")[2] for one in behind} == {"5001"}
        for name in names(rendered, "Ingress"):
            (rule,) = one(rendered, "Ingress", name)["spec"]["rules"]
            (path,) = rule["http"]["paths"]
            to = path["backend"]["service"]
            ports = [port["port"] for port in services[to["name"]]["spec"]["ports"]]
            assert to["port"]["number"] in ports
        for budget in names(rendered, "PodDisruptionBudget"):
            selector = one(rendered, "PodDisruptionBudget", budget)["spec"]["selector"]
            assert any(selector["matchLabels"].items() <= pod.labels.items() for pod in pods)


def test_a_pod_mounts_only_secrets_and_folders_that_were_rendered() -> None:
    for flavour, (before, after) in itertools.product(FLAVOURS, CASES):
        rendered = done(after, before, flavour)
        for name in names(rendered, "Deployment"):
            spec = one(rendered, "Deployment", name)["spec"]["template"]["spec"]
            for volume in spec["volumes"]:
                if "secret" in volume:
                    assert volume["secret"]["secretName"] in names(rendered, "Secret")
            for container in spec["containers"]:
                files = {path.name for path in rendered.in_cluster}
                for word in (*container.get("args", ()), *container.get("command", ())):
                    if word.startswith("/config/"):
                        assert word.removeprefix("/config/") in files


def test_no_two_pods_of_a_node_want_the_same_port_of_it() -> None:
    """The kubelet admits only one of them. Ports of different addresses do not collide."""
    for flavour, (before, after) in itertools.product(FLAVOURS, CASES):
        for files in done(after, before, flavour).nodes.values():
            wanted: list[tuple[str, int]] = []
            for path in STATIC_PODS:
                if path in files:
                    for container in yaml.safe_load(files[path].content)["spec"]["containers"]:
                        ports = container["ports"]
                        wanted += ((port["hostIP"], port["containerPort"]) for port in ports)
            assert len(set(wanted)) == len(wanted)


# -- which objects a mode has ----------------------------------------------------------------------

MANAGED = ["registry-config", "deckhouse-registry", "registry-bashible-config", "registry-pki"]
NODE_CONFIGS = [f"registry-node-config-{node.name}" for node in TWO if node.master]
USERS = [f"registry-user-{user}" for user in RegistryUser]


@pytest.mark.parametrize(
    ("mode", "secrets", "others"),
    [
        (
            "Direct",
            [*MANAGED, "registry-incluster-proxy-config"],
            ["registry", "registry-incluster-proxy", "registry-incluster-proxy"],
        ),
        ("Proxy", [*MANAGED, "registry-user-ro", *NODE_CONFIGS], ["registry"]),
        ("Local", [*MANAGED, *USERS, *NODE_CONFIGS], ["registry", "registry-push", "registry"]),
        ("Unmanaged", MANAGED[:3], []),
        ("legacy", ["registry-config"], []),
    ],
)
def test_a_mode_has_the_objects_of_the_module(
    mode: str, secrets: list[str], others: list[str]
) -> None:
    rendered = done(mode)
    assert names(rendered, "Secret") == secrets
    rest = [each["metadata"]["name"] for each in rendered.objects if each["kind"] != "Secret"]
    assert rest == others


def test_a_transition_has_the_objects_of_both_sides() -> None:
    rendered = done("Local", "Direct")
    for side in ("Direct", "Local"):
        assert set(names(done(side), "Secret")) <= set(names(rendered, "Secret"))
    assert names(rendered, "Deployment") == ["registry-incluster-proxy"]
    assert names(rendered, "Ingress") == ["registry"]


def test_components_are_led_to_the_new_side_when_they_are_switched() -> None:
    """Before that, the new side would not know the login that they still have."""

    def seen(switched: bool) -> tuple[str, str]:
        rendered = render(
            local(), NODES, kept(), previous=direct(), switched=switched, options=FORK
        )
        access = json.loads(data(rendered, "deckhouse-registry")[".dockerconfigjson"])
        service = one(rendered, "Service", "registry")["spec"]["selector"]["type"]
        return service, access["auths"][LOGICAL]["username"]

    assert seen(switched=False) == ("incluster-proxy", "u")
    assert seen(switched=True) == ("node-services", "ro")


def test_components_leave_the_real_registry_only_when_they_are_switched() -> None:
    before = done("Direct", "Unmanaged")
    assert data(before, "deckhouse-registry")["address"] == "nexus.example:8443"
    assert one(before, "Service", "registry")["spec"]["selector"]["type"] == "incluster-proxy"
    after = render(direct(), NODES, kept(), previous=unmanaged(), switched=True, options=FORK)
    assert data(after, "deckhouse-registry")["address"] == LOGICAL


def test_nobody_pushes_to_a_registry_that_will_be_left() -> None:
    rendered = done("Direct", "Local")
    assert names(rendered, "Service") == ["registry"]
    assert names(rendered, "Ingress") == []


# -- what is in them -------------------------------------------------------------------------------


def test_services_select_by_label_and_find_the_port_by_its_name() -> None:
    headless = one(done("Local"), "Service", "registry")
    assert headless["spec"] == {
        "clusterIP": "None",
        "selector": {"component": "registry-service", "type": "node-services"},
        "ports": [
            {"name": "registry", "port": 5001, "protocol": "TCP", "targetPort": "distribution"}
        ],
    }
    pushed = one(done("Local"), "Service", "registry-push")
    assert "clusterIP" not in pushed["spec"]
    assert pushed["spec"]["selector"] == headless["spec"]["selector"]
    assert one(done("Direct"), "Service", "registry")["spec"]["selector"] == {
        "component": "registry-service",
        "type": "incluster-proxy",
    }


def test_the_ingress_for_pushes() -> None:
    ingress = one(done("Local"), "Ingress", "registry")
    notes = ingress["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert {
        key.removeprefix(prefix): value for key, value in notes.items() if key.startswith(prefix)
    } == {
        "backend-protocol": "HTTPS",
        "upstream-hash-by": "$remote_addr",
        "proxy-body-size": "0",
        "whitelist-source-range": "10.0.0.0/8,192.0.2.7",
        "configuration-snippet": (
            "proxy_ssl_certificate /etc/nginx/ssl/client.crt;\n"
            "proxy_ssl_certificate_key /etc/nginx/ssl/client.key;\n"
            "proxy_ssl_protocols TLSv1.2;\n"
            "proxy_ssl_session_reuse on;\n"
        ),
    }
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [
        {"hosts": ["registry.example.com"], "secretName": "registry-ingress-tls"}
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "registry.example.com:443"}, "push ingress: host: expected lower-case letters"),
        ({"host": "r.example", "ingress_class": "a b"}, "push ingress: ingress class: expected"),
        (
            {"host": "r.example", "allow": ("10.0.0.1/8",)},
            "push ingress: allow: expected a network",
        ),
    ],
)
def test_an_ingress_says_only_what_it_may(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderingError) as found:
        PushIngress(**given)
    assert str(found.value).startswith(message)


def test_the_in_cluster_proxy_of_the_fork() -> None:
    spec = one(done("Direct"), "Deployment", "registry-incluster-proxy")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"node-role.kubernetes.io/control-plane": ""}
    assert pod["securityContext"]["runAsUser"] == 65534
    assert "hostNetwork" not in pod
    assert pod["automountServiceAccountToken"] is False
    distribution, auth = pod["containers"]
    assert distribution["args"] == ["serve", "/config/distribution_config.yaml"]
    assert auth["args"] == ["-logtostderr", "/config/auth_config.yaml"]
    ports = [port["name"] for each in (distribution, auth) for port in each["ports"]]
    assert ports == ["distribution", "debug", "auth"]
    for each in (distribution, auth):
        assert each["readinessProbe"]["httpGet"]["port"] in ports
        assert each["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_single_master_has_one_in_cluster_proxy_whose_successor_comes_first() -> None:
    nodes = (MASTERS[0], WORKER)
    rendered = render(direct(), nodes, kept(), options=FORK)
    spec = one(rendered, "Deployment", "registry-incluster-proxy")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "affinity" not in spec["template"]["spec"]


def test_the_proxy_restarts_when_its_own_files_change_and_not_otherwise() -> None:
    def note(rendered: Rendered) -> str:
        template = one(rendered, "Deployment", "registry-incluster-proxy")["spec"]["template"]
        return str(template["metadata"]["annotations"]["registry.deckhouse.io/version"])

    assert note(done("Direct")) == note(done("Local", "Direct"))
    assert note(done("Direct")) != note(done("Direct, other path"))


def test_the_proxy_environment_reaches_the_in_cluster_proxy() -> None:
    options = replace(FORK, environment={"HTTPS_PROXY": "http://proxy:3128"})
    rendered = render(direct(), NODES, kept(), options=options)
    pod = one(rendered, "Deployment", "registry-incluster-proxy")["spec"]["template"]["spec"]
    assert pod["containers"][0]["env"] == [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]


def test_without_its_images_the_proxy_is_not_rendered_and_that_is_said() -> None:
    rendered = render(direct(), NODES, kept(), options=RenderOptions())
    assert names(rendered, "Deployment") == []
    (note,) = rendered.notes
    assert note == (
        "no Deployment of the in-cluster proxy was written; name its images: "
        "--image auth=IMAGE --image distribution=IMAGE"
    )


def test_a_port_to_which_the_headless_service_does_not_lead_is_told() -> None:
    options = replace(FORK, in_cluster_ports=Ports(registry=7001))
    assert render(direct(), NODES, kept(), options=options).notes == (
        "no pod here has a container of the image mirror, nginx",
        "the Service registry leads to port 5001 alone, not to the in-cluster proxy (7001)",
    )
    odd = [Node("master-0", "10.0.0.1", ports=Ports(registry=6001))]
    assert render(local(), odd, kept(), options=FORK).notes[-1] == (
        "the Service registry leads to port 5001 alone, not to 10.0.0.1:6001"
    )


def test_settings_are_handed_on_in_the_modules_keys() -> None:
    assert data(done("Proxy"), "registry-config") == {
        "mode": "Proxy",
        "imagesRepo": REPO,
        "scheme": "HTTPS",
        "ca": upstream_ca(),
        "ttl": "72h",
        "checkMode": "Default",
        "username": "u",
        "password": "p",
    }
    licensed = {"imagesRepo": REPO, "license": "KEY"}
    settings = RegistrySettings.load({"mode": "Direct", "direct": licensed})
    content = data(render(settings, NODES, kept(), options=FORK), "registry-config")
    assert (content["username"], content["password"]) == ("license-token", "KEY")
    assert data(done("Local"), "registry-config") == {"mode": "Local"}
    assert data(done("legacy"), "registry-config") == {"mode": "Unmanaged"}


def test_components_get_the_logical_address_and_their_login() -> None:
    found = data(done("Local"), "deckhouse-registry")
    access = json.loads(found.pop(".dockerconfigjson"))
    password = kept().users[RegistryUser.RO].account.password.get_secret_value()
    token = base64.b64encode(f"ro:{password}".encode()).decode()
    assert access == {"auths": {LOGICAL: {"username": "ro", "password": password, "auth": token}}}
    assert found == {
        "address": LOGICAL,
        "path": "/system/deckhouse",
        "scheme": "https",
        "ca": kept().trusted,
        "imagesRegistry": f"{LOGICAL}/system/deckhouse",
    }


def test_without_management_components_get_the_real_address() -> None:
    found = data(done("Unmanaged"), "deckhouse-registry")
    assert json.loads(found[".dockerconfigjson"])["auths"].keys() == {"nexus.example:8443"}
    assert (found["address"], found["path"], found["scheme"]) == (
        "nexus.example:8443",
        "/dkp/ee",
        "https",
    )
    anonymous = render(direct(anonymous=True), NODES, kept(), options=FORK)
    login = json.loads(data(anonymous, "deckhouse-registry")[".dockerconfigjson"])
    assert login == {"auths": {LOGICAL: {}}}


def nodes_config(rendered: Rendered) -> dict[str, Any]:
    found = yaml.safe_load(data(rendered, "registry-bashible-config")["config"])
    assert isinstance(found, dict)
    return found


def test_nodes_are_configured_in_the_modules_form() -> None:
    found = nodes_config(done("Local", "Direct, other path"))
    version = done("Local", "Direct, other path").version
    ro = kept().users[RegistryUser.RO].account.password.get_secret_value()
    assert found == {
        "mode": "Local",
        "version": version,
        "imagesBase": f"{LOGICAL}/system/deckhouse",
        "proxyEndpoints": ["10.0.0.1:5001", "10.0.0.2:5001"],
        "hosts": {
            LOGICAL: {
                "mirrors": [
                    {
                        "host": "nexus.example:8443",
                        "scheme": "https",
                        "auth": {"username": "u", "password": "p", "auth": ""},
                        "rewrites": [{"from": "^system/deckhouse", "to": "dkp/ee"}],
                    },
                    {
                        "host": "127.0.0.1:5001",
                        "scheme": "https",
                        "auth": {"username": "ro", "password": ro, "auth": ""},
                        "ca": kept().trusted,
                    },
                ]
            }
        },
    }
    assert "proxyEndpoints" not in nodes_config(done("Direct"))
    assert nodes_config(done("Unmanaged"))["imagesBase"] == "nexus.example:8443/dkp/ee"


def test_the_module_refuses_two_mirrors_of_one_server_so_the_newer_stays() -> None:
    for before, after in CASES:
        rendered = done(after, before)
        if "registry-bashible-config" in names(rendered, "Secret"):
            for host in nodes_config(rendered)["hosts"].values():
                keys = [(mirror["host"], mirror["scheme"]) for mirror in host["mirrors"]]
                assert keys
                assert len(set(keys)) == len(keys)
    (mirror,) = nodes_config(done("Direct", "Direct, other path"))["hosts"][LOGICAL]["mirrors"]
    assert mirror["rewrites"][0]["to"] == "system/deckhouse"


def test_nodes_that_lose_a_path_at_once_are_told() -> None:
    assert done("Direct, other path", "Direct").notes[-1] == (
        "registry-bashible-config holds one way to nexus.example:8443: nodes that are configured "
        "by it lose system/deckhouse at once; hosts.toml, as rendered here, has both"
    )
    for after, before in (("Direct, anonymous", "Direct"), ("Direct", "Unmanaged")):
        assert "holds one way" not in " ".join(done(after, before).notes)


def test_the_services_of_a_master_are_described_for_the_modules_agent() -> None:
    content = data(done("Local"), "registry-node-config-master-1")
    assert content["version"] == done("Local").masters["master-1"]
    config = yaml.safe_load(content["config"])
    assert set(config) == {
        *("ca", "auth_cert", "auth_key", "token_cert", "token_key"),
        *("distribution_cert", "distribution_key", "user_ro", "http_secret", "local_mode"),
    }
    assert config["auth_cert"] == kept().nodes["master-1"].auth.certificate
    mode = config["local_mode"]
    assert mode["upstreams"] == ["10.0.0.1"]
    assert set(mode["user_pusher"]) == {"name", "password", "password_hash"}
    cache = yaml.safe_load(data(done("Proxy"), "registry-node-config-master-1")["config"])
    assert cache["proxy_mode"] == {
        "upstream": {
            "scheme": "https",
            "host": "nexus.example:8443",
            "path": "/system/deckhouse",
            "user": "u",
            "password": "p",
            "ttl": "72h",
        },
        "upstream_registry_ca": upstream_ca(),
    }


def test_what_the_agent_reads_has_the_cas_and_the_proxies_that_were_given() -> None:
    options = replace(FORK, ingress_client_ca=upstream_ca())
    rendered = render(local(), NODES, kept(), options=options)
    config = yaml.safe_load(data(rendered, "registry-node-config-master-0")["config"])
    assert config["local_mode"]["ingress_client_ca"] == upstream_ca()
    environment = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example"}
    rendered = render(proxy(), NODES, kept(), options=replace(FORK, environment=environment))
    config = yaml.safe_load(data(rendered, "registry-node-config-master-0")["config"])
    assert config["proxy_config"] == {"https": "http://proxy:3128", "no_proxy": ".example"}


def test_keys_and_users_have_secrets_of_their_own() -> None:
    rendered = done("Local")
    assert data(rendered, "registry-pki") == {
        "ca.crt": kept().authority.certificate,
        "ca.key": kept().authority.key,
        "token.crt": kept().token.certificate,
        "token.key": kept().token.key,
    }
    user = kept().users[RegistryUser.MIRROR_PULLER]
    assert data(rendered, "registry-user-mirror-puller") == {
        "name": "mirror-puller",
        "password": user.account.password.get_secret_value(),
        "passwordHash": user.password_hash,
    }
    types = {each["metadata"]["name"]: each.get("type") for each in rendered.objects}
    assert types["registry-pki"] == "registry/pki"
    assert types["registry-user-ro"] == "registry/user"
    assert types["registry-node-config-master-0"] == "registry/node-services-config"
    assert types["registry-config"] == "registry/config"


def test_the_in_cluster_proxys_files_are_in_its_secret() -> None:
    for flavour in FLAVOURS:
        rendered = done("Direct", None, flavour)
        files = {path.name: file.content for path, file in rendered.in_cluster.items()}
        secret = one(rendered, "Secret", "registry-incluster-proxy-config")
        assert secret["type"] == "registry/incluster-proxy-config"
        assert {key: base64.b64decode(value) for key, value in secret["data"].items()} == files


def test_nothing_but_secrets_has_secrets() -> None:
    words = [each.account.password.get_secret_value() for each in kept().users.values()]
    words += [kept().http_secret, "PRIVATE KEY", "$2b$"]
    for before, after in CASES:
        for each in done(after, before).objects:
            if each["kind"] != "Secret":
                text = json.dumps(each)
                assert not any(word in text for word in words)


# -- on the disk -----------------------------------------------------------------------------------


def test_objects_are_files_that_kubectl_applies(tmp_path: Path) -> None:
    write_cluster(done("Local"), tmp_path)
    folder = tmp_path / "manifests"
    assert folder.stat().st_mode & 0o777 == 0o700
    found = {path.name: path for path in folder.iterdir()}
    assert len(found) == len(done("Local").objects)
    assert found["secret-registry-pki.yaml"].stat().st_mode & 0o777 == 0o600
    assert found["ingress-registry.yaml"].stat().st_mode & 0o777 == 0o644
    written = [yaml.safe_load(path.read_text()) for path in found.values()]
    assert sorted(written, key=json.dumps) == sorted(
        (dict(each) for each in done("Local").objects), key=json.dumps
    )


def test_the_next_run_removes_the_objects_that_are_gone_and_nothing_of_others(
    tmp_path: Path,
) -> None:
    write_cluster(done("Local"), tmp_path)
    names = ("my-own.yaml", "secret-registry-ingress-tls.yaml", "ingress-registry.mine.yaml")
    mine = [tmp_path / "manifests" / name for name in names]
    for file in mine:
        file.write_text("kind: Secret\nmetadata:\n  name: of-the-administrator\n")
    changes = write_cluster(done("Direct"), tmp_path)["manifests"]
    assert {path.name for path in changes.removed} == {
        *(f"secret-{name}.yaml" for name in (*USERS, *NODE_CONFIGS)),
        *("service-registry-push.yaml", "ingress-registry.yaml"),
    }
    assert all(file.exists() for file in mine)
    again = write_cluster(done("Direct"), tmp_path)["manifests"]
    assert not again.written
    assert not again.removed
