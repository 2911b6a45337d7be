"""YAML as people write it by hand: a key that is set twice is a mistake, and each has its line."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError


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


def line(err: yaml.MarkedYAMLError) -> str:
    """` (line N)` of a mistake, or nothing where that is not known."""
    return f" (line {err.problem_mark.line + 1})" if err.problem_mark else ""
