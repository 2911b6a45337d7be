"""New authority, token keys and passwords without a gap: a walk of three steps.

First the new is trusted beside the old, then it is used, then the old is gone. The next step may be
taken when every node has applied the files of the last one: so nothing new is used before
everybody knows it. Each step is a value, `ServiceSecrets`, from which files are rendered.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mirror.errors import InputError, RenderingError
from mirror.modes import ModeKind, RegistryUser, outcomes
from mirror.modes.outcomes import StepOutcome
from mirror.modes.settings import NodeFacts
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.render import Rendered
from mirror.nodeconfig.service_secrets import (
    LENDERS,
    HashedAccount,
    Rotated,
    Rotation,
    RotationPhase,
    ServiceSecrets,
    hashed,
    new_account,
    prepare_secrets,
)

_P = RotationPhase


@dataclass(frozen=True, slots=True)
class RotationStep:
    """One step: what the files say, what is done for it, and what must be true before the next.

    `phase` is None for the last, after which no rotation is under way.
    """

    phase: RotationPhase | None
    action: str
    condition: str


_THINGS = {
    Rotated.AUTHORITY: "authority",
    Rotated.TOKEN: "token pair",
    Rotated.USERS: "passwords",
}


def rotation_steps(what: Collection[Rotated]) -> tuple[RotationStep, ...]:
    """The walk of a rotation, in order. Pure.

    Raises:
        ValueError: `what` is empty.
    """
    things = ", ".join(_THINGS[one] for one in _all_of(what))
    applied = "every node has applied these files, the masters one after the other"
    return (
        RotationStep(_P.TRUSTED, f"trust what is new beside the old: {things}", applied),
        RotationStep(_P.USED, f"use what is new, and trust the old: {things}", applied),
        RotationStep(None, f"trust the old no more: {things}", applied),
    )


def begin_rotation(
    kept: ServiceSecrets, what: Collection[Rotated], now: datetime.datetime
) -> ServiceSecrets:
    """Take the first step. `now` has its zone.

    Raises:
        RenderingError: a rotation is under way already.
        ValueError: `what` is empty.
    """
    if kept.rotation is not None:
        raise RenderingError(
            f"a rotation of {', '.join(kept.rotation.what)} is under way and has come to "
            f"{kept.rotation.phase}; complete it first: leave --rotate out, and render with "
            "--facts FILE when the nodes have applied its files"
        )
    rotated = _all_of(what)
    authorities, tokens = kept.authorities, kept.tokens
    if Rotated.AUTHORITY in rotated:
        authorities = authorities.with_successor(pki.create_authority(now))
        # One that the old authority signed would have to go with it.
        tokens = replace(tokens, successor=None)
    if Rotated.TOKEN in rotated:
        signer = authorities.successor or authorities.signing
        tokens = tokens.with_successor(pki.issue(signer, pki.TOKEN_NAME, (), now))
    beside = _next_accounts(kept) if Rotated.USERS in rotated else kept.beside
    return replace(
        kept,
        successor=authorities.successor,
        token_successor=tokens.successor,
        beside=beside,
        rotation=Rotation(rotated, _P.TRUSTED),
    )


def advance_rotation(
    kept: ServiceSecrets, nodes: Sequence[Node], now: datetime.datetime
) -> ServiceSecrets:
    """Take the next step; every node must have applied the files of the last one.

    Return what is held unchanged if no rotation is under way. `nodes` are all nodes.
    """
    rotation = kept.rotation
    if rotation is None:
        return kept
    authorities, tokens, users, beside = kept.authorities, kept.tokens, kept.users, kept.beside
    if rotation.phase is _P.TRUSTED:
        if Rotated.AUTHORITY in rotation.what:
            authorities = authorities.taken_over()
        if Rotated.TOKEN in rotation.what:
            tokens = tokens.taken_over()
        if Rotated.USERS in rotation.what:
            users, beside = {**users, **beside}, users
        then: Rotation | None = Rotation(rotation.what, _P.USED)
    else:
        if Rotated.AUTHORITY in rotation.what:
            authorities = authorities.alone()
        if Rotated.TOKEN in rotation.what:
            tokens = tokens.alone()
        if Rotated.USERS in rotation.what:
            beside = {}
        then = None
    moved = replace(
        kept,
        authority=authorities.signing,
        successor=authorities.successor,
        former=authorities.former,
        token=tokens.signing,
        token_successor=tokens.successor,
        token_former=tokens.former,
        users=users,
        beside=beside,
        rotation=then,
    )
    return prepare_secrets(moved, nodes, now)


@dataclass(frozen=True, slots=True)
class RotationTurn:
    """What a controller holds next, and what it tells; `outcome` is None where nothing rotates."""

    kept: ServiceSecrets
    outcome: StepOutcome | None = None
    refused: bool = False


def next_turn(
    kept: ServiceSecrets,
    request: str,
    kind: ModeKind,
    nodes: Sequence[Node],
    now: datetime.datetime,
    *,
    complete: bool | None,
) -> RotationTurn:
    """What follows where everybody has applied what is held.

    `request` has names of what to rotate, with commas; it waits for the rotation before it, of
    which `complete` was told, None where there was none. `kind` is the mode that is reached.
    """
    rotation = kept.rotation
    if rotation is None and (complete is False or not request):
        return RotationTurn(kept, None if complete is None else StepOutcome(True))
    try:
        what = possible_rotation(rotation.what if rotation else request.split(","), kind)
    except InputError as err:
        return RotationTurn(kept, StepOutcome(False, str(err)), refused=True)
    moved = advance_rotation(kept, nodes, now) if rotation else begin_rotation(kept, what, now)
    step = rotation_steps(what)[0 if rotation is None else 1 if moved.rotation else 2]
    return RotationTurn(moved, StepOutcome(False, step.action))


def possible_rotation(
    names: Collection[str], kind: ModeKind, *, by_agent: bool = True
) -> list[Rotated]:
    """What `names` say, where that mode can have it. Pure.

    Masters take their files from the module's agent, which reads `registry-node-config-…`, unless
    it is not `by_agent`.

    Raises:
        InputError: a name is unknown, or the mode cannot have it.
    """
    if unknown := [one for one in names if one not in list(Rotated)]:
        raise InputError(
            f"rotation: expected {', '.join(Rotated)}, found {unknown[0][:20]!r}; correct it"
        )
    if not kind.row.managed:
        raise InputError(
            "rotation: in mode Unmanaged the cluster has no authority and logins of its own; "
            "switch to Direct, Proxy or Local first"
        )
    users = kind.row.users
    if by_agent and Rotated.USERS in names and users and not {*LENDERS.values()} <= {*users}:
        raise InputError(
            "rotation: the masters' agent lets one login of each user in, and caches have no user "
            "whose place a second one could take; switch to Direct, where it is carried out, and "
            "back"
        )
    return [Rotated(one) for one in names]


def rotation_outcome(nodes: Sequence[NodeFacts] | None, rendered: Rendered) -> StepOutcome:
    """Whether every node has applied the files of the present step, `rendered`. Pure."""
    told = {node.name for node in nodes or ()}
    unknown = sorted(rendered.nodes.keys() - told)
    if unknown:
        return StepOutcome(
            False, f"nobody has said which version these nodes have applied: {', '.join(unknown)}"
        )
    return outcomes.containerd_config(nodes or (), rendered.version)


def _all_of(what: Collection[Rotated]) -> tuple[Rotated, ...]:
    if not what:
        raise ValueError("nothing is to be rotated")
    also = {Rotated.TOKEN} if Rotated.AUTHORITY in what else set[Rotated]()
    return tuple(one for one in Rotated if one in {*what, *also})


def _next_accounts(kept: ServiceSecrets) -> dict[RegistryUser, HashedAccount]:
    """Another account for each user: the token server knows one password for each name."""
    return {
        user: hashed(new_account(f"{user}-2" if one.account.name == user.value else user.value))
        for user, one in kept.users.items()
    }
