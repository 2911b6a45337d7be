"""What was chosen of plugins, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from semver import Version

from mirror.layout import in_order


@dataclass(frozen=True, slots=True)
class Edge:
    """Why a plugin is in the bundle: for a module, a plugin that needs it (`name@tag`), a flag."""

    kind: Literal["module", "dependency", "explicit"]
    subject: str
    constraint: str = ""

    def __str__(self) -> str:
        if self.kind == "explicit":
            return f"asked for by {self.subject}"
        need = f"{self.kind} {self.subject}" if self.kind == "module" else self.subject
        return f"for {need}" + (f" ({self.constraint})" if self.constraint else "")


@dataclass(frozen=True, slots=True)
class PluginChoice:
    """One version of a plugin for the bundle, and all reasons for it."""

    name: str
    version: Version
    tag: str
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A plugin that a module of the bundle calls for, but which is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PluginSelection:
    """The plugins for a bundle, by name and then from the oldest version to the newest."""

    choices: tuple[PluginChoice, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of a plugin that may be chosen."""

    name: str
    version: Version
    tag: str

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


@dataclass(slots=True)
class Journal:
    """What was chosen and warned of so far; the end of it can be taken back."""

    choices: list[tuple[Candidate, Edge]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def mark(self) -> tuple[int, int]:
        """Where it ends now, for `back_to`."""
        return len(self.choices), len(self.warnings)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forget what came after `mark`."""
        del self.choices[mark[0] :]
        del self.warnings[mark[1] :]

    def chosen(self, name: str) -> list[Candidate]:
        """The chosen versions of a plugin, newest first."""
        found = {one.version: one for one, _ in self.choices if one.name == name}
        return [found[version] for version in reversed(in_order(found))]
