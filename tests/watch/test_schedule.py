"""When the next look is due, and how deep it goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.watch.settings import CheckLevel, Schedule

SCHEDULE = Schedule(interval=10, jitter=0.1, backoff_limit=300, audit_every=3600, deep_every=86400)
chances = st.floats(0, 1, exclude_max=True)


def test_without_trouble_the_interval_is_kept_give_or_take_the_jitter() -> None:
    assert SCHEDULE.delay(0, 0.0) == pytest.approx(9)
    assert SCHEDULE.delay(0, 0.5) == pytest.approx(10)
    assert SCHEDULE.delay(0, 0.999_999) == pytest.approx(11)


def test_each_failure_doubles_the_delay_up_to_a_limit() -> None:
    delays = [SCHEDULE.delay(failures, 0.5) for failures in range(1, 9)]
    assert delays == pytest.approx([10, 20, 40, 80, 160, 300, 300, 300])


@given(failures=st.integers(0, 10_000), chance=chances)
def test_trouble_never_makes_it_look_more_often(failures: int, chance: float) -> None:
    assert SCHEDULE.delay(failures, chance) >= SCHEDULE.delay(0, 0.0)
    assert SCHEDULE.delay(failures, chance) <= 330


def test_an_interval_above_the_limit_is_kept_in_trouble() -> None:
    assert Schedule(interval=900, jitter=0, backoff_limit=300).delay(5, 0.5) == 900


def test_the_first_look_is_as_deep_as_any_will_be() -> None:
    assert SCHEDULE.level(0.0, None, None) is CheckLevel.DEEP
    assert Schedule(deep_every=None).level(0.0, None, None) is CheckLevel.AUDIT
    assert (
        Schedule(deep_every=None, audit_every=None).level(0.0, None, None) is CheckLevel.STATEMENT
    )


def test_an_audit_is_due_an_hour_after_the_last_and_a_deep_reading_counts_as_one() -> None:
    assert SCHEDULE.level(3599, 0, 0) is CheckLevel.STATEMENT
    assert SCHEDULE.level(3600, 0, 0) is CheckLevel.AUDIT
    assert SCHEDULE.level(3600, 0, 100) is CheckLevel.STATEMENT
    assert SCHEDULE.level(86400, 86000, 0) is CheckLevel.DEEP
