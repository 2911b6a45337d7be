"""What a registry states, and what it is to state next.

Below the root, in `mirror/inventory`, these tags name statements (`mirror.sync.statement`):

* `latest`: what the registry holds now;
* `pending`: what it is on its way to. It is set before the first tag of a release turns, and
  `latest` follows when the last one has turned. Whoever finds that the two differ knows that a
  publication was interrupted, and what it was to reach. `pending` stays where it is afterwards, as
  many registries cannot delete a tag;
* `staged`: what new images belong to that go by their tags. It is set before the first of these
  tags, and stays. Where it is neither of the two above, their push was cut off before it announced
  anything, and whoever comes next knows by it that no other tool has set them;
* `generation-<n>`: every state that was reached;
* `reached-<n>`: not a statement, but when this registry reached that one (`reached`). Statements
  hold no time, so that equal content makes equal digests on every replica;
* `<hex>`: the last generation whose inventory has that digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from mirror.errors import (
    IntegrityError,
    InvalidManifestError,
    RegistryError,
    RegistryNotFoundError,
    StatementError,
    UntrustedStatementError,
)
from mirror.events import Warned
from mirror.oci import Descriptor, Digest, Manifest
from mirror.run import Run
from mirror.sync.inventory import Inventory
from mirror.sync.plan import Tags, differing, laid_over, tags_of, unaccounted
from mirror.sync.statement import (
    REPOSITORY,
    SIGNATURE,
    Artifact,
    Statement,
    following,
    joined,
    layer_of,
    make_artifact,
    succeed,
)
from mirror.sync.tree import RegistryTree

LATEST = "latest"
PENDING = "pending"
STAGED = "staged"

_GENERATION_TAG = re.compile(r"generation-([1-9][0-9]{0,17})")

Tips: TypeAlias = tuple[Digest | None, Digest | None]
"""The statements that `pending` and `latest` name: every publication changes them."""


@dataclass(frozen=True, slots=True)
class Published:
    """A statement that a registry has. `digest` is that of its artifact: equal on all replicas.

    `signed` says whether our own key signed it or, where that is not known, any.
    """

    digest: Digest
    statement: Statement
    signed: bool = False


@dataclass(frozen=True, slots=True)
class PublicationState:
    """What a registry states.

    Attributes:
        current: what it reached last.
        pending: what an interrupted publication was to reach, else None.
        generation: the highest that is known; 0 if none is.
        notices: what is there and cannot be read, one line each.
        staged: what a publication was to reach that set tags of new images and announced nothing.
        tips: what the tags `pending` and `latest` named when this was read.
    """

    current: Published | None = None
    pending: Published | None = None
    generation: int = 0
    notices: tuple[str, ...] = ()
    staged: Published | None = None
    tips: Tips = (None, None)

    @property
    def newest(self) -> Published | None:
        """What the next statement follows: an interrupted publication is finished before it."""
        return self.pending or self.current

    @property
    def stated(self) -> Inventory:
        """What `newest` says that the registry holds; nothing without one."""
        return self.newest.statement.inventory if self.newest else Inventory()

    @property
    def newest_digest(self) -> Digest | None:
        """The digest of `newest`."""
        return self.newest.digest if self.newest else None

    def known_tags(self) -> tuple[Tags, ...]:
        """The tags that the registry's own publications account for."""
        both = [one for one in (self.current, self.pending) if one]
        known = [tags_of(one.statement.inventory) for one in both]
        return (*known, self.pending.statement.former) if self.pending else tuple(known)

    def own_tags(self) -> tuple[Tags, ...]:
        """Those, and the tags that `staged` has brought or was about to bring."""
        if self.staged is None:
            return self.known_tags()
        statement = self.staged.statement
        return (*self.known_tags(), differing(tags_of(statement.inventory), statement.former))


def next_statement(
    state: PublicationState,
    pushed: Inventory,
    held: Inventory,
    *,
    tool: str,
    above: int = 0,
    signs: bool = False,
) -> Statement | None:
    """What the registry states once all of `pushed` has come; None if it states that already.

    `held` is what was there before, tags above all. The generation rises by one, and lies above
    `above`: the highest of a replica that states something else. If it `signs`, an unsigned
    statement is stated again.
    """
    before = state.stated
    inventory = succeed(before, pushed)
    former = unaccounted(tags_of(held), *state.own_tags())
    same = inventory == before and not former and above < state.generation
    if state.newest and same and (state.newest.signed or not signs):
        return None
    return Statement(inventory, following(max(state.generation, above)), former, tool=tool)


