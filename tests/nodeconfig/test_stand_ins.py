"""The token server of these tests is as strict as docker_auth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mirror.nodeconfig.render import RenderOptions, render
from mirror.nodeconfig.services import Distribution
from tests.support.fork_registry import check_keys
from tests.support.processes import free_port
from tests.support.rendered_cluster import NODES, direct, kept, local, proxy, upstream_ca
from tests.support.tls import Authority
from tests.support.token_server import ConfigError, TokenServer, checked, main


def rendered_auth(**options: Any) -> dict[str, Any]:
    files = render(local(), NODES, kept(), options=RenderOptions(**options)).nodes["master-0"]
    (content,) = (file.content for path, file in files.items() if path.parent.name == "auth")
    document = yaml.safe_load(content)
    assert isinstance(document, dict)
    return document


def test_docker_auth_starts_with_whatever_is_rendered() -> None:
    for flavour in Distribution:
        checked(yaml.safe_dump(rendered_auth(distribution=flavour)))
    for anonymous in (False, True):
        tree = render(direct(anonymous=anonymous), NODES, kept()).in_cluster
        (content,) = (
            file.content for path, file in tree.items() if path.name == "auth_config.yaml"
        )
        checked(content.decode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.update(log={}), "unknown keys of the document: log"),
        (lambda it: it["server"].update(realip="x"), "unknown keys of server: realip"),
        (lambda it: it["token"].update(expires=1), "unknown keys of token: expires"),
        (lambda it: it["acl"][0].update(action=[]), "unknown keys of acl: action"),
        (lambda it: it["server"].pop("addr"), "server.addr is required"),
        (lambda it: it["token"].update(expiration=0), "expiration must be positive, got 0"),
        (lambda it: it.pop("users"), "no auth methods are configured"),
        (lambda it: it.pop("acl"), "ACL is empty"),
        (lambda it: it["token"].pop("key"), "failed to load token cert and key"),
    ],
)
def test_docker_auth_does_not_start_with_anything_else(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = rendered_auth()
    change(document)
    with pytest.raises(ConfigError) as found:
        checked(yaml.safe_dump(document))
    assert str(found.value).startswith(message)


def test_the_registry_knows_every_key_that_is_rendered() -> None:
    found = []
    for settings in (local(), proxy(ca=upstream_ca(), ttl="72h"), direct(ca=upstream_ca())):
        options = RenderOptions(ingress_client_ca=upstream_ca())
        rendered = render(settings, NODES, kept(), options=options)
        for path, file in {**rendered.nodes["master-0"], **rendered.in_cluster}.items():
            if path.parent.name == "distribution" or path.name == "distribution_config.yaml":
                found.append(yaml.safe_load(file.content))
    assert len(found) == 3
    for document in found:
        check_keys(document)
    found[0]["http"]["realip"]["client"] = {}
    with pytest.raises(AssertionError, match=r"does not know http\.realip\.client"):
        check_keys(found[0])


def test_a_flag_that_docker_auth_does_not_have_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-log-to-stderr", "config.yaml"]) == 2
    assert "flag provided but not defined: -log-to-stderr" in capsys.readouterr().err


def test_without_a_place_for_its_log_docker_auth_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert main(["config.yaml"]) == 2
    assert "log: cannot create log" in capsys.readouterr().err


def test_who_comes_without_an_address_is_turned_away_where_a_proxy_is_to_give_it(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "authority")
    tls, signs = authority.issue(), authority.issue("token")
    for header, given, status in (
        (None, None, 200),
        ("X-Forwarded-For", None, 400),
        ("X-Forwarded-For", "10.0.0.7, 10.0.0.1", 200),
    ):
        document: dict[str, Any] = {
            "server": {
                "addr": f"127.0.0.1:{free_port()}",
                "certificate": str(tls.certificate),
                "key": str(tls.key),
            },
            "token": {
                "issuer": "tests",
                "expiration": 900,
                "certificate": str(signs.certificate),
                "key": str(signs.key),
            },
            "users": {"": {}},
            "acl": [{"match": {"account": ""}, "actions": ["pull"]}],
        }
        if header is not None:
            document["server"]["real_ip_header"] = header
        config = tmp_path / "auth.yaml"
        config.write_text(yaml.safe_dump(document))
        with TokenServer(config) as server:
            answer = httpx.get(
                f"https://{server.address}/auth",
                params={"service": "s", "scope": "repository:a:pull"},
                headers={} if given is None else {header or "": given},
                verify=False,
            )
            assert answer.status_code == status
            if status == 400:
                assert answer.text == "Bad request: client address not provided"
            else:
                assert "expires_in" not in answer.json(), "clients reckon with a minute"
            other = httpx.get(
                f"https://{server.address}/auth?account=b",
                auth=("a", "p"),
                headers={"X-Forwarded-For": "10.0.0.7"},
                verify=False,
            )
            assert other.text == 'Bad request: user and account are not the same ("a" vs "b")'
