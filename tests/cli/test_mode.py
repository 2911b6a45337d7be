"""`mirror mode`: what the settings mean, how to switch, and what is missing for it."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mirror.modes import LOGICAL_BASE, check
from mirror.registry import ConnectionOptions
from tests.cli.conftest import Write
from tests.conftest import MakeEmbeddedRegistry
from tests.support.cluster_replicas import image, put
from tests.support.program import call_mirror
from tests.support.tls import Authority

UPSTREAM = "nexus.corp.example:8443/dkp/ee"
PROXY = {
    "mode": "Proxy",
    "proxy": {"imagesRepo": UPSTREAM, "username": "robot", "password": "hidden-word", "ttl": "72h"},
}
DIRECT = {"mode": "Direct", "direct": {"imagesRepo": UPSTREAM, "license": "hidden-key"}}
LOCAL = {"mode": "Local"}
UNMANAGED = {"mode": "Unmanaged", "unmanaged": {"imagesRepo": UPSTREAM}}
SITES = {
    "masters": ["10.0.0.1", "10.0.0.2"],
    "publicDomainTemplate": "%s.apps.corp.example",
    "users": {"ro": "hidden-ro", "rw": "hidden-rw"},
}
GOOD = {
    "bootstrapped": True,
    "managedByDkp": True,
    "static": True,
    "queueEmpty": True,
    "nodeConfigManaged": True,
    "nodes": [
        {
            "name": "master-0",
            "master": True,
            "ready": True,
            "schedulable": True,
            "cri": "Containerd",
        }
    ],
}


# -- show ------------------------------------------------------------------------------------------


def test_show_tells_each_planes_way_and_no_secret(write: Write) -> None:
    files = ("--module-config", write("mc.yaml", PROXY), "--sites", write("sites.yaml", SITES))
    text = call_mirror("mode", "show", *files).succeeded().stdout
    for words in (
        "Proxy",
        LOGICAL_BASE,
        f"https://{UPSTREAM}",
        "robot",
        "72 h",
        "https://127.0.0.1:5001/system/deckhouse  (balancer, as ro; ",
        "trusts the module's authority and the system's roots)",
        f"external registry itself, {UPSTREAM}",
    ):
        assert words in text
    document = call_mirror("mode", "show", *files, "--json").succeeded()
    assert document.document["mode"] == "Proxy"
    assert document.document["ttlSeconds"] == 72 * 3600
    assert document.document["upstream"] == {
        "address": UPSTREAM,
        "scheme": "https",
        "user": "robot",
        "trust": "the system's roots",
    }
    api = document.document["planes"]["api"]["routes"]
    assert [route["role"] for route in api] == ["service", "master", "master"]
    assert {route["user"] for route in api} == {"ro"}
    assert "hidden" not in text + document.text


def test_show_says_whom_components_trust_where_the_proxy_passes_on(
    write: Write, authority: Authority
) -> None:
    """They may be sent to the upstream's own token server, by the way through the cluster."""
    pem = authority.certificate.read_text()
    direct = {"imagesRepo": UPSTREAM, "license": "hidden-key", "ca": pem}
    given = {"mode": "Direct", "direct": direct}
    for sites in ({}, {"ca": pem + pem}):
        files = (write("mc.yaml", given), "--sites", write("sites.yaml", sites))
        shown = call_mirror("mode", "show", "--module-config", *files, "--json").succeeded()
        planes = shown.document["planes"]
        assert {plane: ways["routes"][0]["trust"] for plane, ways in planes.items()} == {
            "cri": "the given authority and the system's roots",
            "api": "the module's authority, the given one and the system's roots",
            "operator": "the given authority and the system's roots",
            "replica": "the given authority and the system's roots",
        }
    plain = call_mirror("mode", "show", "--module-config", write("mc.yaml", DIRECT)).succeeded()
    assert "(service, as license-token; trusts the module's authority and the system's roots)" in (
        plain.stdout
    )


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n"])
def test_an_empty_file_is_not_taken_for_the_deprecated_kind(text: str, tmp_path: Path) -> None:
    """A command that failed leaves one where its output was to go."""
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    call_mirror("mode", "show", "--module-config", path).failed(2, "empty.yaml is empty; expected")


