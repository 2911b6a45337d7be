"""Token scopes: what a bearer token is to allow (distribution, "Token Scope Documentation")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Scopes: TypeAlias = tuple[str, ...]
"""In canonical form, as `merge` makes them: one entry a resource, sorted. Usable as a key."""

CATALOGUE: Scopes = ("registry:catalog:*",)


def pull(repository: str) -> Scopes:
    """To read from `repository`."""
    return (f"repository:{repository}:pull",)


def push(repository: str) -> Scopes:
    """To write to `repository`; registries want the right to read along with it."""
    return (f"repository:{repository}:pull,push",)


def delete(repository: str) -> Scopes:
    """To delete from `repository`."""
    return (f"repository:{repository}:delete",)


def merge(*groups: Iterable[str]) -> Scopes:
    """All of `groups` in canonical form: the actions on one resource together, in order."""
    actions: dict[str, set[str]] = {}
    for group in groups:
        for scope in group:
            resource, _, wanted = scope.rpartition(":")
            if resource:
                actions.setdefault(resource, set()).update(a for a in wanted.split(",") if a)
    return tuple(
        f"{resource}:{','.join(sorted(actions[resource]))}" for resource in sorted(actions)
    )
