"""By which ways nodes pull: hosts.toml of each mode and of every transition."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import PurePosixPath
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.errors import InvalidSettingsError, RenderingError
from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig.pulling import Containerd
from mirror.nodeconfig.render import RenderOptions, render
from mirror.nodeconfig.tree import Tree
from tests.support.rendered_cluster import (
    LOGICAL,
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

ROOT = PurePosixPath("/etc/containerd/registry.d")
STOCK = RenderOptions(containerd=Containerd.STOCK)
PREFIX = "^system/deckhouse(/|$)"


def tree(
    settings: RegistrySettings,
    previous: RegistrySettings | None = None,
    options: RenderOptions | None = None,
) -> Tree:
    """The worker's files."""
    done = render(settings, NODES, kept(), previous=previous, options=options or RenderOptions())
    return done.nodes[WORKER.name]


def hosts(files: Tree, host: str = LOGICAL) -> dict[str, dict[str, Any]]:
    """The tables of a hosts.toml, in its order."""
    document = tomllib.loads(files[ROOT / host / "hosts.toml"].content.decode())
    assert set(document) == {"host"}, "no default server is named"
    tables = document["host"]
    assert isinstance(tables, dict)
    return tables


def test_direct_mode_rewrites_the_path_on_the_node() -> None:
    files = tree(direct(ca=upstream_ca()))
    path = ROOT / LOGICAL / "https-nexus.example:8443-ca.crt"
    assert hosts(files) == {
        "https://nexus.example:8443": {
            "capabilities": ["pull", "resolve"],
            "ca": [str(path)],
            "auth": {"auth": "dTpw"},
            "rewrite": [{"regex": PREFIX, "replace": "dkp/ee${1}"}],
        }
    }
    assert files[path].content.decode() == upstream_ca()
    assert json.loads(files[ROOT / "deckhouse_hosts_state.json"].content) == [LOGICAL]


@pytest.mark.parametrize("settings", [proxy(), local()], ids=["Proxy", "Local"])
def test_proxy_and_local_mode_go_through_the_balancer_with_the_path_as_it_is(
    settings: RegistrySettings,
) -> None:
    files = tree(settings)
    path = ROOT / LOGICAL / "https-127.0.0.1:5001-ca.crt"
    assert list(hosts(files)) == ["https://127.0.0.1:5001", "https://127.0.0.1:5001/v2"]
    table, again = hosts(files).values()
    assert again == table  # for containerd another mirror, and for nginx another replica
    assert table["ca"] == [str(path)]
    assert set(table) == {"capabilities", "ca", "auth"}
    assert files[path].content.decode() == kept().authority.certificate


def test_unmanaged_mode_names_the_real_registry_without_a_rewrite() -> None:
    files = tree(unmanaged("nexus.example:5000/dkp", scheme="HTTP"))
    assert hosts(files, "nexus.example:5000") == {
        "http://nexus.example:5000": {
            "capabilities": ["pull", "resolve"],
            "skip_verify": True,
            "auth": {"auth": "dTpw"},
        }
    }


def test_legacy_unmanaged_configures_nothing() -> None:
    files = tree(legacy())
    assert dict(files)[ROOT / "deckhouse_hosts_state.json"].content == b"[]"
    assert len(files) == 1


def test_files_with_a_login_are_for_their_owner_alone() -> None:
    name = ROOT / LOGICAL / "hosts.toml"
    assert tree(direct())[name].mode == 0o600
    assert tree(direct(anonymous=True))[name].mode == 0o644


# -- transitions -----------------------------------------------------------------------------------


def test_a_transition_tries_the_old_way_first_and_then_the_new_one() -> None:
    files = tree(local(), direct())
    balancer = "https://127.0.0.1:5001"
    assert list(hosts(files)) == ["https://nexus.example:8443", balancer, f"{balancer}/v2"]
    assert hosts(files)["https://nexus.example:8443"]["rewrite"]
    assert "rewrite" not in hosts(files)["https://127.0.0.1:5001"]


