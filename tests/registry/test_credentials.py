"""Logins are found where docker, podman and ORAS put them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import InputError
from mirror.events import Event
from mirror.registry import Credentials, find_credentials, options
from mirror.registry.upload_journal import upload_journal

SECRET = "s3cr3t"
HOST = "reg.example.com:5000"


def encoded(name: str = "alice", password: str = SECRET) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


def write(path: Path, config: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install `docker-credential-test` with the given shell script; its log of questions."""

    def install(script: str) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "asked"
        folder.mkdir()
        program = folder / "docker-credential-test"
        program.write_text(f'#!/bin/sh\nname=$(cat)\necho "$1 $name" >> {log}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    return install


@pytest.mark.parametrize(
    "name",
    [HOST, f"https://{HOST}", f"http://{HOST}", f"https://{HOST}/", f"https://{HOST}/v2/"],
)
def test_a_login_is_found_under_any_spelling_of_the_host(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "c.json", {"auths": {name: {"auth": encoded()}}})
    assert find_credentials(HOST, [path]) == Credentials("alice", SECRET)


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_known_by_its_old_name(tmp_path: Path, host: str) -> None:
    config = {"auths": {"https://index.docker.io/v1/": {"auth": encoded()}}}
    assert find_credentials(host, [write(tmp_path / "c.json", config)]) is not None


def test_another_host_gets_nothing(tmp_path: Path) -> None:
    config = {"auths": {HOST: {"auth": encoded()}}}
    path = write(tmp_path / "c.json", config)
    for host in ("reg.example.com", "example.com:5000", "evil.reg.example.com:5000", "x"):
        assert find_credentials(host, [path]) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "alice", "password": SECRET}, Credentials("alice", SECRET)),
        ({"auth": encoded("alice", "a:b:c")}, Credentials("alice", "a:b:c")),
        ({"auth": encoded("", ""), "identitytoken": "id"}, Credentials(identity_token="id")),
        ({"identitytoken": "id"}, Credentials(identity_token="id")),
        ({}, None),
        (None, None),
    ],
)
def test_all_forms_of_an_entry_are_read(
    tmp_path: Path, entry: dict[str, str] | None, expected: Credentials | None
) -> None:
    path = write(tmp_path / "c.json", {"auths": {HOST: entry}})
    assert find_credentials(HOST, [path]) == expected


def test_the_first_file_that_knows_the_host_decides(tmp_path: Path) -> None:
    paths = [
        tmp_path / "absent.json",
        write(tmp_path / "a.json", {}),
        write(tmp_path / "b.json", {"auths": {HOST: {"auth": encoded("bob")}}}),
        write(tmp_path / "c.json", {"auths": {HOST: {"auth": encoded("carol")}}}),
    ]
    found = find_credentials(HOST, paths)
    assert found is not None
    assert found.username == "bob"


def test_the_usual_places_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)

    def user() -> str | None:
        found = find_credentials(HOST)
        return found.username if found else None

    def entry(name: str) -> dict[str, Any]:
        return {"auths": {HOST: {"auth": encoded(name)}}}

    assert user() is None
    write(tmp_path / ".config/containers/auth.json", entry("podman"))
    assert user() == "podman"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    write(tmp_path / "run/containers/auth.json", entry("run"))
    assert user() == "run"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(tmp_path / "a.json", entry("named"))))
    assert user() == "named"
    write(tmp_path / ".docker/config.json", entry("docker"))
    assert user() == "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "other"))
    write(tmp_path / "other/config.json", entry("other"))
    assert user() == "other"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"auths": 5}', '{"auths": {"a": 5}}'])
def test_a_broken_file_is_reported_without_its_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"c\.json is not what docker, podman or ORAS write"):
        find_credentials(HOST, [path])


@pytest.mark.parametrize("auth", [SECRET + "!", [SECRET], 5])
def test_a_login_that_is_no_base64_is_reported_without_itself(tmp_path: Path, auth: object) -> None:
    path = write(tmp_path / "c.json", {"auths": {HOST: {"auth": auth}}})
    with pytest.raises(InputError, match=r"the login for .* is not in the form") as caught:
        find_credentials(HOST, [path])
    assert SECRET not in str(caught.value)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        find_credentials(HOST, [tmp_path])


ANSWER = json.dumps({"ServerURL": HOST, "Username": "alice", "Secret": SECRET})


