"""What the module's services share and keep: authority, token pair, leaves, users, the HTTP secret.

It is made once and kept in a JSON file that only its owner can read.
"""

from __future__ import annotations

import base64
import datetime
import secrets
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bcrypt
from pydantic import SecretStr, ValidationError

from mirror.documents import problems
from mirror.errors import FileSystemError, InvalidCertificateError, RenderingError
from mirror.modes import RegistryUser
from mirror.modes.settings import Account, CamelModel
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pki import Authorities, KeyPair, Leaves
from mirror.nodeconfig.tree import SECRET, RenderedFile, write_file

BCRYPT_COST = 10
_U = RegistryUser
LENDERS = {_U.RO: _U.MIRROR_PULLER, _U.RW: _U.MIRROR_PUSHER}
"""Whose place in `registry-node-config-…` a second login takes: they may do the same, or more."""
_B64 = string.ascii_uppercase + string.ascii_lowercase + string.digits
_TO_BCRYPT = bytes.maketrans(f"{_B64}+/".encode(), f"./{_B64}".encode())


@dataclass(frozen=True, slots=True)
class HashedAccount:
    """A user of the token server: the password for clients, its bcrypt hash for the server."""

    account: Account
    password_hash: str = field(repr=False)

    def matches(self) -> bool:
        """Whether hash and password belong together."""
        return _matches(self.account.password.get_secret_value(), self.password_hash)


@lru_cache(maxsize=64)  # bcrypt is slow by design, and a controller asks in every pass
def _matches(password: str, password_hash: str) -> bool:
    try:
        return bcrypt.checkpw(password.encode(), password_hash.encode())
    except ValueError:
        return False


class Rotated(StrEnum):
    """What can be rotated."""

    AUTHORITY = "authority"
    """With it goes the token pair, which it signed, and all certificates of services."""
    TOKEN = "token"  # noqa: S105 -- a name
    USERS = "users"
    """The passwords of all users, who get another name with it: `ro` and `ro-2` in turn."""


class RotationPhase(StrEnum):
    """How far a rotation is, as the rendered files say it."""

    TRUSTED = "trusted"
    """The new is trusted beside the old, which is used."""
    USED = "used"
    """The new is used, and the old is still trusted."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation under way."""

    what: tuple[Rotated, ...]
    phase: RotationPhase


