"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived.

The stub beside this file, `__init__.pyi`, lists the public names and the modules that they live in.
Each is imported when it is first used, so that the program starts at once.
"""

import ast
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any


@cache
def _homes() -> dict[str, str]:
    """Public name → the module that it lives in."""
    stub = ast.parse(files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_homes())
    if name.startswith("_") or name not in _homes():
        raise AttributeError(f"module 'mirror' has no attribute {name!r}")
    home = _homes()[name]
    module = import_module(home)
    return getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), "__all__", *_homes()})
