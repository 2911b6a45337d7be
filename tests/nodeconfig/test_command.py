"""`mirror mode render`, from settings to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mirror.commands.mode_render import render_command
from mirror.errors import InputError, InvalidSettingsError, MirrorError, RenderingError
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState, inputs_hash
from mirror.nodeconfig.tree import STATIC_POD

pytestmark = pytest.mark.usefixtures("quick_keys")
MASTERS = "master-0=10.0.0.1,master-1=10.0.0.2"
DIRECT = """\
apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata: {name: deckhouse}
spec:
  version: 1
  settings:
    registry:
      mode: Direct
      direct: {imagesRepo: nexus.example/dkp/ee, username: u, password: pass-in-the-settings}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "direct.yaml").write_text(DIRECT)
    (tmp_path / "local.yaml").write_text("mode: Local\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    """Run it on `folder`/out."""
    done = CliRunner().invoke(
        render_command, [*arguments, "--out", str(folder / "out")], catch_exceptions=True
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_mode_is_written_for_every_node(folder: Path) -> None:
    config = str(folder / "local.yaml")
    done = run(folder, "--module-config", config, "--nodes", MASTERS, "--workers", "w=10.0.0.9")
    assert done.exit_code == 0, done.output
    assert "Configuration of Local mode in" in done.output
    assert "nodes/master-0: 14 written, 0 unchanged, 0 removed" in done.output
    assert "nodes/w: 4 written" in done.output
    assert (
        "Note: no static pod was written; name its images: --image distribution=IMAGE "
        "--image auth=IMAGE --image mirror=IMAGE\n" in done.output
    )
    secrets = folder / "out/registry-secrets.json"
    assert secrets.stat().st_mode & 0o777 == 0o600


def test_a_kept_authority_that_cannot_be_read_is_named_with_its_file(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    assert run(folder, *arguments).exit_code == 0
    secrets = folder / "out/registry-secrets.json"
    for part in ("CERTIFICATE", "PRIVATE KEY"):
        whole = secrets.read_text()
        secrets.write_text(whole.replace(f"BEGIN {part}", f"BEGIN {part[::-1]}", 1))
        with pytest.raises(RenderingError, match=r"authority: .*; restore the file from") as found:
            run(folder, *arguments)
        assert str(found.value).startswith(str(secrets))
        secrets.write_text(whole)


def test_the_same_settings_write_nothing_anew(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS, "--json"]
    first = json.loads(run(folder, *arguments).output)
    second = json.loads(run(folder, *arguments).output)
    assert first["version"] == second["version"]
    for tree in second["trees"].values():
        assert tree["written"] == tree["removed"] == []
        assert tree["unchanged"]


def test_what_was_renewed_is_told(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes"]
    first = run(folder, *arguments, "master-0=10.0.0.1")
    assert "new:" not in first.output
    second = run(folder, *arguments, "master-0=10.0.0.7")
    assert "\n  new: auth of master-0 (until 20" in second.output
    assert "\n  new: distribution of master-0 (until 20" in second.output
    again = json.loads(run(folder, *arguments, "master-0=10.0.0.7", "--json").output)
    assert again["renewed"] == []


def test_a_transition_is_rendered_from_two_settings(folder: Path) -> None:
    new, old = str(folder / "local.yaml"), str(folder / "direct.yaml")
    done = run(folder, "--module-config", new, "--from", old, "--nodes", MASTERS, "--json")
    document = json.loads(done.output)
    assert (document["from"], document["mode"]) == ("Direct", "Local")
    assert "in-cluster" in document["trees"]
    assert "pass-in-the-settings" not in done.output
    final = json.loads(run(folder, "--module-config", new, "--nodes", MASTERS, "--json").output)
    assert any("in-cluster" in path for path in final["trees"]["in-cluster"]["removed"])


def test_images_bring_the_static_pod(folder: Path) -> None:
    images = given("distribution", "auth", "mirror")
    config = str(folder / "local.yaml")
    done = run(folder, "--module-config", config, "--nodes", MASTERS, *images)
    assert "Note" not in done.output
    path = folder / "out/nodes/master-1/etc/kubernetes/manifests/registry-nodeservices.yaml"
    containers = yaml.safe_load(path.read_text())["spec"]["containers"]
    assert [one["image"] for one in containers] == [
        "r.example/auth:1",
        "r.example/distribution:1",
        "r.example/mirror:1",
    ]
    assert not path.with_name("registry-proxy.yaml").exists()


def given(*names: str) -> list[str]:
    """`--image` for each."""
    return [part for name in names for part in ("--image", f"{name}=r.example/{name}:1")]


def test_the_image_of_nginx_alone_brings_the_balancers_pod_to_every_node(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    arguments += ["--workers", "w=10.0.0.9", "--json"]
    run(folder, *arguments)
    document = json.loads(run(folder, *arguments, *given("nginx")).output)
    pod = "/etc/kubernetes/manifests/registry-proxy.yaml"
    for tree in ("nodes/master-0", "nodes/master-1", "nodes/w"):
        assert document["trees"][tree]["written"] == [pod]
    (note,) = document["notes"]
    assert note == (
        "no static pod of the masters' services was written; name its images: "
        "--image distribution=IMAGE --image auth=IMAGE --image mirror=IMAGE"
    )
    text = (folder / f"out/nodes/w{pod}").read_text()
    assert yaml.safe_load(text)["spec"]["containers"][0]["image"] == "r.example/nginx:1"
    without = json.loads(run(folder, *arguments).output)
    assert without["trees"]["nodes/w"]["removed"] == [pod]


def test_an_image_that_nothing_runs_from_is_told(folder: Path) -> None:
    config = str(folder / "direct.yaml")
    arguments = ["--module-config", config, "--nodes", MASTERS]
    done = run(folder, *arguments, *given("nginx", "mirror"))
    assert "Note: no pod here has a container of the image mirror, nginx\n" in done.output
    assert (
        "Note: no Deployment of the in-cluster proxy was written; name its images: "
        "--image auth=IMAGE --image distribution=IMAGE\n" in done.output
    )
    stock = run(folder, *arguments, "--flavour", "stock", *given("nginx"))
    assert "Note" not in stock.output
    pods = folder / "out/nodes/master-0/etc/kubernetes/manifests"
    assert [path.name for path in pods.iterdir()] == ["registry-relay.yaml"]


NEEDED = "images: expected distribution, auth, mirror for the static pod of the masters, found "
KNOWN = "images: expected NAME=IMAGE with each of distribution, auth, mirror, nginx at most once, "


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["auth=a"], f"{NEEDED}auth; give distribution and mirror too, or none of them"),
        (
            ["distribution=a", "auth=b", "nginx=c"],
            f"{NEEDED}distribution, auth; give mirror too, or none of them",
        ),
        (["proxy=a"], f"{KNOWN}found 'proxy=a'; correct it"),
        (["nginx"], f"{KNOWN}found 'nginx'; correct it"),
        (["nginx=a", "nginx=b"], f"{KNOWN}found nginx twice; correct it"),
        (
            ["nginx="],
            "nginx image: expected an image reference, found ''; correct it and try again",
        ),
    ],
    ids=str,
)
def test_images_that_cannot_be_used_are_refused(
    folder: Path, images: list[str], message: str
) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    with pytest.raises(RenderingError) as found:
        run(folder, *arguments, *(part for one in images for part in ("--image", one)))
    assert str(found.value) == message
    assert not (folder / "out").exists()


def test_images_are_of_no_use_to_services_without_containers(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    with pytest.raises(RenderingError) as found:
        run(folder, *arguments, "--in-place", *given("nginx"))
    assert str(found.value) == (
        "images: expected none where services run without containers, from files in place, found "
        "nginx; leave the images out, or --in-place"
    )


def test_nodes_come_from_a_file_with_their_ports(folder: Path) -> None:
    nodes = [
        {"name": "master-0", "address": "127.0.0.1", "ports": {"registry": 6001, "token": 6051}},
        {"name": "worker-0", "address": "10.0.0.9", "master": False},
    ]
    path = folder / "nodes.yaml"
    path.write_text(yaml.safe_dump(nodes))
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", str(path)]
    done = run(folder, *arguments, "--flavour", "stock", "--in-place")
    assert done.exit_code == 0, done.output
    config = folder / "out/nodes/master-0/etc/kubernetes/registry/distribution/config.yaml"
    document = yaml.safe_load(config.read_text())
    assert document["http"]["addr"] == "127.0.0.1:6001"
    assert document["auth"]["token"]["realm"] == "https://127.0.0.1:6051/auth"
    for name in ("certificate", "key"):
        assert Path(document["http"]["tls"][name]).is_file()


def test_the_in_cluster_proxy_gets_the_ports_that_are_given(folder: Path) -> None:
    section = {"mode": "Direct", "direct": {"imagesRepo": "reg.example/deckhouse/ee"}}
    (folder / "direct.yaml").write_text(yaml.safe_dump(section))
    arguments = ["--module-config", str(folder / "direct.yaml"), "--nodes", MASTERS]
    done = run(folder, *arguments, "--in-cluster-port", "registry=7001")
    assert done.exit_code == 0, done.output
    config = folder / "out/in-cluster/etc/kubernetes/registry/in-cluster/distribution_config.yaml"
    assert yaml.safe_load(config.read_text())["http"]["addr"] == ":7001"
    for wrong in ("relay=7004", "registry", "registry=no", "registry=70000"):
        with pytest.raises(RenderingError, match=r"in-cluster ports: expected|expected a port"):
            run(folder, *arguments, "--in-cluster-port", wrong)


def test_caches_reach_their_upstream_through_the_proxy_that_is_given(folder: Path) -> None:
    section = {"mode": "Proxy", "proxy": {"imagesRepo": "reg.example/deckhouse/ee"}}
    (folder / "proxy.yaml").write_text(yaml.safe_dump(section))
    images = [f"--image={name}=reg.example/{name}:1" for name in ("distribution", "auth")]
    arguments = ["--module-config", str(folder / "proxy.yaml"), "--nodes", MASTERS, *images]
    proxy = "http://proxy.example.com:3128"
    done = run(
        folder,
        *arguments,
        *("--cache-proxy", f"HTTPS_PROXY={proxy}", "--cache-proxy", "NO_PROXY=10.0.0.0/8"),
    )
    assert done.exit_code == 0, done.output
    manifest = folder / f"out/nodes/master-0{STATIC_POD}"
    token_server, registry = yaml.safe_load(manifest.read_text())["spec"]["containers"]
    assert {one["name"]: one["value"] for one in registry["env"]} == {
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), proxy),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "10.0.0.0/8"),
    }
    assert "env" not in token_server
    for wrong in ("PROXY=x", "HTTPS_PROXY"):
        with pytest.raises(RenderingError, match="cache proxies: expected NAME=VALUE"):
            run(folder, *arguments, "--cache-proxy", wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list of nodes"),
        ("- 1", "node 1: expected a mapping"),
        ("- {name: a}", "expected name and address as texts"),
        ("- {name: a, address: 10.0.0.1, ports: {ssh: 22}}", "expected name and address"),
        ("- {name: a, name: b}", "name is set twice"),
        ("- [", "expected YAML"),
        ("\0", "expected YAML"),
    ],
)
def test_a_file_of_nodes_that_is_none_is_told(folder: Path, text: str, message: str) -> None:
    path = folder / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(RenderingError, match=message):
        run(folder, "--module-config", str(folder / "local.yaml"), "--nodes", str(path))
    assert not (folder / "out").exists()


def test_nothing_is_written_when_anything_is_wrong(folder: Path) -> None:
    (folder / "bad.yaml").write_text("mode: Direct\n")
    bad = str(folder / "bad.yaml")
    wrong: list[tuple[type[MirrorError], list[str]]] = [
        (InvalidSettingsError, ["--module-config", bad, "--nodes", MASTERS]),
        (RenderingError, ["--module-config", str(folder / "local.yaml"), "--nodes", "a=b"]),
        (
            RenderingError,
            ["--module-config", str(folder / "local.yaml"), "--nodes", f"{MASTERS},master-0"],
        ),
    ]
    for kind, arguments in wrong:
        with pytest.raises(kind):
            run(folder, *arguments)
    assert not (folder / "out").exists()


def test_the_clusters_objects_are_written_beside_the_trees(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    push = ["host=registry.example.com", "class=nginx-2", "tls-secret=tls", "allow=10.0.0.0/8,::1"]
    told = run(folder, *arguments, *(word for one in push for word in ("--push-ingress", one)))
    assert "  manifests: 14 written, 0 unchanged, 0 removed\n" in told.output
    ingress = yaml.safe_load((folder / "out/manifests/ingress-registry.yaml").read_text())
    assert ingress["spec"]["ingressClassName"] == "nginx-2"
    assert ingress["spec"]["tls"] == [{"hosts": ["registry.example.com"], "secretName": "tls"}]
    allowed = ingress["metadata"]["annotations"]
    assert allowed["nginx.ingress.kubernetes.io/whitelist-source-range"] == "10.0.0.0/8,::1"
    again = json.loads(run(folder, *arguments, "--json").output)
    assert again["trees"]["manifests"]["removed"] == ["/ingress-registry.yaml"]
    direct = run(folder, "--module-config", str(folder / "direct.yaml"), "--nodes", MASTERS)
    assert (
        "  when the cluster has all that: kubectl -n d8-system delete "
        "secret/registry-node-config-master-0 secret/registry-node-config-master-1 "
        "secret/registry-user-mirror-puller secret/registry-user-mirror-pusher "
        "secret/registry-user-ro secret/registry-user-rw service/registry-push\n"
    ) in direct.output


def test_services_without_containers_have_no_objects(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    assert "manifests" not in run(folder, *arguments, "--in-place").output
    assert not (folder / "out/manifests").exists()


def test_components_are_switched_over_within_a_transition(folder: Path) -> None:
    way = ["--from", str(folder / "direct.yaml"), "--module-config", str(folder / "local.yaml")]
    arguments = [*way, "--nodes", MASTERS]
    service = folder / "out/manifests/service-registry.yaml"
    for more, wanted in (([], "incluster-proxy"), (["--switched"], "node-services")):
        run(folder, *arguments, *more)
        assert yaml.safe_load(service.read_text())["spec"]["selector"]["type"] == wanted
    with pytest.raises(RenderingError) as found:
        run(folder, *way[2:], "--nodes", MASTERS, "--switched")
    assert str(found.value) == "--switched: expected a transition, found none; add --from"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["class=nginx"], "push ingress: expected a host, found none; write host=registry.apps"),
        (
            ["port=443"],
            "push ingress: expected NAME=VALUE of host, class, tls-secret, allow",
        ),
        (["host=r.example", "allow=10.0.0.1/8"], "push ingress: allow: expected a network, as in"),
    ],
)
def test_an_ingress_that_cannot_be_is_refused(folder: Path, given: list[str], message: str) -> None:
    options = [word for one in given for word in ("--push-ingress", one)]
    with pytest.raises(RenderingError) as found:
        run(folder, "--module-config", str(folder / "local.yaml"), "--nodes", MASTERS, *options)
    assert str(found.value).startswith(message)


# -- rotation --------------------------------------------------------------------------------------


def applied(folder: Path, version: str, *names: str) -> str:
    """A file of facts in which these nodes have applied a version."""
    path = folder / "facts.yaml"
    path.write_text(yaml.safe_dump({"nodes": [{"name": one, "version": version} for one in names]}))
    return str(path)


def test_a_rotation_takes_a_step_when_every_node_has_applied_the_last(folder: Path) -> None:
    """Rendering without facts, or with those of nodes that are behind, takes none."""
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]

    def rendered(*more: str) -> dict[str, Any]:
        document = json.loads(run(folder, *arguments, "--json", *more).output)
        assert isinstance(document, dict)
        return document

    def account() -> str:
        kept = json.loads((folder / "out/registry-secrets.json").read_text())
        return str(kept["users"]["ro"]["name"])

    names = ("master-0", "master-1")
    before = rendered()
    assert before["rotation"] is None
    begun = rendered("--rotate", "users", "--rotate", "token")
    assert begun["rotation"] == {"what": ["token", "users"], "phase": "trusted", "waiting": ""}
    assert "login ro-2" in begun["renewed"]
    idle = rendered()
    assert idle["version"] == begun["version"] != before["version"]
    assert idle["rotation"]["waiting"] == (
        "nobody has said which version these nodes have applied: master-0, master-1"
    )
    behind = rendered("--facts", applied(folder, before["version"], *names))
    assert behind["rotation"]["phase"] == "trusted"
    assert behind["rotation"]["waiting"].startswith("0/2 node(s) ready")
    assert account() == "ro"
    used = rendered("--facts", applied(folder, begun["version"], *names))
    assert used["rotation"] == {"what": ["token", "users"], "phase": "used", "waiting": ""}
    assert account() == "ro-2"
    facts = applied(folder, used["version"], *names)
    done = run(folder, *arguments, "--facts", facts)
    assert "Rotation of token, users: the old is trusted no more" in done.output
    assert "Rotation" not in run(folder, *arguments, "--facts", facts).output


def test_a_rotation_and_a_switch_go_one_after_the_other(folder: Path) -> None:
    arguments = ["--module-config", str(folder / "local.yaml"), "--nodes", MASTERS]
    with pytest.raises(InputError, match="complete the switch first, then rotate"):
        run(folder, *arguments, "--from", str(folder / "direct.yaml"), "--rotate", "authority")
    assert not (folder / "out").exists()
    assert "Rotation of authority, token: what is new is trusted" in (
        run(folder, *arguments, "--rotate", "authority").output
    )
    with pytest.raises(RenderingError, match="a rotation of authority, token is under way"):
        run(folder, *arguments, "--rotate", "users")


UPSTREAM = "imagesRepo: nexus.example/dkp/ee"
CACHES_KNOW_ONE = "caches have no user whose place a second one could take; switch to Direct"


@pytest.mark.parametrize(
    ("settings", "thing", "message"),
    [
        (f"mode: Proxy\nproxy: {{{UPSTREAM}}}", "users", CACHES_KNOW_ONE),
        (f"mode: Unmanaged\nunmanaged: {{{UPSTREAM}}}", "token", "no authority and logins of its"),
        ("mode: Unmanaged", "authority", "no authority and logins of its own"),
    ],
    ids=["Proxy", "Unmanaged", "legacy"],
)
def test_no_rotation_is_begun_that_the_controller_refuses(
    folder: Path, settings: str, thing: str, message: str
) -> None:
    (folder / "settings.yaml").write_text(settings)
    arguments = ["--module-config", str(folder / "settings.yaml"), "--nodes", MASTERS]
    with pytest.raises(InputError, match=message):
        run(folder, *arguments, "--rotate", thing)
    assert not (folder / "out").exists()


def test_files_in_place_let_caches_take_a_second_login_as_no_agent_reads_them(folder: Path) -> None:
    (folder / "proxy.yaml").write_text(f"mode: Proxy\nproxy: {{{UPSTREAM}}}")
    settings = ["--module-config", str(folder / "proxy.yaml"), "--containerd", "stock"]
    done = run(folder, *settings, "--nodes", MASTERS, "--in-place", "--rotate", "users")
    assert "Rotation of users: what is new is trusted" in done.output


def test_a_rotation_of_passwords_waits_where_a_switch_to_caches_came_after_it(folder: Path) -> None:
    (folder / "proxy.yaml").write_text(f"mode: Proxy\nproxy: {{{UPSTREAM}}}")
    nodes = ["--nodes", MASTERS, "--json"]
    run(folder, "--module-config", str(folder / "local.yaml"), *nodes, "--rotate", "users")
    arguments = ["--module-config", str(folder / "proxy.yaml"), *nodes]
    version = json.loads(run(folder, *arguments).output)["version"]
    facts = applied(folder, version, "master-0", "master-1")
    waits = json.loads(run(folder, *arguments, "--facts", facts).output)["rotation"]
    assert waits["phase"] == "trusted"
    assert CACHES_KNOW_ONE in waits["waiting"]


# -- the state -------------------------------------------------------------------------------------


def test_the_state_is_rendered_in_its_public_keys_and_an_owner_alone_may_read_it(
    folder: Path,
) -> None:
    direct, local = (str(folder / name) for name in ("direct.yaml", "local.yaml"))
    file = folder / "out/manifests/secret-registry-state.yaml"
    told = []
    for more in (["--module-config", direct], ["--module-config", local, "--from", direct]):
        run(folder, *more, "--nodes", MASTERS)
        state = RegistryState.load(file)
        told.append((state.mode.value, state.target_mode.value, state.in_flight))
        assert state.hash == inputs_hash(RegistrySettings.load(Path(more[1])))
    assert told == [("Direct", "Direct", False), ("Direct", "Local", True)]
    assert yaml.safe_load(file.read_text())["data"].keys() == {
        *("hash", "mode", "target_mode", "conditions", "state")
    }
    assert file.stat().st_mode & 0o777 == 0o600
