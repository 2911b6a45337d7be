"""Version constraints (`>=1.64 <1.70 || ~1.72.1`), as Masterminds' semver library v3.4 reads them.

Deckhouse's own tools use that library for flags and plugin contracts. A constraint accepts here
exactly what it accepts there, oddities included:

* Terms joined by spaces or commas must all hold, alternatives are joined by `||`.
* Parts that are missing or wildcards (`1.64`, `1.x`) widen what a term compares: `<=1.64` takes
  every 1.64 patch, `>1.64` starts at 1.65, `=1.64` is `~1.64`.
* A range `a - b` stands for `>= a, <= b`.
* An alternative accepts pre-releases only if it names one somewhere; then all of its terms compare
  pre-releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from semver import Version

from mirror.errors import InputError
from mirror.layout import MAX_VERSION_LENGTH

MAX_LENGTH: Final = 1000
"""Longer text is refused unread; real constraints are far shorter."""

_LARGEST_NUMBER = 2**64 - 1
_NUMBER_WITH_ZEROS_AHEAD = re.compile(r"0[0-9]+")
_WILDCARDS = frozenset({"x", "X", "*"})
_INCLUSIVE = frozenset({">=", "=>", "<=", "=<"})

_BLANK = r"[ \t\n\r\f]"
_PART = r"([0-9|xX*]+)"  # the library's own class: what follows a wildcard is not looked at
_IDENTIFIERS = r"([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)"
_VERSION = rf"v?{_PART}(?:\.{_PART})?(?:\.{_PART})?(?:-{_IDENTIFIERS})?(?:\+{_IDENTIFIERS})?"
"""A version as people type it: parts may be missing or be wildcards. Groups: its five parts."""

_LITERAL = re.compile(_VERSION)
_BLANKS = re.compile(rf"{_BLANK}*")
_OPERATOR = re.compile(r"=>|=<|>=|<=|!=|~>|[=<>~^]|")
_RANGE = re.compile(rf"{_BLANK}*({_VERSION}){_BLANK}+-{_BLANK}+({_VERSION}){_BLANK}*")


def read_version(text: str) -> Version | None:
    """Read a version that a person typed: as `parse_version`, and missing parts count as 0.

    `1.69` and `v1` are versions here, wildcards (`1.x`) are not; None for all other text.
    """
    match = _LITERAL.fullmatch(text)
    return None if match is None else _literal_version(match, 3)


def _literal_version(literal: re.Match[str], parts: int) -> Version | None:
    """The version of a match of `_LITERAL`, of whose numbers the first `parts` count; else 0.

    None if one of these is not a number or beyond 64 bits, or a pre-release's number starts with 0.
    """
    written = [number or "0" for number in literal.groups()[:parts]] + ["0"] * (3 - parts)
    if len(literal.group()) > MAX_VERSION_LENGTH or not all(map(str.isdecimal, written)):
        return None
    numbers = [int(number) for number in written]
    pre_release = literal.group(4)
    if max(numbers) > _LARGEST_NUMBER:
        return None
    if pre_release and any(map(_NUMBER_WITH_ZEROS_AHEAD.fullmatch, pre_release.split("."))):
        return None
    major, minor, patch = numbers
    return Version(major, minor, patch, pre_release, literal.group(5))


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison: an operator and a version, of whose numbers `parts` were given."""

    operator: str
    version: Version
    parts: int

    def accepts(self, version: Version) -> bool:
        """Whether `version` satisfies this term alone; pre-releases are compared too."""
        bound, parts = self.version, self.parts
        match self.operator:
            case "=" if parts == 3:
                return version == bound
            case "=" | "~" | "~>":
                # ~0.0.0 and ~* take all.
                every = bound.to_tuple()[:3] == (0, 0, 0) and parts in (0, 3)
                return version >= bound and (every or self._alike(version, min(parts or 2, 2)))
            case "^":
                same = 1 if bound.major or parts == 1 else 2 if bound.minor or parts == 2 else 3
                return version >= bound and self._alike(version, same)
            case "!=" if parts in (1, 2):
                # Of the same minor version only pre-releases can differ still.
                early = parts == 2 and version.prerelease != bound.prerelease
                return early or not self._alike(version, parts)
            case "!=":
                return version != bound
            case ">" if parts in (1, 2):
                return version > bound and not self._alike(version, parts)
            case ">":
                return version > bound
            case "<":
                return version < bound
            case "<=" | "=<":
                return version <= bound or (parts < 3 and self._alike(version, min(parts or 2, 2)))
        return version >= bound

    def _alike(self, version: Version, parts: int) -> bool:
        """Whether the first `parts` numbers of `version` are those of this term."""
        return version.to_tuple()[:parts] == self.version.to_tuple()[:parts]