def test_a_transition_from_unmanaged_has_two_hosts_of_references() -> None:
    files = tree(direct(), unmanaged())
    state = json.loads(files[ROOT / "deckhouse_hosts_state.json"].content)
    assert state == ["nexus.example:8443", LOGICAL]
    assert len(hosts(files)) == len(hosts(files, "nexus.example:8443")) == 1


def test_changed_credentials_replace_the_way_in_its_place() -> None:
    files = tree(direct(password="new"), direct())
    (table,) = hosts(files).values()
    assert table["auth"] == {"auth": "dTpuZXc="}


def test_the_same_host_with_a_new_path_keeps_the_old_path_too() -> None:
    files = tree(direct("nexus.example:8443/dkp/fe"), direct("nexus.example:8443/dkp/ee"))
    tables = hosts(files)
    # Both spellings are one registry to containerd, which adds /v2 where it is missing.
    assert list(tables) == ["https://nexus.example:8443/v2", "https://nexus.example:8443"]
    assert [table["rewrite"][0]["replace"] for table in tables.values()] == [
        "dkp/ee${1}",
        "dkp/fe${1}",
    ]


def test_the_same_host_with_a_new_path_and_ca_keeps_both_authorities_apart() -> None:
    files = tree(direct("n.example/b", ca=upstream_ca()), direct("n.example/a"))
    assert "ca" not in hosts(files)["https://n.example/v2"]
    both = tree(direct("n.example/b"), direct("n.example/a", ca=upstream_ca()))
    assert hosts(both)["https://n.example/v2"]["ca"] == [
        str(ROOT / LOGICAL / "https-n.example-v2-ca.crt")
    ]


EVERY = {
    "Direct": direct(),
    "Direct, other path": direct("nexus.example:8443/dkp/fe"),
    "Direct, other host": direct("other.example/dkp/ee"),
    "Direct, other login": direct(password="q"),
    "Proxy": proxy(),
    "Local": local(),
    "Unmanaged": unmanaged(),
    "Unmanaged, HTTP": unmanaged("nexus.example:8443/dkp/ee", scheme="HTTP"),
    "legacy": legacy(),
}


def _ways(files: Tree) -> set[tuple[str, str, str]]:
    """Each way as host of references, server, and what the path becomes."""
    found = set()
    for path, file in files.items():
        if path.name == "hosts.toml":
            for url, table in tomllib.loads(file.content.decode())["host"].items():
                place = url.removesuffix("/v2")
                rewrite = table.get("rewrite", [{"replace": ""}])[0]["replace"]
                found.add((path.parent.name, place, rewrite))
    return found


@pytest.mark.parametrize(("before", "after"), list(itertools.product(EVERY, EVERY)), ids=str)
def test_no_transition_takes_a_way_from_any_reference(before: str, after: str) -> None:
    old, new = EVERY[before], EVERY[after]
    between = _ways(tree(new, old))
    assert between == _ways(tree(old)) | _ways(tree(new))


# -- the prefix ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "path", "rewritten"),
    [
        ("system/deckhouse", "dkp/ee", "dkp/ee"),
        ("system/deckhouse/install", "dkp/ee", "dkp/ee/install"),
        ("system/deckhouse/modules/x", "ee-1.2_3", "ee-1.2_3/modules/x"),
        ("system/deckhouse-evil/x", "dkp/ee", "system/deckhouse-evil/x"),
        ("system/deckhouses", "dkp/ee", "system/deckhouses"),
        ("a/system/deckhouse", "dkp/ee", "a/system/deckhouse"),
        ("system/deckhouse/install", "", "/install"),
    ],
)
def test_the_rewrite_has_a_boundary(repository: str, path: str, rewritten: str) -> None:
    files = tree(direct(f"nexus.example/{path}" if path else "nexus.example"))
    (table,) = hosts(files).values()
    (rule,) = table["rewrite"]
    replacement = rule["replace"].replace("${1}", r"\g<1>")  # Go's spelling of a group
    # containerd joins what comes out with the rest of the path, so a leading slash is harmless.
    assert re.sub(rule["regex"], replacement, repository) == rewritten


# -- stock containerd ------------------------------------------------------------------------------


