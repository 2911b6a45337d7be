"""How a command declares its options: as the defaults of the parameters that receive them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from mirror.commands.options import argument, command, flag, grouped, option, repeatable


def pair(left: str, right: tuple[str, ...]) -> str:
    return f"{left}+{'+'.join(right)}"


@command("example", "mirror example here")
def example(
    place: str = argument(),
    dry_run: bool = flag("Change nothing."),
    leader: str | None = option("The registry to copy from.", "--from LEADER"),
    quiet: bool = flag("Say nothing.", "-q"),
    jobs: int = option("How many.", default=8, type=int),
    rate: float | None = option("How fast.", read=float, envvar="RATE"),
    both: str = grouped(
        pair, left=option("Left.", default="l"), right=repeatable("Right. Repeatable.")
    ),
) -> None:
    """Say what was given."""
    click.echo(f"{place} {dry_run} {leader} {quiet} {jobs} {rate} {both}")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(example, arguments)
    return result.exit_code, result.output


def test_a_parameter_receives_the_option_of_its_name_or_of_the_one_that_is_written() -> None:
    given = ("here", "--dry-run", "--from", "a", "-q", "--jobs", "2", "--rate", "3")
    assert run(*given) == (0, "here True a True 2 3.0 l+\n")
    assert run("here", "--quiet", "--right", "x", "--right", "y", "--left", "z") == (
        0,
        "here False None True 8 None z+x+y\n",
    )


def test_help_lists_options_in_the_order_of_the_parameters_with_defaults_and_an_example() -> None:
    _, shown = run("--help")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[lines.index("Options:") + 1 :] == [
        "--dry-run Change nothing.",
        "--from LEADER The registry to copy from.",
        "-q, --quiet Say nothing.",
        "--jobs INTEGER How many. [default: 8]",
        "--rate TEXT How fast. [env var: RATE]",
        "--left TEXT Left. [default: l]",
        "--right TEXT Right. Repeatable.",
        "--help Show this message and exit.",
        "",
        "Example:",
        "mirror example here",
    ]


@pytest.mark.parametrize("environment", [{}, {"RATE": "fast"}], ids=["flag", "variable"])
def test_a_value_that_cannot_be_read_is_a_mistake_of_usage(environment: dict[str, str]) -> None:
    flags = () if environment else ("--rate", "fast")
    result = CliRunner().invoke(example, ["here", *flags], env=environment)
    assert result.exit_code == 2
    assert "Invalid value for '--rate'" in result.output
    assert "could not convert string to float: 'fast'" in result.output
