"""What scripts for `d8 mirror` rely on: spellings, variables, and what is told instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mirror.commands.access import AccessOptions
from mirror.errors import InputError
from mirror.serve import BasicAuth, MemoryStorage, User
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve

LITTLE = ("--no-platform", "--no-modules", "--no-packages")


def plan(source: Source, *more: str) -> tuple[str, ...]:
    return ("pull", "never-written", "--source", source.root, "--insecure", "--dry-run", *more)


# -- spellings -------------------------------------------------------------------------------------


def test_underscores_in_flags_are_hyphens(source: Source, bundle: Path, tmp_path: Path) -> None:
    call_mirror(
        *("pull", tmp_path / "b", "--source", source.root, "--insecure", "--dry_run"),
        *("--no_platform", "--no_packages", "--include_module", "console"),
    ).succeeded()
    assert not (tmp_path / "b").exists()
    call_mirror("push", bundle, f"{source.address}/x", "--insecure", "--dry_run").succeeded()
    # Only of flags: values stay what they are.
    run = call_mirror(*plan(source, "--include_module", "con_sole"))
    run.failed(1, "no module con_sole")
    call_mirror(*plan(source, "--include_modul", "a")).failed(2, "--include-module")


def test_slashes_in_a_row_are_one(source: Source, bundle: Path) -> None:
    root = source.root.replace("/", "//") + "//"
    run = call_mirror(*plan(source)[:3], root, *plan(source)[4:], *LITTLE, "--json").succeeded()
    assert run.document["source"] == source.root
    run = call_mirror("push", bundle, root, "--insecure", "--dry-run", "--json").succeeded()
    assert run.document["target"] == source.root


# -- variables -------------------------------------------------------------------------------------


def test_a_password_of_the_environment_alone_is_ignored_and_told(source: Source) -> None:
    lone = {"D8_MIRROR_SOURCE_PASSWORD": "S3cret"}
    run = call_mirror(*plan(source, *LITTLE), env=lone).succeeded()
    assert "D8_MIRROR_SOURCE_PASSWORD is not used: no login goes with it" in run.stderr
    assert "S3cret" not in run.text
    call_mirror(*plan(source, *LITTLE, "--source-password", "x")).failed(2, "without a login")


def test_a_licence_beside_a_login_is_told_to_be_unused(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    registry = make_embedded_registry(MemoryStorage(), auth=BasicAuth({"ci": User("right")}))
    source = serve(TINY, registry)
    login = ("--source-login", "ci", "--source-password", "right", "--license", "other")
    run = call_mirror(*plan(source, *LITTLE, *login)).succeeded()
    assert "the licence key is not used, since --source-login is given" in run.stderr


def test_a_time_limit_of_d8s_is_told_to_have_no_effect(
    source: Source, bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    told = "D8_MIRROR_TIMEOUT has no effect"
    push = ("push", bundle, f"{embedded_registry.address}/dkp/ee", "--insecure", "--dry-run")
    for command in (plan(source, *LITTLE), push):
        assert told in call_mirror(*command, env={"D8_MIRROR_TIMEOUT": "1h"}).succeeded().stderr
        assert told not in call_mirror(*command).succeeded().stderr


@pytest.mark.parametrize(
    ("level", "logged"), [("0", False), ("2", False), ("3", True), ("4", True), ("many", False)]
)
def test_the_debug_log_of_d8_shows_every_request_on_stderr(
    source: Source, level: str, logged: bool
) -> None:
    command = plan(source, *LITTLE, "--json")
    run = call_mirror(*command, env={"MIRROR_DEBUG_LOG": level}).succeeded()
    assert ("DEBUG" in run.stderr and "/tags/list" in run.stderr) == logged
    assert run.document["source"] == source.root
    assert "DEBUG" not in call_mirror(*command).succeeded().stderr, "it ends with its command"


# -- logins ----------------------------------------------------------------------------------------


def test_a_login_without_a_password_says_how_to_give_one(
    source: Source, bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    target = f"{embedded_registry.address}/dkp"
    for command, whose in (
        (plan(source, "--source-login", "ci"), "source"),
        (("push", bundle, target, "-u", "ci"), "registry"),
        (("push", bundle, target, "--replica", "other/x", "--replica-login", "ci"), "replica"),
    ):
        variable = f"D8_MIRROR_{whose.upper()}_PASSWORD"
        call_mirror(*command).failed(
            2, "a password for ci is missing", f"--{whose}-password -", variable
        )


def test_a_password_that_is_missing_is_asked_for_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def getpass(prompt: str) -> str:
        asked.append(prompt)
        return "typed" if len(asked) == 1 else ""

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", getpass)
    found = AccessOptions("ci").credentials("registry.example.com/dkp")
    assert found is not None
    assert (found.username, found.password) == ("ci", "typed")
    with pytest.raises(InputError, match="a password for ci is missing"):
        AccessOptions("ci").credentials("registry.example.com/dkp")
    assert asked == ["Password of ci at registry.example.com: "] * 2


def test_a_refused_pull_names_an_expired_licence_among_the_causes(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    registry = make_embedded_registry(auth=BasicAuth({"license-token": User("right")}))
    root = f"{registry.address}/deckhouse/ee"
    run = call_mirror("pull", "never-written", "--source", root, "--insecure", "--license", "old")
    run.failed(6, "--license", "a licence may have expired, or not cover this edition")


# -- quoting ---------------------------------------------------------------------------------------


def test_a_constraint_that_the_shell_ate_is_told_as_that() -> None:
    pull = ("pull", "never-written", "--include-platform")
    call_mirror(*pull).failed(2, "requires an argument", "--include-platform '>=1.68'")
    call_mirror(*pull, "--dry-run").failed(2, "'--dry-run' is another flag", "'>=1.64'")
    run = call_mirror(*pull, "--json")
    assert run.code == 2
    assert "is another flag" in run.stderr


# -- the path of modules ---------------------------------------------------------------------------


def test_a_push_tells_that_modules_go_elsewhere(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    target = f"{embedded_registry.address}/dkp/ee"
    push = ("push", bundle, target, "--insecure", "--dry-run")
    for suffix, where in (("/my/mods/", f"{target}/my/mods"), ("/", target)):
        run = call_mirror(*push, "--modules-path-suffix", suffix).succeeded()
        assert f"modules go to {where}, not to {target}/modules" in run.stderr
    for more in ((), ("--modules-path-suffix", "modules/")):
        assert "modules go to" not in call_mirror(*push, *more).succeeded().stderr
