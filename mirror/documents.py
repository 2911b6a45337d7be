"""Documents from outside: settings that people write, JSON and YAML that other programs wrote.

They are read strictly and with limits; what pydantic finds wrong with them becomes words here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from mirror.errors import InputError, MirrorError

_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_ODD_NUMBER = re.compile("[-+]?0[0-9xb]|.*[0-9][_:][0-9]")
"""Octal, hexadecimal, binary, with underscores, or to the base 60."""


class RepeatedKeyError(ConstructorError):
    """A mapping has one key twice; `problem` names it."""


class StrictLoader(yaml.SafeLoader):
    """YAML in which no key is there twice, and each value that cannot be read has its line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    told = f"{key.value} is set twice; keep one"
                    raise RepeatedKeyError(None, None, told, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as err:
            # PyYAML trusts that what looks like a date or a number is one: 2024-99-99.
            told = f"{node.value!r} is not what it looks like ({err}); write it in quotes"
            raise ConstructorError(None, None, told, node.start_mark) from err
        if node.tag in _NUMBERS and _ODD_NUMBER.match(node.value):
            # YAML 1.1 reads 4_7 as 47, which nobody expects who slipped on the key beside the dot.
            told = f"{node.value!r} would be the number {value}; write that, or write it in quotes"
            raise ConstructorError(None, None, told, node.start_mark)
        return value


def file_bytes(path: Path, error: Callable[[str], MirrorError] = InputError) -> bytes:
    """The content of a file that a person named."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise error(f"cannot read {path}: {err.strerror}") from err


def file_text(path: Path, error: Callable[[str], MirrorError] = InputError) -> str:
    """The same as text."""
    try:
        return file_bytes(path, error).decode()
    except UnicodeDecodeError:
        raise error(f"{path} is not text") from None


def read_mapping(path: Path, help_text: str = "") -> dict[str, Any]:
    """The settings in a YAML file, or InputError, whose message `help_text` ends."""
    hint = f"; {help_text}" if help_text else ""
    content = file_bytes(path)
    try:
        document = yaml.load(content, StrictLoader)  # noqa: S506 -- a SafeLoader
    except ConstructorError as err:
        raise InputError(f"{path}: {err.problem}{line(err)}{hint}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise InputError(f"{path} is not YAML: {err}") from err
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a mapping of settings{hint}")
    return document


def read_documents(raw: str | bytes, where: str, expected: str) -> list[Mapping[str, Any]]:
    """The YAML documents of a text, empty ones left out; messages never quote them.

    `expected` says in messages what the text should be.

    Raises:
        InputError: it is not YAML, or something in it is not a mapping.
    """
    try:
        documents = list(yaml.load_all(raw, StrictLoader))
    # Not `from err`, whose text may quote the document.
    except RepeatedKeyError as err:
        raise InputError(f"{where}: {err.problem}{line(err)}") from None
    except ConstructorError as err:
        raise InputError(
            f"{where}: a value is not what it looks like{line(err)}; write it in quotes"
        ) from None
    except ComposerError as err:
        raise InputError(
            f"{where}: a value that begins with * must be in quotes{line(err)}"
        ) from None
    except yaml.MarkedYAMLError as err:
        raise InputError(f"{where} is not YAML: {err.problem}{line(err)}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where} is not YAML") from None
    documents = [document for document in documents if document is not None]
    if not all(isinstance(document, Mapping) for document in documents):
        raise InputError(f"{where}: {expected}, found something that is not a mapping")
    return documents


def line(err: yaml.MarkedYAMLError) -> str:
    """` (line N)` of a mistake, or nothing where that is not known."""
    return f" (line {err.problem_mark.line + 1})" if err.problem_mark else ""


_MISTAKES = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "expected a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "expected keys and values"),
    "dataclass_type": "expected keys and values",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": "expected text",
    "missing": "is missing",
}
"""pydantic's kinds of errors that speak of Python → the same in words of YAML."""


_BOUNDS = {
    r"^Input should be greater than or equal to (\S+)$": r"must be \1 or more",
    r"^Input should be greater than (\S+)$": r"must be more than \1",
    r"^Input should be less than or equal to (\S+)$": r"must be \1 or less",
}
"""The same for bounds, which only the text has."""
_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})


def mistake(error: ErrorDetails, keys: Collection[str] = ()) -> str:
    """What pydantic finds wrong with a value of a document, without the value itself.

    `keys` are those that the document may have; the nearest is suggested for one that it may not.
    """
    if error["type"] in _UNKNOWN:
        near = get_close_matches(str(error["loc"][-1]), keys, n=1)
        return "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    text = _MISTAKES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    for theirs, ours in _BOUNDS.items():
        text = re.sub(theirs, ours, text)
    return text


