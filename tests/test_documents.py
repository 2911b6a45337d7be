"""Documents from outside are read, or refused with a reason; nothing else ever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mirror.documents import (
    MAX_DIGITS,
    LargeJson,
    document,
    json_value,
    open_json,
    parse_json,
    parse_rate,
    parse_yaml,
    problems,
    read_mapping,
)
from mirror.errors import InputError, MirrorError
from mirror.oci import Digest
from mirror.operations.prune import PruneReport
from mirror.sync.observation import Failure
from mirror.sync.removal import DropManifest, Removal
from tests.support.hostile import json_documents, yaml_documents
from tests.support.strategies import MORE_EXAMPLES


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "NaN is not a number of JSON"),
        ("[1e999]", "the number 1e999 is too large"),
        ("1" * 5000, "a number has 5000 digits; at most 100 are read"),
        ("[" * 100_000, "it nests too deeply"),
        ('"\\ud800"', "surrogates not allowed"),
        (b'"\xed\xa0\x80"', "invalid continuation byte"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_cannot_be_written_down_again_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_a_digest_becomes_a_text_alone_and_in_collections() -> None:
    digest = Digest.of(b"")
    text = f"sha256:{digest.encoded}"
    assert json_value({"one": digest, "more": (digest,)}) == {"one": text, "more": [text]}


def test_attributes_become_json_values() -> None:
    failure = Failure("reg", "tag a:b", MirrorError("why"))
    named = document(failure, "place", "tag=item", "error")
    assert named == {"place": "reg", "tag": "tag a:b", "error": "why"}
    digest = Digest.of(b"x")
    assert document(DropManifest("a", digest), "digest", "tags") == {
        "digest": str(digest),
        "tags": [],
    }
    report = PruneReport("reg", False, Removal(), 7, (1, 2), None, (failure,))
    assert document(report, "dry_run", "generations", "published", "failures") == {
        "dryRun": False,
        "generations": [1, 2],
        "published": None,
        "failures": [failure.to_document()],
    }


def test_json_is_read() -> None:
    assert parse_json(b'{"a": [1, -2.5, null, true, "\\u00e9\\ud83d\\ude00"]}') == {
        "a": [1, -2.5, None, True, "é😀"]
    }
    assert parse_json("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [1]\nb: *x", "references"),
        ("[" * 60, "nests more than 50 levels"),
        ("a: 2024-99-99", "month must be in"),
        ("a: !!bool maybe", "maybe"),
        ("a: " + "1:" * 100 + "1", "a number has more than 100 digits"),
        ("a: !!int '" + "1:" * 100 + "1'", "a number has more than 100 digits"),
        ("a: 0x" + "f" * 200, "a number has more than 100 digits"),
        (" " * (5 << 20), "at most 4194304 are read"),
        ("a: [", "expected"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_yaml_that_costs_much_or_means_nothing_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)


def test_yaml_is_read() -> None:
    assert parse_yaml("a: [1, x, 0x10]\n") == {"a": [1, "x", 16]}
    assert parse_yaml("a: [1, x, 0x10]\n", texts_only=True) == {"a": ["1", "x", "0x10"]}
    assert parse_yaml("a: '" + "1" * 200 + "'") == {"a": "1" * 200}


@MORE_EXAMPLES
@given(json_documents(["a", "b"]))
def test_any_json_is_read_or_refused(data: bytes) -> None:
    try:
        document = parse_json(data)
    except ValueError:
        return
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()


@MORE_EXAMPLES
@given(yaml_documents(["a", "b"]))
def test_any_yaml_is_read_or_refused(data: bytes) -> None:
    for texts_only in (False, True):
        try:
            document = parse_yaml(data, texts_only=texts_only)
        except ValueError:
            continue
        yaml.safe_dump(document, allow_unicode=True).encode()


class Inner(BaseModel):
    count: int


class Outer(BaseModel):
    inner: Inner
    names: list[str]


def test_mistakes_are_told_by_their_place_and_without_the_value() -> None:
    document: dict[str, Any] = {"inner": {"count": "secret"}, "names": "secret"}
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    found = problems(caught.value)
    assert [one.partition(":")[0] for one in found] == ["inner.count", "names"]
    assert "secret" not in "".join(found)
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate([])
    assert problems(caught.value, "the document")[0].startswith("the document: ")
    assert not problems(caught.value)[0].startswith(":")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20e6),
        ("20mb", 20e6),
        ("512KiB/s", 512 * 1024),
        ("1.5 GB/s", 1.5e9),
        ("800B/s", 800),
        (" 1kB/s ", 1000),
    ],
)
def test_a_rate_is_bytes_a_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "20", "MB/s", "20MB/h", "0MB/s", "-1MB/s", "20 Mbit/s", "1e3B"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate; write bytes a second, such as 20MB/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("4_7", 47), ("010", 8), ("0x10", 16), ("0b101", 5), ("1:30", 90), ("-0_1.5", -1.5)],
)
def test_a_number_that_yaml_reads_as_another_is_told(
    text: str, number: float, tmp_path: Path
) -> None:
    """A size of 010 would be 8 GB, and a port of 1:30 would be 90."""
    path = tmp_path / "settings.yaml"
    path.write_text(f"size: {text}\n")
    told = rf"'{text}' would be the number {number}; write that, or write it in quotes \(line 1\)"
    with pytest.raises(InputError, match=told):
        read_mapping(path)
    path.write_text(f"size: '{text}'\nport: 0\nshare: 0.5\nother: 10\n")
    assert read_mapping(path) == {"size": text, "port": 0, "share": 0.5, "other": 10}


# -- large documents -------------------------------------------------------------------------------


def gone_through(value: Any) -> Any:
    """All of a large document, as `parse_json` makes it."""
    if not isinstance(value, LargeJson):
        return value
    if value._data[value._start] == ord("["):
        return [gone_through(one) for one in value]
    return {key: gone_through(one) for key, one in value.items()}


_LEAVES = st.none() | st.booleans() | st.integers() | st.text()
_NESTED = st.recursive(
    _LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


@given(_NESTED, st.integers(8, 40), st.sampled_from([None, 1]))
def test_a_document_that_is_gone_through_is_what_a_parser_makes_of_it(
    document: Any, at_once: int, indent: int | None
) -> None:
    data = json.dumps(document, indent=indent).encode()
    with mock.patch("mirror.documents._AT_ONCE", at_once):
        try:
            assert gone_through(open_json(data)) == document
        except ValueError as err:
            assert "it has a text of" in str(err)  # noqa: PT017 -- either is right
            return
        for key, value in document.items() if isinstance(document, dict) else ():
            assert gone_through(open_json(data)[key]) == value
            assert gone_through(open_json(data).get(key)) == value


@given(json_documents(["a", "b"]))
def test_what_no_parser_reads_cannot_be_gone_through(data: bytes) -> None:
    with mock.patch("mirror.documents._AT_ONCE", 8):
        try:
            read = gone_through(open_json(data))
        except ValueError:
            return
    assert read == parse_json(data)


@pytest.mark.parametrize(
    "text", ["[1,2,]", '{"a":1,}', '{"a":1', "[1 2]", '{"a":1}}', '{"a" 1}', "[1}", '{"a":1]']
)
@pytest.mark.parametrize("filler", ["", '"x",' * 20_000], ids=["small", "large"])
def test_a_large_document_ends_where_it_is_no_json(text: str, filler: str) -> None:
    whole = text.replace("[", "[" + filler).replace("{", "{" + filler.replace(",", ":0,"))
    with pytest.raises(ValueError, match=r"."):
        gone_through(open_json(whole.encode()))


def test_keys_of_a_large_document_are_there_once_and_few() -> None:
    with pytest.raises(ValueError, match="'a' is there twice"):
        open_json(b'{"a":1,"b":2,"a":3}')["a"]
    many = json.dumps({str(number): 0 for number in range(200)}).encode()
    with pytest.raises(ValueError, match="'100' is there twice, or one of too many keys"):
        open_json(many)["a"]
    assert len(dict(open_json(many).items())) == 200


def test_a_large_document_that_nests_without_end_says_so() -> None:
    with pytest.raises(ValueError, match="it nests too deeply"):
        gone_through(open_json(b'{"a":' * 100_000))
