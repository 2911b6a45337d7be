"""The arrows of docs/architecture.md, read from the imports of every module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import mirror

PACKAGE = Path(mirror.__file__).parent

GROUND = frozenset({"errors", "events"})
"""Every room may stand on these; what they say about rooms is for type checkers alone."""

_BELOW = {
    "run": "",
    "job": "run",
    "durable": "",
    "documents": "",
    "signing": "documents",
    "oci": "documents",
    "layout": "oci",
    "registry": "oci documents run durable",
    "sync": "registry layout oci signing documents run durable",
    "bundle": "sync registry layout oci signing documents run durable",
    "release": "sync registry layout oci documents run",
    "config": "release bundle sync registry layout oci documents run",
    "modes": "bundle sync registry oci documents run durable",
    "nodeconfig": "modes oci documents durable",
    "operations": "modes release bundle sync registry layout oci documents run durable",
    "controller": "nodeconfig modes bundle registry oci documents run durable",
    "watch": "operations release bundle sync registry layout oci serve documents run",
    "serve": "bundle sync oci durable",
    "testing": "serve",
}
ROOMS = {room: {*below.split(), *GROUND} for room, below in _BELOW.items()}
"""Room → the rooms that it may import. A room is a package, or a module of the top level."""

COMMAND_LINE = frozenset({"cli", "commands", "reports"})
"""The modules of the program, which nothing else imports."""

DOORS = COMMAND_LINE | {"config", "__main__", "__init__"}
"""What stands above all rooms and may use any."""

MOST_MODULES = 163
MOST_LINES = 56_500
MOST_LINES_OF_A_MODULE = 450


class Import(NamedTuple):
    """A module imports a name: `importer` is a path like `sync/plan.py`."""

    importer: Path
    line: int
    name: str
    for_types_only: bool

    @property
    def room(self) -> str:
        """Where the importer lives: a package, or a module of the top level."""
        return self.importer.parts[0].removesuffix(".py")

    @property
    def target(self) -> str | None:
        """The room of ours that is imported; None for other people's code."""
        parts = self.name.split(".")
        if parts[0] != "mirror":
            return None
        return parts[1] if len(parts) > 1 else "__init__"

    def __str__(self) -> str:
        return f"mirror/{self.importer}:{self.line} imports {self.name}"