def problems(err: ValidationError, whole: str = "", keys: Collection[str] = ()) -> list[str]:
    """What pydantic finds wrong with a document, one text per mistake: `where: what`.

    No text quotes a value, which may be secret. `whole` stands for the document itself, `keys` are
    those that it may have, at whatever depth.
    """
    return [
        f"{where}: {mistake(one, keys)}" if where else mistake(one, keys)
        for one in err.errors(include_url=False, include_context=False, include_input=False)
        for where in (".".join(map(str, one["loc"])) or whole,)
    ]


# -- JSON and YAML of other programs ---------------------------------------------------------------

MAX_DIGITS = 100
"""Longer numbers are refused: no size or count is that large, and reading some takes minutes."""

_MAX_YAML_BYTES = 4 << 20
_MAX_DEPTH = 50
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXTS_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NUMBER = re.compile(r"[-+]?(?:0x[0-9A-Fa-f_]+|[0-9_:.]+(?:[eE][-+]?[0-9]+)?)")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def value_count(data: bytes) -> int:
    """Count the values of JSON text by what separates them, without the colons of digests.

    A parser makes some 50 bytes of each, which may be 30 times the text. The count tells how much
    memory it will take before it parses anything.
    """
    return sum(map(data.count, (b",", b":", b"[", b"{"))) - data.count(b'"sha256:')


def parse_json(data: bytes | str) -> Any:
    """Read JSON that others wrote: what comes back can be written down again.

    Raises:
        ValueError: it is not JSON or not Unicode, nests too deeply, or has a number that is not
            finite (`NaN`, `1e999`) or has more than `MAX_DIGITS` digits.
    """
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    try:
        document = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError as err:
        raise ValueError("it nests too deeply") from err
    return document


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


_AT_ONCE, _AT_MOST = 1 << 20, 100
"""Bytes of JSON that become objects at a time, and members of an object or a list."""
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_VALUE = _SCALAR = rb"[^\s\",:\[\]{}]++|" + _TEXT
for _ in range(12):  # levels
    _VALUE = rb"%b|[\[{](?:[^\"\[\]{}]++|%b)*+[\]}]" % (_SCALAR, _VALUE)
_PAIR = rb"\s*+(%b)\s*+:\s*+(%b)\s*+" % (_TEXT, _VALUE)
_ITEM = re.compile(rb"()\s*+(%b)\s*+[,\]]" % _VALUE, re.DOTALL)
_MEMBER = re.compile(_PAIR + rb"[,}]", re.DOTALL)
_ITEMS = re.compile(rb"(?:\s*+(?:%b)\s*+,){1,%d}+" % (_VALUE, _AT_MOST), re.DOTALL)
_MEMBERS = re.compile(rb"(?:%b,){1,%d}+" % (_PAIR, _AT_MOST), re.DOTALL)


class LargeJson:
    """An object or a list of JSON, whose values are made as they are gone through.

    A large value is one of these. ValueError tells where it is no JSON, or a text has over 1 MiB.
    """

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data, self._start, self._end = data, start, end
        self._places: dict[str, tuple[int, int, int]] = {}

    def _spans(self, position: int) -> Iterator[re.Match[bytes]]:
        data, first, end = self._data, self._start + 1, self._end
        pattern = _MEMBER if data[self._start] == ord("{") else _ITEM
        while position < end or position == first:
            found = pattern.match(data, position, end)
            if found is None or (found.end() == end) == data.endswith(b",", 0, found.end()):
                # Either this says what is wrong, or it is empty.
                if parse_json(data[self._start : min(end, self._start + _AT_ONCE)]):
                    raise ValueError(f"behind byte {position} it is not JSON, or nests too deeply")
                return
            yield found
            position = found.end()

    def __iter__(self) -> Iterator[Any]:
        """The values of a list; the pairs of key and value of an object, repeated ones too."""
        data, position = self._data, self._start + 1
        of_pairs = data[self._start] == ord("{")
        several, frame = (_MEMBERS, b"{%b}") if of_pairs else (_ITEMS, b"[%b]")
        while run := several.match(data, position, self._end):
            if run.end() - position <= _AT_ONCE:
                parsed = parse_json(frame % data[position : run.end() - 1])
                yield from parsed.items() if of_pairs else parsed
                position = run.end()
            else:
                for found in islice(self._spans(position), _AT_MOST):
                    yield self._value(found)
                    position = found.end()
        yield from map(self._value, self._spans(position))

    def _value(self, found: re.Match[bytes]) -> Any:
        value = _opened(self._data, *found.span(2))
        return (_opened(self._data, *found.span(1)), value) if found[1] else value

    items = __iter__

    def places(self) -> Mapping[str, tuple[int, int, int]]:
        """The keys of an object: the offsets of each, of its value, and of the end of that.

        Raises:
            ValueError: it is not JSON, has a key twice, or more than anybody asks for.
        """
        if not self._places:
            for found in self._spans(self._start + 1):
                key = _opened(self._data, *found.span(1))
                if key in self._places or len(self._places) == _AT_MOST:
                    raise ValueError(f"{key!r:.50} is there twice, or one of too many keys")
                self._places[key] = (found.start(1), *found.span(2))
        return self._places

    def __getitem__(self, key: str) -> Any:
        return _opened(self._data, *self.places()[key][1:])

    def get(self, key: str, default: Any = None) -> Any:
        """The value of that key, or `default`."""
        return self[key] if key in self.places() else default


