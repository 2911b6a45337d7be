"""Whether a registry's statement may be followed: its tags, its signature and its age say so.

Whoever may write to the one repository where statements lie could state anything there, and every
replica would follow. So a statement is compared with the tags that it speaks of, signed or not; and
what is older than what a replica has seen needs somebody's word.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from semver import Version

from mirror.errors import (
    ConflictError,
    DowngradeError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    RegistryNotFoundError,
    StatementError,
    counted,
)
from mirror.events import Warned
from mirror.layout import CHANNELS, holds_releases, parse_version
from mirror.oci import Digest
from mirror.run import Run, gather
from mirror.sync import Inventory
from mirror.sync.observe import named
from mirror.sync.plan import Plan, PutTag, Tags, differing, laid_over, tags_of, tags_of_steps
from mirror.sync.publication_state import (
    PENDING,
    PublicationState,
    Published,
    read_state,
    statement_digest,
)
from mirror.sync.statement import REPOSITORY, generation_of
from mirror.sync.tree import RegistrySource, RegistryTree


class StatementTrust:
    """What confirms the statement `digest` of a registry; None states nothing. Thread-safe.

    It reads the manifests of tags through `source`, which keeps them for whoever carries them next.
    """

    def __init__(
        self, tree: RegistryTree, digest: Digest | None, source: RegistrySource, run: Run
    ) -> None:
        self._tree, self._digest, self._source, self._run = tree, digest, source, run
        self._lock = threading.Lock()
        self._named: Tags = {}  # under the lock: what its tags name, as far as was asked

    def confirm(self, tags: Tags) -> Tags:
        """Ask the registry whether its own tags name what it states in `tags`; one request each.

        A signature does not replace that: whatever was signed once can be put there again. Returns
        those of `tags` that the registry does not have.

        Raises:
            ConflictError: a publication is under way or was interrupted there, so its tags are
                ahead of its statement.
            StatementError: its tags name something else than it states.
        """
        if self._digest is None:
            return {}
        with self._lock:
            unasked = [
                PutTag(path, tag, digest)
                for path, one in differing(tags, self._named).items()
                for tag, digest in one.items()
            ]
            answers = zip(unasked, gather(unasked, self._ask, run=self._run), strict=True)
            now = tags_of_steps([replace(one, digest=found) for one, found in answers if found])
            self._named = laid_over(self._named, now)
            known = self._named
        unlike = differing(tags, known)
        wrong = [
            (path, tag, digest, found)
            for path, one in unlike.items()
            for tag, digest in one.items()
            if (found := known.get(path, {}).get(tag)) is not None
        ]
        if wrong:
            raise self._contradiction(wrong)
        return unlike

    def _ask(self, step: PutTag) -> Digest | None:
        """What a tag names, by the algorithm of its wanted digest; None if it names nothing."""
        algorithm = step.digest.algorithm
        try:
            manifest = self._source.fetch(step.repository, step.tag)
        except RegistryNotFoundError:
            return None
        except (IntegrityError, InvalidManifestError):  # another registry may have it sound
            repository = self._tree.locate(step.repository)
            return named(self._tree.client, repository, step.tag, step.digest)
        found = manifest.digest
        return found if found.algorithm == algorithm else Digest.of(manifest.raw, algorithm)

    def confirmed(self, plan: Plan) -> tuple[Plan, list[tuple[str, MirrorError]]]:
        """`plan` without the tags that the registry states and does not have, and those.

        Raises as `confirm`.
        """
        missing = self.confirm(tags_of_steps([step for stage in plan.tags for step in stage]))
        problem = NotFoundError("the leader states this tag and does not have it: it was not set")
        lost: list[tuple[str, MirrorError]] = [
            (f"tag {path or '/'}:{tag}", problem) for path in missing for tag in missing[path]
        ]
        stages = (
            tuple(step for step in stage if step.tag not in missing.get(step.repository, {}))
            for stage in plan.tags
        )
        return replace(plan, tags=tuple(filter(None, stages))) if missing else plan, lost

    def refuse_exchange(
        self, stated: Published | None, announced: Digest | None, standing: PublicationState
    ) -> None:
        """Check that nobody turns the registry meanwhile to what its replica states, or back.

        It states `stated` and had `announced` something when it was asked first; the replica had
        the `standing`. Two syncs in opposite directions would exchange what the registries hold. As
        each announces what it does before it looks here, at least one of them notices.

        Raises:
            ConflictError: somebody does.
        """
        pending = statement_digest(self._tree, PENDING) if stated is not None else None
        if stated is None or pending in (None, stated.digest, announced):
            return
        manifest = self._tree.client.manifest(self._tree.locate(REPOSITORY), pending)
        generation, followed = generation_of(manifest) or 0, stated.statement.generation
        if pending == standing.newest_digest or generation <= followed:
            raise ConflictError(
                f"another sync turns it to generation {generation} while this one follows its "
                f"generation {followed}; no tag was changed",
                where=self._tree.name,
                advice="run one of the two again, and no sync in the opposite direction",
            )

    def _contradiction(self, wrong: Sequence[tuple[str, str, Digest, Digest]]) -> MirrorError:
        """Why tags name something else than stated: (path, tag, what is stated, what it names)."""
        newest = read_state(self._tree).newest
        if newest is not None and newest.digest != self._digest:
            coming = tags_of(newest.statement.inventory)
            if all(coming.get(path, {}).get(tag) == now for path, tag, _, now in wrong):
                return ConflictError(
                    f"generation {newest.statement.generation} is being published there, or was "
                    "when somebody interrupted it, so its tags are ahead of its statement",
                    where=self._tree.name,
                    advice="run this again when that push is over, or run the push again",
                )
        path, tag, stated, now = wrong[0]
        others = len(wrong) - 1
        more = f", and {counted(others, 'more tag')} differ{'s' * (others == 1)}" if others else ""
        return StatementError(
            f"its statement contradicts its tags, so nothing follows it: it states {stated} for "
            f"{path or '/'}:{tag}, which names {now}{more}",
            where=self._tree.name,
            advice=f"find out who wrote to {self._tree.locate(REPOSITORY)} or moved that tag; then "
            "push the bundle that it is to have again, or set the tag back",
        )


def refuse_older(
    leader: RegistryTree, stated: Published | None, replica: RegistryTree, seen: Published
) -> None:
    """Check that `leader` states no older generation than the `replica` has `seen`.

    It matters where keys are trusted: everything was signed once, and who replays it would take
    back what came since.

    Raises:
        DowngradeError: it does, and nobody allowed that.
    """
    if stated is None or not replica.keys.forbids_downgrade:
        return
    theirs, ours = stated.statement.generation, seen.statement.generation
    if theirs < ours or (theirs == ours and stated.digest != seen.digest):
        raise DowngradeError(
            f"the leader {leader.name} states generation {theirs}, and this registry has seen "
            f"{'another ' if theirs == ours else ''}generation {ours}",
            where=replica.name,
            advice="if the older one is what you want, run it with --allow-downgrade",
        )


@dataclass(frozen=True, slots=True)
class Downgrade:
    """A release channel that is to lead from version `before` back to `after`."""

    repository: str
    channel: str
    before: Version
    after: Version

    def __str__(self) -> str:
        return f"{self.repository}:{self.channel} from {self.before} to {self.after}"


def downgrades(before: Tags, after: Tags) -> list[Downgrade]:
    """The channels that `after` takes back to an older version than in `before`. Pure.

    A channel's version is that of the tag beside it that names the same image; without one on
    either side nothing is said of that channel.
    """
    found = []
    for path in filter(holds_releases, sorted(before.keys() & after.keys())):
        for channel in sorted(before[path].keys() & after[path].keys() & set(CHANNELS)):
            old, new = (_version(tags[path], tags[path][channel]) for tags in (before, after))
            if old is not None and new is not None and new < old:
                found.append(Downgrade(path, channel, old, new))
    return found


def _version(tags: Mapping[str, Digest], digest: Digest) -> Version | None:
    """The highest version whose tag names `digest`."""
    named = (parse_version(tag) for tag, one in tags.items() if one == digest)
    return max(filter(None, named), default=None)


def check_downgrade(
    tree: RegistryTree,
    state: PublicationState,
    held: Inventory,
    wanted: Inventory,
    *,
    run: Run,
    strict: bool = False,
    what: str = "the bundle",
) -> None:
    """Check that `wanted`, which is `what`, leads no channel back to an older version.

    `held` is what of it the registry has, in the `state` in which it was. A warning tells of what
    is not refused.

    Raises:
        DowngradeError: it does, `strict` is asked for or keys are trusted, and nobody allowed that.
    """
    found = downgrades(laid_over(tags_of(state.stated), tags_of(held)), tags_of(wanted))
    if not found:
        return
    more = f" and {len(found) - 3} more channels" if len(found) > 3 else ""
    listed = ", ".join(map(str, found[:3])) + more
    problem = f"{what} is older than what is there: it takes {listed}"
    if tree.keys.allow_downgrade or not (strict or tree.keys.trusted):
        run.on_event(Warned(f"{tree.name}: {problem}"))
        return
    raise DowngradeError(
        problem,
        where=tree.name,
        advice="nothing was written; if that is what you want, push with --allow-downgrade",
    )
