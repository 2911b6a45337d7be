"""The cases, how one runs, and how it is judged."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from mirror.errors import DeadlineError, MirrorError
from mirror.testing import Delay, Drip, Fault, FaultyServer, Stall, every_fault
from tests.faults.scenes import (
    DEADLINE_S,
    PATIENT_S,
    SCENES,
    STALL_S,
    Goal,
    Scene,
    Stage,
    Workshop,
    files,
    goals,
    lacking,
)

WAIT_S = 3 * STALL_S
"""How long silent servers are silent: longer than anybody waits for them."""
SLOW = (Delay, Stall, Drip)
FEW = 5
"""Of a fault that takes its time, so many requests are struck and not all."""
ABSENCES = {"404 once", "listing unknown"}
"""Faults that say of something that it does not exist: a lie that nobody can see through."""
DAMAGE = {"flipped byte in every blob"}
"""What a registry states cannot be read: a push says so, and states anew what it brings."""
HANG_S = DEADLINE_S + 5
UNREACHABLE, DENIED, CORRUPT, FAILED = 5, 6, 4, 1
CODES: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(("reset", "cut", "lost", "stall", "slow", "drip"), frozenset({UNREACHABLE})),
    **dict.fromkeys(("silence", "429", "500", "502", "503", "504"), frozenset({UNREACHABLE})),
    **dict.fromkeys(("401", "403", "listing refused"), frozenset({DENIED})),
    **dict.fromkeys(("409", "413", "416", "507"), frozenset({FAILED})),
    "flipped byte": frozenset({CORRUPT}),
    "404": frozenset({FAILED, CORRUPT, UNREACHABLE}),
}
"""Beginning of a fault's name → the exit codes that tell what it is; others may have any but 2.

