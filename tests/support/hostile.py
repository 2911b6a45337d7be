"""Documents as a broken or hostile program may write them, for parsers that must refuse them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = (
    *("NaN", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 4300, "1e5000", "0.1", "-0"),
    *("18446744073709551616", "true", "null", '"5"', "1.0"),
)
_TEXTS = (
    *('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"' + "a" * 300 + '"', '""', '"../../etc"'),
    *('"v1.70.0+b"', '"v' + "9" * 5000 + '.0.0"', '"sha256:' + "a" * 64 + '"', '"sha256:A"'),
)
_DEEP = ("[" * 20_000, "[" * 300 + "]" * 300, '{"a":' * 3000 + "1" + "}" * 3000)
_VALUES = (*_NUMBERS, *_TEXTS, *_DEEP, "[]", "{}", "[[]]", '{"a": {"b": 1}}')
_YAML = (
    *(
        "a: &x [1]\nb: *x",
        "- " * 3000,
        "{" * 3000,
        "a: 2024-99-99",
        "a: !!bool maybe",
        "a: !!int ''",
    ),
    *("a: !!timestamp x", "a: " + "1:" * 50_000 + "1", "a: !!int '" + "1:" * 50_000 + "1'"),
    *("a: 0x" + "f" * 9000, "? [a]\n: b", "a: !!python/object:os.system x", "a: .inf", "\ufeff: a"),
    *("a: !!binary '*'", "<<: 1", "<<: [1]", "a: !!float x", "%YAML 9.9\n---\na", "a: '\\ud800'"),
    *('a: "\\ud800"', "---\na\n---\nb", "a: !!set [1]", "a: !!omap x", "a: 1_" + "0" * 5000),
)


def json_documents(keys: Sequence[str]) -> st.SearchStrategy[bytes]:
    """JSON objects with some of `keys`, whose values are seldom what a parser expects."""
    values = st.sampled_from(_VALUES) | _sound(keys)
    objects = st.dictionaries(st.sampled_from([*keys, "x"]), values, max_size=5).map(
        lambda found: "{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in found.items()) + "}"
    )
    texts = objects | st.sampled_from(_VALUES) | st.text(max_size=20)
    encodings = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
    return st.one_of(
        st.builds(lambda text, name: text.encode(name, "surrogatepass"), texts, encodings),
        st.binary(max_size=40),
        texts.map(lambda text: text.encode("utf-8", "surrogatepass")[:-1]),
        st.just(b'{"a": "\xed\xa0\x80"}'),
    )


def _sound(keys: Sequence[str]) -> st.SearchStrategy[str]:
    leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=5)
    values: st.SearchStrategy[Any] = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*keys, "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
    return values.map(json.dumps)


def yaml_documents(keys: Sequence[str]) -> st.SearchStrategy[bytes]:
    """YAML, JSON among it, that is seldom what a parser expects."""
    texts = st.sampled_from(_YAML) | st.text(
        alphabet="{}[]:,-&*!%@|>'\"#? \n\tnab01~<=", max_size=60
    )
    nested = st.builds(
        lambda key, text: f"{key}:\n  - {text}\n".encode(), st.sampled_from(keys), texts
    )
    return st.one_of(texts.map(str.encode), nested, json_documents(keys))
