"""One tree of errors, one table of exit codes, the same in code and documents."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mirror
from mirror import errors
from mirror.cli import main
from mirror.errors import (
    EXIT_CODES,
    ForbiddenByModeError,
    IncompleteError,
    MirrorError,
    NotFoundError,
    same,
)

DOCUMENT = Path(__file__).parent.parent / "docs" / "cli.md"


def every_error() -> list[type[MirrorError]]:
    """All classes of the tree, wherever in the package they are defined."""
    for module in pkgutil.walk_packages(mirror.__path__, "mirror."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(parent: type[MirrorError]) -> Iterator[type[MirrorError]]:
        yield parent
        for child in parent.__subclasses__():
            yield from below(child)

    return list(dict.fromkeys(below(MirrorError)))


def test_the_table_of_exit_codes_is_this_one() -> None:
    assert EXIT_CODES == {
        0: "done",
        1: "failed",
        2: "usage",
        3: "replicas differ",
        4: "corrupt",
        5: "unreachable",
        6: "denied",
        130: "interrupted",
    }


def test_every_error_ends_with_a_code_of_the_table_and_none_with_success() -> None:
    codes = {error.__name__: error.exit_code for error in every_error()}
    assert len(codes) > 15
    assert {name: code for name, code in codes.items() if code not in EXIT_CODES or not code} == {}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MirrorError", 1),
        ("InputError", 2),
        ("InvalidReferenceError", 2),
        ("InvalidDigestError", 2),
        ("SourceContentError", 1),
        ("NoSpaceError", 1),
        ("IntegrityError", 4),
        ("DigestMismatchError", 4),
        ("SizeMismatchError", 4),
        ("DamagedBundleError", 4),
        ("UnreachableError", 5),
        ("StalledError", 5),
        ("DeniedError", 6),
        ("CancelledError", 130),
    ],
)
def test_an_error_ends_with_the_code_of_its_kind(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_every_error_of_the_tree_is_defined_in_one_module_and_explained() -> None:
    for error in every_error():
        assert error.__module__ == "mirror.errors", error
        assert error.__doc__, error


def test_a_common_cause_of_many_failures_keeps_its_exit_code() -> None:
    denied = errors.DeniedError("no", where="GET host/path")
    damaged = errors.DamagedBundleError("bad")
    assert IncompleteError("x", [("a", denied), ("b", denied)]).exit_code == 6
    assert IncompleteError("x", [("a", denied), ("b", damaged)]).exit_code == 1
    assert "\n  a: no\n  b: bad" in str(IncompleteError("x", [("a", denied), ("b", damaged)]))


def test_failures_of_one_reason_share_a_line_and_the_list_ends() -> None:
    def failure(number: int, said: str) -> tuple[str, MirrorError]:
        where = f"PUT r/repository-{number}"
        return f"blob {number}", errors.RegistryError(f"{where}: {said}", where=where)

    alike = [failure(number, "r refuses") for number in range(500)]
    others = [failure(number, f"reason {number}") for number in range(500, 526)]
    error = IncompleteError("x", [*others, *alike])
    title, first, *lines, last = str(error).splitlines()
    assert title == "x"
    assert first == ("  blob 0 and 499 more for the same reason: PUT r/repository-0: r refuses")
    assert len(lines) == 18
    assert last == "  and 8 more"
    assert len(error.failures) == 526
    assert len(str(IncompleteError("x", others[:20])).splitlines()) == 21


def test_the_help_of_the_program_lists_the_codes() -> None:
    text = " ".join((main.help or "").split())
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"\b{code} {meaning}", text), (code, meaning)


def test_the_document_lists_the_codes() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\|\s*`?(\d+)`?\s*\|(.*)$", text, re.MULTILINE)
    documented = {int(code): text for code, text in rows}
    assert documented.keys() == EXIT_CODES.keys()
    for code, meaning in EXIT_CODES.items():
        assert meaning in documented[code].lower(), (code, documented[code])


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        NotFoundError("is not there", where="GET a", advice="look elsewhere"),
        ForbiddenByModeError("not here", mode="Proxy", plane="data"),
    ],
)
def test_an_error_for_another_thread_says_the_same(error: Exception) -> None:
    twin = same(error)
    assert twin is not error
    assert (type(twin), str(twin), twin.args) == (type(error), str(error), error.args)
    assert vars(twin) == vars(error)
