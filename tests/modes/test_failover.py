"""A reading ends with what some endpoint has, or with what all of them said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import (
    CancelledError,
    DeniedError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import Event, Retrying
from mirror.modes.endpoints import Endpoint, HealthMemory, Reading, ReadingPolicy
from mirror.registry import RetryPolicy


class Script:
    """Endpoints that answer as written: `.` has it, `4` lacks it, `5` fails for now, `T` fails for
    good (its certificate, say), `D` denies. The last letter holds for ever."""

    def __init__(self, *answers: str, attempts: int = 3, doors: int = 0) -> None:
        self.endpoints = tuple(
            Endpoint("https", f"host-{number}", is_door=number < doors)
            for number in range(len(answers))
        )
        self._left = dict(zip(self.endpoints, map(list, answers), strict=True))
        self.asked: list[str] = []
        self.waits: list[float] = []
        self.events: list[Event] = []
        health: HealthMemory[Endpoint] = HealthMemory(clock=lambda: 0.0)
        policy = RetryPolicy(attempts=attempts, jitter=0)
        self.patience = ReadingPolicy(health, policy, self.waits.append, self.events.append)

    def read(self) -> Endpoint:
        """One reading: who had it."""
        reading = Reading("it", self.endpoints, self.patience)
        for endpoint in reading:
            self.asked.append(endpoint.host[-1])
            error = self._answer(endpoint)
            if error is None:
                reading.served(endpoint)
                return endpoint
            reading.failed(endpoint, error)
        raise reading.verdict()

    def _answer(self, endpoint: Endpoint) -> MirrorError | None:
        left = self._left[endpoint]
        letter = left.pop(0) if len(left) > 1 else left[0]
        where = f"GET {endpoint.host}"
        match letter:
            case ".":
                return None
            case "4":
                return RegistryNotFoundError(f"{where}: absent", where=where, status=404)
            case "D":
                return DeniedError(f"{where}: denied", where=where, status=403)
            case "C":
                return CancelledError("stopped")
            case "B":
                return RegistryError(f"{where}: bad request", where=where, status=400)
        error = UnreachableError(f"{where}: fails", where=where)
        error.may_pass = letter == "5"
        return error


@pytest.mark.parametrize(
    ("answers", "asked", "waits"),
    [
        ((".", "."), "0", 0),
        (("4", "."), "01", 0),
        (("5", "."), "01", 0),
        (("T", "D", "4", "."), "0123", 0),
        (("5.", "5"), "010", 1),
        (("55.", "5"), "01010", 2),  # both rest, in their own order
        (("5.", "4"), "01" + "10", 1),  # it may have it, and was well before
    ],
)
def test_what_one_endpoint_has_is_found(answers: tuple[str, ...], asked: str, waits: int) -> None:
    script = Script(*answers)
    script.read()
    assert ("".join(script.asked), len(script.waits)) == (asked, waits)
    assert len([event for event in script.events if isinstance(event, Retrying)]) == waits


@pytest.mark.parametrize(
    ("answers", "kind", "rounds"),
    [
        (("4", "4"), RegistryNotFoundError, 1),
        (("5", "5"), UnreachableError, 3),
        (("T", "T"), UnreachableError, 1),
        (("4", "T"), UnreachableError, 1),
        (("4", "5"), UnreachableError, 2),  # once again for who was well until now
        (("D", "4"), DeniedError, 1),
        (("D", "T"), DeniedError, 1),
    ],
)
def test_what_nobody_has_ends_with_the_gravest_reason(
    answers: tuple[str, ...], kind: type[MirrorError], rounds: int
) -> None:
    script = Script(*answers)
    with pytest.raises(MirrorError) as caught:
        script.read()
    assert type(caught.value) is kind
    assert len(script.asked) == rounds * len(answers)
    assert all(endpoint.host in str(caught.value) for endpoint in script.endpoints)


def test_one_endpoint_alone_speaks_for_itself() -> None:
    with pytest.raises(UnreachableError, match=r"^GET host-0: fails$"):
        Script("T").read()


@pytest.mark.parametrize(("letter", "kind"), [("C", CancelledError), ("B", RegistryError)])
def test_what_no_other_endpoint_would_do_better_ends_the_reading(
    letter: str, kind: type[MirrorError]
) -> None:
    script = Script(letter, ".")
    with pytest.raises(kind):
        script.read()
    assert script.asked == ["0"]


def test_a_machine_that_is_gone_does_not_delay_each_question() -> None:
    script = Script("4", "5")
    for _ in range(5):
        with pytest.raises(UnreachableError):
            script.read()
    assert len(script.waits) == 1


def test_a_door_is_no_witness_where_the_replicas_behind_it_were_asked() -> None:
    script = Script("5", "4", "4", doors=1)
    with pytest.raises(RegistryNotFoundError, match="none of 2 endpoints"):
        script.read()
    assert script.waits == []
    with pytest.raises(UnreachableError):
        Script("5", doors=1).read()


@given(st.lists(st.text("45TD.", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_reading_succeeds_only_at_who_has_it_and_absence_needs_every_witness(
    answers: list[str],
) -> None:
    script = Script(*answers)
    try:
        found = script.read()
    except RegistryNotFoundError:
        assert all("4" in one for one in answers)
    except MirrorError:
        assert not all(one[0] == "." for one in answers)
    else:
        assert "." in answers[script.endpoints.index(found)]
    assert len(script.asked) <= 3 * len(answers)