def tags_to_finish(state: PublicationState) -> Tags:
    """What the tags of an interrupted publication are to name; nothing without one. Pure."""
    if state.pending is None:
        return {}
    statement = state.pending.statement
    before = tags_of(state.current.statement.inventory) if state.current else {}
    # A tag that somebody else had moved turns too, though neither statement says so.
    before = laid_over(before, statement.former)
    return differing(tags_of(statement.inventory), before)


# -- reading ---------------------------------------------------------------------------------------


def generation_tag(generation: int) -> str:
    """The tag under which a generation is kept."""
    return f"generation-{generation}"


def statement_digest(tree: RegistryTree, tag: str = LATEST) -> Digest | None:
    """The digest of the statement that `tag` names, by one request; None if there is none.

    Registries whose digests are equal state the same inventory as the same generation.
    """
    found = statement_tip(tree, tag)
    return found.digest if found else None


def statement_tip(
    tree: RegistryTree, tag: str = LATEST, known: Descriptor | None = None
) -> Descriptor | None:
    """As `statement_digest`; conditional where it is `known` what the tag named before."""
    return tree.client.resolve(tree.locate(REPOSITORY), tag, known=known)


def read_tips(tree: RegistryTree) -> Tips:
    """What `pending` and `latest` name now, by two requests."""
    return statement_digest(tree, PENDING), statement_digest(tree, LATEST)


def read_statement(tree: RegistryTree, reference: str | Digest = LATEST) -> Published | None:
    """The statement that `reference` names, every byte of it checked; None if there is none.

    Raises:
        StatementError: what is there is not a statement, or is damaged.
        UntrustedStatementError: nobody whom `tree.keys` trusts signed it.
        InputError: it has a newer schema.
    """
    repository = tree.locate(REPOSITORY)
    where = f"{tree.client.host}/{repository}:{reference}"
    try:
        manifest = tree.client.manifest(repository, reference)
    except RegistryNotFoundError:
        return None
    except (IntegrityError, InvalidManifestError) as err:
        raise StatementError(f"{where} cannot be read: {err}") from err
    signature = manifest.annotations.get(SIGNATURE)
    try:
        document = _layer(tree, manifest)
        tree.keys.check(document, signature)  # before anybody reads what it says
        statement = Statement.from_json(document)
    except UntrustedStatementError as err:
        raise UntrustedStatementError(err.problem, where=where, advice=err.advice) from err
    except (IntegrityError, RegistryNotFoundError) as err:
        raise StatementError(
            f"{where} cannot be read: {err}; push the bundle again to state anew what is there"
        ) from err
    return Published(manifest.digest, statement, tree.keys.made(document, signature))


def generations(tree: RegistryTree) -> list[int]:
    """The generations of which the registry keeps a statement, rising."""
    tags = tree.listed_tags(REPOSITORY)
    return sorted(int(found[1]) for tag in tags if (found := _GENERATION_TAG.fullmatch(tag)))


def read_generation(tree: RegistryTree, generation: int) -> Published | None:
    """The statement of a generation; None if the registry does not keep it.

    Raises:
        StatementError: it cannot be read, or is that of another generation.
        InputError: it has a newer schema.
    """
    tag = generation_tag(generation)
    found = read_statement(tree, tag)
    if found and found.statement.generation != generation:
        raise StatementError(
            f"{tree.client.host}/{tree.locate(REPOSITORY)}:{tag} is generation "
            f"{found.statement.generation}"
        )
    return found


def kept_statements(tree: RegistryTree) -> Iterator[tuple[int, Published]]:
    """The generations that the registry keeps, rising, each with its statement.

    Each is read when it is asked for: a caller that keeps none holds one in memory at a time. One
    that nobody whom `tree.keys` trusts signed, from before the keys perhaps, is left out.

    Raises:
        StatementError: one cannot be read.
        InputError: one has a newer schema.
    """
    for generation in generations(tree):
        with suppress(UntrustedStatementError):
            if published := read_statement(tree, generation_tag(generation)):
                yield generation, published


def read_artifact(tree: RegistryTree, published: Published) -> Artifact:
    """A statement byte for byte as it lies there, whichever version of mirror wrote it."""
    artifact = published.statement.artifact()
    if artifact.manifest.digest == published.digest:
        return artifact
    manifest = tree.client.manifest(tree.locate(REPOSITORY), published.digest)
    return Artifact(manifest, _layer(tree, manifest))


# -- when ------------------------------------------------------------------------------------------

_REACHED = "application/vnd.deckhouse.mirror.reached.v1"
_CREATED = "org.opencontainers.image.created"
_STATEMENT = "io.deckhouse.mirror.statement"


def reached_tag(generation: int) -> str:
    """The tag of the artifact that says when a registry reached a generation."""
    return f"reached-{generation}"


