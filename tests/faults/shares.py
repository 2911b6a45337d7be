"""Shares of the matrix, in as many processes as there are processors."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults import kills
from tests.faults.matrix import Case, Matrix, Outcome
from tests.faults.scenes import SCENES, Workshop
from tests.faults.shelves import Embedded, Kind, Real

KINDS = ("embedded", "docker-registry")


def kind_of(name: str, work: Path, stack: ExitStack) -> Kind:
    """The registries of that kind."""
    return Embedded() if name == "embedded" else Real(work, stack)


@dataclass(frozen=True)
class Share:
    """Of the cases of one kind of registry each `step`-th, and of these one of `of` equal parts.

    `only` is in the names of faults that are wanted. With `kills` the cases are so many kills of
    each command instead.
    """

    kind: str
    scenes: tuple[str, ...]
    number: int = 0
    of: int = 1
    step: int = 1
    only: str = ""
    kills: int = 0

    def outcomes(self) -> Iterator[Outcome]:
        """Run them."""
        scenes = [scene for scene in SCENES if scene.name.startswith(self.scenes)]
        with ExitStack() as stack:
            work = Path(stack.enter_context(TemporaryDirectory(prefix="mirror-faults-")))
            matrix = Matrix(Workshop(kind_of(self.kind, work, stack), work), scenes)
            if self.kills:
                for case in self._mine(kills.kills(matrix, self.kills)):
                    yield kills.renamed(kills.run(matrix, case))
            else:
                wanted = (case for case in matrix.cases() if self.only in case.fault)
                for case in self._mine(wanted):
                    yield matrix.run(case)

    def _mine(self, cases: Iterable[Case]) -> Iterator[Case]:
        for index, case in enumerate(cases):
            if index % self.step == 0 and index // self.step % self.of == self.number:
                yield case


def _worker(queue: Queue[Outcome | None], share: Share) -> None:
    try:
        with redirect_stdout(io.StringIO()):  # the logs of registries, which tests print
            for outcome in share.outcomes():
                queue.put(outcome)
    finally:
        queue.put(None)


def at_once(whole: Share, jobs: int) -> Iterator[Outcome]:
    """All outcomes of a share, from as many processes; RuntimeError if one of them broke off."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[Outcome | None] = context.Queue()
    workers = [
        context.Process(target=_worker, args=(queue, replace(whole, number=number, of=jobs)))
        for number in range(jobs)
    ]
    for worker in workers:
        worker.start()
    left = jobs
    while left:
        outcome = queue.get()
        if outcome is None:
            left -= 1
        else:
            yield outcome
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError("a process of the matrix broke off; its error is above")
