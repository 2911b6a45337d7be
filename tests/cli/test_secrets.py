"""Credentials: where they may come from, and all the places where they must not turn up."""

from __future__ import annotations

import base64
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mirror.serve import BasicAuth, MemoryStorage, TokenAuth, User
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import RunningMirror, call_mirror, run_mirror
from tests.support.release_source import TINY, serve

PASSWORD = "S3cret-Passphrase-0815"
LITTLE = ("--no-platform", "--no-modules", "--no-packages")
USERS = {"ci": User(PASSWORD), "license-token": User(PASSWORD)}


@pytest.fixture(params=[BasicAuth, TokenAuth], ids=["basic", "token"])
def guarded(
    make_embedded_registry: MakeEmbeddedRegistry, request: pytest.FixtureRequest
) -> EmbeddedRegistry:
    """A registry with the tree in it that lets in who knows the password."""
    registry = make_embedded_registry(MemoryStorage(), auth=request.param(USERS))
    serve(TINY, registry)
    return registry


def source_of(registry: EmbeddedRegistry) -> tuple[str, ...]:
    """The options that name a registry's tree as the source, and take little of it."""
    return ("--source", f"{registry.address}/{TINY.root}", "--insecure", *LITTLE)


def encodings(secret: str) -> list[str]:
    """A secret as it is, and as an `Authorization: Basic` header of the users would have it."""
    basic = [base64.b64encode(f"{user}:{secret}".encode()).decode() for user in USERS]
    return [secret, *basic]


def assert_silent(*texts: str) -> None:
    """The password is in none of the texts, in any form."""
    for text in texts:
        for form in encodings(PASSWORD):
            assert form not in text


LOGINS: dict[str, tuple[tuple[str, ...], Mapping[str, str], str]] = {
    "flags": (("--source-login", "ci", "--source-password", PASSWORD), {}, ""),
    "standard input": (("--source-login", "ci", "--source-password", "-"), {}, f"{PASSWORD}\n"),
    "environment": (
        (),
        {"D8_MIRROR_SOURCE_LOGIN": "ci", "D8_MIRROR_SOURCE_PASSWORD": PASSWORD},
        "",
    ),
    "licence": (("-l", PASSWORD), {}, ""),
    "licence, long": (("--license", PASSWORD), {}, ""),
    "licence from standard input": (("--license", "-"), {}, f"{PASSWORD}\n"),
    "licence from the environment": ((), {"D8_MIRROR_LICENSE_TOKEN": PASSWORD}, ""),
    "login before licence": (
        ("--source-login", "ci", "--source-password", PASSWORD),
        {"D8_MIRROR_LICENSE_TOKEN": "not the password"},
        "",
    ),
}


@pytest.mark.parametrize("way", LOGINS)
def test_a_source_takes_a_login_from(
    guarded: EmbeddedRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    flags, env, stdin = LOGINS[way]
    folder = tmp_path / "bundle"
    with caplog.at_level(logging.DEBUG):
        run = call_mirror("pull", folder, *source_of(guarded), *flags, env=env, stdin=stdin)
    run.succeeded()
    assert_silent(run.text, caplog.text)
    for path in folder.iterdir():
        assert PASSWORD.encode() not in path.read_bytes()


@pytest.mark.parametrize("way", ["flags", "standard input", "environment"])
def test_a_target_takes_a_login_from(
    guarded: EmbeddedRegistry,
    bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    flags, env, stdin = LOGINS[way]
    flags = tuple(
        {"--source-login": "-u", "--source-password": "-p"}.get(flag, flag) for flag in flags
    )
    env = {name.replace("SOURCE", "REGISTRY"): text for name, text in env.items()}
    root = f"{guarded.address}/dkp/ee"
    little_bundle = tmp_path / "bundle"
    little_bundle.mkdir()
    shutil.copy(bundle / "installer.tar", little_bundle)
    with caplog.at_level(logging.DEBUG):
        archive = ("--file", little_bundle / "installer.tar")
        push = call_mirror("push", *archive, root, "--insecure", *flags, env=env, stdin=stdin)
        against = ("verify", little_bundle, "--against", root, "--insecure")
        verify = call_mirror(*against, *flags, env=env, stdin=stdin)
    push.succeeded()
    verify.succeeded()
    assert_silent(push.text, verify.text, caplog.text)


def test_a_login_that_docker_stored_is_found(guarded: EmbeddedRegistry, tmp_path: Path) -> None:
    store = tmp_path / "docker"
    store.mkdir()
    auth = base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
    config = {"auths": {guarded.address: {"auth": auth}}}
    (store / "config.json").write_text(json.dumps(config))
    env = {"DOCKER_CONFIG": str(store)}
    run = call_mirror("pull", tmp_path / "bundle", *source_of(guarded), env=env).succeeded()
    assert_silent(run.text)


def test_a_refused_password_is_in_no_message(
    guarded: EmbeddedRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--source-login", "somebody", "--source-password", "wrong-Passphrase-4711")
    with caplog.at_level(logging.DEBUG):
        run = call_mirror("pull", tmp_path / "bundle", *source_of(guarded), *flags, "--json")
    run.failed(6)
    for text in (run.text, caplog.text):
        assert "wrong-Passphrase-4711" not in text


def test_a_password_from_the_environment_is_not_in_the_process_list(
    guarded: EmbeddedRegistry, tmp_path: Path
) -> None:
    env = {"D8_MIRROR_SOURCE_LOGIN": "ci", "D8_MIRROR_SOURCE_PASSWORD": PASSWORD}
    with RunningMirror("pull", tmp_path / "bundle", *source_of(guarded), env=env) as pull:
        pull.wait_until(lambda: len(guarded.requests) > 0)
        arguments = Path(f"/proc/{pull.pid}/cmdline").read_bytes().decode()
    assert "pull" in arguments
    assert_silent(arguments)


def test_credentials_in_an_address_are_refused_and_not_repeated(bundle: Path) -> None:
    address = f"https://ci:{PASSWORD}@registry.example.com/dkp/ee"
    for arguments in (
        ("push", bundle, address),
        ("verify", bundle, "--against", address),
        ("pull", bundle.parent / "new", "--source", address),
    ):
        run = call_mirror(*arguments, "--json")
        run.failed(2)
        assert_silent(run.text)


def test_a_crash_tells_no_secret_either(guarded: EmbeddedRegistry, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    flags = ("--source-login", "ci", "--source-password", PASSWORD)
    run = run_mirror("pull", blocked / "bundle", *source_of(guarded), *flags)
    assert run.code != 0
    assert "Traceback" not in run.text
    assert_silent(run.text)
