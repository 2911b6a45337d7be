"""References are read as people write them, and a password in one is never repeated."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InputError, InvalidReferenceError, SizeMismatchError
from mirror.oci import Digest, Reference, Repository, verified
from mirror.oci.reference import valid_repository

DIGEST = Digest.of(b"")
SECRET = "s3cr3t%!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reg.example.com/dkp", Repository("reg.example.com", "dkp")),
        ("localhost:5000/dkp/ee/", Repository("localhost:5000", "dkp/ee")),
        (" https://reg.example.com/dkp ", Repository("reg.example.com", "dkp")),
        ("reg.example.com//dkp///ee//", Repository("reg.example.com", "dkp/ee")),
        ("[::1]:5000/x", Repository("[::1]:5000", "x")),
    ],
)
def test_a_repository_is_a_host_and_a_path(text: str, expected: Repository) -> None:
    assert Repository.parse(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host/", "host:0/x", "host/UPPER", "./bundle"])
def test_what_is_no_repository_is_shown(text: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        Repository.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "tag", "digest"),
    [
        ("reg:5000/x:v1", "v1", None),
        (f"reg:5000/x@{DIGEST}", None, DIGEST),
        (f"reg:5000/x:v1@{DIGEST}", "v1", DIGEST),
    ],
)
def test_an_image_has_a_tag_or_a_digest_or_both(
    text: str, tag: str | None, digest: Digest | None
) -> None:
    parsed = Reference.parse(text)
    assert parsed == Reference(Repository("reg:5000", "x"), tag, digest)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        f"ci:{SECRET}@reg.example.com/dkp",
        f"https://ci:{SECRET}@reg.example.com/dkp",
        f"ci:{SECRET}@{SECRET}@reg.example.com/dkp",
        f"ci:{SECRET}/{SECRET}@reg.example.com/dkp",
        f"{SECRET}@reg.example.com/dkp",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    for parse, typed in (
        (Repository.parse, text),
        (Reference.parse, f"{text}:v1"),
        (Reference.parse, f"{text}:v1@{DIGEST}"),
    ):
        with pytest.raises(InvalidReferenceError, match="credentials do not belong in an") as err:
            parse(typed)
        assert SECRET not in str(err.value)
    with pytest.raises(InvalidReferenceError, match=r"'reg\.example\.com/dkp'"):
        Repository.parse(text)


@pytest.mark.parametrize("rest", ["localhost", "localhost:5000", "", "x/y", str(DIGEST)])
def test_nothing_before_the_at_is_repeated_whatever_stands_behind_it(rest: str) -> None:
    text = f"ci:{SECRET}@{rest}"
    with pytest.raises(InputError) as caught:
        Repository.parse(text)
    assert SECRET not in str(caught.value)
    if rest != str(DIGEST):  # else it is an image `ci` with a strange tag
        with pytest.raises(InputError) as caught:
            Reference.parse(text)
        assert SECRET not in str(caught.value)


def test_a_repository_with_a_digest_is_told_to_leave_it_out() -> None:
    with pytest.raises(InvalidReferenceError, match=f"leave out @{DIGEST}"):
        Repository.parse(f"reg.example.com/dkp@{DIGEST}")


@pytest.mark.parametrize("path", ["a" * 256, "a/b!", "a\n", "a/B"])
def test_a_repository_is_judged_whole(path: str) -> None:
    assert not valid_repository(path)
    assert valid_repository(path[:1])


# -- digests as values -----------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(max_size=4)))
def test_digests_sort_as_their_texts_do(short: list[bytes], long: list[bytes]) -> None:
    digests = [*map(Digest.of, short), *(Digest.of(data, "sha512") for data in long)]
    assert list(map(str, sorted(digests))) == sorted(map(str, digests))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_survives_its_text_its_parts_and_a_copy(algorithm: str) -> None:
    digest = Digest.of(b"data", algorithm)
    assert digest.algorithm == algorithm
    assert str(digest) == f"{algorithm}:{digest.encoded}"
    again = [Digest.parse(str(digest)), Digest(algorithm, digest.encoded)]
    again += [copy.deepcopy(digest), pickle.loads(pickle.dumps(digest))]
    assert {digest, *again} == {digest}
    assert eval(repr(digest)) == digest


def test_a_digest_of_another_algorithm_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="'md5' is not a digest algorithm"):
        Digest("md5", "00")


def test_a_digest_takes_little_memory_and_leads_the_garbage_collector_nowhere() -> None:
    """Large inventories hold millions of them."""
    assert sys.getsizeof(Digest.of(b"data")) < 90
    assert gc.get_referents(Digest.of(b"data")) == [Digest]


def test_content_without_end_is_refused_with_the_first_byte_too_many() -> None:
    endless = map(bytes, itertools.repeat(1, 1000))  # so that the test itself has an end
    passing = verified(endless, Digest.of(b""), 10, where="blob")
    with pytest.raises(SizeMismatchError, match="blob: expected 10 bytes, got 11"):
        list(passing)
