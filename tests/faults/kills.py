"""Commands that are killed at one of their requests, or a moment later, and run again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

from mirror.testing import Delay, Fault, FaultyServer
from tests.faults.matrix import Case, Matrix, Outcome, attempt
from tests.faults.scenes import Scene, Stage

HELD_S = 20.0
"""How long a request is held: longer than it takes to see it and to kill who sent it."""
LATER_S = 0.03
KILLED = "killed at a request", "killed later"


def kills(matrix: Matrix, count: int, seed: int = 1) -> Iterator[Case]:
    """So many moments of each command: half of them while a request is unanswered, half later."""
    for scene in matrix.scenes:
        asked = len(matrix.measured(scene).requests)
        for number in range(count):
            nth = 1 + (number // 2 + seed) % asked
            yield Case(scene.name, KILLED[number % 2], nth, matrix.kind)


def run(matrix: Matrix, case: Case) -> Outcome:
    """Kill a command in a process of its own, and run it again in this one."""
    scene = matrix.scene(case)
    measured = matrix.measured(scene)
    with matrix.staged(scene) as stage:
        server = stage.shelves[scene.faulty].server
        later = case.fault == KILLED[1]
        server.faults.add(Fault(Delay(0 if later else HELD_S), nth=case.nth))
        pause = random.Random(str(case)).uniform(0, LATER_S) if later else 0.0
        begun = time.monotonic()
        killed = _killed(scene, stage, server, pause)
        server.faults.clear()
        code, error, wrong = attempt(scene, stage)
        if code:
            wrong.append(f"the next run ends with {code}: {error}")
        else:
            wrong += matrix.lacking(scene, stage, measured, len(stage.shelves))
        seconds = round(time.monotonic() - begun, 3)
        shutil.rmtree(stage.folder, ignore_errors=True)
    dangling = [line for shelf in stage.shelves for line in shelf.dangling]
    return Outcome(case, 0, killed, seconds, error, [*wrong, *dangling])


def _killed(scene: Scene, stage: Stage, server: FaultyServer, pause: float) -> bool:
    """Run the command until its request was struck, and a little longer; whether that killed it."""
    with warnings.catch_warnings():
        # The child calls nothing that the server's thread holds.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            code = scene.work(stage)
        finally:
            os._exit(code)
    deadline = time.monotonic() + HELD_S
    while not server.faults.struck and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def renamed(outcome: Outcome) -> Outcome:
    """The outcome as a row of its own in the table of all."""
    case = outcome.case
    return replace(outcome, case=replace(case, kind=f"{case.kind}, killed"))
