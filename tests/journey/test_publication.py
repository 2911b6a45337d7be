"""What a push publishes, and how an earlier release comes back: on real and embedded registries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import ConflictError
from mirror.operations.push import push
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import MemoryStore, make_plan, transfer, union
from mirror.sync.publication_state import (
    generation_tag,
    generations,
    reached_tag,
    read_state,
    read_statement,
    statement_digest,
)
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry
from tests.support.inventories import put_image, put_index
from tests.support.places import tree_of
from tests.support.program import Finished, call_mirror
from tests.support.real_registry import RealRegistry
from tests.support.releases import STATEMENTS, Release, snapshot
from tests.support.wire import Wire

ROOT = "dkp/ee"
CHANNEL = "/release-channel/manifests/(alpha|beta|early-access|stable|rock-solid)\\b"


class Place:
    """A registry to push to, by the program and on the wire."""

    def __init__(self, address: str, http: httpx.Client) -> None:
        self.address, self.wire = address, Wire(http)
        self.client = RegistryClient(address, options=ConnectionOptions(plain_http=True))
        self.tree = tree_of(self.client, ROOT)

    def run(self, command: str, *args: str | Path, bundle: Path | None = None) -> Finished:
        before = (bundle,) if bundle else ()
        return call_mirror(
            command, *before, f"{self.address}/{ROOT}", "--insecure", "--json", *args
        )

    def push(self, release: Release) -> Finished:
        return self.run("push", bundle=release.bundle)

    def tags(self) -> dict[str, dict[str, str]]:
        return snapshot(self.wire, ROOT)

    def generation(self) -> int:
        published = read_statement(self.tree)
        assert published is not None
        return published.statement.generation

    def put(self, store: MemoryStore) -> None:
        """What some other tool would push."""
        wanted = store.inventory()
        target = self.tree.target()
        transfer(make_plan(wanted, target.held(wanted)), store, target)


def place_at(registry: RealRegistry | EmbeddedRegistry) -> Iterator[Place]:
    with httpx.Client(base_url=f"http://{registry.address}") as http:
        place = Place(registry.address, http)
        with place.client:
            yield place


@pytest.fixture
def real(real_registry: RealRegistry) -> Iterator[Place]:
    yield from place_at(real_registry)


@pytest.fixture
def embedded(embedded_registry: EmbeddedRegistry) -> Iterator[Place]:
    yield from place_at(embedded_registry)


@pytest.fixture(params=["real", "embedded"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind = "real_registry" if request.param == "real" else "embedded_registry"
    yield from place_at(request.getfixturevalue(kind))


# -- stating ---------------------------------------------------------------------------------------


def test_a_push_states_all_that_it_brought_and_the_index(
    real: Place, releases: tuple[Release, ...]
) -> None:
    document = real.push(releases[0]).succeeded().document
    published = read_statement(real.tree)
    assert published is not None
    with BundleReader([releases[0].bundle]) as reader:
        bundle = reader.inventory()
    assert published.statement.inventory == union([bundle, discovery_images(bundle).inventory()])
    assert document["published"] == {
        "generation": 1,
        "inventory": str(published.statement.inventory.digest()),
        "digest": str(published.digest),
        "new": True,
    }
    hex_tag = published.statement.inventory.digest().encoded
    tags = {"latest", "pending", "generation-1", hex_tag}
    assert set(real.wire.tags(f"{ROOT}/{STATEMENTS}")) == {*tags, "reached-1", "staged"}
    for tag in tags:
        assert statement_digest(real.tree, tag) == published.digest


def test_the_same_push_again_states_nothing_new(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    first = embedded.push(releases[0]).succeeded().document["published"]
    before = embedded.wire.tags(f"{ROOT}/{STATEMENTS}")
    again = embedded.push(releases[0]).succeeded().document
    assert again["published"] == {**first, "new": False}
    assert embedded.wire.tags(f"{ROOT}/{STATEMENTS}") == before


def test_two_registries_with_the_same_pushes_state_the_same_bytes(
    make_embedded_registry: MakeEmbeddedRegistry, releases: tuple[Release, ...]
) -> None:
    digests = set()
    for _ in range(2):
        for place in place_at(make_embedded_registry()):
            for release in releases[:2]:
                place.push(release).succeeded()
            digests.add(statement_digest(place.tree))
    assert len(digests) == 1


def test_parts_of_a_bundle_add_up_to_the_whole(
    make_embedded_registry: MakeEmbeddedRegistry, releases: tuple[Release, ...]
) -> None:
    archives = sorted(releases[0].bundle.glob("*.tar"))
    assert len(archives) > 2
    for parts in place_at(make_embedded_registry()):
        stated = [
            parts.run("push", "--file", archive).succeeded().document["published"]["new"]
            for archive in archives
        ]
        assert parts.generation() == stated.count(True) >= 4  # one has what another had
        by_parts = read_statement(parts.tree)
    for whole in place_at(make_embedded_registry()):
        whole.push(releases[0]).succeeded()
        at_once = read_statement(whole.tree)
    assert by_parts is not None
    assert at_once is not None
    assert by_parts.statement.inventory == at_once.statement.inventory


def test_a_verification_does_not_mind_the_statements(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    for release in releases[:2]:
        embedded.push(release).succeeded()
    against = ("--against", f"{embedded.address}/{ROOT}", "--insecure", "--deep")
    call_mirror("verify", releases[1].bundle, *against).succeeded()


def test_a_statement_that_was_damaged_is_written_anew_with_a_higher_generation(
    real_registry: RealRegistry, real: Place, releases: tuple[Release, ...]
) -> None:
    real.push(releases[0]).succeeded()
    real.push(releases[1]).succeeded()
    artifact = json.loads(real.wire.manifest(f"{ROOT}/{STATEMENTS}", "latest") or b"")
    real_registry.blob_path(artifact["layers"][0]["digest"]).write_bytes(b"{}")
    run = real.push(releases[2]).succeeded()
    assert "latest cannot be read" in run.stderr
    assert run.document["published"]["generation"] == 3
    assert generations(real.tree) == [1, 2, 3]


def test_a_push_that_may_not_state_anything_sends_nothing(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded_registry.faults.add(Fault(Answer(403), "POST", STATEMENTS, times=None))
    run = embedded.push(releases[0]).failed(6)
    assert f"{STATEMENTS} may not be written to, so nothing was sent" in run.text
    assert embedded_registry.requests.received() == 0


def test_a_push_that_cannot_bring_everything_states_nothing(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    before = embedded.tags()
    embedded_registry.faults.add(Fault(Answer(400), "PUT", "/blobs/uploads/", nth=3, times=None))
    embedded.push(releases[1]).failed(1, "could not be brought")
    assert embedded.generation() == 1
    assert embedded.tags() == before


# -- the phase -------------------------------------------------------------------------------------


def interrupt(registry: EmbeddedRegistry, place: Place, release: Release) -> None:
    """Push, and have the registry refuse the channels."""
    registry.faults.add(Fault(Answer(400), "PUT", CHANNEL, nth=3, times=None))
    place.push(release).failed(1, "could not be brought")
    registry.faults.clear()


def test_a_phase_that_was_interrupted_is_finished_by_the_next_push(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    interrupt(embedded_registry, embedded, releases[1])
    pending = statement_digest(embedded.tree, "pending")
    assert pending not in (None, statement_digest(embedded.tree))

    again = embedded.push(releases[1]).succeeded().document["published"]
    assert (again["generation"], again["digest"]) == (2, str(pending))
    assert statement_digest(embedded.tree) == pending
    for path, tags in releases[1].tags().items():
        assert embedded.tags()[path].items() >= tags.items()


def test_another_push_finishes_it_too_before_its_own(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    interrupt(embedded_registry, embedded, releases[1])
    assert embedded.push(releases[2]).succeeded().document["published"]["generation"] == 3
    assert generations(embedded.tree) == [1, 2, 3]
    statement = read_statement(embedded.tree)
    assert statement is not None
    held = {path: dict(tags) for path, tags in embedded.tags().items()}
    stated = {
        path: {tag: str(digest) for tag, digest in content.tags.items()}
        for path, content in statement.statement.inventory.repositories.items()
        if content.tags
    }
    assert held == stated


@pytest.mark.parametrize("first", [True, False])
def test_a_phase_that_was_interrupted_is_turned_back_by_a_rollback(
    embedded_registry: EmbeddedRegistry,
    embedded: Place,
    releases: tuple[Release, ...],
    first: bool,
) -> None:
    if not first:
        embedded.push(releases[0]).succeeded()
    before = embedded.tags()
    interrupt(embedded_registry, embedded, releases[1])
    assert embedded.tags() != before
    shown = embedded.run("history").succeeded().document
    assert shown["interrupted"] == (1 if first else 2)

    document = embedded.run("rollback").succeeded().document
    assert (document["interrupted"], document["restored"]) == (True, 0 if first else 1)
    assert embedded.tags() == before
    assert embedded.generation() == (2 if first else 3)
    assert embedded.run("history").succeeded().document["interrupted"] is None


@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        (CHANNEL, 3),
        # All tags have turned: what is left is to state it.
        (f"{STATEMENTS}/manifests/generation-3", 1),
        (f"{STATEMENTS}/manifests/latest", 1),
    ],
)
def test_an_interrupted_rollback_goes_on_when_it_is_run_again(
    embedded_registry: EmbeddedRegistry,
    embedded: Place,
    releases: tuple[Release, ...],
    moment: str,
    nth: int,
) -> None:
    embedded.push(releases[0]).succeeded()
    before = embedded.tags()
    embedded.push(releases[1]).succeeded()
    embedded_registry.faults.add(Fault(Answer(400), "PUT", moment, nth=nth, times=None))
    embedded.run("rollback").failed(1)
    embedded_registry.faults.clear()
    document = embedded.run("rollback", "--to", "1").succeeded().document
    assert (document["restored"], document["generation"]) == (1, 3)
    assert embedded.tags() == before
    assert embedded.generation() == 3
    assert read_state(embedded.tree).pending is None


def test_tags_that_somebody_else_moves_during_a_push_are_not_overwritten(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    """The push has seen the channel; then, while its blobs travel, another tool turns it."""
    embedded.push(releases[0]).succeeded()
    other = MemoryStore()
    put_image(other, "release-channel", "stable", layers=(b"by hand",))
    moved = False

    def move(event: object) -> None:
        nonlocal moved
        if not moved and type(event).__name__ == "TransferStarted":
            moved = True
            embedded.put(other)

    with (
        BundleReader([releases[1].bundle]) as reader,
        pytest.raises(ConflictError, match="release-channel:stable was changed by somebody else"),
    ):
        push(reader, embedded.tree, run=Run(on_event=move))
    assert embedded.generation() == 1
    embedded.push(releases[1]).succeeded()  # which now knows of it, and so does a rollback
    embedded.run("rollback").succeeded()
    stable = str(other.inventory().repository("release-channel").tags["stable"])
    assert embedded.tags()["release-channel"]["stable"] == stable


def test_whoever_finds_the_newest_statement_finds_the_history_complete(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    puts = embedded_registry.requests.matching("PUT", f"{STATEMENTS}/manifests/", 201)
    named = [one.path.rpartition("/")[2] for one in puts]
    assert named.index("pending") < named.index("generation-1") < named.index("latest")
    assert named[-1] == "latest"


# -- history and rollback --------------------------------------------------------------------------


def test_a_rollback_restores_every_former_digest(
    place: Place, releases: tuple[Release, ...]
) -> None:
    states = []
    for release in releases:
        place.push(release).succeeded()
        states.append(place.tags())
    for to, state in ((1, states[0]), (3, states[2]), (2, states[1])):
        document = place.run("rollback", "--to", str(to)).succeeded().document
        now = place.tags()
        for path, tags in state.items():
            assert now[path].items() >= tags.items()
        extras = {
            f"{path}:{tag}"
            for path, tags in now.items()
            for tag in tags
            if tag not in state.get(path, {})
        }
        assert extras == set(document["extras"]) - set(document["removed"])
        published = read_statement(place.tree)
        before = read_statement(place.tree, f"generation-{to}")
        assert published is not None
        assert before is not None
        assert published.statement.inventory == before.statement.inventory
        assert published.statement.restores == to
    assert place.generation() == 6


def test_where_tags_can_be_deleted_a_rollback_leaves_none_of_the_newer_ones(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    before = embedded.tags()
    embedded.push(releases[1]).succeeded()
    after = embedded.tags()
    document = embedded.run("rollback").succeeded().document
    assert sorted(document["extras"]) == sorted(document["removed"]) != []
    assert embedded.tags() == before
    # And their manifests are there still: it takes another rollback to have them again.
    embedded.run("rollback", "--to", "2").succeeded()
    assert embedded.tags() == after
    assert set(embedded.wire.tags(f"{ROOT}/{STATEMENTS}")) >= {"latest", "generation-4"}


def test_what_other_tools_had_pushed_before_comes_back(
    real: Place, releases: tuple[Release, ...]
) -> None:
    other = MemoryStore()
    put_image(other, "release-channel", "stable", "beta", layers=(b"by hand",))
    put_image(other, "", "v1.70.0", layers=(b"another build",))
    put_image(other, "unrelated", "v1", layers=(b"not ours",))
    real.put(other)
    before = real.tags()
    real.push(releases[0]).succeeded()
    real.push(releases[1]).succeeded()
    assert real.tags()["release-channel"]["stable"] != before["release-channel"]["stable"]

    real.run("rollback", "--to", "0").succeeded()
    now = real.tags()
    for path, tags in before.items():
        assert now[path].items() >= tags.items()
    statement = read_statement(real.tree)
    assert statement is not None
    stated = statement.statement.inventory
    assert set(stated.repositories) == {"release-channel", ""}  # what we never touched is not ours
    assert list(stated.gaps()) == []


def test_a_tag_that_another_tool_moved_between_two_pushes_comes_back_as_it_was(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    other = MemoryStore()
    put_image(other, "release-channel", "stable", layers=(b"by hand",))
    embedded.put(other)
    before = embedded.tags()
    embedded.push(releases[1]).succeeded()
    embedded.run("rollback").succeeded()
    now = embedded.tags()
    for path, tags in before.items():
        assert now[path].items() >= tags.items()


def test_what_another_tool_nested_is_read_once_however_often_it_is_named(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    other = MemoryStore()
    nested = put_image(other, "release-channel", layers=(b"by hand",))
    for _ in range(8):
        nested = put_index(other, "release-channel", children=[nested, nested])
    other.put_tag("release-channel", "stable", other.manifest("release-channel", nested))
    embedded.put(other)
    embedded.push(releases[1]).succeeded()
    embedded_registry.requests.clear()
    embedded.run("rollback").succeeded()
    asked = embedded_registry.requests.matching("GET", "/release-channel/manifests/sha256:", 200)
    assert len(asked) < 40, "not 2 ** 8"
    assert embedded.tags()["release-channel"]["stable"] == str(nested)


def test_a_rollback_stays_until_the_next_release(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    embedded.push(releases[1]).succeeded()
    embedded.run("rollback").succeeded()
    back = embedded.tags()["release-channel"]["stable"]
    assert back == releases[0].tags()["release-channel"]["stable"]
    again = embedded.push(releases[0]).succeeded().document["published"]
    assert (again["generation"], again["new"]) == (3, False)
    assert embedded.push(releases[1]).succeeded().document["published"]["generation"] == 4
    assert embedded.tags()["release-channel"]["stable"] != back


def test_a_rollback_to_what_is_not_whole_any_more_changes_nothing_and_says_what_lacks(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    embedded.push(releases[1]).succeeded()
    before = embedded.tags()
    first, second = (release.tags()["release-channel"]["stable"] for release in releases[:2])
    assert first != second
    embedded.wire.http.delete(f"/v2/{ROOT}/release-channel/manifests/{first}")
    before = embedded.tags()
    run = embedded.run("rollback").failed(1, "does not hold all of generation 1 any more")
    assert [failure["item"] for failure in run.document["error"]["failures"]] == [
        f"manifest release-channel@{first}"
    ]
    assert embedded.tags() == before
    assert embedded.generation() == 2
    assert embedded_registry.requests.count("PUT", CHANNEL) == 10


def test_a_rollback_asks_once_about_each_tag_and_not_about_what_the_present_state_names(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    embedded.push(releases[1]).succeeded()
    stated = [read_statement(embedded.tree, f"generation-{n}") for n in (1, 2)]
    former, present = (one.statement.inventory for one in stated if one)
    embedded_registry.requests.clear()
    document = embedded.run("rollback").succeeded().document
    count = embedded_registry.requests.count
    tags = sum(len(content.tags) for content in former.repositories.values())
    lists = len(former.repositories)
    others = 20  # statements, and what was there before the first generation
    assert count("HEAD", "/manifests/(?!sha256:)") <= tags + len(document["extras"]) + others
    assert count("GET", "/manifests/") <= len(document["turned"]) + others
    assert count("PUT", "/manifests/(?!sha256:)") <= len(document["turned"]) + others
    assert count("GET", "/tags/list") <= 2 * lists + others
    gone = sum(
        len(content.blobs.keys() - present.repository(path).blobs.keys())
        for path, content in former.repositories.items()
    )
    assert count("HEAD", "/blobs/") <= gone + others


def test_a_blob_that_only_an_earlier_generation_names_is_missed_before_a_tag_turns(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    first = read_statement(embedded.tree)
    embedded.push(releases[1]).succeeded()
    second = read_statement(embedded.tree)
    assert first is not None
    assert second is not None
    then, now = (one.statement.inventory for one in (first, second))
    path, lost = next(
        (path, blob)
        for path, content in sorted(then.repositories.items())
        for blob in sorted(content.blobs.keys() - now.repository(path).blobs.keys())
    )
    embedded.wire.http.delete(f"/v2/{ROOT}/{path}/blobs/{lost}".replace("//", "/"))
    before = embedded.tags()
    run = embedded.run("rollback").failed(1, "does not hold all of generation 1 any more")
    items = [failure["item"] for failure in run.document["error"]["failures"]]
    assert items == [f"blob {lost} in {path or '/'}"]
    assert embedded.tags() == before


def test_a_dry_run_of_a_rollback_lists_the_tags_and_writes_nothing(
    embedded_registry: EmbeddedRegistry, embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    embedded.push(releases[1]).succeeded()
    embedded_registry.requests.clear()
    document = embedded.run("rollback", "--dry-run").succeeded().document
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        assert embedded_registry.requests.count(method) == 0
    assert document["dryRun"] is True
    stable = next(
        turn
        for turn in document["turned"]
        if (turn["repository"], turn["tag"]) == ("release-channel", "stable")
    )
    assert stable == {
        "repository": "release-channel",
        "tag": "stable",
        "before": releases[1].tags()["release-channel"]["stable"],
        "after": releases[0].tags()["release-channel"]["stable"],
    }
    assert "install:v1.71.0" in document["extras"]
    text = call_mirror("rollback", f"{embedded.address}/{ROOT}", "--insecure", "--dry-run")
    assert "This would turn registry" in text.succeeded().stdout
    assert "release-channel:stable  sha256:" in text.stdout


def test_a_rollback_of_nothing_or_to_nowhere_says_what_there_is(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.run("rollback").failed(1, "states no inventory", "a push writes one")
    embedded.push(releases[0]).succeeded()
    embedded.run("rollback").failed(2, "no generation before 1", "--to 0")
    embedded.run("rollback", "--to", "1").failed(2, "not before the current one, 1")
    embedded.push(releases[1]).succeeded()
    embedded.push(releases[2]).succeeded()
    embedded.wire.http.delete(f"/v2/{ROOT}/{STATEMENTS}/manifests/generation-1")
    embedded.run("rollback", "--to", "1").failed(2, "keeps no generation 1, but 2, 3")


def test_a_generation_that_is_listed_and_not_given_is_no_mistake_of_who_asks(
    embedded: Place, embedded_registry: EmbeddedRegistry, releases: tuple[Release, ...]
) -> None:
    for release in releases[:2]:
        embedded.push(release).succeeded()
    gone = Fault(Answer(404), "GET", f"{STATEMENTS}/manifests/generation-1", times=None)
    embedded_registry.faults.add(gone)
    embedded.run("rollback", "--to", "1").failed(4, "lists generation 1 and does not give it")


def test_history_lists_what_each_generation_changed(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    assert embedded.run("history").succeeded().document["generations"] == []
    for release in releases[:2]:
        embedded.push(release).succeeded()
    embedded.run("rollback").succeeded()
    document = embedded.run("history").succeeded().document
    assert (document["current"], document["interrupted"], document["older"]) == (3, None, 0)
    third, second, first = document["generations"]
    assert [one["generation"] for one in (first, second, third)] == [1, 2, 3]
    assert [one["current"] for one in (first, second, third)] == [False, False, True]
    assert first["inventory"] == third["inventory"] != second["inventory"]
    assert (first["restores"], third["restores"]) == (None, 1)
    assert first["tags"]["added"] == first["tags"]["total"] > 0
    assert second["versions"] == ["modules/console/release:v1.2.0", "release-channel:v1.71.0"]
    assert "release-channel:stable" in second["channels"]
    assert second["tags"]["changed"] == third["tags"]["changed"] >= 5
    assert second["tags"]["added"] == third["tags"]["removed"] > 0

    last = embedded.run("history", "--last", "1").succeeded().document
    assert (last["generations"], last["older"]) == ([third], 2)
    text = call_mirror("history", f"{embedded.address}/{ROOT}", "--insecure").succeeded().stdout
    assert re.search(r"\n  3  \S+ \S+ UTC  \(current; restores generation 1\)\n", text)
    assert "    Versions   platform v1.71.0; console v1.2.0" in text


# -- when a generation was reached -----------------------------------------------------------------


def test_history_and_status_tell_when_the_registry_reached_a_generation(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    embedded.push(releases[0]).succeeded()
    embedded.push(releases[1]).succeeded()
    second, first = embedded.run("history").succeeded().document["generations"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["reached"])
    times = [began, *(datetime.fromisoformat(one["reached"]) for one in (first, second))]
    assert sorted([*times, datetime.now(UTC)])[:3] == times
    (replica,) = embedded.run("status").succeeded().document["replicas"]
    assert replica["reached"] == second["reached"]
    shown = f"{times[2]:%Y-%m-%d %H:%M} UTC"
    address = f"{embedded.address}/{ROOT}"
    text = call_mirror("history", address, "--insecure").succeeded().stdout
    assert f"\n  2  {shown}  (current)\n" in text
    text = call_mirror("status", address, "--insecure").succeeded().stdout
    assert f"{address}: complete (generation 2 of {shown})" in text


def test_a_registry_keeps_the_date_of_the_first_time_and_knows_none_of_another_statement(
    embedded: Place, embedded_registry: EmbeddedRegistry, releases: tuple[Release, ...]
) -> None:
    repository = f"{ROOT}/{STATEMENTS}"
    embedded_registry.faults.add(Fault(Answer(403), "PUT", f"{STATEMENTS}/manifests/latest"))
    embedded.push(releases[0]).failed(6, "403")  # just before its end
    ours = embedded.client.manifest(repository, reached_tag(1))
    embedded.push(releases[0]).succeeded()
    assert embedded.client.manifest(repository, reached_tag(1)) == ours
    embedded.push(releases[1]).succeeded()
    # Somebody sets the date of another generation there, or anything at all.
    for reference in (ours.digest, embedded.client.manifest(repository, "latest").digest):
        other = embedded.client.manifest(repository, reference)
        embedded.client.put_manifest(repository, reached_tag(2), other)
        second, first = embedded.run("history").succeeded().document["generations"]
        assert (second["reached"], bool(first["reached"])) == (None, True)
    address = f"{embedded.address}/{ROOT}"
    text = call_mirror("history", address, "--insecure").succeeded().stdout
    assert "\n  2  (current)\n" in text


def test_a_registry_that_refuses_the_date_gets_its_release(
    embedded: Place, embedded_registry: EmbeddedRegistry, releases: tuple[Release, ...]
) -> None:
    refused = Fault(Answer(400), "PUT", f"{STATEMENTS}/manifests/reached-1", times=None)
    embedded_registry.faults.add(refused)
    embedded.push(releases[0]).succeeded()
    (first,) = embedded.run("history").succeeded().document["generations"]
    assert (first["current"], first["reached"]) == (True, None)


def test_a_prune_leaves_no_date_of_a_generation_that_goes(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    for release in releases[:2]:
        embedded.push(release).succeeded()
    embedded.run("prune", "--keep", "2", "--yes").succeeded()
    tags = embedded.tree.listed_tags(STATEMENTS)
    assert {one for one in tags if "-" in one} == {
        *(generation_tag(number) for number in generations(embedded.tree)),
        *(reached_tag(number) for number in generations(embedded.tree)),
    }
    assert generation_tag(1) not in tags


# -- what a prune says beforehand ------------------------------------------------------------------


def test_a_dry_run_of_a_prune_says_which_versions_and_generations_go_and_that_one_is_current(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    for release in releases[:2]:
        embedded.push(release).succeeded()
    prune = ("prune", f"{embedded.address}/{ROOT}", "--insecure", "--keep", releases[1].bundle)
    dry = call_mirror(*prune, "--dry-run").succeeded().stdout
    assert "\n    versions: platform v1.69.1; console v1.0.0\n" in dry
    assert (
        "\n  no way back to generations 1, 2; a new one takes the place of the current 2\n" in dry
    )
    planned = call_mirror(*prune, "--dry-run", "--json").succeeded().document
    done = call_mirror(*prune, "--yes", "--json").succeeded().document
    assert done["generations"] == planned["generations"] == [1, 2]
    assert (planned["generation"], done["generation"]) == (2, 3)
    current, *older = embedded.run("history").succeeded().document["generations"]
    assert (current["generation"], older) == (3, [])


def test_a_number_to_keep_is_that_of_a_generation_and_no_count(
    embedded: Place, releases: tuple[Release, ...]
) -> None:
    embedded.push(releases[0]).succeeded()
    told = "it has no generation 3; those it has: 1 (--keep takes their numbers, not how many)"
    embedded.run("prune", "--keep", "3", "--dry-run").failed(1, told)
    page = call_mirror("prune", "--help").succeeded().stdout
    assert "not how many to keep" in " ".join(page.split())