@cache
def sources() -> dict[Path, ast.Module]:
    """Every module of the package, parsed."""
    return {
        path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement of every module, those inside functions included."""
    found: list[Import] = []
    for path, tree in sources().items():
        typed = {id(node) for block in _type_checking_blocks(tree) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += (
                    Import(path, node.lineno, name, id(node) in typed) for name in _names(node)
                )
    return tuple(found)


def _type_checking_blocks(tree: ast.Module) -> Iterator[ast.If]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield node


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, f"line {node.lineno}: imports are absolute here"
    if node.module == "mirror":  # `from mirror import oci` names a room
        yield from (f"mirror.{alias.name}" for alias in node.names)
    elif node.module:
        yield node.module


def real_imports() -> Iterator[Import]:
    """All imports, without those by which the ground floor names the types it speaks of."""
    for found in imports():
        if not (found.for_types_only and found.room in GROUND):
            yield found


def test_every_module_lives_in_a_room_that_has_its_arrows_written_down() -> None:
    assert {path.parts[0].removesuffix(".py") for path in sources()} <= (
        ROOMS.keys() | GROUND | DOORS
    )


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = ROOMS[room] | {room, None}
    assert any(one.room == room for one in imports()), "the room is empty"
    wrong = [str(one) for one in real_imports() if one.room == room and one.target not in allowed]
    assert wrong == []


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_floor_imports_nothing_of_ours(module: str) -> None:
    wrong = [str(one) for one in real_imports() if one.room == module and one.target is not None]
    assert wrong == []


def test_the_rooms_form_no_cycle() -> None:
    arrows: dict[str, set[str]] = {}
    for one in real_imports():
        if one.target is not None and one.target != one.room:
            arrows.setdefault(one.room, set()).add(one.target)
    done: set[str] = set()

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " → ".join((*above, room))
        if room not in done:
            for below in sorted(arrows.get(room, ())):
                visit(below, (*above, room))
            done.add(room)

    for room in sorted(arrows):
        visit(room, ())


def test_the_modules_form_no_cycle() -> None:
    """Imports inside functions count, which is how a cycle hides from the interpreter."""
    modules = {_dotted(path): path for path in sources()}
    arrows: dict[Path, set[Path]] = {path: set() for path in sources()}
    for path, tree in sources().items():
        typed = {id(node) for block in _type_checking_blocks(tree) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) in typed:
                continue
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` is an arrow to the module alone.
                names = {f"{node.module}.{one.name}" for one in node.names} & modules.keys()
                arrows[path] |= {modules[name] for name in names or {node.module} & modules.keys()}
            elif isinstance(node, ast.Import):
                arrows[path] |= {modules[one.name] for one in node.names if one.name in modules}
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as err:
        pytest.fail(" → ".join(str(path) for path in err.args[1]))


def _dotted(path: Path) -> str:
    parts = ("mirror", *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_house_does_not_grow() -> None:
    lines = {
        path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path in sources()
    }
    assert len(lines) <= MOST_MODULES
    assert sum(lines.values()) <= MOST_LINES
    assert [str(path) for path, count in lines.items() if count > MOST_LINES_OF_A_MODULE] == []


DOCS = PACKAGE.parent / "docs"


@pytest.mark.parametrize(
    "page", [DOCS / "architecture.md", *sorted(DOCS.glob("adr/*.md"))], ids=str
)
def test_the_picture_of_the_house_names_modules_that_exist(page: Path) -> None:
    """Names are written as `sync.plan` or `sync.plan.make_plan`."""
    modules = {_dotted(path).removeprefix("mirror.") for path in sources()}
    rooms = "|".join({name.partition(".")[0] for name in modules if "." in name})
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`(?:mirror\.)?((?:{rooms})\.[a-z_0-9]+)[.\w]*`", text)
    assert set(named) <= modules
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", text, re.MULTILINE), "a merge was not finished"


def test_nothing_imports_the_command_line() -> None:
    program = COMMAND_LINE | {"__main__"}
    wrong = [
        str(one) for one in imports() if one.target in COMMAND_LINE and one.room not in program
    ]
    assert wrong == []


def test_only_commands_import_reports_for_people() -> None:
    users = {one.room for one in imports() if one.target == "reports"}
    assert users == {"commands", "reports"}


@pytest.mark.parametrize("library", ["oras", "httpx", "tqdm", "click", "uvicorn"])
def test_a_foreign_library_stays_in_its_room(library: str) -> None:
    room = {
        "oras": "registry",
        "httpx": "registry",
        "tqdm": "reports",
        "click": "cli",
        "uvicorn": "serve",
    }[library]
    users = {one.room for one in imports() if one.name.split(".")[0] == library}
    assert users
    assert users <= (COMMAND_LINE if room == "cli" else {room})


def test_exactly_one_module_imports_oras() -> None:
    users = {one.importer for one in imports() if one.name.split(".")[0] == "oras"}
    assert len(users) == 1, sorted(map(str, users))


def test_the_library_neither_prints_nor_exits() -> None:
    wrong = []
    for path, tree in sources().items():
        if path.parts[0].removesuffix(".py") in DOORS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"print", "exit", "quit", "sys.exit", "os._exit", "os.abort"}:
                    wrong.append(f"mirror/{path}:{node.lineno} calls {called}")
            elif isinstance(node, ast.Raise) and node.exc is not None:
                if ast.unparse(node.exc).startswith("SystemExit"):
                    wrong.append(f"mirror/{path}:{node.lineno} raises SystemExit")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "sys.stdout",
                "sys.stderr",
            }:
                wrong.append(f"mirror/{path}:{node.lineno} uses {ast.unparse(node)}")
    assert wrong == []


def test_tags_are_set_and_removed_in_one_place() -> None:
    """`sync.transfer` sets those of a plan, for whoever plans some: that is a publication."""
    callers: dict[str, set[str]] = {}
    for path, tree in sources().items():
        if path.parts[0] in ("sync", "operations", "bundle", "watch", "commands"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func).rpartition(".")[2]
                    callers.setdefault(name, set()).add(path.as_posix())
    assert callers["put_artifact"] == {"sync/publication.py", "sync/removal.py"}
    assert callers["delete_tag"] == {"sync/removal.py"}
    # Besides, content in memory is filled by hand.
    assert callers["put_tag"] == {"sync/transfer.py", "sync/content.py"}
    # The last two carry plans without tags to registries, or into a bundle.
    assert callers["transfer"] == {
        *("sync/publication.py", "operations/sync.py", "operations/pull.py")
    }


def test_no_module_configures_logging() -> None:
    calls = {"logging.basicConfig", "logging.config.dictConfig", "logging.StreamHandler"}
    wrong = [
        f"mirror/{path}:{node.lineno}"
        for path, tree in sources().items()
        if path.parts[0].removesuffix(".py") not in DOORS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in calls
    ]
    assert wrong == []