def test_stock_containerd_gets_its_login_as_a_header_and_no_foreign_keys() -> None:
    table, _ = hosts(tree(local(), options=STOCK)).values()
    assert set(table) == {"capabilities", "ca", "header"}
    assert table["header"]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("repo", "url", "override"),
    [
        ("n.example/system/deckhouse", "https://n.example", False),
        ("n.example/a/b/system/deckhouse", "https://n.example/v2/a/b", True),
    ],
)
def test_stock_containerd_serves_direct_mode_by_the_address_where_the_path_allows(
    repo: str, url: str, override: bool
) -> None:
    files = tree(direct(repo), options=STOCK)
    ((found, table),) = hosts(files).items()
    assert found == url
    assert table.get("override_path", False) is override
    assert not any(path.name == "relay.conf" for path in files)


def test_stock_containerd_serves_direct_mode_through_a_relay_elsewhere() -> None:
    files = tree(direct(ca=upstream_ca()), options=STOCK)
    ((url, table),) = hosts(files).items()
    assert url.startswith("http://127.0.0.1:5004/to-")
    assert url.endswith("/v2")
    assert "ca" not in table
    relay = files[PurePosixPath("/etc/kubernetes/registry-proxy/relay.conf")].content.decode()
    assert "rewrite ^/to-" in relay
    assert "/v2/dkp/ee/$1 break;" in relay
    assert "proxy_ssl_verify on;" in relay


def test_a_transition_between_paths_has_two_slots_in_the_relay() -> None:
    files = tree(direct("n.example/a"), direct("n.example/b"), STOCK)
    assert len(hosts(files)) == 2
    relay = files[PurePosixPath("/etc/kubernetes/registry-proxy/relay.conf")].content.decode()
    assert relay.count("rewrite ^/to-") == 4


# -- what may be written ---------------------------------------------------------------------------


def test_an_authority_is_written_without_the_text_around_it() -> None:
    files = tree(direct(ca=f"$(reboot)\n{upstream_ca()}\n`reboot`"))
    (found,) = (file for path, file in files.items() if path.name.endswith("-ca.crt"))
    assert found.content.decode() == upstream_ca()


def test_a_login_with_a_line_break_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidSettingsError, match="Password has a line break") as told:
        direct(password="hidden\nX")
    assert "hidden" not in str(told.value)
    # However it got past the settings, no file gets it.
    settings = direct(password="hidden")
    assert settings.direct is not None
    settings.direct.__dict__["password"] = SecretStr("hidden\nX")
    with pytest.raises(RenderingError, match=r"upstream password: .* control character") as found:
        tree(settings)
    assert "hidden" not in str(found.value)


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert tree(local(), direct()) == tree(local(), direct())


# -- other registries ------------------------------------------------------------------------------


def test_a_module_source_is_asked_directly_and_trusted_by_its_own_authority() -> None:
    options = RenderOptions(sources={"modules.example:5000": upstream_ca()})
    files = tree(local(), options=options)
    path = ROOT / "modules.example:5000" / "https-modules.example:5000-ca.crt"
    assert tomllib.loads(files[path.with_name("hosts.toml")].content.decode()) == {
        "server": "https://modules.example:5000",
        "capabilities": ["pull", "resolve"],
        "ca": [str(path)],
        "host": {},
    }
    state = json.loads(files[ROOT / "deckhouse_hosts_state.json"].content)
    assert state == ["modules.example:5000", LOGICAL]


def test_what_the_mode_says_of_a_host_goes_before_a_module_source() -> None:
    options = RenderOptions(sources={"nexus.example:8443": upstream_ca()})
    assert tree(unmanaged(), options=options) == tree(unmanaged())


def test_a_module_source_is_checked_as_everything_is() -> None:
    with pytest.raises(RenderingError, match="module source: expected host"):
        tree(local(), options=RenderOptions(sources={"../x": upstream_ca()}))
    with pytest.raises(RenderingError, match=r"CA of m\.example: expected PEM"):
        tree(local(), options=RenderOptions(sources={"m.example": "nothing"}))
