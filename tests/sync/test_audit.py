from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.errors import CancelledError, DeniedError, MirrorError
from mirror.events import BlobDone, BytesMoved, Event, serialised
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.run import Cancellation, Run
from mirror.serve import MemoryStorage
from mirror.sync import Dependents, Finding, Inventory, MemoryStore, make_plan, transfer
from mirror.sync.observation import Depth, findings_of, listed
from mirror.sync.observe import observe
from mirror.sync.tree import RegistryTarget
from mirror.testing import Answer, CorruptBody, CutResponse, EmbeddedRegistry, Fault
from tests.support.inventories import (
    Item,
    items,
    lost_with_manifest,
    put_image,
    put_index,
    sample_store,
    without,
)
from tests.support.places import below, client_of, storage_of

STORE = sample_store()
WANTED = STORE.inventory()
BASE = b"base layer " * 300


@pytest.fixture(scope="module")
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(MemoryStorage()) as made:
        yield made


@pytest.fixture(autouse=True)
def _healthy(registry: EmbeddedRegistry) -> Iterator[None]:
    yield
    registry.faults.clear()


@pytest.fixture(scope="module")
def client(registry: EmbeddedRegistry) -> Iterator[RegistryClient]:
    with client_of(registry) as made:
        yield made


@pytest.fixture
def place(client: RegistryClient, request: pytest.FixtureRequest) -> RegistryTarget:
    """A registry that holds all of the sample tree, below a root of the test's own."""
    root = f"root-{abs(hash(request.node.name))}"
    made = RegistryTarget(client, below(root), "the cluster's registry", run=Run(jobs=4))
    transfer(make_plan(WANTED, Inventory()), STORE, made)
    return made


def audit(
    wanted: Inventory, place: RegistryTarget, *, deep: bool = False, run: Run | None = None
) -> tuple[Finding, ...]:
    depth = Depth.DEEP if deep else Depth.AUDIT
    return findings_of(wanted, observe(place, wanted, depth, run=run))


def _tags_that_need(item: Item) -> tuple[str, ...]:
    """The slow and obvious way: walk down from every tag."""
    content = WANTED.repository(item.repository)
    needing = []
    for tag, digest in content.tags.items():
        reached, pending = set(), [digest]
        while pending:
            reached.add(one := pending.pop())
            node = content.manifests.get(one)
            if node is not None:
                pending += [below.digest for below in (*node.blobs, *node.children)]
        if item.key in reached:
            needing.append(tag)
    return tuple(sorted(needing))


def _lose(registry: EmbeddedRegistry, repository: str, item: Item) -> None:
    storage = storage_of(registry)
    match item.key:
        case str(tag):
            assert storage.delete_tag(repository, tag)
        case digest if item.kind == "blob":
            assert storage.delete_blob(repository, digest)
        case digest:
            assert storage.delete_manifest(repository, digest)


# -- what is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_a_complete_registry_gives_no_findings(place: RegistryTarget, deep: bool) -> None:
    assert audit(WANTED, place, deep=deep, run=Run(jobs=4)) == ()


def test_every_single_loss_is_found_and_named_with_those_who_need_it(
    registry: EmbeddedRegistry, place: RegistryTarget
) -> None:
    for item in items(WANTED):
        _lose(registry, place.locate(item.repository), item)
        findings = audit(WANTED, place, run=Run(jobs=4))
        content = WANTED.repository(item.repository)
        if isinstance(item.key, str):
            digest = content.tags[item.key]
            problem = f"the tag is missing ({digest})"
            expected = [Finding(place.name, problem, item.repository, (item.key,), digest)]
        else:
            needing = _tags_that_need(item)
            assert needing
            problem = f"{item.kind} {item.key} is missing"
            expected = [Finding(place.name, problem, item.repository, needing, item.key)]
        for lost in lost_with_manifest(WANTED, item):
            assert isinstance(lost.key, str)
            digest = content.tags[lost.key]
            problem = f"the tag is missing ({digest})"
            expected += [Finding(place.name, problem, item.repository, (lost.key,), digest)]
        assert list(findings) == expected
        # Repair is one more plan.
        transfer(
            make_plan(WANTED, without(WANTED, item, *lost_with_manifest(WANTED, item))),
            STORE,
            place,
        )
    assert audit(WANTED, place, run=Run(jobs=4)) == ()


def test_an_empty_registry_lacks_everything(client: RegistryClient) -> None:
    findings = audit(WANTED, RegistryTarget(client, below("nothing-here")))
    assert [finding.repository for finding in findings] == sorted(WANTED.repositories)
    for finding in findings:
        content = WANTED.repository(finding.repository or "")
        assert finding.tags == tuple(sorted(content.tags))
        assert finding.problem == (
            f"nothing of this repository is there: {len(content.tags)} tags, "
            f"{len(content.manifests)} manifests and {len(content.blobs)} blobs are missing"
        )


def test_a_tag_that_names_another_image_is_told_with_both(place: RegistryTarget) -> None:
    other = MemoryStore()
    new = put_image(other, "release-channel", "alpha", layers=(b"another version",))
    transfer(make_plan(other.inventory(), Inventory()), other, place)
    (finding,) = audit(WANTED, place)
    old = WANTED.repository("release-channel").tags["alpha"]
    assert str(finding) == (
        "the cluster's registry: repository release-channel, tag alpha: "
        f"the tag names {new} instead of {old}"
    )
    assert finding.to_document() == {
        "place": "the cluster's registry",
        "repository": "release-channel",
        "tags": ["alpha"],
        "components": [],
        "digest": str(old),
        "problem": f"the tag names {new} instead of {old}",
    }


