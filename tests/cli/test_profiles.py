"""Settings of every command from variables and from one file with profiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mirror.serve import BasicAuth, MemoryStorage, User
from mirror.testing.plugin import MakeEmbeddedRegistry
from tests.cli.test_help import COMMANDS
from tests.support.program import ROOT, call_mirror
from tests.support.release_source import Source
from tests.support.schemas import jsonschema

EXAMPLE = ROOT / "examples/profiles.yaml"


def written(folder: Path, text: str) -> Path:
    """A file with these settings."""
    file = folder / "mirror.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# -- variables -------------------------------------------------------------------------------------


def test_every_option_has_a_variable_of_its_own() -> None:
    variables = [
        option.envvar
        for path, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option"
    ]
    assert all(isinstance(one, str) for one in variables)
    shared = {"MIRROR_PROGRESS", "MIRROR_LOG_FORMAT"}
    own = [one for one in variables if str(one).startswith("MIRROR_") and one not in shared]
    assert len(set(own)) == len(own)
    assert {"MIRROR_PULL_DRY_RUN", "MIRROR_SYNC_TO", "MIRROR_MODE_PLAN_TO"} <= set(own)


def test_a_variable_gives_what_the_command_line_leaves_out(source: Source, tmp_path: Path) -> None:
    env = {
        "MIRROR_PULL_SOURCE": source.root,
        "MIRROR_PULL_INSECURE": "1",
        "MIRROR_PULL_DRY_RUN": "true",
        "MIRROR_PULL_JSON": "1",
        "MIRROR_PULL_INCLUDE_MODULE": "console",
        "MIRROR_PULL_NO_PACKAGES": "0",
    }
    document = call_mirror("pull", tmp_path / "b", env=env).succeeded().document
    assert document["source"] == source.root
    assert list(document["modules"]) == ["console"]
    assert document["packages"]
    given = call_mirror("pull", tmp_path / "b", "--no-modules", "--json", env=env)
    given.failed(2, "--no-modules and --include-module contradict each other")


# -- profiles --------------------------------------------------------------------------------------

LITTLE = "no-modules: true\n    no-packages: true\n    no-platform: true"


def test_a_profile_gives_the_source_and_the_registry_with_its_login(
    make_embedded_registry: MakeEmbeddedRegistry, source: Source, tmp_path: Path
) -> None:
    registry = make_embedded_registry(auth=BasicAuth({"ci": User("right")}))
    secret = tmp_path / "password"
    secret.write_text("right\n")
    config = written(
        tmp_path,
        f"""
profile: lab
profiles:
  lab:
    source: {source.root}
    registry: {registry.address}/dkp/ee
    registry-login: ci
    registry-password: {{file: {secret}}}
    insecure: true
    {LITTLE}
    history: {{last: 1}}
""",
    )
    mirror = ("--config", config)
    call_mirror(*mirror, "pull", tmp_path / "b", "--json").succeeded()
    pushed = call_mirror(*mirror, "push", tmp_path / "b", "--json").succeeded().document
    assert pushed["target"] == f"{registry.address}/dkp/ee"
    for command in ("history", "status"):
        told = call_mirror(*mirror, command, "--json", env={"MIRROR_CONFIG": ""}).succeeded()
        assert f"{registry.address}/dkp/ee" in told.stdout
    elsewhere = call_mirror(*mirror, "history", f"{registry.address}/other", "--json").succeeded()
    assert elsewhere.document["target"] == f"{registry.address}/other", "the command line wins"
    call_mirror("history", env={"MIRROR_CONFIG": str(config), "MIRROR_PROFILE": "lab"}).succeeded()


def test_settings_of_a_profile_stand_below_those_of_a_pulls_file_and_of_flags(
    source: Source, tmp_path: Path
) -> None:
    config = written(
        tmp_path,
        f"""
include-module: console
profiles:
  lab: {{source: "{source.root}", insecure: true, no-modules: true, no-platform: true}}
