"""What the program says about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mirror.errors import EXIT_CODES
from tests.cli.test_printed_commands import parsed as understood
from tests.docs.commands import commands
from tests.support.program import ROOT, call_mirror, run_mirror

SECRETS = {
    "D8_MIRROR_LICENSE_TOKEN": "licence-in-the-environment",
    "D8_MIRROR_SOURCE_LOGIN": "login-in-the-environment",
    "D8_MIRROR_SOURCE_PASSWORD": "password-in-the-environment",
    "D8_MIRROR_REGISTRY_LOGIN": "user-in-the-environment",
    "D8_MIRROR_REGISTRY_PASSWORD": "secret-in-the-environment",
}


COMMANDS = dict(commands())


def words(text: str) -> str:
    """Without the line breaks that fit a terminal, which may also come behind a hyphen."""
    return " ".join(re.sub(r"(?<=\w-)\n\s+", "", text).split())


def test_the_program_lists_its_commands_and_exit_codes() -> None:
    text = words(call_mirror("--help").succeeded().stdout)
    for name in ("pull", "push", "verify"):
        assert f" {name} " in text
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_help_says_what_a_command_and_each_of_its_options_is_for(path: tuple[str, ...]) -> None:
    text = words(call_mirror(*path, "--help").succeeded().stdout)
    assert words(call_mirror(*path, "-h").succeeded().stdout) == text
    command = COMMANDS[path]
    assert command.help
    assert words(command.help.split("\n\n")[0]) in text
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        assert option.help, f"{option.name} has no help"
        assert words(option.help) in text
        for name in option.opts:
            assert name in text


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_help_ends_with_an_example_that_the_program_takes(path: tuple[str, ...]) -> None:
    *_, heading, example = call_mirror(*path, "--help").succeeded().stdout.rstrip().splitlines()
    assert heading.strip() == "Example:"
    assert example.strip().startswith(f"mirror {' '.join(path)}")
    assert len(example) <= 80
    assert understood(example).command is COMMANDS[path]


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_help_names_the_environment_variables_and_never_their_values(
    path: tuple[str, ...],
) -> None:
    text = call_mirror(*path, "--help", env=SECRETS).succeeded().text
    for value in SECRETS.values():
        assert value not in text
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option) and option.envvar and option.show_envvar:
            assert str(option.envvar) in text


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "pull",
            [
                *("--source", "--source-login", "--source-password", "-l", "--license"),
                *("-i", "--include-module", "--installer-tag", "--ignore-suspend", "--force"),
                *("--no-platform", "--no-security-db", "--no-modules", "--no-installer"),
                *("--modules-path-suffix", "--tls-skip-verify", "--insecure", "--tmp-dir"),
            ],
        ),
        (
            "push",
            [
                *("-u", "--registry-login", "-p", "--registry-password", "--file"),
                *("--modules-path-suffix", "--tls-skip-verify", "--insecure", "--tmp-dir"),
            ],
        ),
    ],
)
def test_flags_that_d8_has_too_go_by_the_same_names(command: str, flags: list[str]) -> None:
    known = {name for option in COMMANDS[command,].params for name in option.opts}
    assert set(flags) <= known


def test_the_version_is_that_of_the_package() -> None:
    said = run_mirror("--version").succeeded().stdout
    assert said.startswith("mirror ")
    assert said.strip().split()[1][0].isdigit()


def test_the_console_script_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).parent / "mirror"
    assert script.exists(), "the package is not installed; `./run test` does that"
    said = subprocess.run([script, "pull", "--help"], capture_output=True, text=True, cwd=ROOT)
    as_module = run_mirror("pull", "--help").succeeded().stdout
    usage = "Usage: mirror pull [OPTIONS] BUNDLE_DIR"
    assert usage in said.stdout
    assert said.stdout.partition("BUNDLE_DIR")[2] == as_module.partition("BUNDLE_DIR")[2]


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    call_mirror("mend").failed(2, "mend")
    call_mirror("verify", "--mend", "x").failed(2, "--mend")
    assert "Usage:" in call_mirror("verify").failed(2, "BUNDLE_DIR").stderr


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_every_command_is_in_the_document(path: tuple[str, ...]) -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert f"`mirror {' '.join(path)}" in text
