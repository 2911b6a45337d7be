"""The settings of an older installation."""

from __future__ import annotations

import base64
import itertools
import json
import re
from typing import Any

import pytest

from mirror.errors import InvalidSettingsError
from mirror.modes import Mode
from mirror.modes.module_config import _HOST
from mirror.modes.settings import RegistrySettings

SECRET = "hunter2-s3cret"


def encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def login(name: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def init(**deckhouse: Any) -> dict[str, Any]:
    return {
        "apiVersion": "deckhouse.io/v1",
        "kind": "InitConfiguration",
        "deckhouse": {"devBranch": "main", **deckhouse},
    }


def findings(**deckhouse: Any) -> dict[str, str]:
    with pytest.raises(InvalidSettingsError) as caught:
        RegistrySettings.load(init(**deckhouse))
    return dict(caught.value.findings)


def test_an_older_installation_is_the_deprecated_kind_of_unmanaged() -> None:
    config = {"auths": {"reg.example:5000": login("u", "p:q")}}
    settings = RegistrySettings.load(
        init(imagesRepo=" reg.example:5000/dkp/ee/ ", registryDockerCfg=encoded(config))
    )
    upstream = settings.upstream
    assert (settings.mode, settings.configurable) == (Mode.UNMANAGED, False)
    assert upstream is not None
    assert upstream.base == "reg.example:5000/dkp/ee"
    assert upstream.account is not None
    assert upstream.username == "u"
    assert upstream.account.password.get_secret_value() == "p:q"


def test_defaults_are_those_of_the_form() -> None:
    settings = RegistrySettings.load(
        init(registryDockerCfg=encoded({"auths": {"registry.deckhouse.io": {}}}))
    )
    upstream = settings.upstream
    assert upstream is not None
    assert upstream.base == "registry.deckhouse.io/deckhouse/ce"
    assert (upstream.scheme, upstream.account) == ("https", None)


def test_a_form_that_says_nothing_of_the_registry_leaves_it_open() -> None:
    assert RegistrySettings.load(init()).upstream is None


def test_scheme_and_authority_are_taken_and_checked() -> None:
    settings = RegistrySettings.load(init(imagesRepo="h/x", registryScheme="HTTP"))
    assert settings.upstream is not None
    assert settings.upstream.scheme == "http"
    said = findings(imagesRepo="https://x", registryScheme="ftp", registryCA="no PEM")
    assert said.keys() == {
        *("deckhouse.imagesRepo", "deckhouse.registryScheme", "deckhouse.registryCA")
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("%%%", "unable to decode registryDockerCfg"),
        (base64.b64encode(b"no json").decode(), "unable to decode registryDockerCfg"),
        (base64.b64encode(b"\xff\xfe").decode(), "unable to decode registryDockerCfg"),
        (encoded([1]), "unable to decode registryDockerCfg"),
        (encoded({"auths": [1]}), "unable to decode registryDockerCfg"),
        (5, "unable to decode registryDockerCfg"),
        (
            encoded({"auths": {"UPPER.example": {}}}),
            'invalid registryDockerCfg. Your auths host "UPPER.example" should be similar to "your',
        ),
        (
            encoded({"auths": {"other.example": {}}}),
            'incorrect registryDockerCfg. It must contain auths host {"auths": { "reg.example": {}',
        ),
        (encoded({}), "incorrect registryDockerCfg. It must contain auths host"),
        (encoded({"auths": {"reg.example": {"auth": "%"}}}), "unable to decode registryDockerCfg"),
    ],
)
def test_another_docker_configuration_is_a_finding(config: Any, said: str) -> None:
    found = findings(imagesRepo="reg.example/x", registryDockerCfg=config)
    assert found["deckhouse.registryDockerCfg"].startswith(said)


def test_no_message_repeats_a_login() -> None:
    for config in (
        {"auths": {"other.example": login("u", SECRET)}},
        {"auths": {"reg.example": {"auth": SECRET}}},
        {"auths": {"reg.example": {"username": "u", "password": ""}}, "x": SECRET},
    ):
        with pytest.raises(InvalidSettingsError) as caught:
            RegistrySettings.load(
                init(imagesRepo="reg.example/x", registryDockerCfg=encoded(config))
            )
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (login("a", "b"), ("a", "b")),
        ({"username": "a", "password": "b"}, ("a", "b")),
        ({**login("a", "b"), "username": "c", "password": "d"}, ("a", "b")),
        ({"auth": login("a", "b")["auth"].rstrip("=")}, ("a", "b")),
        ({}, None),
    ],
)
def test_the_login_of_the_host_counts(
    entry: dict[str, str], expected: tuple[str, str] | None
) -> None:
    config = encoded({"auths": {"g.example": login("1", "2"), "h.example": entry}})
    settings = RegistrySettings.load(init(imagesRepo="h.example/x", registryDockerCfg=config))
    assert settings.upstream is not None
    account = settings.upstream.account
    found = account and (account.name, account.password.get_secret_value())
    assert found == expected


def test_the_registry_is_not_taken_from_two_places() -> None:
    text = (
        "kind: InitConfiguration\ndeckhouse: {imagesRepo: h/x}\n---\n"
        "kind: ModuleConfig\nmetadata: {name: deckhouse}\n"
        "spec: {version: 1, settings: {registry: {mode: Local}}}\n"
    )
    with pytest.raises(InvalidSettingsError, match=r"InitConfiguration\.deckhouse too; keep one"):
        RegistrySettings.load(text)
    without = text.replace("registry: {mode: Local}", "bundle: Default")
    assert RegistrySettings.load(without).upstream is not None


def test_the_host_pattern_accepts_what_the_clusters_own_accepts() -> None:
    original = re.compile(
        r"^([a-z]|\d)+(\.?|\-?)(([a-z]|\d)+(\.|\-|))*([a-z]|\d+|([a-z]|\d)\:\d+)$", re.ASCII
    )
    for length in range(1, 7):
        for letters in itertools.product("a1.-:", repeat=length):
            text = "".join(letters)
            assert bool(original.match(text)) == bool(_HOST.fullmatch(text)), text


@pytest.mark.timeout(60)  # the cluster's own pattern takes longer than that for 30 characters
def test_the_host_pattern_takes_no_long_time() -> None:
    assert not _HOST.fullmatch("a" * 50_000 + "!")