def _opened(data: bytes, start: int, end: int) -> Any:
    if end - start <= _AT_ONCE:
        return parse_json(data[start:end])
    if data[start] not in b"{[":
        raise ValueError(f"it has a text of {end - start} bytes")
    return LargeJson(data, start, end)


def open_json(data: bytes) -> Any:
    """Read a large document of UTF-8: as `parse_json`, but an object is a `LargeJson`.

    It takes memory for what is kept of it alone.
    """
    start = len(data[:100]) - len(data[:100].lstrip())
    end = len(data) - len(data[-100:]) + len(data[-100:].rstrip())
    return (LargeJson if data[start : start + 1] == b"{" else _opened)(data, start, end)


def parse_yaml(data: bytes | str, *, texts_only: bool = False) -> Any:
    """Read YAML that others wrote. With `texts_only` every scalar stays the text that it is.

    References are refused, because they make little text huge.

    Raises:
        ValueError: it is not YAML, has references, is longer than 4 MiB, nests more than 50
            levels, or has a number of more than `MAX_DIGITS` digits.
    """
    if len(data) > _MAX_YAML_BYTES:
        raise ValueError(f"it has {len(data)} bytes; at most {_MAX_YAML_BYTES} are read")
    loader = _TEXTS_LOADER if texts_only else _LOADER
    try:
        _check_events(data)
        return yaml.load(data, loader)  # noqa: S506 -- makes plain values only
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as err:
        # PyYAML trusts that what looks like a date or a number is one: 2024-99-99, !!bool x.
        raise ValueError(" ".join(str(err).split())[:200]) from err
    except RecursionError as err:
        raise ValueError("it nests too deeply") from err


def _check_events(data: bytes | str) -> None:
    depth = 0
    for event in yaml.parse(data, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("references (*name) are not read")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_DIGITS:
            is_number = event.tag is None and event.implicit[0] and _NUMBER.fullmatch(event.value)
            if is_number or (event.tag or "").endswith((":int", ":float")):
                raise ValueError(f"a number has more than {MAX_DIGITS} digits")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests more than {_MAX_DEPTH} levels")


_RATE = re.compile(r"(\d+(?:\.\d+)?) ?(k|m|g|ki|mi|gi)?b(?:/s)?", re.ASCII | re.IGNORECASE)
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_rate(text: str) -> float:
    """`20MB/s`, `512KiB/s`, `1.5 GB/s` or `1GB` as bytes a second; ValueError for other text."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _MULTIPLES[(match[2] or "").lower()] if match else 0.0
    if not rate:
        raise ValueError(f"{text[:100]!r} is not a rate; write bytes a second, such as 20MB/s")
    return rate


def _rate(value: Any) -> Any:
    return parse_rate(value) if isinstance(value, str) else value


Rate = Annotated[float, BeforeValidator(_rate, json_schema_input_type=float | str), Field(gt=0)]
"""Bytes a second in a settings file: a number, or a text as `parse_rate` takes it."""


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def parse_duration(text: str) -> float:
    """`90s`, `5m`, `1h30m` or `2d` as seconds; ValueError for other text."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text[:100]!r} is not a duration; write 30s, 5m, 1h30m or 2d")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def seconds(value: Any) -> Any:
    """`90`, or a text as `parse_duration` takes it, as seconds."""
    if isinstance(value, bool):
        raise ValueError("a duration is needed: 30s, 5m, 1h30m or 2d")
    return parse_duration(value) if isinstance(value, str) else value


_YEAR_S = 366 * 86400
Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=_YEAR_S)]
"""A duration in a settings file: seconds, or a text as `parse_duration` takes it."""
Patience = Annotated[float, BeforeValidator(seconds), Field(ge=0, le=_YEAR_S)]
"""The same, which may be none."""


def document(value: object, *fields: str) -> dict[str, Any]:
    """Attributes of `value` as JSON values: `"dry_run"` becomes `dryRun`, `"target=name"` is `name`
    under the key `target`."""
    pairs = (field.rpartition("=") for field in fields)
    return {
        key or re.sub("_(.)", lambda part: part[1].upper(), name): json_value(getattr(value, name))
        for key, _, name in pairs
    }


def json_value(value: Any) -> Any:
    """Numbers, texts and None as they are, collections item by item, all else as it shows itself.

    That is its `to_document`, or else its text: of a digest, a path, an error. Times are in UTC
    (RFC 3339), to the second.
    """
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(key): json_value(one) for key, one in value.items()}
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        case tuple() | list() if type(value) in (tuple, list):  # a digest is a text
            return [json_value(one) for one in value]
    return value.to_document() if hasattr(value, "to_document") else str(value)