def test_show_names_no_registry_that_the_deprecated_kind_does_not_name(write: Write) -> None:
    files = ("--module-config", write("mc.yaml", {"mode": "Unmanaged"}))
    assert LOGICAL_BASE not in call_mirror("mode", "show", *files).succeeded().stdout
    assert call_mirror("mode", "show", *files, "--json").succeeded().document["images"] is None


@pytest.mark.parametrize(("ttl", "text"), [("72h", "72 h"), ("5m30s", "5 min 30 s")])
def test_show_says_for_how_long_a_proxy_keeps_images(ttl: str, text: str, write: Write) -> None:
    proxy = {"mode": "Proxy", "proxy": {"imagesRepo": UPSTREAM, "ttl": ttl}}
    shown = call_mirror("mode", "show", "--module-config", write("mc.yaml", proxy)).succeeded()
    assert f"cached for       {text}\n" in shown.stdout


def test_show_says_what_only_the_cluster_knows(write: Write) -> None:
    text = (
        call_mirror("mode", "show", "--module-config", write("mc.yaml", LOCAL)).succeeded().stdout
    )
    assert "registry.<PUBLIC_DOMAIN>" in text
    assert "not known: " in text


def test_a_mistake_in_the_settings_is_told_with_its_field(write: Write) -> None:
    wrong = {"mode": "Direct", "direct": {"imagesRepo": "x/y", "username": "u", "ttl": "1h"}}
    call_mirror("mode", "show", "--module-config", write("mc.yaml", wrong)).failed(
        2, "registry.direct", "password", "ttl"
    )


@pytest.mark.parametrize(
    ("masters", "told"),
    [
        (["10.0.0.1", "https://10.0.0.2:5001"], "masters.1: expected an address"),
        (["10.0.0.1:5001"], "masters.0: expected an address"),
        (["10.0.0.1/x"], "masters.0: expected an address"),
        ([""], "masters.0: expected an address"),
        (["10.0.0.1", "10.0.0.1"], "masters.1: it is there twice"),
    ],
)
def test_a_master_that_is_no_address_is_refused(
    masters: list[str], told: str, write: Write
) -> None:
    files = (write("mc.yaml", LOCAL), "--sites", write("sites.yaml", {"masters": masters}))
    call_mirror("mode", "show", "--module-config", *files).failed(2, told, "sites.yaml")


def test_masters_may_have_names_and_addresses_of_either_kind(write: Write) -> None:
    sites = {"masters": ["master-0.corp", "fd00::1", "[fd00::2]"], "users": {"mirror-puller": "x"}}
    files = (write("mc.yaml", LOCAL), "--sites", write("sites.yaml", sites), "--json")
    shown = call_mirror("mode", "show", "--module-config", *files).succeeded().document
    hosts = [route["host"] for route in shown["planes"]["replica"]["routes"]]
    assert hosts == ["master-0.corp:5001", "[fd00::1]:5001", "[fd00::2]:5001"]


# -- resolve ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        (f"{LOGICAL_BASE}/install:v1.70.0", "install/manifests/v1.70.0"),
        ("install:v1.70.0", "install/manifests/v1.70.0"),
        ("system/deckhouse/install:v1.70.0", "install/manifests/v1.70.0"),
        (f"install@sha256:{'a' * 64}", f"install/manifests/sha256:{'a' * 64}"),
        (f"{LOGICAL_BASE}@sha256:{'a' * 64}", f"manifests/sha256:{'a' * 64}"),
    ],
)
def test_resolve_names_the_address_on_every_plane(reference: str, path: str, write: Write) -> None:
    files = ("--module-config", write("mc.yaml", DIRECT), "--json")
    planes = call_mirror("mode", "resolve", reference, *files).succeeded().document["planes"]
    first = {plane: ways["routes"][0] for plane, ways in planes.items()}
    assert first["cri"]["address"] == f"https://nexus.corp.example:8443/v2/dkp/ee/{path}"
    assert first["cri"]["user"] == "license-token"
    assert first["operator"]["address"] == first["cri"]["address"]
    assert first["api"]["address"] == (
        f"https://registry.d8-system.svc:5001/v2/system/deckhouse/{path}"
    )


