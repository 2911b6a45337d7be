from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import DeniedError, InputError
from mirror.release.constraints import Constraint, find_by_probing
from tests.support.strategies import versions


class Registry:
    """Answers for one version at a time, and remembers the questions."""

    def __init__(self, *held: str) -> None:
        self.held, self.asked = set(held), list[str]()

    def __call__(self, version: Version) -> bool:
        self.asked.append(str(version))
        return str(version) in self.held


@pytest.mark.parametrize(
    ("constraint", "held", "asked", "found"),
    [
        (  # 1.65.1 and all after it are outside, so they are not asked for
            ">=1.64.0 <=1.65.0",
            "1.64.0 1.64.1 1.65.0 1.65.1",
            "1.64.0 1.64.1 1.64.2 1.65.0",
            "1.64.0 1.64.1 1.65.0",
        ),
        (  # a gap ends a series
            "~1.64.0",
            "1.64.0 1.64.2",
            "1.64.0 1.64.1",
            "1.64.0",
        ),
        (
            ">=1.1",
            "1.1.0 1.2.0 2.0.0 2.0.1",
            "1.1.0 1.1.1 1.2.0 1.2.1 1.3.0 2.0.0 2.0.1 2.0.2 2.1.0 3.0.0",
            "1.1.0 1.2.0 2.0.0 2.0.1",
        ),
        (  # the start alone is refused: the find_by_probing starts behind it
            ">1.64.0 <1.65",
            "1.64.0 1.64.1",
            "1.64.1 1.64.2",
            "1.64.1",
        ),
        (
            "~2.1 || ~1.1",  # one find_by_probing, from the smallest
            "1.1.0 2.1.0",
            "1.1.0 1.1.1",
            "1.1.0",
        ),
        ("*", "", "0.0.0 0.1.0 1.0.0", ""),
        ("<1.70", "1.69.0", "", ""),
        (">=1.2.0-rc.1 <1.2.1", "1.2.0-rc.1 1.2.0", "1.2.0", "1.2.0"),
    ],
)
def test_a_walk_asks_exactly_for_these(constraint: str, held: str, asked: str, found: str) -> None:
    registry = Registry(*held.split())
    assert [*map(str, find_by_probing(Constraint.parse(constraint), registry))] == found.split()
    assert registry.asked == asked.split()


def test_a_walk_through_a_registry_that_has_everything_ends() -> None:
    with pytest.raises(InputError, match=r"not exhausted after 50 requests .* bound it above"):
        find_by_probing(Constraint.parse(">=1.0"), lambda _: True, max_probes=50)


def test_a_walk_may_use_up_its_requests() -> None:
    found = find_by_probing(Constraint.parse(">=1.0.0 <=1.0.9"), lambda _: True, max_probes=10)
    assert len(found) == 10


def test_a_failure_is_not_an_absence() -> None:
    def denied(_: Version) -> bool:
        raise DeniedError("no", where="HEAD registry/release-channel")

    with pytest.raises(DeniedError):
        find_by_probing(Constraint.parse("~1.0"), denied)


@given(
    st.sets(versions()),
    st.sampled_from([">=0.0", "~1.2.1", "^0.3", ">=1.1.0 <=2.1.0", "<2 || =2.3.1", ">1.0.2"]),
)
def test_a_walk_asks_once_for_what_fits_and_finds_only_what_is_there(
    held: set[Version], text: str
) -> None:
    asked: list[Version] = []

    def exists(version: Version) -> bool:
        asked.append(version)
        return version in held

    constraint = Constraint.parse(text)
    found = find_by_probing(constraint, exists)
    assert found == sorted(found)
    assert set(found) <= held
    assert len(asked) == len(set(asked))
    assert all(map(constraint.accepts, asked))
    assert len(asked) <= 3 * len(found) + 3