""",
    )
    mirror = ("--config", config, "--profile", "lab", "pull", tmp_path / "b", "--dry-run", "--json")
    assert call_mirror(*mirror).succeeded().document["modules"] == {}
    file = ("--config", config)
    assert list(call_mirror(*mirror, *file).succeeded().document["modules"]) == ["console"]
    flags = ("--no-modules", "--platform", "linux/amd64")
    assert call_mirror(*mirror, *file, *flags).succeeded().document["modules"] == {}


@pytest.mark.parametrize("meant", [True, False])
def test_a_login_of_a_profile_goes_to_the_registries_that_it_names_alone(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path, meant: bool
) -> None:
    registry = make_embedded_registry(MemoryStorage(), auth=BasicAuth({"ana": User("secret")}))
    (tmp_path / "password").write_text("secret")
    profile = {
        "registry": f"{registry.address if meant else 'registry.closed.example'}/dkp",
        "registry-login": "ana",
        "registry-password": {"file": str(tmp_path / "password")},
        "insecure": True,
    }
    file = written(tmp_path, yaml.safe_dump({"profile": "a", "profiles": {"a": profile}}))
    done = call_mirror("--config", file, "history", f"{registry.address}/other")
    if meant:
        done.succeeded()
    else:
        told = f"the profile's login is for registry.closed.example, and not for {registry.address}"
        done.failed(6, told)


def test_a_section_of_a_command_is_not_the_option_of_its_name(tmp_path: Path) -> None:
    profile = {"prune": {"keep": "bundle"}, "verify": {"against": "x"}, "dry-run": True}
    file = written(tmp_path, yaml.safe_dump({"profile": "a", "profiles": {"a": profile}}))
    ends = ("127.0.0.1:9/a", "--to", "127.0.0.1:9/b", "--insecure", "--retry-for", "0s")
    call_mirror("--config", file, "sync", "--from", *ends).failed(5, "refuses connections")


def test_one_value_is_enough_for_an_option_that_can_be_repeated(
    source: Source, tmp_path: Path
) -> None:
    profile = {"source": source.root, "insecure": True, "include-module": "console"}
    file = written(tmp_path, yaml.safe_dump({"profile": "a", "profiles": {"a": profile}}))
    run = call_mirror("--config", file, "pull", tmp_path / "b", "--dry-run", "--json")
    assert list(run.succeeded().document["modules"]) == ["console"]


def test_the_users_own_file_is_found_without_being_named(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "mirror").mkdir()
    written(tmp_path / "mirror", "profile: x\nprofiles:\n  x:\n    verify: {quick: true}\n")
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert call_mirror("verify", bundle, "--json", env=env).succeeded().document["quick"] is True
    assert call_mirror("verify", bundle, "--json").succeeded().document["quick"] is False


def test_the_example_fits_the_schema_and_gives_a_push_all_it_needs(tmp_path: Path) -> None:
    rules = json.loads((ROOT / "docs/schemas/profiles.json").read_bytes())
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_bytes()), rules)
    with pytest.raises(jsonschema.ValidationError, match="'quick' was unexpected"):
        jsonschema.validate({"profiles": {"x": {"push": {"quick": True}}}}, rules)
    run = call_mirror("--config", EXAMPLE, "push", tmp_path)
    run.failed(2, "/etc/mirror/password cannot be read")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("registery: x", "profiles.x: unknown setting 'registery'; did you mean registry?"),
        ("push: {quick: true}", "profiles.x.push: unknown setting 'quick'"),
        ("push: yes", "profiles.x.push: expected keys and values"),
        ("registry-password: secret", "no secret is read from this file; write where it is"),
        ("registry-password: {flie: x}", "registry-password: write {file: PATH} or {env: NAME}"),
        ("registry-password: {file: nowhere}", "registry-password: nowhere cannot be read"),
        ("include-platform: 1.70", "YAML reads it as the number 1.7; write it in quotes"),
    ],
)
def test_what_is_wrong_in_a_profile_is_told_by_its_place(
    tmp_path: Path, settings: str, words: str
) -> None:
    config = written(tmp_path, f"profiles:\n  x:\n    {settings}\n")
    command = "pull" if "include" in settings else "history"
    run = call_mirror("--config", config, "--profile", "x", command, "r.example/x")
    run.failed(2, f"{config}: ", words)
    assert "secret\n" not in run.stderr


def test_a_value_of_the_wrong_kind_is_told_by_its_place_and_not_as_a_variables(
    tmp_path: Path,
) -> None:
    for settings, told in (
        ("jobs: x", "profiles.x.jobs: 'x' is not a valid integer range."),
        ("status:\n      jobs: 0", "profiles.x.jobs: 0 is not in the range 1<=x<=64."),
        ("ca: /nowhere/ca.pem", "profiles.x.ca: File '/nowhere/ca.pem' does not exist."),
    ):
        config = written(tmp_path, f"profiles:\n  x:\n    {settings}\n")
        line = ("--config", config, "--profile", "x", "status", "r.example/x")
        run = call_mirror(*line)
        run.failed(2, f"{config}: {told}", "Usage: ")
        assert "env var" not in run.stderr
    config = written(tmp_path, "profiles:\n  x:\n    jobs: 3\n")
    run = call_mirror("--config", config, "--profile", "x", "status", "--jobs", "y", "r.example/x")
    run.failed(2, "'y' is not a valid integer range")
    assert str(config) not in run.stderr


def test_a_profile_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    config = written(tmp_path, "profiles:\n  lab: {}\n  closed: {}\n")
    run = call_mirror("--config", config, "--profile", "lap", "history", "r.example/x")
    run.failed(2, f"{config} has no profile lap; its profiles: lab, closed")


def test_a_secret_may_come_from_a_variable(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path, bundle: Path
) -> None:
    registry = make_embedded_registry(MemoryStorage(), auth=BasicAuth({"ci": User("right")}))
    shutil.copytree(bundle, tmp_path / "b")
    text = "profile: x\nprofiles:\n  x: {registry-login: ci, registry-password: {env: LAB}}\n"
    push = ("push", tmp_path / "b", f"{registry.address}/dkp", "--insecure")
    mirror = ("--config", written(tmp_path, text), *push)
    call_mirror(*mirror, env={"LAB": "right"}).succeeded()
    call_mirror(*mirror).failed(2, "a password for ci is missing")
