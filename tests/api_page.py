"""`docs/api.md`, made of the docstrings: `python -m tests.api_page > docs/api.md`."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from types import FunctionType, ModuleType, UnionType
from typing import Any

from tests.surface import members, public

_INTRODUCTION = """\
# The library

Everything that the command line does is a function here: `import mirror`. This page is made of
the docstrings (`python -m tests.api_page`), and a test compares the two.

## What is stable

Every name on this page is imported from `mirror` itself. Within a major version none of them goes
away or changes its meaning, functions gain no positional and no required parameters, values lose
no field, and an error keeps its type and its exit code. Modules below `mirror` are not part of
this promise, except `mirror.errors`, which has every error, and `mirror.testing`. Neither are the
texts of messages, private names (`_name`), and whatever is made by calling a class that is listed
under "Values that appear in signatures and results": those are read, and may gain fields.

## How every operation works

An operation takes its options by name, and `run`, which says how it works: how many threads, who
hears the events, and when to stop. It returns a report and raises a `MirrorError`
(`mirror.errors`) if it fails.

* **Names.** An operation is called like its command: `push(bundle, tree)`, `verify(bundle,
  against=tree)`, `prune(tree, keep)`. `sync_replicas(leader, replicas)` is the exception: a public
  function `sync` would stand where Python keeps the package `mirror.sync`, and whoever imported one
  of the two last would decide what `mirror.sync` means.
* **Threads.** All classes that say so are safe to use from several threads. No thread outlives
  the call that began it.
* **Stopping.** `run.cancellation.cancel()`, from any thread, ends every wait at once and the
  operation with `CancelledError`; `run.with_deadline(seconds)` ends it with `DeadlineError`. What
  was done is kept, and calling the operation again goes on from there. A client that you made is
  yours: it works afterwards.
* **Events.** `Run(on_event=...)` is called from whichever thread did the work;
  `serialised(listener)` makes a listener that one thread calls at a time.
* **In the background.** `start(operation, ...)` returns a `Job` to follow, await and cancel. An
  asyncio program awaits `asyncio.wrap_future(job.future)`: `examples/with_asyncio.py`.
* **Constructors** touch neither network nor disk, unless they say so. Importing `mirror` opens no
  file and leaves the logging of your program as it is.
"""

_USED = frozenset(
    {
        *("BundleReader", "Cancellation", "ConnectionOptions", "Credentials", "Job", "MemoryStore"),
        *("ModeClient", "RegistryClient", "RegistrySettings", "RegistryTree", "Repository"),
        *("RetryPolicy", "Run", "Selection", "SourceTree", "UploadJournal", "Source", "Target"),
        *("Inventory", "Digest", "Manifest", "Reference", "MirrorError"),
    }
)
"""Classes that programs make themselves, and those that all else is made of."""


def page() -> str:
    """The whole page."""
    functions, classes, values = {}, {}, {}
    for name, one in sorted(public().items()):
        if isinstance(one, FunctionType):
            functions[name] = one
        elif name in _USED:
            classes[name] = one
        else:
            values[name] = one
    lines = [_INTRODUCTION, "## Functions", ""]
    for name, one in functions.items():
        lines += [
            f"### `{name}`",
            "",
            "```python",
            *_signature(name, one),
            "```",
            "",
            _doc(one),
            "",
        ]
    lines += ["## Classes that programs use", ""]
    for name, one in classes.items():
        lines += [f"### `{name}`", "", _doc(one), ""]
        methods = list(_methods(one))
        if methods:
            lines += [*methods, ""]
    lines += ["## Values that appear in signatures and results", ""]
    by_room: dict[str, list[str]] = defaultdict(list)
    for name, one in values.items():
        by_room[_room(one)].append(_value(name, one))
    for room, rows in sorted(by_room.items()):
        lines += [f"### From `mirror.{room}`", "", *rows, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _signature(name: str, function: FunctionType) -> Iterator[str]:
    signature = inspect.signature(function)
    returns = _text(signature.return_annotation)
    yield f"{name}("
    star = False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not star:
            star = True
            yield "    *,"
        prefix = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(one.kind.name, "")
        default = "" if one.default is one.empty else f" = {_default(one.default)}"
        yield f"    {prefix}{one.name}: {_text(one.annotation)}{default},"
        if one.kind is one.VAR_POSITIONAL:
            star = True
    yield f") -> {returns}"


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "…")


def _default(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else "…"


def _doc(one: Any) -> str:
    return textwrap.dedent(inspect.getdoc(one) or "").replace("<", "&lt;")


def _methods(kind: type) -> Iterator[str]:
    for name, value in members(kind):
        function = getattr(value, "__func__", value)
        is_property = isinstance(value, property)
        function = value.fget if isinstance(value, property) else function
        if name.startswith("_") or not isinstance(function, FunctionType):
            continue
        called = name if is_property else f"{name}({_parameters(function)})"
        yield f"* `{called}`: {_first(function)}"


def _parameters(function: FunctionType) -> str:
    names = inspect.signature(function).parameters
    return ", ".join(name for name in names if name not in ("self", "cls"))


def _first(one: Any) -> str:
    """The first sentence or paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(one) or "").split("\n\n")[0].split()).replace("<", "&lt;")


def _room(one: Any) -> str:
    home = one.__name__ if isinstance(one, ModuleType) else getattr(one, "__module__", "")
    return str(home.split(".")[1]) if home.startswith("mirror.") else "events"


def _value(name: str, one: Any) -> str:
    if isinstance(one, type | ModuleType):
        text = _first(one)
        generated = text.startswith(f"{name}(")  # by dataclass, for want of a docstring
        return f"* `{name}`" + ("" if generated or not text else f": {text}")
    if not hasattr(one, "__name__") or isinstance(one, UnionType):  # which has one since 3.14
        return f"* `{name}`: a type"
    return f"* `{name}`: `{_text(one)}`"


if __name__ == "__main__":
    sys.stdout.write(page())
