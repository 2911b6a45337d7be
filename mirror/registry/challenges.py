"""Reading `WWW-Authenticate`: which proof of identity a server asks for (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (a grammar rule of that name, no secret)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t]|,|$)")
_TOKEN68 = re.compile(r"[ \t]+([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_GAP = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in: `scheme` in lower case, and its parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """The parameter `name`, or the empty text."""
        return self.parameters.get(name, "")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read all challenges, in order, of all `WWW-Authenticate` headers of one answer.

    One header may hold several, separated by the same commas as their parameters. Quoted values
    may contain commas and escapes. Registries also send unquoted values with `/` and `:`, which
    are understood. What cannot be understood ends the reading of its header and is left out: it
    is for the caller to say that no usable challenge came.
    """
    return [challenge for header in headers for challenge in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    at = _skip(header, 0)
    while at < len(header):
        # A parameter first: `name=` never starts a scheme, while a scheme may look like a name.
        match = _PARAMETER.match(header, at) if found else None
        if match:
            name, quoted, bare = match.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            parameters.setdefault(name.lower(), value)
            at = _skip(header, match.end())
            continue
        match = _SCHEME.match(header, at)
        if not match:
            break
        parameters = {}
        found.append(Challenge(match.group(1).lower(), parameters))
        at = match.end()
        # `Negotiate dGVzdA==`: one opaque value in place of parameters; of no use to us.
        opaque = _TOKEN68.match(header, at)
        if opaque:
            at = opaque.end()
        at = _skip(header, at)
    return found


def _skip(header: str, at: int) -> int:
    match = _GAP.match(header, at)
    return match.end() if match else at
