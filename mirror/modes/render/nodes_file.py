"""A cluster's nodes as a person writes them down: a YAML list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mirror.documents import StrictLoader, line
from mirror.errors import FileSystemError, RenderingError
from mirror.modes.render.layout import Node, Ports


def load_nodes(path: Path) -> list[Node]:
    """The nodes of a YAML list, each with `name`, `address`, `master` (true) and `ports`.

    Raises:
        FileSystemError: it cannot be read.
        RenderingError: it is something else; the message says where.
    """
    text = read_text(path)
    try:
        rows = yaml.load(text, StrictLoader)  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as err:
        raise RenderingError(f"{path}: expected YAML; {err.problem}{line(err)}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise RenderingError(f"{path}: expected YAML, found something else; correct it") from err
    if not isinstance(rows, list):
        raise RenderingError(
            f"{path}: expected a list of nodes (name, address, master, ports), found something "
            "else; write one item per node"
        )
    return [_node(row, f"{path}: node {number}") for number, row in enumerate(rows, 1)]


def _node(row: Any, where: str) -> Node:
    if not isinstance(row, Mapping):
        raise RenderingError(f"{where}: expected a mapping with name and address, found {row!r}")
    keys = {"name", "address", "master", "ports"}
    ports = row.get("ports", {})
    known = set(Ports.__slots__)
    if (
        not set(row) <= keys
        or not isinstance(row.get("name"), str)
        or not isinstance(row.get("address"), str)
        or not isinstance(row.get("master", True), bool)
        or not isinstance(ports, Mapping)
        or not set(ports) <= known
        or not all(isinstance(port, int) for port in ports.values())
    ):
        raise RenderingError(
            f"{where}: expected name and address as texts, master as true or false, and ports as "
            f"numbers ({', '.join(sorted(known))}), found {dict(row)!r}; correct it"
        )
    return Node(row["name"], row["address"], row.get("master", True), Ports(**ports))


def read_text(path: Path) -> str:
    """The text of a file that a person named.

    Raises:
        FileSystemError: it cannot be read.
        RenderingError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise FileSystemError(f"cannot read {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise RenderingError(f"{path}: expected text in UTF-8, found other bytes") from err