def test_resolve_takes_one_plane_and_repositories(write: Write) -> None:
    files = ("--module-config", write("mc.yaml", PROXY))
    text = call_mirror(
        "mode", "resolve", "modules/console", *files, "--plane", "replica"
    ).succeeded()
    assert f"https://{UPSTREAM}/modules/console  (upstream, as robot" in text.stdout
    assert "127.0.0.1" not in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["registry.d8-system.svc:5001/system/deckhouse-evil/x:v1"], ["not in this cluster's"]),
        (["elsewhere.example/x:v1"], ["not in this cluster's registry", LOGICAL_BASE]),
        (["install:v1", "--plane", "operator"], ["PUBLIC_DOMAIN"]),
        (["install:"], ["tag"]),
    ],
)
def test_resolve_refuses_what_leads_nowhere(
    arguments: list[str], words: list[str], write: Write
) -> None:
    files = ("--module-config", write("mc.yaml", LOCAL))
    call_mirror("mode", "resolve", *arguments, *files).failed(2, *words)


# -- plan ------------------------------------------------------------------------------------------


def test_a_plan_lists_its_steps_and_what_it_costs(write: Write) -> None:
    arguments = (
        *("--from", write("from.yaml", DIRECT), "--to", write("to.yaml", LOCAL)),
        *("--facts", write("facts.yaml", GOOD)),
    )
    run = call_mirror("mode", "plan", *arguments).succeeded()
    assert "Direct → Local" in run.stdout
    assert "1. ContainerdConfigPreflightReady: " in run.stdout
    assert "Still to check" not in run.stdout
    document = call_mirror("mode", "plan", *arguments, "--json").succeeded().document
    assert document["allowed"]
    assert [step["condition"] for step in document["steps"]][-1] == "Ready"


def test_a_forbidden_switch_is_refused_with_the_legal_way(write: Write) -> None:
    arguments = ("--from", write("from.yaml", LOCAL), "--to", write("to.yaml", PROXY))
    run = call_mirror("mode", "plan", *arguments)
    assert run.code == 1
    for words in ("Refused", "from Local to Proxy not supported", "Local → Direct → Proxy"):
        assert words in run.stdout
    assert "DataLoss" in run.stdout
    document = call_mirror("mode", "plan", *arguments, "--json").document
    assert document["path"] == ["Direct", "Proxy"]
    assert not document["allowed"]
    assert document["steps"] == []


def test_what_is_known_to_be_wrong_refuses_and_what_is_unknown_is_listed(write: Write) -> None:
    facts = write("facts.yaml", {"static": False, "nodeConfigManaged": True})
    arguments = ("--from", write("from.yaml", DIRECT), "--to", write("to.yaml", LOCAL))
    run = call_mirror("mode", "plan", *arguments, "--facts", facts)
    assert run.code == 1
    assert "NotStatic" in run.stdout.partition("Refused")[2]
    assert "Bootstrap" in run.stdout.partition("Still to check")[2].partition("Refused")[0]


def test_nothing_to_change_is_no_failure(write: Write) -> None:
    arguments = ("--from", write("from.yaml", LOCAL), "--to", write("to.yaml", LOCAL))
    assert "nothing to change" in call_mirror("mode", "plan", *arguments).succeeded().stdout


def test_a_plan_shows_the_walk_of_a_rotation(write: Write) -> None:
    same = ("--from", write("from.yaml", LOCAL), "--to", write("to.yaml", LOCAL))
    shown = call_mirror("mode", "plan", *same, "--rotate", "authority").succeeded().stdout
    lines = shown.partition("Rotation\n")[2].splitlines()
    assert lines[:2] == [
        "  1. trust what is new beside the old: authority, token pair",
        "     until every node has applied these files, the masters one after the other",
    ]
    assert len(lines) == 6
    document = (
        call_mirror("mode", "plan", *same, "--rotate", "users", "--json").succeeded().document
    )
    assert [step["phase"] for step in document["rotation"]] == ["trusted", "used", None]
    assert call_mirror("mode", "plan", *same, "--json").succeeded().document["rotation"] == []
    switch = ("--from", write("from.yaml", DIRECT), "--to", write("to.yaml", LOCAL))
    call_mirror("mode", "plan", *switch, "--rotate", "users").failed(
        2, "--rotate: a switch to Local comes first; rotate when it is complete"
    )


