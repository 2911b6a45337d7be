"""A plain mutator, deterministic by its seed, and the loop that counts and judges executions.

What is new is kept: an input that ends at a line where none has ended before joins the corpus, so
that the next inputs are made of it. Coverage of every line would cost ten times as much.
"""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

MOST_BYTES = 8192
MOST_KEPT = 400
BATCH = 32
SLOW_S = 0.5
"""Processor seconds for one input, which has at most `MOST_BYTES`."""
HANG_S = 30
MEMORY = 200 << 20
"""Bytes that a target may come to need beyond what it began with."""
_NUMBERS = tuple(
    str(number).encode()
    for number in (0, 1, -1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**18, 10**30)
)
_ODD = (b"\x00", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xae", b"\r\n", b"\x1b[")


@dataclass(frozen=True)
class Target:
    """One parser. `run` may raise `allowed` errors and nothing else.

    What `run` returns tells inputs apart, if it is hashable. `seeds` are inputs to begin with, and
    `tokens` are put into inputs as they are.
    """

    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Finding:
    """An input on which a parser did what none may do."""

    target: str
    data: bytes
    what: str


@dataclass
class Report:
    """How a run went. `corpus` are inputs that each did something new, seeds included."""

    executions: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    corpus: list[bytes] = field(default_factory=list)


class Hang(BaseException):
    """Ends a target that does not end by itself."""


def mutate(dice: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """An input made of one of the corpus by one to four changes."""
    chance = dice.random
    data = bytearray(corpus[int(chance() * len(corpus))])
    while True:
        size = len(data)
        at = int(chance() * (size + 1))
        match int(chance() * 10):
            case 0 | 1 if at < size:
                data[at] ^= 1 << int(chance() * 8)
            case 2 if at < size:
                data[at] = int(chance() * 256)
            case 3:
                del data[at : at + 1 + int(chance() * 8)]
            case 4:
                data[at:at] = data[at : at + 1 + int(chance() * 32)]
            case 5:
                other = corpus[int(chance() * len(corpus))]
                start = int(chance() * (len(other) + 1))
                data[at:] = other[start:]
            case 6:
                data[at : at + int(chance() * 4)] = _NUMBERS[int(chance() * len(_NUMBERS))]
            case 7:
                data[at:at] = _ODD[int(chance() * len(_ODD))]
            case 8 if chance() < 0.2:
                del data[at:]
            case _ if tokens:
                data[at : at + int(chance() * 4)] = tokens[int(chance() * len(tokens))]
        if chance() < 0.4:
            return bytes(data[:MOST_BYTES])


def judge(name: str, target: Target, data: bytes) -> tuple[Hashable, Finding | None]:
    """Run a target once: where it ended, and what was wrong with that."""
    try:
        found = target.run(data)
    except target.allowed as error:
        last = error.__traceback__
        assert last is not None
        while last.tb_next is not None:
            last = last.tb_next
        return (type(error), last.tb_frame.f_code, last.tb_lineno), None
    except Hang:
        return "hang", Finding(name, data, f"it does not end within {HANG_S} s")
    except Exception:  # noqa: BLE001 - which is what is looked for
        return "error", Finding(name, data, traceback.format_exc())
    return (found if isinstance(found, Hashable) else type(found)), None


def fuzz(
    name: str,
    target: Target,
    seed: int,
    *,
    executions: int | None = None,
    until: float | None = None,
    corpus: Sequence[bytes] = (),
) -> Report:
    """Run a target on its corpus and then on mutations of it: so many, or until so late
    (`time.monotonic`). It ends with its first finding.
    """
    dice, report = random.Random(f"{name} {seed}"), Report()
    begun, memory = time.monotonic(), _memory()
    seen: set[Hashable] = set()
    inputs = _inputs(dice, [*target.seeds, *corpus], report, target.tokens)
    with _watched() as rearm:
        while not report.findings and (executions is None or report.executions < executions):
            now = time.monotonic()
            if until is not None and now >= until and report.executions:
                break
            rearm()
            batch: list[bytes] = []
            spent = time.process_time()
            for data in inputs:
                batch.append(data)
                where, finding = judge(name, target, data)
                if finding is not None:
                    report.findings.append(finding)
                    break
                if where not in seen:
                    seen.add(where)
                    if len(report.corpus) < MOST_KEPT:
                        report.corpus.append(data)
                if len(batch) == BATCH:
                    break
            report.executions += len(batch)
            if time.process_time() - spent > SLOW_S:
                report.findings += _slow(name, target, batch)
            if (grown := _memory() - memory) > MEMORY:
                what = f"after this input it holds {grown >> 20} MiB more than at first"
                report.findings.append(Finding(name, batch[-1], what))
    report.seconds = time.monotonic() - begun
    return report


def _inputs(
    dice: random.Random, first: list[bytes], report: Report, tokens: Sequence[bytes]
) -> Generator[bytes, None, None]:
    yield from first
    while True:
        yield mutate(dice, report.corpus or first, tokens)


def _slow(name: str, target: Target, batch: list[bytes]) -> Iterator[Finding]:
    for data in batch:
        spent = time.process_time()
        judge(name, target, data)
        spent = time.process_time() - spent
        if spent > SLOW_S:
            yield Finding(name, data, f"it takes {spent:.1f} s for {len(data)} bytes")


def _memory() -> int:
    """The most that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _watched() -> Iterator[Callable[[], None]]:
    """An alarm for what does not end; calling the value sets it anew."""

    def alarm(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, HANG_S) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