def test_what_the_registry_has_besides_is_no_finding(place: RegistryTarget) -> None:
    other = MemoryStore()
    put_image(other, "", "v0.9.0", layers=(b"older",))
    put_image(other, "modules/extra", "v1", layers=(b"more",))
    transfer(make_plan(other.inventory(), Inventory()), other, place)
    assert audit(WANTED, place, deep=True) == ()


# -- what is damaged -------------------------------------------------------------------------------


def test_a_damaged_blob_is_found_by_reading_and_named_everywhere_it_is_needed(
    registry: EmbeddedRegistry, place: RegistryTarget
) -> None:
    digest = Digest.of(BASE)
    registry.faults.add(Fault(CorruptBody(at=1234), "GET", f"/blobs/{digest}", times=None))
    assert audit(WANTED, place) == ()  # no look from outside can tell
    findings = audit(WANTED, place, deep=True)
    assert [(one.repository, one.tags, one.digest) for one in findings] == [
        ("", _tags_that_need(Item("", "blob", digest)), digest),
        ("modules/console", ("v0.1.0",), digest),
    ]
    told = f"what is there as {digest} is damaged, it hashes to sha256:"
    assert all(told in one.problem for one in findings)
    assert all("delete it in the registry, then push again" in one.problem for one in findings)


@pytest.mark.parametrize("digest", sorted(WANTED.manifest_nodes()), ids=lambda one: one.encoded[:8])
def test_every_damaged_manifest_is_found(
    registry: EmbeddedRegistry, place: RegistryTarget, digest: Digest
) -> None:
    registry.faults.add(Fault(CorruptBody(at=30), "GET", f"/manifests/{digest}", times=None))
    findings = audit(WANTED, place, deep=True)
    assert findings
    assert {one.digest for one in findings} == {digest}
    assert {one.repository for one in findings} == {
        path for path, content in WANTED.repositories.items() if digest in content.manifests
    }
    told = f"what is there as {digest} is damaged, it hashes to sha256:"
    assert all(told in one.problem for one in findings)


def test_deep_reads_each_blob_and_manifest_once(
    registry: EmbeddedRegistry, place: RegistryTarget
) -> None:
    registry.requests.clear()
    heard: list[Event] = []
    assert audit(WANTED, place, deep=True, run=Run(on_event=serialised(heard.append))) == ()
    assert registry.requests.count("GET", "/blobs/") == len(WANTED.blob_sizes())
    assert registry.requests.count("GET", "/manifests/") == len(WANTED.manifest_nodes())
    moved = sum(event.count for event in heard if isinstance(event, BytesMoved))
    assert moved == sum(WANTED.blob_sizes().values())
    done = [event.digest for event in heard if isinstance(event, BlobDone)]
    assert sorted(done) == list(WANTED.blob_sizes())


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [Answer(403), CutResponse(after=1)], ids=["denied", "cut"])
def test_a_registry_that_does_not_answer_is_an_error_and_no_finding(
    registry: EmbeddedRegistry, place: RegistryTarget, action: Answer | CutResponse
) -> None:
    registry.faults.add(Fault(action, "GET", "/blobs/", times=None))
    cancel = Cancellation()
    with pytest.raises(MirrorError) as caught:
        audit(WANTED, place, deep=True, run=Run(cancellation=cancel))
    assert not cancel.requested  # the caller may try again
    assert caught.value.exit_code == (6 if isinstance(action, Answer) else 5)
    assert isinstance(caught.value, DeniedError) == isinstance(action, Answer)


def test_a_cancelled_audit_says_so(place: RegistryTarget) -> None:
    cancel = Cancellation()

    def on_event(event: Event) -> None:
        if isinstance(event, BlobDone):
            cancel.cancel()

    with pytest.raises(CancelledError, match="stopped on request"):
        audit(WANTED, place, deep=True, run=Run(2, on_event, cancel))


# -- findings as values ----------------------------------------------------------------------------


def test_a_finding_reads_as_a_sentence() -> None:
    digest = Digest.of(b"x")
    assert str(Finding("a.tar", "is gone")) == "a.tar: is gone"
    assert str(Finding("a.tar", "is gone", "")) == "a.tar: repository /: is gone"
    many = tuple(f"v{number}" for number in range(8))
    assert str(Finding("a.tar", "is gone", "m", many, digest)) == (
        "a.tar: repository m, tags v0, v1, v2, v3, v4 and 3 more: is gone"
    )


def test_a_long_list_of_findings_is_cut_and_says_so() -> None:
    findings = [Finding("a.tar", f"problem {number}") for number in range(25)]
    text = listed(findings)
    assert text.startswith("\n  a.tar: problem 0\n  a.tar: problem 1\n")
    assert text.endswith("\n  a.tar: problem 19\n  and 5 more")
    assert listed(findings[:2]) == "\n  a.tar: problem 0\n  a.tar: problem 1"
    assert listed([]) == ""


def test_dependents_are_found_through_any_number_of_indexes() -> None:
    store = MemoryStore()
    digest = put_image(store, "", layers=(b"deep",))
    for level in range(2_000):
        digest = put_index(store, "", children=[digest], note=str(level))
    store.put_tag("", "top", store.manifest("", digest))
    put_image(store, "", "other", layers=(b"other",))
    dependents = Dependents(store.inventory().repository(""))
    assert dependents.tags(Digest.of(b"deep")) == ("top",)
    assert dependents.tags(Digest.of(b"{}")) == ("other", "top")
    assert dependents.tags(Digest.of(b"unknown")) == ()