@pytest.mark.parametrize("things", [("users",), ("token", "users")], ids=" ".join)
def test_a_plan_shows_no_rotation_that_the_controller_refuses(
    write: Write, things: tuple[str, ...]
) -> None:
    same = ("--from", write("from.yaml", PROXY), "--to", write("to.yaml", PROXY))
    asked = [word for one in things for word in ("--rotate", one)]
    call_mirror("mode", "plan", *same, *asked).failed(
        2,
        "rotation: the masters' agent lets one login of each user in, and caches have no user "
        "whose place a second one could take; switch to Direct, where it is carried out, and back",
    )
    call_mirror("mode", "plan", *same, "--rotate", "authority").succeeded()


@pytest.mark.parametrize("settings", [UNMANAGED, {"mode": "Unmanaged"}], ids=["set", "legacy"])
@pytest.mark.parametrize("thing", ["authority", "token", "users"])
def test_a_plan_shows_no_rotation_where_the_cluster_has_nothing_to_rotate(
    write: Write, settings: dict[str, Any], thing: str
) -> None:
    same = ("--from", write("from.yaml", settings), "--to", write("to.yaml", settings))
    call_mirror("mode", "plan", *same, "--rotate", thing).failed(
        2,
        "rotation: in mode Unmanaged the cluster has no authority and logins of its own; switch to "
        "Direct, Proxy or Local first",
    )


def state(mode: str, target: str) -> dict[str, str]:
    """The public keys of `registry-state`."""
    return {"hash": "", "mode": mode, "target_mode": target, "conditions": "[]"}


def test_the_state_says_where_a_cluster_is(write: Write) -> None:
    to = ("--to", write("to.yaml", PROXY))
    run = call_mirror("mode", "plan", "--state", write("state.yaml", state("Local", "Local")), *to)
    assert (run.code, run.stdout.splitlines()[0]) == (1, "Local → Proxy")
    call_mirror("mode", "plan", "--state", write("s.yaml", state("Direct", "Direct")), *to).failed(
        2, "mode is Direct", "--from"
    )
    both = (
        "--from",
        write("from.yaml", LOCAL),
        "--state",
        write("s.yaml", state("Direct", "Direct")),
    )
    call_mirror("mode", "plan", *both, *to).failed(2, "completed last is Direct")
    call_mirror("mode", "plan", *to).failed(2, "--from FILE", "--state FILE", "--installing")


def test_a_switch_that_was_begun_and_not_completed_counts(write: Write) -> None:
    """Its replicas have run: from Direct by an aborted Local there is no way on to Proxy."""
    begun = ("--state", write("state.yaml", state("Direct", "Local")))
    arguments = (*begun, "--from", write("from.yaml", DIRECT), "--to", write("to.yaml", PROXY))
    run = call_mirror("mode", "plan", *arguments)
    assert run.code == 1
    assert "Local" in run.stdout.partition("Refused")[2]
    assert "go back to Direct first, then to Proxy" in run.stdout
    other = ("--state", write("other.yaml", state("Direct", "Proxy")))
    arguments = (*other, "--from", write("from.yaml", DIRECT), "--to", write("to.yaml", LOCAL))
    call_mirror("mode", "plan", *arguments).failed(2, "switch to Proxy was begun", "aborted")
    facts = write("facts.yaml", {**GOOD, "aborted": PROXY})
    assert call_mirror("mode", "plan", *arguments, "--facts", facts).code == 1


def test_a_cluster_that_is_being_installed_has_no_mode_yet(write: Write) -> None:
    to = ("--to", write("to.yaml", LOCAL))
    assert call_mirror("mode", "plan", "--installing", *to).code == 1
    call_mirror("mode", "plan", "--installing", "--from", write("f.yaml", LOCAL), *to).failed(
        2, "--installing excludes"
    )


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"master": ["10.0.0.1"]}, ["master: unknown key; did you mean masters?"]),
        ({"ca": "x", "caFile": "y"}, ["ca and caFile exclude each other"]),
        ({"ca": "hidden-pem"}, ["ca: CA cannot be read"]),
        ({"publicDomainTemplate": "apps.corp.example"}, ["publicDomainTemplate must have %s"]),
        ({"users": {"root": "hidden"}}, ["users"]),
        ({"caFile": "absent.crt"}, ["cannot read", "absent.crt"]),
        (["masters"], ["not a mapping"]),
    ],
)
def test_mistakes_in_the_sites_are_told_and_never_quoted(
    document: Any, words: list[str], write: Write
) -> None:
    files = ("--module-config", write("mc.yaml", LOCAL), "--sites", write("sites.yaml", document))
    run = call_mirror("mode", "show", *files).failed(2, *words)
    assert "hidden" not in run.text


