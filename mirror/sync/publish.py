"""Publication: statements written to and read from a registry, and the journal of a tag phase.

Below the root, in `mirror/inventory`, these tags name statements (`mirror.sync.statement`):

* `latest`: what the registry holds now;
* `pending`: what it is on its way to. It is set before the first tag of a release turns, and
  `latest` follows when the last one has; so whoever finds the two different knows of an
  interrupted phase, and of what it was to come to. It stays where it is afterwards, as many
  registries cannot delete a tag;
* `generation-<n>`: every state that was reached;
* `<hex>`: the last generation with the inventory of that digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from mirror.errors import (
    ConflictError,
    IntegrityError,
    InvalidManifestError,
    RegistryNotFoundError,
    StatementError,
)
from mirror.oci import Digest
from mirror.registry import RegistryWriter
from mirror.sync.artifact import Artifact, put_artifact
from mirror.sync.observe import listed_tags
from mirror.sync.registry import Locate
from mirror.sync.statement import REPOSITORY, Statement, layer_of
from mirror.sync.tags import Tags, tags_of

LATEST = "latest"
PENDING = "pending"

_GENERATION_TAG = re.compile(r"generation-([1-9][0-9]{0,17})")


Marks: TypeAlias = tuple[Digest | None, Digest | None]
"""What `pending` and `latest` name: whether anybody began or completed a publication shows here."""


@dataclass(frozen=True, slots=True)
class Published:
    """A statement that a registry has. `digest` is that of its artifact: equal on all replicas."""

    digest: Digest
    statement: Statement


@dataclass(frozen=True, slots=True)
class Standing:
    """What a registry says of itself.

    `current` is what it reached last; `pending` what a phase that was interrupted was to come to,
    else None. `generation` is the highest that is known of; 0 if none is. `notices` tell of what
    is there and cannot be read. `marks` are what the tags `pending` and `latest` named then.
    """

    current: Published | None = None
    pending: Published | None = None
    generation: int = 0
    notices: tuple[str, ...] = ()
    marks: Marks = (None, None)

    @property
    def newest(self) -> Published | None:
        """What the next statement follows: an interrupted phase is finished before it."""
        return self.pending or self.current

    def known_tags(self) -> tuple[Tags, ...]:
        """What tags may name that was set by nobody else."""
        known = [tags_of(one.statement.inventory) for one in self._all()]
        return (*known, self.pending.statement.former) if self.pending else tuple(known)

    def _all(self) -> tuple[Published, ...]:
        return tuple(one for one in (self.current, self.pending) if one)


def generation_tag(generation: int) -> str:
    """The tag under which a generation is kept."""
    return f"generation-{generation}"


def statement_digest(client: RegistryWriter, locate: Locate, tag: str = LATEST) -> Digest | None:
    """The digest of the artifact that `tag` names, by one request; None if there is none.

    Registries whose digests are equal state the same inventory, and the same generation of it.
    """
    found = client.resolve(locate(REPOSITORY), tag)
    return found.digest if found else None


def read_statement(
    client: RegistryWriter, locate: Locate, reference: str | Digest = LATEST
) -> Published | None:
    """The statement that `reference` names, every byte of it checked; None if there is none.

    Raises:
        StatementError: what is there is no statement, or is damaged.
        InputError: it is of a newer schema.
    """
    repository = locate(REPOSITORY)
    where = f"{client.host}/{repository}:{reference}"
    try:
        manifest = client.manifest(repository, reference)
    except RegistryNotFoundError:
        return None
    except (IntegrityError, InvalidManifestError) as err:
        raise StatementError(f"{where} cannot be read: {err}") from err
    try:
        layer = layer_of(manifest)
        # With its size told, no more than that is ever taken in.
        data = b"".join(client.blob(repository, layer.digest, size=layer.size))
        return Published(manifest.digest, Statement.from_json(data))
    except (IntegrityError, RegistryNotFoundError) as err:
        raise StatementError(
            f"{where} cannot be read: {err}; push the bundle again to state anew what is there"
        ) from err


def generations(client: RegistryWriter, locate: Locate) -> list[int]:
    """The generations that the registry keeps statements of, rising."""
    tags = listed_tags(client, locate(REPOSITORY))
    return sorted(int(found[1]) for tag in tags if (found := _GENERATION_TAG.fullmatch(tag)))


def read_generation(client: RegistryWriter, locate: Locate, generation: int) -> Published | None:
    """The statement of a generation; None if the registry keeps none.

    Raises:
        StatementError: it is none, or that of another generation.
        InputError: it is of a newer schema.
    """
    tag = generation_tag(generation)
    found = read_statement(client, locate, tag)
    if found is not None and found.statement.generation != generation:
        raise StatementError(
            f"{client.host}/{locate(REPOSITORY)}:{tag} is generation {found.statement.generation}"
        )
    return found


def read_standing(client: RegistryWriter, locate: Locate) -> Standing:
    """Both statements of a registry, and whether a phase was interrupted.

    A statement that cannot be read is told of in `notices`; for `latest` the newest generation
    that can be read stands in.

    Raises:
        InputError: a statement is of a newer schema.
    """
    notices: list[str] = []

    def read(reference: str) -> Published | None:
        try:
            return read_statement(client, locate, reference)
        except StatementError as err:
            notices.append(str(err))
            return None

    pending = None
    tip, reached = marks = read_marks(client, locate)
    current = read(LATEST) if reached else None
    if tip is not None and tip != reached:
        pending = read(PENDING)
        if pending == current:
            pending = None  # it was completed between these questions
    generation = max((one.statement.generation for one in (current, pending) if one), default=0)
    if notices:
        kept = generations(client, locate)
        generation = max([generation, *kept])
        if current is None and reached is not None:
            stand_ins = (read(generation_tag(number)) for number in reversed(kept))
            current = next(filter(None, stand_ins), None)
    return Standing(current, pending, generation, tuple(notices), marks)


def read_marks(client: RegistryWriter, locate: Locate) -> Marks:
    """What `pending` and `latest` name now, by two requests."""
    return statement_digest(client, locate, PENDING), statement_digest(client, locate, LATEST)


def check_unchanged(
    client: RegistryWriter, locate: Locate, standing: Standing, goal: Digest | None = None
) -> None:
    """Check that nobody has published anything since `standing` was read, `goal` excepted.

    Else what is published next would not speak of what the other one brought.

    Raises:
        ConflictError: somebody has.
    """
    now = read_marks(client, locate)
    if now == standing.marks or (goal is not None and now[0] == goal):
        return
    raise ConflictError(
        f"{client.host}/{locate(REPOSITORY)}: another push, rollback, sync or prune published "
        "something since this one began; no tag was changed: run it again, one at a time; what "
        "has arrived is not sent twice"
    )


def begin(client: RegistryWriter, locate: Locate, artifact: Artifact) -> None:
    """Announce the statement that the tags are about to be turned to."""
    put_artifact(client, locate(REPOSITORY), artifact, artifact.manifest.digest, PENDING)


def complete(client: RegistryWriter, locate: Locate, statement: Statement, digest: Digest) -> None:
    """State it: every tag has turned. `digest` is that of the artifact, which is there already.

    Raises:
        ConflictError: somebody else began another phase meanwhile.
    """
    repository = locate(REPOSITORY)
    if statement_digest(client, locate, PENDING) != digest:
        raise ConflictError(
            f"{client.host}/{repository}: another push, rollback or sync began while this one ran; "
            "run it again, one at a time"
        )
    manifest = client.manifest(repository, digest)
    # Last of all `latest`: whoever finds it finds the history complete.
    tags = (generation_tag(statement.generation), statement.inventory.digest().encoded, LATEST)
    for tag in tags:
        client.put_manifest(repository, tag, manifest)
