"""The table of modes: the only place where a mode is looked at, and what its rows promise."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mirror
from mirror.modes import TABLE, Mode, ModeKind, Plane, RegistryUser, Role

PACKAGE = Path(mirror.__file__).parent


def looks_at_a_mode(tree: ast.Module) -> Iterator[int]:
    """The lines that compare with a mode, choose by one, or have a table of their own."""
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        match node:
            case ast.Compare():
                parts = [node.left, *node.comparators]
            case ast.MatchValue():
                parts = [node.value]
            case ast.Dict():
                parts = [key for key in node.keys if key is not None]
            case ast.Set():
                parts = node.elts
        for part in parts:
            inner = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
            for one in inner:
                match one:
                    case ast.Attribute(value=ast.Name(id="Mode" | "ModeKind")):
                        yield one.lineno


def test_one_module_looks_at_a_mode() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(looks_at_a_mode(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {"modes/__init__.py"}


@pytest.mark.parametrize("kind", ModeKind)
def test_a_row_agrees_with_itself(kind: ModeKind) -> None:
    row = kind.row
    assert row.planes.keys() == set(Plane)
    assert row.switches.keys() == set(ModeKind)
    assert row.managed is (kind.mode is not Mode.UNMANAGED)
    for plane in row.planes.values():
        assert plane.roles
        assert (Role.UPSTREAM in plane.roles) <= (plane.reader is None)
        assert {plane.reader, plane.writer} - {None} <= set(row.users)
        # Who may push by the logical name has a route that takes it.
        assert plane.writes or plane.refusal
    inside = [Role.BALANCER, Role.SERVICE, Role.MASTER]
    for asker in (Plane.CRI, Plane.API):
        roles = row.planes[asker].roles
        assert row.runs_replicas is (roles[-1] is Role.MASTER)
        assert not row.managed or asker is Plane.CRI or roles[0] in inside
    assert not row.holds_own_images or row.users == tuple(RegistryUser)


def test_exactly_the_planes_that_read_as_ro_may_not_list_repositories() -> None:
    for row in TABLE.values():
        for plane in row.planes.values():
            if plane.reader is RegistryUser.RO:
                assert plane.no_catalogue


def test_both_kinds_of_unmanaged_go_the_same_ways() -> None:
    assert ModeKind.LEGACY.row.planes == ModeKind.UNMANAGED.row.planes
