"""`WWW-Authenticate` is read as RFC 9110 writes it, and nothing breaks the reader."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.registry.auth import Challenge, parse_challenges

TOKENS = st.text(string.ascii_letters + string.digits + "-_.!#$%&'*+^`|~", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def challenges(draw: st.DrawFn) -> tuple[Challenge, str]:
    """A challenge and one way to write it."""
    scheme = draw(TOKENS)
    parameters: dict[str, str] = {}
    parts: list[str] = []
    for name, value in draw(st.dictionaries(TOKENS.map(str.lower), VALUES, max_size=4)).items():
        parameters[name] = value
        gap = draw(st.sampled_from(["", " ", "\t"]))
        cased = draw(st.sampled_from([name, name.upper()]))
        parts.append(f"{cased}{gap}={gap}{quoted(value)}")
    comma = draw(st.sampled_from([",", ", ", " , ", ",,"]))
    return Challenge(scheme.lower(), parameters), f"{scheme} {comma.join(parts)}".strip()


@given(st.lists(st.lists(challenges(), min_size=1, max_size=3), max_size=3))
def test_what_is_written_is_read_back(groups: list[list[tuple[Challenge, str]]]) -> None:
    headers = [", ".join(text for _, text in group) for group in groups]
    assert parse_challenges(headers) == [challenge for group in groups for challenge, _ in group]


@given(st.lists(st.text(max_size=80)))
def test_no_text_breaks_the_reader(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a.example/token",service="s",scope="repository:a/b:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://a.example/token",
                        "service": "s",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ("Basic", [Challenge("basic")]),
        ("Negotiate, Basic realm=x", [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (
            'Negotiate dG9rZW4=, Bearer realm="r"',
            [Challenge("negotiate"), Challenge("bearer", {"realm": "r"})],
        ),
        (
            "Bearer realm=https://a.example/token,service=s",
            [Challenge("bearer", {"realm": "https://a.example/token", "service": "s"})],
        ),
        ('Basic realm="a \\"b\\", c"', [Challenge("basic", {"realm": 'a "b", c'})]),
        ("", []),
        (", ,", []),
        ('="', []),
    ],
)
def test_the_forms_that_registries_send(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges([header]) == expected


def test_an_absent_parameter_is_empty() -> None:
    assert Challenge("basic").get("realm") == ""
