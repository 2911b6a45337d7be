"""Content that lies in several places: who is asked, who goes on, and what is said in the end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    FileSystemError,
    IntegrityError,
    MirrorError,
    NoSoundCopyError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    UnreachableError,
)
from mirror.events import Event, Warned
from mirror.oci import Digest, Manifest
from mirror.sync import BlobContent, InventoryBuilder, MemoryStore
from mirror.sync.failover import FailoverSource, Holder
from tests.support.inventories import put_image

DATA = b"abcdefghijklmnop"
DIGEST = Digest.of(DATA)


class Place:
    """Gives `data` in pieces of 4 bytes; after `breaks_at` bytes of the blob it raises `error`."""

    def __init__(
        self,
        name: str,
        data: bytes = DATA,
        *,
        error: MirrorError | None = None,
        breaks_at: int = 0,
        only_in: str | None = None,
    ) -> None:
        self.name, self._data, self._only_in = name, data, only_in
        self._error, self._breaks_at = error, breaks_at
        self.asked: list[tuple[str, int]] = []

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        self.asked.append((repository, 0))
        raise self._error or NotFoundError(f"{self.name}: no manifest {digest}")

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        self.asked.append((repository, offset))
        if self._only_in not in (None, repository):
            raise NotFoundError(f"{self.name}: no blob in {repository}")
        for start in range(offset, len(self._data), 4):
            if self._error is not None and start >= self._breaks_at:
                break
            yield self._data[start : start + 4]
        if self._error is not None:
            raise self._error


ERRORS: list[MirrorError] = [
    NotFoundError("it is not there"),
    UnreachableError("no answer", where="GET"),
    DeniedError("not for you", where="GET", status=403),
    RegistryError("broken", where="GET", status=500),
    SizeMismatchError(where="there", expected=16, actual=3),
    DigestMismatchError(where="there", expected=DIGEST, actual=Digest.of(b"")),
    FileSystemError("cannot be read"),
]


def read(source: FailoverSource, repository: str = "a") -> bytes:
    """The blob as a transfer reads it: judged, and begun again while that is worth it."""
    content = BlobContent(source, repository, DIGEST, len(DATA))
    while True:
        try:
            return b"".join(content.chunks())
        except NoSoundCopyError:
            raise
        except IntegrityError as err:
            source.reject(DIGEST, err)
        content = content.restarted()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("breaks_at", [0, 4, 12])
def test_after_any_failure_of_a_place_the_next_goes_on_where_it_broke_off(
    error: MirrorError, breaks_at: int
) -> None:
    broken, sound = Place("broken", error=error, breaks_at=breaks_at), Place("sound")
    source = FailoverSource([broken, sound])
    assert read(source) == DATA
    assert sound.asked == [("a", breaks_at)]
    assert read(source) == DATA
    assert len(broken.asked) == 1, "it is remembered"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_manifest_is_taken_from_the_next_place_too(error: MirrorError) -> None:
    store = MemoryStore("sound")
    digest = put_image(store, "a")
    broken = Place("broken", error=error)
    source = FailoverSource([broken, store])
    for _ in range(2):
        assert source.manifest("a", digest) is store.manifest("a", digest)
    assert len(broken.asked) == 1


def test_the_first_that_knows_answers() -> None:
    one, other = MemoryStore("one"), MemoryStore("other")
    only_there = put_image(other, "a", layers=(b"there",))
    both = put_image(one, "a", layers=(b"here",))
    put_image(other, "a", layers=(b"here",))
    source = FailoverSource([one, other])
    assert source.name == "one"
    assert source.manifest("a", both) is one.manifest("a", both)
    assert source.manifest("a", only_there) is other.manifest("a", only_there)
    assert b"".join(source.blob("a", Digest.of(b"there"), 5, 2)) == b"ere"
    with pytest.raises(NoSoundCopyError, match="other: no manifest sha256:"):
        source.manifest("a", Digest.of(b"nowhere"))
    with pytest.raises(NoSoundCopyError, match="other: no blob sha256:"):
        b"".join(source.blob("a", Digest.of(b"no blob"), 1))


@pytest.mark.parametrize("wrong", [b"X" + DATA[1:], DATA[:-1], DATA + b"more", b""])
def test_wrong_bytes_are_replaced_by_those_of_the_next_place(wrong: bytes) -> None:
    liar, sound = Place("liar", wrong), Place("sound")
    source = FailoverSource([liar, sound])
    assert read(source) == DATA
    assert read(source) == DATA
    assert len(liar.asked) == 1


def test_of_two_places_that_gave_parts_the_sound_one_is_not_blamed_for_the_other() -> None:
    liar = Place("liar", b"X" + DATA[1:], error=RegistryError("broke", where=""), breaks_at=8)
    sound = Place("sound")
    assert read(FailoverSource([liar, sound])) == DATA
    assert sound.asked == [("a", 8), ("a", 0)]


def test_a_place_that_does_not_answer_is_asked_last_from_then_on() -> None:
    other = b"another blob"
    dead = Place("dead", error=UnreachableError("no answer", where="GET"))
    sound, late = Place("sound"), Place("late", other)
    source = FailoverSource([dead, sound, late])
    assert read(source) == DATA
    digest = Digest.of(other)
    assert b"".join(source.blob("a", digest, len(other)))[:4] == DATA[:4]
    assert len(dead.asked) == 1
    assert late.asked == []


def test_content_that_a_registry_lost_in_one_repository_comes_from_another() -> None:
    builder = InventoryBuilder()
    for path in ("a", "b", "c"):
        builder.add_blob(path, DIGEST, len(DATA))
    leader, replica = Place("leader", only_in="c"), Place("replica")
    assert read(FailoverSource([leader, replica], builder.build())) == DATA
    assert [path for path, _ in leader.asked] == ["a", "b", "c"]
    assert replica.asked == []


def test_damage_in_one_repository_is_damage_in_all_of_that_registry() -> None:
    builder = InventoryBuilder()
    for path in ("a", "b"):
        builder.add_blob(path, DIGEST, len(DATA))
    leader, replica = Place("leader", b"X" + DATA[1:]), Place("replica")
    assert read(FailoverSource([leader, replica], builder.build())) == DATA
    assert [path for path, _ in leader.asked] == ["a"]


def test_a_holder_is_asked_where_it_has_the_blob_and_for_no_other() -> None:
    builder = InventoryBuilder()
    builder.add_blob("elsewhere", DIGEST, len(DATA))
    holder = Place("target", only_in="elsewhere")
    assert read(FailoverSource([Holder(holder, builder.build())])) == DATA
    assert holder.asked == [("elsewhere", 0)]
    absent = Place("target")
    with pytest.raises(NoSoundCopyError, match="target: it is not there"):
        read(FailoverSource([Holder(absent, InventoryBuilder().build())]))
    assert absent.asked == []


def test_one_error_names_every_place_and_its_reason() -> None:
    places = [
        Place("leader", error=NotFoundError("it is gone")),
        Place("replica", b"X" + DATA[1:]),
        Place("third", error=RegistryError("broken disk", where="", status=500)),
    ]
    with pytest.raises(NoSoundCopyError) as caught:
        read(FailoverSource(places))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"blob {DIGEST} cannot be had anywhere:"
    assert lines[1] == "  leader: it is gone"
    assert lines[2].startswith("  replica: ")
    assert "this copy is damaged" in lines[2]
    assert lines[3] == "  third: broken disk"
    assert caught.value.exit_code == 4
    assert [place for place, _ in caught.value.failures] == ["leader", "replica", "third"]


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([NotFoundError("gone")], 4),
        ([NotFoundError("gone"), UnreachableError("no answer", where="")], 5),
        ([NotFoundError("gone"), DeniedError("no", where="")], 6),
        ([UnreachableError("no answer", where="")] * 2, 5),
        ([DeniedError("no", where="")] * 2, 6),
        ([RegistryError("no", where="", status=409)] * 2, 1),
        ([NotFoundError("gone"), RegistryError("no", where="", status=409)], 4),
    ],
)
def test_the_exit_code_says_whether_the_content_may_be_sound_somewhere(
    errors: list[MirrorError], code: int
) -> None:
    places = [Place(f"{at}", error=error) for at, error in enumerate(errors)]
    for _ in range(2):
        with pytest.raises(MirrorError, match="cannot be had anywhere") as caught:
            read(FailoverSource(places))
        assert caught.value.exit_code == code


def test_every_caller_gets_an_error_of_its_own() -> None:
    source = FailoverSource([Place("gone", error=NotFoundError("gone"))])
    raised = []
    for _ in range(2):
        with pytest.raises(NoSoundCopyError) as caught:
            read(source)
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_a_cancellation_is_no_failure_of_a_place() -> None:
    stopped, other = Place("stopped", error=CancelledError("stopped"), breaks_at=4), Place("other")
    source = FailoverSource([stopped, other])
    with pytest.raises(CancelledError):
        read(source)
    assert other.asked == []


def test_a_place_that_fails_is_told_of_once_and_mere_absence_is_not() -> None:
    heard: list[Event] = []
    dead = Place("dead", error=UnreachableError("no answer", where=""))
    absent, sound = Place("absent", error=NotFoundError("gone")), Place("sound")
    source = FailoverSource([dead, absent, sound], on_event=heard.append)
    for _ in range(2):
        assert read(source) == DATA
    (event,) = heard
    assert isinstance(event, Warned)
    assert str(event.message) == f"dead does not give {DIGEST}: no answer"


def test_an_abandoned_read_lets_go_of_the_place() -> None:
    closed: list[str] = []

    class Watched(Place):
        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            try:
                yield from super().blob(repository, digest, size, offset)
            finally:
                closed.append(self.name)

    with closing(FailoverSource([Watched("one")]).blob("a", DIGEST, len(DATA))) as stream:
        next(stream)
        assert closed == []
    assert closed == ["one"]


PLACES = st.lists(
    st.tuples(
        st.sampled_from([DATA, b"X" + DATA[1:], DATA[:9], DATA + b"more"]),
        st.one_of(st.none(), st.sampled_from(ERRORS)),
        st.sampled_from([0, 4, 8, 12, 16]),
    ),
    min_size=1,
    max_size=4,
)


@given(PLACES)
def test_one_sound_place_among_any_others_is_enough(
    others: list[tuple[bytes, MirrorError | None, int]],
) -> None:
    places = [
        Place(f"{at}", data, error=error, breaks_at=breaks_at)
        for at, (data, error, breaks_at) in enumerate(others)
    ]
    for where in range(len(places) + 1):
        for one in places:
            one.asked.clear()
        mixed = [*places[:where], Place("sound"), *places[where:]]
        assert read(FailoverSource(mixed)) == DATA
        assert all(len(one.asked) <= 2 for one in places)


def test_a_disk_that_cannot_be_read_is_no_damage_and_would_fail_again() -> None:
    disk = Place("disk", error=FileSystemError("bundle.tar: Input/output error"))
    source = FailoverSource([disk, MemoryStore()])
    with pytest.raises(FileSystemError, match="Input/output error") as caught:
        b"".join(source.blob("", DIGEST, len(DATA)))
    assert caught.value.exit_code == 1
    with pytest.raises(FileSystemError, match="Input/output error"):
        source.manifest("", DIGEST)
