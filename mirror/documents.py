"""Settings that people write: YAML files, read strictly."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from mirror.errors import InputError


class RepeatedKeyError(ConstructorError):
    """A mapping has one key twice; `problem` names it."""


class StrictLoader(yaml.SafeLoader):
    """YAML in which no key is there twice, and each value that cannot be read has its line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise RepeatedKeyError(
                        None, None, f"{key.value} is set twice; keep one", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as err:
            # PyYAML trusts that what looks like a date or a number is one: 2024-99-99.
            raise ConstructorError(
                None,
                None,
                f"{node.value!r} is not what it looks like ({err}); write it in quotes",
                node.start_mark,
            ) from err


def read_mapping(path: Path, help_text: str = "") -> dict[str, Any]:
    """The settings in a YAML file; an empty file has none. `help_text` ends messages.

    Raises:
        InputError: the file cannot be read, or is no YAML, or no mapping.
    """
    hint = f"; {help_text}" if help_text else ""
    try:
        document = yaml.load(path.read_bytes(), StrictLoader)  # noqa: S506 -- a SafeLoader
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except ConstructorError as err:
        raise InputError(f"{path}: {err.problem}{line(err)}{hint}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise InputError(f"{path} is no YAML: {err}") from err
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{path} is no mapping of settings{hint}")
    return document


def line(err: yaml.MarkedYAMLError) -> str:
    """` (line N)` of a mistake, or nothing where that is not known."""
    return f" (line {err.problem_mark.line + 1})" if err.problem_mark else ""


_MISTAKES = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "expected a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "expected keys and values"),
}
"""pydantic's kinds of errors that speak of Python → the same in words of YAML."""


def mistake(error: ErrorDetails) -> str:
    """What pydantic finds wrong with a value of a document, without the value itself."""
    return _MISTAKES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