FAILED besides, where a command sums several failures up, or refuses to go on for one (a prune).
"""


@dataclass(frozen=True)
class Case:
    """One command, one fault, and the number of the matching request that it strikes."""

    scene: str
    fault: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.scene}: {self.fault} at request {self.nth}"


VERDICTS = ("survived", "failed cleanly", "misled", "wrong")
"""Misled: it took something for gone or damaged, did the rest, and lost nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a case went. `code` is what the command ended with; `wrong` is empty if all is well."""

    case: Case
    code: int
    struck: bool
    seconds: float
    error: str = ""
    wrong: list[str] = field(default_factory=list)
    believed: bool = False

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.wrong:
            return "wrong"
        if self.believed:
            return "misled"
        return "failed cleanly" if self.code else "survived"

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Measured:
    """What a command does when nothing fails."""

    requests: tuple[tuple[str, str], ...]  # method, path?query
    before: tuple[Goal, ...]
    goals: tuple[Goal, ...]
    files: dict[str, str]


class Matrix:
    """All cases at one kind of registry."""

    def __init__(self, workshop: Workshop, scenes: Sequence[Scene] = SCENES) -> None:
        self._workshop = workshop
        self._scenes = {scene.name: scene for scene in scenes}
        self._measured: dict[str, Measured] = {}

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The commands."""
        return tuple(self._scenes.values())

    @property
    def kind(self) -> str:
        """Which registries these are."""
        return self._workshop.kind.name

    def scene(self, case: Case) -> Scene:
        """The command of a case."""
        return self._scenes[case.scene]

    def staged(self, scene: Scene) -> AbstractContextManager[Stage]:
        """Fresh registries in the states with which a command begins."""
        return self._workshop.staged(scene.states)

    @cached_property
    def _faults(self) -> dict[str, Fault]:
        return every_fault(wait_s=WAIT_S)

    def measured(self, scene: Scene) -> Measured:
        """Run a command without faults, once."""
        if scene.name not in self._measured:
            with self._workshop.staged(scene.states) as stage:
                before = tuple(goals(stage))
                log = stage.shelves[scene.faulty].server.requests
                log.clear()
                stage.stall_s = PATIENT_S
                code = scene.work(stage)
                assert code == 0, scene
                asked = tuple((one.method, f"{one.path}?{one.query}") for one in log)
                found = files(stage.folder / "bundle")
                self._measured[scene.name] = Measured(asked, before, tuple(goals(stage)), found)
                shutil.rmtree(stage.folder, ignore_errors=True)
        return self._measured[scene.name]

    def cases(self) -> Iterator[Case]:
        """Every case, by command, fault and number."""
        for scene in self._scenes.values():
            for name, fault in self._faults.items():
                count = self._matching(scene, fault)
                few = isinstance(fault.action, SLOW) and fault.action != Delay(0.02)
                for nth in spread(count, FEW if few else count):
                    yield Case(scene.name, name, nth, self._workshop.kind.name)

    def _matching(self, scene: Scene, fault: Fault) -> int:
        log = self.measured(scene).requests
        return sum(fault.concerns(method, target) for method, target in log)

    def run(self, case: Case) -> Outcome:
        """One case, from fresh registries to its judgement."""
        scene = self._scenes[case.scene]
        measured = self.measured(scene)
        with self._workshop.staged(scene.states) as stage:
            server = stage.shelves[scene.faulty].server
            server.faults.add(replace(self._faults[case.fault], nth=case.nth))
            outcome = self._judged(case, scene, stage, measured, server)
            shutil.rmtree(stage.folder, ignore_errors=True)
        dangling = [line for shelf in stage.shelves for line in shelf.dangling]
        return replace(outcome, wrong=[*outcome.wrong, *dangling])

    def _judged(
        self, case: Case, scene: Scene, stage: Stage, measured: Measured, server: FaultyServer
    ) -> Outcome:
        begun = time.monotonic()
        code, error, wrong = attempt(scene, stage)
        warnings = list(stage.warnings)
        seconds = time.monotonic() - begun
        if seconds > HANG_S:
            wrong.append(f"it took {seconds:.0f} s")
        struck = server.faults.victims
        server.faults.clear()
        needed = len(stage.shelves) if scene.needed is None else scene.needed
        missing: list[str] = []
        if code and not fits(case.fault, code):
            wrong.append(f"exit code {code} says something else: {error}")
        if code == 0 and not wrong:
            missing = self.lacking(scene, stage, measured, needed)
        if code or needed < len(stage.shelves):
            stage.stall_s = PATIENT_S
            again, reason, bad = attempt(scene, stage)
            wrong += [f"the next run: {one}" for one in bad]
            if again:
                wrong.append(f"the next run ends with {again}: {reason}")
            else:
                found = self.lacking(scene, stage, measured, len(stage.shelves))
                missing += [f"after the next run: {one}" for one in found]
        told = case.fault in ABSENCES or (case.fault in DAMAGE and bool(warnings))
        believed = bool(missing) and told
        if believed and measured.files:
            # Who has no API of referrers answers 404, too.
            silent = not warnings and not any("/referrers/" in one for one in struck)
            missing = ["it left something out and did not say so"] if silent else []
        elif believed:
            missing = self._lost(stage, measured)
        seconds = round(seconds, 3)
        return Outcome(case, code, bool(struck), seconds, error, wrong + missing, believed)

    def _lost(self, stage: Stage, measured: Measured) -> list[str]:
        """What a command that was misled has made worse."""
        lost = []
        for before, goal, found in zip(measured.before, measured.goals, goals(stage), strict=True):
            for path, content in before.held.repositories.items():
                wanted, there = goal.held.repository(path), found.held.repository(path)
                kept = content.manifests.keys() & wanted.manifests.keys() - there.manifests.keys()
                tags = content.tags.keys() & wanted.tags.keys() - there.tags.keys()
                lost += [f"{path}@{digest} is lost" for digest in kept]
                lost += [f"{path}:{tag} is lost" for tag in tags]
        return lost

    def lacking(self, scene: Scene, stage: Stage, measured: Measured, needed: int) -> list[str]:
        """How far fewer than `needed` registries, or the bundle, are from what they must hold."""
        if measured.files:
            found = files(stage.folder / "bundle")
            differ = sorted(
                name
                for name in {*found, *measured.files}
                if found.get(name) != measured.files.get(name)
            )
            return [f"the bundle is not what it should be: {', '.join(differ)}"] if differ else []
        each = [
            lacking(scene, goal, there)
            for goal, there in zip(measured.goals, goals(stage), strict=True)
        ]
        complete = sum(not one for one in each)
        if complete >= needed:
            return []
        return [f"registry {n}: {line}" for n, one in enumerate(each) for line in one]


def attempt(scene: Scene, stage: Stage) -> tuple[int, str, list[str]]:
    """Run the command: its exit code, the text of its error, and what no run may do."""
    try:
        return scene.work(stage), "", []
    except DeadlineError as error:
        return error.exit_code, str(error), ["it did not end by itself"]
    except MirrorError as error:
        return error.exit_code, str(error), []
    except Exception:  # noqa: BLE001 - which is what these cases look for
        return 1, "", [traceback.format_exc()]


def fits(fault: str, code: int) -> bool:
    """Whether an exit code tells the kind of a fault."""
    for name, codes in CODES.items():
        if fault.startswith(name):
            return code in codes or code == FAILED
    return code in (FAILED, CORRUPT, UNREACHABLE, DENIED)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers 1 to `count`, evenly."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(n * (count - 1) / (most - 1)) for n in range(most)})
