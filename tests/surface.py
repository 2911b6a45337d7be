"""The public surface of the library, walked: what its signatures and fields mention.

`python -m tests.surface` writes `mirror/__init__.pyi` anew: the names that it lists, from wherever
they live now, and every type that these mention.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

import mirror


def public() -> dict[str, Any]:
    """Every public name, with what it is."""
    return {name: getattr(mirror, name) for name in mirror.__all__}


def leaks() -> list[str]:
    """Types of ours that a public signature or field mentions and nobody can import."""
    known = {id(one) for one in public().values()}
    found = set()
    for name, one in public().items():
        for place, hint in _hints(name, one):
            for kind in _classes(hint):
                if kind.__module__.split(".")[0] == "mirror" and id(kind) not in known:
                    found.add(f"{place}: {kind.__module__}.{kind.__qualname__}")
    return sorted(found)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public attributes that a class of ours defines or inherits from another of ours."""
    for base in reversed(kind.__mro__):
        if base.__module__.split(".")[0] == "mirror":
            for name, value in vars(base).items():
                if not name.startswith("_") or name in ("__init__", "__call__"):
                    yield name, value


def _hints(name: str, one: Any) -> Iterator[tuple[str, Any]]:
    """(place, type) of all that `one` promises."""
    if isinstance(one, type):
        if dataclasses.is_dataclass(one) or issubclass(one, BaseModel):
            for field, hint in _types_of(one).items():
                if not field.startswith("_"):
                    yield f"{name}.{field}", hint
        for member, value in members(one):
            value = getattr(value, "__func__", value)
            value = value.fget if isinstance(value, property) else value
            generated = member == "__init__" and dataclasses.is_dataclass(one)
            if isinstance(value, FunctionType) and not generated:
                for hint in _types_of(value).values():
                    yield f"{name}.{member}", hint
    elif isinstance(one, FunctionType):
        for hint in _types_of(getattr(one, "__wrapped__", one)).values():
            yield name, hint
    elif not isinstance(one, ModuleType):
        yield name, one  # the name of a type, such as OnEvent


def _types_of(one: Any) -> dict[str, Any]:
    module = importlib.import_module(one.__module__)
    return typing.get_type_hints(one, globalns={**_all_names(), **vars(module)})


@cache
def _all_names() -> dict[str, Any]:
    """Every class of the package: what a module imports for type checkers alone is not in it."""
    names: dict[str, Any] = {}
    for info in pkgutil.walk_packages(mirror.__path__, "mirror."):
        if not info.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if isinstance(value, type) and value.__module__ == info.name:
                    names.setdefault(name, value)
    return {**vars(collections.abc), **names}


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, list | tuple):
        for one in hint:
            yield from _classes(one)
    elif typing.get_origin(hint) is not None:
        yield from _classes(typing.get_origin(hint))
        yield from _classes(typing.get_args(hint))
    elif hasattr(hint, "__args__"):
        yield from _classes(hint.__args__)
    elif isinstance(hint, type):
        yield hint
    elif inspect.isfunction(hint) and hasattr(hint, "__supertype__"):
        yield from _classes(hint.__supertype__)


def stub() -> str:
    """The text of `mirror/__init__.pyi`, closed."""
    known: dict[str, str] = vars(mirror)["_homes"]()
    names = {name: _found(name, home) for name, home in known.items()}
    while leaked := _leaked(names):
        names.update(leaked)
    lines = [
        '"""The public names of the library, and where each lives; type checkers read this."""',
        "",
    ]
    homes: dict[str, list[str]] = {}
    for name, one in names.items():
        home = getattr(one, "__module__", "")  # a type such as OnEvent is not of ours
        homes.setdefault(home if home.startswith("mirror.") else known[name], []).append(name)
    for home in sorted(homes):
        lines += [f"from {home} import {name} as {name}" for name in sorted(homes[home])]
    return "\n".join([*lines, "", "__all__: list[str]", ""])


def _found(name: str, home: str) -> Any:
    """A public thing, wherever it lives by now."""
    with suppress(ImportError, AttributeError):
        return getattr(importlib.import_module(home), name)
    return _all_names()[name]


def _leaked(names: Mapping[str, Any]) -> dict[str, type]:
    known = {id(one) for one in names.values()}
    found = {}
    for name, one in names.items():
        for _, hint in _hints(name, one):
            for kind in _classes(hint):
                if kind.__module__.split(".")[0] == "mirror" and id(kind) not in known:
                    assert kind.__name__ not in names, f"{kind} and {names[kind.__name__]}"
                    found[kind.__name__] = kind
    return found


if __name__ == "__main__":
    Path(mirror.__file__).with_suffix(".pyi").write_text(stub(), encoding="utf-8")