@pytest.mark.parametrize("config", [{"credsStore": "test"}, {"credHelpers": {HOST: "test"}}])
def test_a_helper_is_asked(
    tmp_path: Path, helper: Callable[[str], Path], config: dict[str, Any]
) -> None:
    asked = helper(f"echo '{ANSWER}'")
    path = write(tmp_path / "c.json", {"auths": {HOST: {}}, **config})
    assert find_credentials(HOST, [path]) == Credentials("alice", SECRET)
    assert asked.read_text() == f"get {HOST}\n"


def test_a_helper_for_another_host_is_not_asked(
    tmp_path: Path, helper: Callable[[str], Path]
) -> None:
    asked = helper(f"echo '{ANSWER}'")
    path = write(tmp_path / "c.json", {"credHelpers": {"other.example.com": "test"}})
    assert find_credentials(HOST, [path]) is None
    assert not asked.exists()


def test_a_helper_may_hold_an_identity_token(tmp_path: Path, helper: Callable[[str], Path]) -> None:
    helper(f"echo '{json.dumps({'Username': '<token>', 'Secret': SECRET})}'")
    path = write(tmp_path / "c.json", {"credsStore": "test"})
    assert find_credentials(HOST, [path]) == Credentials(identity_token=SECRET)


def test_a_helper_that_knows_nothing_is_no_failure(
    tmp_path: Path, helper: Callable[[str], Path]
) -> None:
    asked = helper("echo credentials not found in native keychain; exit 1")
    path = write(tmp_path / "c.json", {"credsStore": "test"})
    assert find_credentials(HOST, [path]) is None
    assert len(asked.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo the keychain is locked >&2; exit 3", "exit code 3: the keychain is locked"),
        (f"echo not json {SECRET}", "something else than a user name and a secret"),
        ("echo '{}'", "something else than a user name and a secret"),
        ("exec sleep 60", "gave no answer within"),
    ],
)
def test_a_helper_that_fails_is_named(
    tmp_path: Path,
    helper: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
) -> None:
    monkeypatch.setattr(options, "_HELPER_TIMEOUT_S", 1.0)
    helper(script)
    path = write(tmp_path / "c.json", {"credsStore": "test"})
    with pytest.raises(InputError, match=message) as caught:
        find_credentials(HOST, [path])
    assert "docker-credential-test" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_helper_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"credsStore": "no-such-helper"})
    with pytest.raises(InputError, match=r"docker-credential-no-such-helper .* cannot be run"):
        find_credentials(HOST, [path])


@pytest.mark.parametrize("name", ["../../tmp/x", "a b", "", 5])
def test_a_helper_with_a_path_for_a_name_is_not_run(tmp_path: Path, name: object) -> None:
    path = write(tmp_path / "c.json", {"credHelpers": {HOST: name}})
    if not name:
        assert find_credentials(HOST, [path]) is None
        return
    with pytest.raises(InputError, match="is not the name of a credential helper"):
        find_credentials(HOST, [path])


def test_both_names_of_this_machine_are_one(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"auths": {"localhost:5000": {"auth": encoded()}}})
    assert find_credentials("127.0.0.1:5000", [path]) == Credentials("alice", SECRET)


def test_the_longest_path_that_fits_decides(tmp_path: Path) -> None:
    names = {HOST: "host", f"{HOST}/d": "short", f"{HOST}/d/ee": "long", f"{HOST}/d/e": "other"}
    auths = {name: {"auth": encoded(user)} for name, user in names.items()}
    path = write(tmp_path / "c.json", {"auths": auths})

    def user(name: str) -> str | None:
        found = find_credentials(name, [path])
        return found.username if found else None

    assert user(f"{HOST}/d/ee/install") == "long"
    assert user(f"{HOST}/d/eee") == "short"
    assert user(f"{HOST}/x") == "host"
    assert user(HOST) == "host"


def test_a_helper_goes_before_what_the_file_has(
    tmp_path: Path, helper: Callable[[str], Path]
) -> None:
    helper(f"echo '{ANSWER}'")
    config = {"auths": {HOST: {"auth": encoded("old", "stale")}}, "credsStore": "test"}
    assert find_credentials(HOST, [write(tmp_path / "c.json", config)]) == Credentials(
        "alice", SECRET
    )


def test_who_has_no_home_directory_has_no_login_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", fail)
    assert find_credentials(HOST) is None


def test_who_has_no_home_directory_can_push_without_a_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    told: list[Event] = []
    with upload_journal(None, HOST, told.append) as journal:
        assert journal is None
    assert "name a folder with --state-dir" in str(told)
