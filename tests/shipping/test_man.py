"""The manual pages say what the program says, in what man and groff take."""

from __future__ import annotations

import subprocess

import pytest

from shipping.man import commands, pages

PAGES = pages()


def formatted(text: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    """A page as groff shows it."""
    return subprocess.run(
        ["groff", "-man", "-Kutf8", "-Tutf8", "-rLL=100n", *flags],
        input=text.encode(),
        capture_output=True,
        check=True,
    )


def test_every_command_has_a_page() -> None:
    assert set(PAGES) == {f"{'-'.join(words)}.1" for words, _ in commands()}
    assert {"mirror.1", "mirror-pull.1", "mirror-mode-plan.1"} <= set(PAGES)


def test_groff_has_nothing_to_say_against_any_page() -> None:
    complaints = formatted("\n".join(PAGES.values()), "-ww", "-z")
    assert complaints.stderr == b""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mirror.1", ["mirror-pull(1)", "mirror-mode(1)", "interrupted"]),
        ("mirror-push.1", ["--quorum INTEGER RANGE", "D8_MIRROR_REGISTRY_LOGIN", "-u admin"]),
        ("mirror-pull.1", ["'>=1.2 <1.5'     a constraint", "--no-modules / --modules"]),
        ("mirror-mode-plan.1", ["mirror mode plan [OPTIONS]", "mirror-mode(1)"]),
    ],
)
def test_a_page_has_what_help_says(name: str, words: list[str]) -> None:
    shown = formatted(PAGES[name], "-P-cbou").stdout.decode()
    plain = " ".join(shown.split())
    for word in words:
        assert " ".join(word.split()) in plain