def test_mistakes_in_the_facts_are_told_by_their_keys(write: Write) -> None:
    facts = write("facts.yaml", {"static": "perhaps", "nodes": [{"master": True}]})
    to = ("--from", write("from.yaml", LOCAL), "--to", write("to.yaml", LOCAL))
    call_mirror("mode", "plan", *to, "--facts", facts).failed(2, "static", "nodes.0.name")


# -- check -----------------------------------------------------------------------------------------


def test_check_finds_what_is_missing_and_what_is_there(
    make_embedded_registry: MakeEmbeddedRegistry, write: Write, tmp_path: Path
) -> None:
    upstream = make_embedded_registry()
    here, gone = image(1), image(2)
    put(upstream, "dkp/ee", here, "v1.70.0")
    section = {"imagesRepo": f"{upstream.address}/dkp/ee", "scheme": "HTTP"}
    config = write("mc.yaml", {"mode": "Direct", "direct": section})
    digests = tmp_path / "digests.txt"
    digests.write_text(f"{here.manifest.digest}\n")
    files = ("--module-config", config, "--digests", digests)
    run = call_mirror("mode", "check", *files).succeeded()
    assert run.stdout.startswith("mode Direct, checkMode Default\n")
    assert "all 1 items are checked" in run.stdout
    digests.write_text(f"{here.manifest.digest}\n{gone.manifest.digest}\n")
    run = call_mirror("mode", "check", *files)
    assert run.code == 4
    assert "1 of 2 items processed, 1 items with errors" in run.stdout
    assert str(gone.manifest.digest) in run.stdout
    document = call_mirror("mode", "check", *files, "--json").document
    assert not document["ready"]
    relaxed = write("relaxed.yaml", {"mode": "Direct", "direct": {**section, "checkMode": "Relax"}})
    tag = ("--deckhouse-image", f"{LOGICAL_BASE}:v1.70.0")
    call_mirror("mode", "check", "--module-config", relaxed, *tag).succeeded()


def test_check_takes_a_bundle_as_what_is_required(
    bundle: Path, make_embedded_registry: MakeEmbeddedRegistry, write: Write
) -> None:
    upstream = make_embedded_registry()
    section = {"imagesRepo": f"{upstream.address}/dkp/ee", "scheme": "HTTP"}
    config = write("mc.yaml", {"mode": "Direct", "direct": section})
    files = ("--module-config", config, "--inventory", bundle)
    assert call_mirror("mode", "check", *files).code == 4
    call_mirror("push", bundle, "--module-config", config).succeeded()
    call_mirror("mode", "check", *files).succeeded()


