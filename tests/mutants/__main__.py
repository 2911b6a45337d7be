"""`./run mutants`: break each line of the list in a copy, and run the tests that must notice."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from tests.mutants.mutant import ROOT, Mutant, mutants

_TIMEOUT_S = 600.0
_NO_TESTS = 5
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not soak")
_FOLDERS = ("mirror", "tests", "examples", "bench", "docs")


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `killed`, `survived` or `not run`."""

    mutant: Mutant
    word: str
    seconds: float
    output: str = ""


def copied(folder: Path) -> Path:
    """A copy of the project, to be broken."""
    ignored = shutil.ignore_patterns("__pycache__", ".git", ".venv")
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def run(mutant: Mutant | None, tests: tuple[str, ...], copy: Path) -> Verdict:
    """Run tests in a copy in which a line is broken; the copy is whole again afterwards."""
    begun = time.monotonic()
    if mutant is not None:
        path = copy / mutant.file
        text = path.read_text("utf-8")
        _put(path, mutant.applied(text))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *_OPTIONS, *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, output = 1, "the tests do not end"
    finally:
        if mutant is not None:
            _put(path, text)
    word = {0: "survived", _NO_TESTS: "not run", 4: "not run"}.get(code, "killed")
    nothing = Mutant("", "", "", tests)
    return Verdict(mutant or nothing, word, time.monotonic() - begun, output)


def _put(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    # Its compiled form goes by the second and the size, which may be the same.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run mutants", description=__doc__)
    parser.add_argument("--file", default="", help="only files that have this in their path")
    parser.add_argument("--skip-whole", action="store_true", help="trust that the tests pass")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    chosen = parser.parse_args()
    wanted = [one for one in mutants() if chosen.file in one.file]
    with tempfile.TemporaryDirectory(prefix="mirror-mutants-") as folder:
        copies: Queue[Path] = Queue()
        for number in range(chosen.jobs):
            copies.put(copied(Path(folder) / str(number)))

        def work(mutant: Mutant | None, tests: tuple[str, ...]) -> Verdict:
            copy = copies.get()
            try:
                return run(mutant, tests, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(chosen.jobs) as pool:
            # First unbroken: tests that fail anyway notice nothing.
            sets = [] if chosen.skip_whole else sorted({one.tests for one in wanted})
            whole = list(pool.map(lambda tests: work(None, tests), sets))
            for one in whole:
                if one.word != "survived":
                    sys.exit(f"these fail as it is: {' '.join(one.mutant.tests)}\n{one.output}")
            found = []
            for one in pool.map(lambda mutant: work(mutant, mutant.tests), wanted):
                found.append(one)
                print(f"{one.word}: {one.mutant} ({one.seconds:.0f} s)", flush=True)
    killed = sum(one.word == "killed" for one in found)
    print(f"\n{killed} of {len(found)} mutants killed")
    sys.exit(killed != len(found))


if __name__ == "__main__":
    main()