def reached(tree: RegistryTree, published: Published) -> datetime | None:
    """When this registry first stated `published`, in UTC, by the clock of who wrote it there.

    None if nobody wrote that down, as before release 1.0, or it cannot be read. Nobody signs it and
    nothing is decided by it.
    """
    note = reached_note(tree, published.statement.generation)
    with suppress(LookupError, ValueError, OverflowError):
        if note is not None and note.annotations[_STATEMENT] == str(published.digest):
            return datetime.fromisoformat(note.annotations[_CREATED]).astimezone(UTC)
    return None


def reached_note(tree: RegistryTree, generation: int) -> Manifest | None:
    """The manifest that says when a generation was reached; None if none does, or none is given."""
    with suppress(RegistryError, InvalidManifestError, IntegrityError):
        found = tree.client.manifest(tree.locate(REPOSITORY), reached_tag(generation))
        return found if found.artifact_type == _REACHED else None
    return None


def write_reached(tree: RegistryTree, published: Published) -> None:
    """Write down that the registry reaches `published` now, unless it did before.

    A registry may refuse it: the release counts, and not its date.
    """
    if reached(tree, published) is not None:
        return
    notes = {
        _CREATED: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        _STATEMENT: str(published.digest),
    }
    manifest = make_artifact(_REACHED, annotations=notes).manifest
    tag = reached_tag(published.statement.generation)
    with suppress(RegistryError):  # its blobs are those of the statement's configuration
        tree.client.put_manifest(tree.locate(REPOSITORY), tag, manifest)


def _layer(tree: RegistryTree, manifest: Manifest) -> bytes:
    layer = layer_of(manifest)
    # `size` bounds what is read.
    pieces = tree.client.blob(tree.locate(REPOSITORY), layer.digest, size=layer.size)
    try:
        with closing(pieces):
            return joined(pieces)
    except ValueError as err:
        raise StatementError(f"it is not a published inventory: {err}") from err


def read_state(tree: RegistryTree, run: Run | None = None) -> PublicationState:
    """What a registry states, and whether a publication was interrupted.

    `notices` name each statement that cannot be read, and `run` hears warnings of them. In place of
    an unreadable `latest` stands the newest generation that can be read. Where keys forbid a
    downgrade, it stands in the place of an older `latest` too, and what is announced must be above
    it: whatever was signed once can be put there again by who may write where statements lie.

    Raises:
        InputError: a statement has a newer schema.
    """
    notices: list[str] = []

    def read(reference: str) -> Published | None:
        try:
            return read_statement(tree, reference)
        except StatementError as err:
            notices.append(str(err))
            return None

    pending = None
    announced, reached = tips = read_tips(tree)
    current = read(LATEST) if reached else None
    if announced is not None and announced != reached:
        pending = read(PENDING)
        if pending == current:
            pending = None  # it was completed between these questions
    staged = None
    if statement_digest(tree, STAGED) not in (None, *tips):
        with suppress(StatementError):  # it only says whose tags are, and nothing is brought by it
            staged = read_statement(tree, STAGED)
    if tree.keys.forbids_downgrade:
        current, pending = _without_replays(tree, current, pending, notices)
    generation = max((one.statement.generation for one in (current, pending) if one), default=0)
    if notices:
        kept = generations(tree)
        generation = max([generation, *kept])
        if current is None and reached is not None:
            stand_ins = (read(generation_tag(number)) for number in reversed(kept))
            current = next(filter(None, stand_ins), None)
    if run is not None:
        for notice in notices:
            run.on_event(Warned(notice))
    return PublicationState(current, pending, generation, tuple(notices), staged, tips)


def _without_replays(
    tree: RegistryTree, current: Published | None, pending: Published | None, notices: list[str]
) -> tuple[Published | None, Published | None]:
    """The highest signed generation that is kept, and what is announced if it lies above that."""
    for number in reversed(generations(tree)):
        if current is not None and number < current.statement.generation:
            break
        try:
            kept = read_generation(tree, number)
        except StatementError as err:
            notices.append(str(err))
            continue
        if kept is not None and kept.digest != (current.digest if current else None):
            notices.append(
                f"{tree.name}: `{LATEST}` does not name generation {number}, the highest that was "
                "signed: somebody put an older statement in its place"
            )
            current = kept
        break
    above = current.statement.generation if current else 0
    if pending is not None and pending.statement.generation <= above:
        notices.append(
            f"{tree.name}: `{PENDING}` names generation {pending.statement.generation}, which is "
            f"not above generation {above}: somebody announced it again, and it is not finished"
        )
        pending = None
    return current, pending
