"""Finding versions where tags cannot be listed: a proxy registry answers for one tag at a time."""

from __future__ import annotations

from collections.abc import Callable

from semver import Version

from mirror.errors import InputError
from mirror.release.constraints import Constraint

MAX_PROBES = 5000
"""So many requests one walk makes at most; a source with all releases of ten years needs fewer."""


def walk(
    constraint: Constraint, exists: Callable[[Version], bool], *, max_probes: int = MAX_PROBES
) -> list[Version]:
    """The releases that `constraint` accepts and the source has, as far as a walk finds them.

    It starts at the smallest version that the constraint names and asks `exists` for one patch
    after the other; where they end, for the next minor version, and where these end, for the next
    major one. A gap ends a series: without 1.64.1 it does not find 1.64.2. Nothing that the
    constraint refuses is asked for, and no pre-releases are; where it refuses just the start
    (`>1.64.0`), the patch after that is the start.

    Raises:
        InputError: the walk has no end within `max_probes` requests.
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
        if there_is(here):
            here = here.bump_patch()
            continue
        here = here.bump_major()
        if not there_is(here):
            return found
        here = here.bump_patch()