def test_a_registry_that_hangs_does_not_hold_a_check(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert check.impatient(ConnectionOptions()).stall_timeout_s == 10
    monkeypatch.setattr(check, "QUESTION_S", 0.3)
    digests = tmp_path / "digests.txt"
    digests.write_text("\n".join(f"sha256:{number:064}" for number in range(50)))
    with socket.create_server(("127.0.0.1", 0)) as hung:  # it takes calls, and never answers
        host = f"127.0.0.1:{hung.getsockname()[1]}"
        section = {"imagesRepo": f"{host}/dkp/ee", "scheme": "HTTP"}
        config = write("mc.yaml", {"mode": "Direct", "direct": section})
        started = time.monotonic()
        done = call_mirror("mode", "check", "--module-config", config, "--digests", digests)
    assert done.code == 5
    assert f"{host}: 0 of 50 items processed, 50 items with errors" in done.stdout
    assert time.monotonic() - started < 20  # with the patience of a push it is minutes


def test_check_takes_the_clusters_values(
    make_embedded_registry: MakeEmbeddedRegistry, write: Write
) -> None:
    upstream = make_embedded_registry()
    needed = image(3)
    put(upstream, "dkp/ee", needed)
    section = {"imagesRepo": f"{upstream.address}/dkp/ee", "scheme": "HTTP"}
    digests = {"coreDns": {"coredns": str(needed.manifest.digest)}}
    values = {"global": {"modulesImages": {"digests": digests}}}
    core = {
        "metadata": {"name": "core-dns"},
        "properties": {"critical": True, "source": "Embedded"},
    }
    files = (
        *("--module-config", write("mc.yaml", {"mode": "Direct", "direct": section})),
        *("--values", write("values.yaml", values)),
    )
    core["kind"] = "Module"
    for modules in ({"kind": "List", "items": [core]}, core):  # kubectl gets one as itself
        call_mirror(
            "mode", "check", *files, "--modules", write("modules.yaml", modules)
        ).succeeded()
    for wrong in ([core], {"kind": "List"}):
        call_mirror("mode", "check", *files, "--modules", write("modules.yaml", wrong)).failed(
            2, "modules.yaml", "kubectl get modules -o yaml"
        )


def test_check_calls_masters_by_the_names_of_their_nodes(write: Write, tmp_path: Path) -> None:
    digests = tmp_path / "digests.txt"
    digests.write_text(f"sha256:{1:064}")
    sites = {"masters": {"master-0": "127.0.0.9"}, "users": {"ro": "x"}}
    done = call_mirror(
        *("mode", "check", "--module-config", write("mc.yaml", LOCAL)),
        *("--sites", write("sites.yaml", sites), "--digests", digests),
    )
    assert done.code == 5
    assert "master-0: 0 of 1 items processed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--digests FILE", "--inventory", "--values FILE"]),
        (["--values", "FILE"], ["--values and --modules go together"]),
        (["--digests", "FILE", "--inventory", "FILE"], ["exclude each other"]),
    ],
)
def test_check_must_be_told_what_is_required(
    arguments: list[str], words: list[str], write: Write
) -> None:
    config = write("mc.yaml", DIRECT)
    files = [config if one == "FILE" else one for one in arguments]
    call_mirror("mode", "check", "--module-config", config, *files).failed(2, *words)


def test_a_registry_that_cannot_be_reached_has_its_own_exit_code(
    write: Write, tmp_path: Path
) -> None:
    section = {"imagesRepo": "nobody.example/dkp/ee"}
    digests = tmp_path / "digests.txt"
    digests.write_text(f"sha256:{'a' * 64}\n")
    config = write("mc.yaml", {"mode": "Direct", "direct": section})
    run = call_mirror("mode", "check", "--module-config", config, "--digests", digests)
    assert run.code == 5
    assert "cannot be resolved" in run.stdout


def test_what_only_the_cluster_knows_is_asked_for_by_its_option(tmp_path: Path) -> None:
    config = tmp_path / "local.yaml"
    config.write_text("mode: Local\n")
    digests = tmp_path / "digests.txt"
    digests.write_text(f"sha256:{'0' * 64}\n")
    call_mirror("mode", "check", "--module-config", config, "--digests", digests).failed(
        2, "registry-user-ro", "--sites FILE, users"
    )
    call_mirror("sync", "--module-config", config).failed(2, "--sites FILE, masters")
    text = call_mirror("mode", "show", "--module-config", config).succeeded().stdout
    assert "--sites FILE, publicHost or masters" in text


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("spec: {settings: {registry: {mode: Local}}}", ["without kind", "kind: ModuleConfig"]),
        ("{kind: ModuleConfig, metadata: {name: global}}", ["found ModuleConfig global"]),
    ],
)
def test_a_document_that_is_no_module_config_is_called_by_its_name(
    document: str, words: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(document)
    call_mirror("mode", "show", "--module-config", config).failed(2, *words)


def test_a_node_without_its_name_is_told_how_to_write_it(tmp_path: Path) -> None:
    config = tmp_path / "local.yaml"
    config.write_text("mode: Local\n")
    render = ("mode", "render", "--module-config", config, "--out", tmp_path / "out")
    call_mirror(*render, "--nodes", "10.0.0.1").failed(2, "'10.0.0.1'", "master-0=10.0.0.1")
