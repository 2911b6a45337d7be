"""The memory of endpoints decides the order alone, and forgets in time."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mirror.modes.endpoints import HealthMemory

ABC = ("a", "b", "c")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def memory(clock: Clock) -> HealthMemory[str]:
    return HealthMemory(clock=clock, first_rest_s=2, longest_rest_s=10, lack_s=30)


def order(health: HealthMemory[str], endpoints: Sequence[str], content: str) -> tuple[str, ...]:
    """The order in which one caller asks, who gets nothing from any of them."""
    return tuple(health.in_order(endpoints, content))


def test_the_declared_order_holds_while_all_is_well() -> None:
    assert order(memory(Clock()), ABC, "x") == ABC


def test_who_fails_is_asked_last_and_then_at_its_place_again() -> None:
    clock = Clock()
    health = memory(clock)
    assert health.failed("a") == 2
    assert order(health, ABC, "x") == ("b", "c", "a")
    clock.pass_(1.9)
    assert order(health, ABC, "x") == ("b", "c", "a")
    clock.pass_(0.2)
    assert order(health, ABC, "x") == ABC


def test_when_the_rest_is_over_one_caller_goes_and_sees() -> None:
    clock = Clock()
    health = memory(clock)
    health.failed("a")
    clock.pass_(2)
    assert order(health, ABC, "x") == ABC
    assert order(health, ABC, "x") == ("b", "c", "a")
    assert health.answered("a")
    assert order(health, ABC, "x") == ABC
    assert not health.answered("a")


def test_only_who_reaches_an_endpoint_has_probed_it() -> None:
    clock = Clock()
    health = memory(clock)
    health.failed("b")
    clock.pass_(2)
    for _ in range(3):
        assert next(health.in_order(ABC, "x")) == "a"  # and is content with what it answers
    assert order(health, ABC, "x") == ABC
    assert order(health, ABC, "x") == ("a", "c", "b")


def test_a_caller_that_never_comes_back_is_followed_by_another() -> None:
    clock = Clock()
    health = memory(clock)
    health.failed("a")
    clock.pass_(2)
    assert order(health, ABC, "x")[0] == "a"
    clock.pass_(2)
    assert order(health, ABC, "x")[0] == "a"


def test_each_failure_in_a_row_doubles_the_rest_up_to_the_longest() -> None:
    clock = Clock()
    health = memory(clock)
    health.failed("a")
    for rest in (2, 4, 8, 10, 10):
        clock.pass_(rest - 0.1)
        assert order(health, ABC, "x")[0] == "b"
        clock.pass_(0.1)
        assert order(health, ABC, "x")[0] == "a"
        assert health.failed("a") is None
    health.answered("a")
    assert health.failed("a") == 2


def test_many_requests_that_fail_together_are_one_failure() -> None:
    clock = Clock()
    health = memory(clock)
    assert [health.failed("a") for _ in range(8)] == [2, *[None] * 7]
    clock.pass_(2)
    assert order(health, ABC, "x")[0] == "a"


def test_what_is_lacking_is_a_matter_of_one_content_and_of_a_while() -> None:
    clock = Clock()
    health = memory(clock)
    health.lacked("a", "x")
    assert order(health, ABC, "x") == ("b", "c", "a")
    assert order(health, ABC, "y") == ABC
    clock.pass_(30)
    assert order(health, ABC, "x") == ABC
    health.lacked("a", "x")
    health.served("a", "x")
    assert order(health, ABC, "x") == ABC


def test_who_lacks_it_is_asked_before_who_fails() -> None:
    health = memory(Clock())
    health.failed("a")
    health.lacked("b", "x")
    assert order(health, ABC, "x") == ("c", "b", "a")


def test_the_memory_of_what_is_lacking_is_bounded() -> None:
    health = memory(Clock())
    for number in range(10_050):
        health.lacked("a", str(number))
    assert len(health._lacks) == 10_000
    assert order(health, ABC, "10049") == ("b", "c", "a")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("failed", "answered", "served", "lacked", "denied", "wait", "order")),
            st.sampled_from(ABC),
            st.sampled_from("xy"),
        ),
        max_size=40,
    )
)
def test_nobody_is_ever_left_out(history: list[tuple[str, str, str]]) -> None:
    clock = Clock()
    health = memory(clock)
    for what, endpoint, content in history:
        match what:
            case "failed":
                health.failed(endpoint)
            case "answered":
                health.answered(endpoint)
            case "served":
                health.served(endpoint, content)
            case "lacked":
                health.lacked(endpoint, content)
            case "denied":
                health.denied(endpoint)
            case "wait":
                clock.pass_(1.5)
        assert sorted(order(health, ABC, content)) == list(ABC)
    clock.pass_(1000)
    assert order(health, ABC, "x") == ABC
