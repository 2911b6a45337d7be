"""Which registry gets which login or certificate, and what the command line warns of."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mirror.commands.access import AccessOptions
from mirror.errors import InputError
from mirror.serve import BasicAuth, MemoryStorage, User
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.nginx import Nginx
from tests.support.program import Finished, call_mirror
from tests.support.release_source import TINY, serve
from tests.support.tls import Authority

LITTLE = ("--no-platform", "--no-modules", "--no-packages", "--no-security-db")
LOGIN = ("-u", "ci", "-p", "-")
WORD = "S3cret-0815"


@pytest.fixture
def two(make_embedded_registry: MakeEmbeddedRegistry) -> tuple[str, str]:
    """The roots of two registries that ask for a login, at two hosts; they share the user."""
    users = BasicAuth({"ci": User(WORD)})
    made = [make_embedded_registry(MemoryStorage(), auth=users) for _ in range(2)]
    return f"{made[0].address}/dkp", f"{made[1].address}/dkp"


# -- one login, several hosts ----------------------------------------------------------------------


def several(command: str, one: str, other: str, *more: str, stdin: str = f"{WORD}\n") -> Finished:
    names = ("--from", one, "--to", other) if command == "sync" else (one, other)
    return call_mirror(command, *names, "--insecure", *LOGIN, *more, stdin=stdin)


@pytest.mark.parametrize("command", ["sync", "diff", "status"])
def test_one_login_is_not_sent_to_several_hosts(command: str, two: tuple[str, str]) -> None:
    run = several(command, *two).failed(2, "2 registries are named", "--same-login", "docker login")
    for root in two:
        assert root.partition("/")[0] in run.stderr


@pytest.mark.parametrize("command", ["sync", "diff", "status"])
def test_it_is_where_that_was_meant(command: str, two: tuple[str, str]) -> None:
    run = several(command, *two, "--same-login")
    assert "asks for a login" not in run.stderr
    assert "refuses the login" not in run.stderr
    assert run.code != 6


def test_two_trees_of_one_registry_share_its_login(two: tuple[str, str]) -> None:
    run = several("diff", two[0], f"{two[0]}/other")
    assert "registries are named" not in run.stderr
    assert run.code != 2


def test_a_bundle_and_a_registry_are_one_host(bundle: Path, two: tuple[str, str]) -> None:
    run = call_mirror("diff", bundle, two[0], "--insecure", *LOGIN, stdin=f"{WORD}\n")
    assert "registries are named" not in run.stderr


def test_a_certificate_is_a_login_too(two: tuple[str, str], authority: Authority) -> None:
    files = authority.issue("robot", client=True)
    flags = ("--cert", files.certificate, "--key", files.key)
    call_mirror("status", *two, "--insecure", *flags).failed(2, "2 registries are named")


# -- contradictions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("push", "BUNDLE", "https://reg.example.com/dkp", "--insecure"),
        ("push", "BUNDLE", "reg.example.com/d", "--insecure", "--replica", "https://b.example/d"),
        ("verify", "BUNDLE", "--against", "https://reg.example.com/dkp", "--insecure"),
        ("pull", "NEW", "--source", "https://reg.example.com/dkp/ee", "--insecure"),
        ("pull", "NEW", "--source", "127.0.0.1:9/d", "--base", "https://b.example/d", "--insecure"),
        ("status", "https://reg.example.com/dkp", "--insecure"),
        ("diff", "BUNDLE", "https://reg.example.com/dkp", "--insecure"),
        ("history", "https://reg.example.com/dkp", "--insecure"),
    ],
)
def test_an_address_that_asks_for_tls_and_a_flag_against_it_exclude_each_other(
    arguments: tuple[str, ...], bundle: Path, tmp_path: Path
) -> None:
    places = {"BUNDLE": str(bundle), "NEW": str(tmp_path / "new")}
    run = call_mirror(*(places.get(one, one) for one in arguments))
    run.failed(2, "asks for TLS and --insecure for plain HTTP; leave out one of the two")


def test_a_key_goes_with_its_certificate(authority: Authority) -> None:
    key = authority.issue("robot", client=True).key
    call_mirror("status", "reg.example.com/d", "--cert-key", key).failed(2, "goes with --cert")


@pytest.mark.parametrize("host", ["", "a b", "user@host", "http://"])
def test_a_host_to_trust_is_the_name_of_one(host: str) -> None:
    with pytest.raises(InputError, match="write the name or address of a host"):
        AccessOptions(trust_host=[host]).connection()


def test_a_host_to_trust_may_be_written_in_any_way() -> None:
    options = AccessOptions(trust_host=["Auth.LAN:5000", "10.0.0.1", "[fd00::1]:443"])
    assert options.connection().trusted_hosts == {"auth.lan", "10.0.0.1", "fd00::1"}


# -- secrets that everybody sees -------------------------------------------------------------------


def warnings(run: Finished) -> list[str]:
    return [line for line in run.stderr.splitlines() if "process list" in line]


def test_a_password_given_as_a_flag_is_warned_of_once_with_better_ways(
    two: tuple[str, str], bundle: Path
) -> None:
    flags = ("-u", "ci", "-p", WORD, "--replica-login", "ci", "--replica-password", WORD)
    run = call_mirror("push", bundle, two[0], "--insecure", "--replica", two[1], *flags)
    run.succeeded()
    (warning,) = warnings(run)
    for hint in ("--replica-password", "_PASSWORD", "`docker login`", "reads it from a pipe"):
        assert hint.replace("--replica-password", "-password") in warning
    assert WORD not in run.stderr


def test_other_ways_to_give_it_cause_no_warning(two: tuple[str, str], bundle: Path) -> None:
    env = {"D8_MIRROR_REGISTRY_LOGIN": "ci", "D8_MIRROR_REGISTRY_PASSWORD": WORD}
    piped = call_mirror("push", bundle, two[0], "--insecure", *LOGIN, stdin=f"{WORD}\n")
    by_variable = call_mirror("push", bundle, two[0], "--insecure", env=env)
    assert warnings(piped.succeeded()) == warnings(by_variable.succeeded()) == []


def test_a_licence_key_is_such_a_secret(two: tuple[str, str], tmp_path: Path) -> None:
    pull = ("pull", tmp_path / "b", "--source", two[0], "--insecure", "-l", WORD, *LITTLE)
    (warning,) = warnings(call_mirror(*pull).failed(6))
    assert "--license -" in warning
    assert "D8_MIRROR_LICENSE_TOKEN" in warning


# -- stored logins ---------------------------------------------------------------------------------


def test_a_base_is_read_with_the_login_that_is_stored_for_its_path(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    registry = make_embedded_registry(MemoryStorage(), auth=BasicAuth({"ci": User(WORD)}))
    serve(TINY, registry)
    host, root = registry.address, f"{registry.address}/{TINY.root}"

    def entry(password: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"ci:{password}".encode()).decode()}

    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {host: entry("wrong"), root: entry(WORD)}})
    )
    pull = ("pull", tmp_path / "b", "--source", root, "--base", root, "--insecure", *LITTLE)
    call_mirror(*pull, "--dry-run", env={"DOCKER_CONFIG": str(tmp_path)}).succeeded()


# -- certificates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["flags", "environment"])
def test_a_front_that_asks_for_a_certificate_is_pulled_from_and_pushed_to(
    way: str, embedded_registry: EmbeddedRegistry, authority: Authority, tmp_path: Path
) -> None:
    serve(TINY, embedded_registry)
    files = authority.issue("robot", client=True)
    flags: tuple[str | Path, ...] = ("--cert", files.certificate, "--key", files.key)
    env = {
        f"D8_MIRROR_{place}_{what}": str(path)
        for place in ("SOURCE", "REGISTRY")
        for what, path in (("CERT", files.certificate), ("KEY", files.key))
    }
    if way == "flags":
        env = {}
    else:
        flags = ()
    with Nginx(
        tmp_path / "nginx",
        embedded_registry.address,
        tls=authority.issue(),
        clients=authority.certificate,
    ) as nginx:
        host, ca = nginx.url.removeprefix("https://"), ("--ca", authority.certificate)
        pull = ("pull", tmp_path / "b", "--source", f"{host}/{TINY.root}", *LITTLE, *ca)
        call_mirror(*pull).failed(5, "wants a client certificate that it accepts")
        call_mirror(*pull, *flags, env=env).succeeded()
        root = f"{host}/new"
        call_mirror("push", tmp_path / "b", root, *ca, *flags, env=env).succeeded()
        keyed = tuple("--cert-key" if flag == "--key" else flag for flag in flags)
        verify = ("verify", tmp_path / "b", "--against", root, *ca, *keyed)
        call_mirror(*verify, env=env).succeeded()
