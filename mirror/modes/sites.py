"""What addressing must know beside the settings: this one cluster's places and accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import SecretStr


class User(StrEnum):
    """The registry module's own users."""

    RO = "ro"
    RW = "rw"
    MIRROR_PULLER = "mirror-puller"
    MIRROR_PUSHER = "mirror-pusher"


@dataclass(frozen=True, slots=True)
class Account:
    """A login: a name and its password, which no `repr` shows."""

    name: str
    password: SecretStr


@dataclass(frozen=True, slots=True)
class Sites:
    """Where a cluster's registry replicas are, whom to trust there, and who we are.

    `masters` are addresses (InternalIP) without a port, in the order in which they are to be
    tried. `ca` is the module's own authority in PEM. `public_host` is `registry.<PUBLIC_DOMAIN>`,
    None where the cluster has no public domain; `public_ca` is who vouches for it beside the
    system's roots. Every part may be left out that the mode and plane at hand do not need.
    """

    masters: tuple[str, ...] = ()
    ca: str | None = None
    public_host: str | None = None
    public_ca: str | None = None
    accounts: Mapping[User, Account] = field(default_factory=dict)

    def account(self, user: User) -> Account | None:
        """The login of one of the module's users; None if it is not known here."""
        return self.accounts.get(user)


NO_SITES = Sites()
"""Nothing is known of the cluster: enough where only the upstream is spoken with."""
