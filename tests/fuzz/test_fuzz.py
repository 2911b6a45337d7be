"""A short run of every target, and what makes its silence worth something."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz import corpus, engine
from tests.fuzz.engine import Target, fuzz, mutate
from tests.fuzz.targets import TARGETS

EXECUTIONS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_of_foreign_bytes_reads_them_or_refuses_them(name: str) -> None:
    report = fuzz(name, TARGETS[name], 1, executions=EXECUTIONS, corpus=corpus.read(name))
    assert [(one.data, one.what) for one in report.findings] == []
    assert report.executions >= EXECUTIONS


@pytest.mark.parametrize("name", TARGETS)
def test_an_input_that_a_target_begins_with_is_understood(name: str) -> None:
    """Else nothing behind the first check would ever be reached."""
    target = TARGETS[name]
    if name != "signature":  # of which none can be made up
        target.run(target.seeds[0])


def broken(data: bytes) -> object:
    """Fails at an input that takes three changes in a row to find."""
    if data.startswith(b"a"):
        if data[1:2] == b"b":
            if data[2:3] == b"c":
                raise KeyError("found")
            raise ValueError("further")
        raise TypeError("begun")
    return None


BROKEN = Target(broken, (ValueError, TypeError), (b"x",), (b"a", b"b", b"c"))


def test_what_is_new_is_followed_until_the_fault_is_found() -> None:
    report = fuzz("broken", BROKEN, 7, executions=100_000)
    (finding,) = report.findings
    assert finding.data.startswith(b"abc")
    assert "KeyError: 'found'" in finding.what
    assert len(report.corpus) == 3


def test_the_same_seed_makes_the_same_run() -> None:
    one, other = (fuzz("broken", BROKEN, 7, executions=100_000) for _ in range(2))
    assert (one.executions, one.findings, one.corpus) == (
        other.executions,
        other.findings,
        other.corpus,
    )
    assert fuzz("broken", BROKEN, 8, executions=100_000).executions != one.executions


def test_an_input_that_takes_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SLOW_S", 0.01)

    def slow(data: bytes) -> object:
        until = time.process_time() + (0.05 if data == b"slow" else 0)
        while time.process_time() < until:
            pass
        return None

    report = fuzz("slow", Target(slow, (), (b"quick", b"slow")), 1, executions=2)
    assert [one.data for one in report.findings] == [b"slow"]
    assert "for 4 bytes" in report.findings[0].what


def test_an_input_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HANG_S", 0.05)

    def hang(_data: bytes) -> object:
        while True:
            pass

    (finding, *_) = fuzz("hang", Target(hang, (), (b"",)), 1, executions=1).findings
    assert "does not end" in finding.what


def test_an_input_that_takes_much_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter((10 << 20, 500 << 20))
    monkeypatch.setattr(engine, "_memory", lambda: next(held))
    target = Target(lambda data: None, (), (b"much",))
    (finding,) = fuzz("much", target, 1, executions=1).findings
    assert "490 MiB more" in finding.what


def test_mutations_stay_within_their_length() -> None:
    dice = random.Random(1)
    made = [mutate(dice, [b"ab" * 5000], [b"token"]) for _ in range(500)]
    assert max(map(len, made)) <= engine.MOST_BYTES
    assert len(set(made)) > 400