@dataclass(frozen=True, slots=True)
class ServiceSecrets:
    """All secrets of a configuration. `in_cluster` is for the proxy of Direct mode."""

    authority: KeyPair
    token: KeyPair
    http_secret: str = field(repr=False)
    users: Mapping[RegistryUser, HashedAccount]
    nodes: Mapping[str, Leaves]
    in_cluster: Leaves
    successor: KeyPair | None = None
    """The authority that will sign next; trusted already."""
    former: tuple[str, ...] = ()
    """Certificates of earlier authorities, trusted until they end."""
    token_successor: KeyPair | None = None
    """The pair that will sign tokens next; registries know it already."""
    token_former: tuple[str, ...] = ()
    """Certificates of earlier pairs, whose tokens still count."""
    beside: Mapping[RegistryUser, HashedAccount] = field(default_factory=dict)
    """Accounts that are let in beside `users`: the next ones, or those before."""
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        for name in ("users", "nodes", "beside"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def authorities(self) -> Authorities:
        """The authority that signs, the next one and those before."""
        return Authorities(self.authority, self.successor, self.former)

    @property
    def trusted(self) -> str:
        """Whom clients of the registry trust, in PEM."""
        return self.authorities.trusted

    @property
    def tokens(self) -> Authorities:
        """The pair that signs tokens, the next one and those before."""
        return Authorities(self.token, self.token_successor, self.token_former)

    def signed_by(
        self, authorities: Authorities, tokens: Authorities, **changes: Any
    ) -> ServiceSecrets:
        """The same with these authorities and token pairs, and these fields."""
        return replace(
            self,
            authority=authorities.signing,
            successor=authorities.successor,
            former=authorities.former,
            token=tokens.signing,
            token_successor=tokens.successor,
            token_former=tokens.former,
            **changes,
        )

    def accepted(self, user: RegistryUser) -> tuple[HashedAccount, ...]:
        """The accounts by which the token server lets a user in."""
        also = self.beside.get(user)
        return (self.users[user],) if also is None else (self.users[user], also)

    def accounts(self) -> dict[RegistryUser, Account]:
        """The logins alone, for clients."""
        return {user: one.account for user, one in self.users.items()}


def new_account(name: str) -> Account:
    """A login with a fresh password."""
    return Account(name, SecretStr(_random(16)))


def hashed(account: Account, *, salt: bytes | None = None) -> HashedAccount:
    """An account with a bcrypt hash of its password; each call salts anew unless given 16 bytes."""
    password = account.password.get_secret_value().encode()
    if len(password) > 72:
        raise RenderingError(
            f"user {account.name}: expected a password of at most 72 bytes, which is all that "
            f"bcrypt looks at, found {len(password)}; choose a shorter one"
        )
    return HashedAccount(account, _salted(password, salt or secrets.token_bytes(16)))


@lru_cache(maxsize=8)  # slow by design, and a controller renders the same settings again and again
def _salted(password: bytes, salt: bytes) -> str:
    """A hash that is always the same. bcrypt's base64 has its own alphabet."""
    text = base64.b64encode(salt).rstrip(b"=").translate(_TO_BCRYPT)
    return bcrypt.hashpw(password, b"$2b$%02d$%s" % (BCRYPT_COST, text)).decode("ascii")


def prepare_secrets(
    held: ServiceSecrets | None, nodes: Iterable[Node], now: datetime.datetime
) -> ServiceSecrets:
    """The secrets that `nodes` need: sound ones of `held`, and new ones for the rest.

    Leaves of other nodes stay, so that rendering for some nodes forgets nothing.
    """
    authorities = pki.authorities_to_use(held.authorities if held else None, now)
    tokens = pki.tokens_to_use(held.tokens if held else None, authorities, now)
    signers, rotation = authorities, held.rotation if held else None
    if rotation and rotation.phase is RotationPhase.USED and Rotated.AUTHORITY in rotation.what:
        signers = authorities.alone()  # what the old one signed is used no more
    leaves = dict(held.nodes) if held else {}
    for node in nodes:
        if node.master:
            known = leaves.get(node.name)
            leaves[node.name] = pki.leaves_to_use(known, signers, node.address, now)
    in_cluster = pki.leaves_to_use(held.in_cluster if held else None, signers, None, now)
    users = {}
    for user in RegistryUser:
        one = held.users.get(user) if held else None
        if one is None or not one.matches():  # keep a known password; the hash was unsound
            one = hashed(one.account if one else new_account(user.value))
        users[user] = one
    if held is None:
        secret = _random(25)
        held = ServiceSecrets(authorities.signing, tokens.signing, secret, users, {}, in_cluster)
    return held.signed_by(authorities, tokens, users=users, nodes=leaves, in_cluster=in_cluster)


def renewed(before: ServiceSecrets | None, after: ServiceSecrets) -> tuple[str, ...]:
    """What is new in `after`, in words; nothing where `before` is None, as all of it is."""
    if before is None:
        return ()
    told = []
    if after.authority != before.authority:
        who = _named(after.authority)
        told.append(f"authority {who} signs from now on; the former one stays trusted")
    if after.successor is not None and after.successor != before.successor:
        days = f"{pki.OVERLAP.days} days later"
        begins = f"it signs {days if after.rotation is None else 'in the next step'}"
        told.append(f"next authority {_named(after.successor)}, trusted from now on; {begins}")
    if gone := len(set(before.former) - set(after.former)):
        told.append(f"{gone} former authorities are not trusted any more")
    if after.token_successor is not None and after.token_successor != before.token_successor:
        told.append(f"next token pair {_named(after.token_successor)}, known from now on")
    pairs: dict[str, tuple[KeyPair | None, KeyPair]] = {"token pair": (before.token, after.token)}
    places = {
        "in-cluster proxy": (before.in_cluster, after.in_cluster),
        **{name: (before.nodes.get(name), leaves) for name, leaves in after.nodes.items()},
    }
    for place, (old, new) in places.items():
        for service in ("auth", "distribution"):
            pairs[f"{service} of {place}"] = (getattr(old, service, None), getattr(new, service))
    told += [f"{what} {_named(new)}" for what, (old, new) in pairs.items() if old != new]
    told += [f"user {user}" for user in after.users if user not in before.users]
    known = {one.account.name for user in before.users for one in before.accepted(user)}
    logins = (one.account.name for one in after.beside.values())
    return (*told, *(f"login {name}" for name in logins if name not in known))


def _named(pair: KeyPair) -> str:
    return f"(until {pair.parsed().not_valid_after_utc:%Y-%m-%d})"


def _random(length: int) -> str:
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(length))


# -- rotation: a walk of three steps ---------------------------------------------------------------
# First the new is trusted beside the old, then it is used, then the old is gone. The next step may
# be taken when every node has applied the files of the last one: so nothing new is used before
# everybody knows it.


@dataclass(frozen=True, slots=True)
class RotationStep:
    """One step: what the files say, what is done for it, and what must be true before the next.

    `phase` is None for the last, after which no rotation is under way.
    """

    phase: RotationPhase | None
    action: str
    condition: str


_THINGS = dict(zip(Rotated, ("authority", "token pair", "passwords"), strict=True))