@dataclass(frozen=True, slots=True)
class Constraint:
    """Which versions are accepted. `text` is how it was written."""

    text: str
    alternatives: tuple[tuple[Term, ...], ...]
    anchors: tuple[Version, ...]
    """The versions of inclusive bounds (`>=`, `<=`), which are selected where they exist."""

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read a constraint.

        Raises:
            InputError: the text is not a constraint; the message says where reading stopped.
        """
        if len(text) > MAX_LENGTH:
            raise InputError(
                f"a version constraint of {len(text)} characters ({text[:40]!r}...) is too long; "
                f"{MAX_LENGTH} are read at most"
            )
        alternatives: list[tuple[Term, ...]] = []
        start = 0
        rewritten = _without_ranges(text)
        for part in rewritten.split("||"):
            alternatives.append(_Reader(text, rewritten, start, start + len(part)).terms())
            start += len(part) + 2
        anchors = dict.fromkeys(
            term.version for terms in alternatives for term in terms if term.operator in _INCLUSIVE
        )
        return cls(text.strip(), tuple(alternatives), tuple(anchors))

    @classmethod
    def same_major(cls, version: Version) -> Constraint:
        """From `version` up to the next major version, which is not included; without anchors.

        Unlike `^` it makes no exception for 0.x. Pre-releases of the next major version stay out
        even if `version` is a pre-release.
        """
        early = "0" if version.prerelease else None
        end = Version(version.major + 1, prerelease=early)
        terms = (Term(">=", version, 3), Term("<", end, 3))
        return cls(f">={version} <{end}", (terms,), ())

    def accepts(self, version: Version) -> bool:
        """Whether one of the alternatives takes `version`."""
        return any(
            (not version.prerelease or any(term.version.prerelease for term in terms))
            and all(term.accepts(version) for term in terms)
            for terms in self.alternatives
        )

    @property
    def lower_bound(self) -> Version | None:
        """The smallest version that the text names, whatever its operator; None for `*`."""
        written = [term.version for terms in self.alternatives for term in terms if term.parts]
        return min(written, default=None)

    def __str__(self) -> str:
        return self.text


def _without_ranges(text: str) -> str:
    """Replace each range `a - b` by two terms, in the text, as the library does it.

    It looks for ranges before it looks for anything else, so a range may swallow the blank that
    separates it from the term before it, or a `||`: both have their effect on what is read then.
    """
    rewritten = text
    for found in _RANGE.finditer(text):
        rewritten = rewritten.replace(found[0], f">= {found[1]}, <= {found[7]} ", 1)
    return rewritten


class _Reader:
    """Reads one alternative, `text[position:end]`, from left to right and never back.

    `written` is what the user wrote, for messages.
    """

    def __init__(self, written: str, text: str, position: int, end: int) -> None:
        self.written, self.text, self.position, self.end = written, text, position, end

    def terms(self) -> tuple[Term, ...]:
        self._skip(_BLANKS)
        found = [self._term()]
        while True:
            separated = self._skip(_BLANKS)
            if self.position == self.end:
                return tuple(found)
            if self.text[self.position] == ",":
                self.position += 1
                self._skip(_BLANKS)
            elif not separated:
                raise self._stopped("terms are joined by spaces or commas")
            found.append(self._term())

    def _term(self) -> Term:
        operator = self._skip(_OPERATOR)
        if operator:
            self._skip(_BLANKS)
        version, parts = self._version()
        return Term(operator or "=", version, parts)

    def _version(self) -> tuple[Version, int]:
        literal = _LITERAL.match(self.text, self.position, self.end)
        if literal is None:
            raise self._stopped("a version such as 1.64.2 is expected")
        numbers = literal.groups()[:3]
        parts = next((n for n, part in enumerate(numbers) if not part or part in _WILDCARDS), 3)
        version = _literal_version(literal, parts)
        if version is None:
            raise self._stopped("a part of that version is not a number, or too large")
        self.position = literal.end()
        # Builds do not count in comparisons.
        return version.replace(build=None), parts

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position, self.end)
        if match is None:
            return ""
        self.position = match.end()
        return match.group()

    def _stopped(self, why: str) -> InputError:
        before = self.text[: self.position].strip()
        rest = self.text[self.position : self.end].strip()
        at = f"at {rest[:40]!r}" if rest else f"after {before[-40:]!r}" if before else "it is empty"
        return InputError(
            f"{self.written[:120]!r} is not a version constraint: {at}, {why}; "
            "write for example '>=1.64 <1.70', '~1.69.2' or '^1.2 || >=3.0'"
        )


# -- where tags cannot be listed -------------------------------------------------------------------

MAX_PROBES = 5000
"""The most requests of one search; a source with all releases of ten years needs fewer."""


def find_by_probing(
    constraint: Constraint, exists: Callable[[Version], bool], *, max_probes: int = MAX_PROBES
) -> list[Version]:
    """Find releases that `constraint` accepts by asking `exists` for one version after the other.

    A proxy registry cannot list tags, but answers for each of them. The search starts at the
    smallest version that the constraint names. It tries patches until one is missing, then the next
    minor version, then the next major one. A gap ends a series: without 1.64.1 it does not find
    1.64.2. It never asks for a version that the constraint refuses, nor for pre-releases. If the
    constraint refuses just the start (`>1.64.0`), the search starts with the next patch.

    Raises:
        InputError: the search has not ended after `max_probes` requests.
        Whatever `exists` raises.
    """
    found: list[Version] = []
    probes = 0

    def there_is(version: Version) -> bool:
        nonlocal probes
        if not constraint.accepts(version):
            return False
        if probes == max_probes:
            raise InputError(
                f"{constraint} was not exhausted after {max_probes} requests (the last release "
                f"found is {found[-1] if found else 'none'}); bound it above, as in "
                f"'{constraint} <{version.major}.{version.minor + 1}'"
            )
        probes += 1
        if not exists(version):
            return False
        found.append(version)
        return True

    bound = constraint.lower_bound or Version(0)
    here = Version(bound.major, bound.minor, bound.patch)
    if not constraint.accepts(here):
        here = here.bump_patch()
    while True:
        while there_is(here):
            here = here.bump_patch()
        here = here.bump_minor()
        if not there_is(here):
            here = here.bump_major()
            if not there_is(here):
                return found
        here = here.bump_patch()
