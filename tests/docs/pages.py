"""Pages with commands in them, carried out as a reader would.

A block of `console` has commands after `$ ` and what they print below. A block of YAML that begins
with the comment `# NAME` is the file NAME. Comments steer it, which readers do not see:

* `<!-- not run: REASON -->` before a block;
* `<!-- lab: WHAT -->` for something that happens meanwhile;
* `<!-- lab: run COMMAND -->` for what somebody did before.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.program import call_mirror, environment

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$"
    r"|^<!-- lab: (?P<lab>[^\n]+?) -->$",
    re.MULTILINE | re.DOTALL,
)
REST = "…"
"""A line that stands for more that is printed there."""


@dataclass(frozen=True)
class Command:
    """One command of a page as it is written there, and the lines that the page shows below it."""

    written: str
    shown: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command in one line."""
        return re.sub(r"\s*\\\n\s*", " ", self.written)


@dataclass(frozen=True)
class Block:
    """A fenced block, or something that happens (`lab`). `start` is where its text begins."""

    kind: str
    body: str
    start: int
    not_run: str | None = None

    def commands(self) -> Iterator[Command]:
        """The commands of a block of `console`, in order."""
        for text in re.split(r"^\$ ", self.body, flags=re.MULTILINE)[1:]:
            lines = text.rstrip("\n").splitlines()
            end = next(n for n, line in enumerate(lines, 1) if not line.endswith("\\"))
            yield Command("\n".join(lines[:end]), tuple(lines[end:]))


def blocks(markdown: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block("lab", found["lab"], found.start())
        if found["lab"]
        else Block(found["kind"], found["body"], found.start("body"), found["reason"])
        for found in _FENCE.finditer(markdown)
    ]


class Reader:
    """Somebody who does what a page says, in a folder of their own.

    `names` are texts of the page and what they are on this machine: addresses and folders. `events`
    carry out what `lab` comments name.
    """

    def __init__(
        self,
        folder: Path,
        names: Mapping[str, str],
        events: Mapping[str, Callable[[], object]],
        env: Mapping[str, str],
    ) -> None:
        self._folder, self._names, self._events = folder, names, events
        self._env = {**env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._code = 0

    def read(self, markdown: str) -> str:
        """Carry a page out; return it with what its commands really printed."""
        done, at = "", 0
        for block in blocks(markdown):
            if block.kind == "lab" and block.body.startswith("run "):
                self.run(block.body.removeprefix("run "))
            elif block.kind == "lab":
                self._events[block.body]()
            elif block.kind in ("yaml", "ini") and block.body.startswith("# "):
                self._write(block.body)
            elif block.kind == "console" and block.not_run is None:
                done += markdown[at : block.start] + self._answered(block)
                at = block.start + len(block.body)
        return done + markdown[at:]

    def _write(self, body: str) -> None:
        first = body.partition("\n")[0].removeprefix("# ")
        path = self._folder / self._here(re.split(r"[:\s]", first)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._here(body), encoding="utf-8")

    def _answered(self, block: Block) -> str:
        commands = [*block.commands()]
        assert commands, f"no line of this block begins with `$ `:\n{block.body}"
        lines: list[str] = []
        for command, after in zip(commands, [*commands[1:], None], strict=True):
            may_fail = after is not None and after.line == "echo $?"
            printed = self.run(command.line, may_fail=may_fail)
            lines += [f"$ {command.written}", *shown(printed, command.shown)]
        return "\n".join(lines) + "\n"

    def run(self, line: str, *, may_fail: bool = False) -> list[str]:
        """Run one command; return the lines that it printed, in the page's names."""
        if line == "echo $?":
            return [str(self._code)]
        here = self._here(line)
        if re.match(r"mirror [^|<>;&`]*$", here) and "$(" not in here:
            words = shlex.split(_expanded(here, self._env))
            done = call_mirror(*words[1:], env=self._env)
            code, out, err = done.code, done.stdout, done.stderr
        else:
            shell = ["bash", "-euo", "pipefail", "-c", here]
            ran = subprocess.run(
                shell, capture_output=True, text=True, timeout=60, env=environment(self._env)
            )
            code, out, err = ran.returncode, ran.stdout, ran.stderr
        assert may_fail or code == 0, f"$ {line}\nexit code {code}\n{out}{err}"
        self._code = code
        told = re.search(r"^(?:error|warning): .*", err, re.MULTILINE | re.DOTALL) if code else None
        return self._there(out + (told[0] if told else "")).splitlines()

    def _here(self, text: str) -> str:
        for name in sorted(self._names, key=len, reverse=True):
            text = text.replace(name, self._names[name])
        return text

    def _there(self, text: str) -> str:
        for name in sorted(self._names, key=lambda one: len(self._names[one]), reverse=True):
            text = text.replace(self._names[name], name)
        return text


def _expanded(line: str, env: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: env[found[1]], line)


def shown(printed: list[str], page: tuple[str, ...]) -> list[str]:
    """What a page is to show of what was printed: nothing, all, or as much as around its `…`."""
    if not page:
        return []
    if REST not in page:
        return printed
    head, tail = page.index(REST), len(page) - page.index(REST) - 1
    return [*printed[:head], REST, *printed[len(printed) - tail :]]


def alike(text: str) -> str:
    """A page's text without what differs from run to run: numbers, digests, widths of columns."""
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "0", text)
    text = re.sub(r"\d+(?:[.,]\d+)*", "0", text)
    return re.sub(r"[ ─]+", " ", text)