def rotation_steps(what: Collection[Rotated]) -> tuple[RotationStep, ...]:
    """The walk of a rotation, in order. Pure.

    Raises:
        ValueError: `what` is empty.
    """
    things = ", ".join(_THINGS[one] for one in _all_of(what))
    applied = "every node has applied these files, the masters one after the other"
    return (
        RotationStep(RotationPhase.TRUSTED, f"trust what is new beside the old: {things}", applied),
        RotationStep(RotationPhase.USED, f"use what is new, and trust the old: {things}", applied),
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
    rotation = Rotation(rotated, RotationPhase.TRUSTED)
    return kept.signed_by(authorities, tokens, beside=beside, rotation=rotation)


def advance_rotation(
    kept: ServiceSecrets, nodes: Sequence[Node], now: datetime.datetime
) -> ServiceSecrets:
    """Take the next step; every node must have applied the files of the last one.

    Return what is held unchanged if no rotation is under way. `nodes` are all nodes.
    """
    rotation = kept.rotation
    if rotation is None:
        return kept
    if rotation.phase is RotationPhase.TRUSTED:
        then, change = replace(rotation, phase=RotationPhase.USED), Authorities.taken_over
        users, beside = {**kept.users, **kept.beside}, kept.users
    else:
        then, change = None, Authorities.alone
        users, beside = {**kept.users}, {}
    if Rotated.USERS not in rotation.what:
        users, beside = {**kept.users}, kept.beside
    authorities, tokens = (
        change(pairs) if one in rotation.what else pairs
        for one, pairs in ((Rotated.AUTHORITY, kept.authorities), (Rotated.TOKEN, kept.tokens))
    )
    moved = kept.signed_by(authorities, tokens, users=users, beside=beside, rotation=then)
    return prepare_secrets(moved, nodes, now)


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


# -- the file --------------------------------------------------------------------------------------


class _StoredUser(CamelModel):
    name: str
    password: str
    password_hash: str


class _Secrets(CamelModel):
    authority: KeyPair
    token: KeyPair
    http_secret: str
    users: dict[RegistryUser, _StoredUser]
    nodes: dict[str, Leaves]
    in_cluster: Leaves
    successor: KeyPair | None = None
    former: tuple[str, ...] = ()
    token_successor: KeyPair | None = None
    token_former: tuple[str, ...] = ()
    beside: Mapping[RegistryUser, _StoredUser] = {}
    rotation: Rotation | None = None


def read_secrets(path: Path) -> ServiceSecrets | None:
    """Read the secrets that a file keeps; None if there is no file yet.

    Raises:
        FileSystemError: it cannot be read.
        RenderingError: it is damaged. It is never replaced silently, since nodes trust its content.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise FileSystemError(f"cannot read {path}: {err.strerror}; correct its access") from err
    return parse_secrets(text, str(path))


def parse_secrets(text: str | bytes, where: str) -> ServiceSecrets:
    """Read what `secrets_text` wrote and `where` keeps.

    Raises:
        RenderingError: it is damaged.
    """
    try:
        found = _Secrets.model_validate_json(text)
    except ValidationError as err:
        raise RenderingError(f"{where}: {problems(err, 'document')[0]}; {_REPAIR}") from err
    for pair in filter(None, (found.authority, found.successor)):
        try:
            pair.private_key()
        except InvalidCertificateError as err:
            problem = str(err).partition(";")[0]
            raise RenderingError(f"{where}: authority: {problem}; {_REPAIR}") from err
    accounts = {
        name: {
            user: HashedAccount(Account(one.name, SecretStr(one.password)), one.password_hash)
            for user, one in getattr(found, name).items()
        }
        for name in ("users", "beside")
    }
    return ServiceSecrets(**{**dict(found), **accounts})


_REPAIR = (
    "restore the file from a backup, or delete it to make a new authority and new passwords, which "
    "all nodes and clients must then learn"
)


def write_secrets(kept: ServiceSecrets, path: Path) -> bool:
    """Keep them in a file of mode 0600; False if it holds them already.

    Raises:
        FileSystemError: it cannot be written.
    """
    return write_file(path, RenderedFile(secrets_text(kept).encode(), SECRET))


def secrets_text(kept: ServiceSecrets) -> str:
    """The secrets as a document, always the same for the same ones; it is itself a secret."""
    accounts = {
        name: {
            user: _StoredUser(
                name=one.account.name,
                password=one.account.password.get_secret_value(),
                password_hash=one.password_hash,
            )
            for user, one in sorted(getattr(kept, name).items())
        }
        for name in ("users", "beside")
    }
    fields = {name: getattr(kept, name) for name in _Secrets.model_fields}
    nodes = dict(sorted(kept.nodes.items()))
    document = _Secrets.model_validate({**fields, **accounts, "nodes": nodes})
    return document.model_dump_json(by_alias=True, exclude_defaults=True, indent=2) + "\n"
