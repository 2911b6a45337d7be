"""The certificates of the cluster's registry: an authority (ECDSA P-256) and what it signs (RSA).

An authority is renewed in steps, so that no client meets one that it has not learnt yet. When a
third of its life is left, a successor is made and trusted beside it. `OVERLAP` later the successor
signs, and the old authority stays trusted until it ends. The pair that signs tokens changes in the
same steps, and `rotation` takes them early, for both. Another pair is replaced when it is no longer
sound, or when a third of its life is left and a new one would last longer; the nodes take their
turns, each on a day of its own within `OVERLAP` after the new authority has begun to sign.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror.errors import InvalidCertificateError
from mirror.modes import SERVICE_NAME

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

AUTHORITY_NAME = "registry-ca"
TOKEN_NAME = "registry-auth-token"  # noqa: S105 -- a name
AUTH_NAME = "registry-auth"
DISTRIBUTION_NAME = "registry-distribution"

AUTHORITY_LIFE = datetime.timedelta(days=3650)
BEFORE_AUTHORITY = datetime.timedelta(hours=1)
"""How long before the authority everything that it signed ends."""
OVERLAP = datetime.timedelta(days=30)
"""How long an authority is trusted before it signs, for all nodes and clients to learn it."""
CLOCK_SKEW = datetime.timedelta(hours=1)
"""Certificates begin this long in the past, for nodes whose clocks run late."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM; the key shows in no repr."""

    certificate: str
    key: str = field(repr=False)

    def parsed(self) -> x509.Certificate:
        """The certificate, or raise `InvalidCertificateError`."""
        return parse_certificates(self.certificate, "certificate")[0]

    def private_key(self) -> CertificateIssuerPrivateKeyTypes:
        """The key, which must belong to the certificate, or raise `InvalidCertificateError`."""
        try:
            key = _loaded(self.key)
        except (ValueError, TypeError) as err:
            raise InvalidCertificateError(
                "private key: expected an unencrypted PEM key, found something else; "
                "take the pair from where it was made, or let a new one be made"
            ) from err
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidCertificateError(
                "private key: expected an ECDSA or RSA key, found another kind; make a new pair"
            )
        if key.public_key() != self.parsed().public_key():
            raise InvalidCertificateError(
                "private key: it does not belong to the certificate beside it; "
                "take both from one place, or make a new pair"
            )
        return key


@dataclass(frozen=True, slots=True)
class Leaves:
    """The certificates of the two services of a node or of the in-cluster proxy."""

    auth: KeyPair
    distribution: KeyPair


def node_names(address: str | None) -> tuple[str, ...]:
    """The names a registry's leaf must carry; no `address` for the in-cluster proxy."""
    own = () if address is None or address in LOOPBACK_NAMES else (address,)
    return (*LOOPBACK_NAMES, *own, SERVICE_NAME)


def create_authority(now: datetime.datetime) -> KeyPair:
    """A new authority, signed by itself, good for `AUTHORITY_LIFE` from `now` (with its zone)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(AUTHORITY_NAME)
    certificate = (
        _builder(name, name, key.public_key(), now, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue(authority: KeyPair, name: str, hosts: Sequence[str], now: datetime.datetime) -> KeyPair:
    """A pair that `authority` signs; with `hosts` (addresses, names) a server's.

    Without, it is that with which the token service signs and which registries trust (RS256).
    """
    issuer, issuer_key = authority.parsed(), authority.private_key()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    end = issuer.not_valid_after_utc - BEFORE_AUTHORITY
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    usages = ("digital_signature", "key_encipherment") if hosts else ("digital_signature",)
    builder = (
        _builder(_name(name), issuer.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(_usage(*usages), critical=True)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(one) for one in hosts])
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(purpose, False).add_extension(names, False)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Who signs: the present one, the one that will take over, certificates of those before it.

    Certificates are signed by authorities, tokens by pairs; both change in the same three steps: a
    successor is trusted, it signs, the former one is trusted no more.
    """

    signing: KeyPair
    successor: KeyPair | None = None
    former: tuple[str, ...] = ()

    @property
    def trusted(self) -> str:
        """All of them in PEM, the signing one first."""
        coming = () if self.successor is None else (self.successor.certificate,)
        return "".join([self.signing.certificate, *coming, *self.former])

    def with_successor(self, made: KeyPair) -> Authorities:
        """The first step: `made` is trusted too, unless a successor is already."""
        return self if self.successor else Authorities(self.signing, made, self.former)

    def taken_over(self) -> Authorities:
        """The second step: the successor signs."""
        if self.successor is None:
            return self
        return Authorities(self.successor, None, (self.signing.certificate, *self.former))

    def alone(self) -> Authorities:
        """The third step: nobody from before is trusted."""
        return Authorities(self.signing, self.successor)


def authorities_to_use(held: Authorities | None, now: datetime.datetime) -> Authorities:
    """What `held` becomes at `now`: a successor is added, or takes over, when that is due."""
    if held is None:
        return Authorities(create_authority(now))
    _check_clock(held.signing, now)
    for pair in filter(None, (held.signing, held.successor)):
        basic = _extension(pair.parsed(), x509.BasicConstraints)
        pair.private_key()
        if basic is None or not basic.ca:
            raise InvalidCertificateError(
                "authority: this certificate may not sign others (no CA basic constraint); "
                "give the registry's own authority"
            )
    certificate = held.signing.parsed()
    if is_due(certificate, now) and held.successor is None:
        held = held.with_successor(create_authority(now))
    at_its_end = certificate.not_valid_after_utc - BEFORE_AUTHORITY <= now
    if at_its_end or _learnt(held.successor, now):
        held = held.taken_over()
    ends = [parse_certificates(one, "authority")[0].not_valid_after_utc for one in held.former]
    trusted = (one for one, end in zip(held.former, ends, strict=True) if now < end)
    return Authorities(held.signing, held.successor, tuple(trusted))


def tokens_to_use(
    held: Authorities | None, authorities: Authorities, now: datetime.datetime
) -> Authorities:
    """The same for the pairs that sign tokens: all registries know the next one before it signs.

    One that cannot be used at all is replaced at once. A former one is forgotten when twice
    `OVERLAP` has passed since its successor was made; tokens live for minutes.
    """
    if held is None or not _usable(held.signing, authorities, (), now):
        return Authorities(issue(authorities.signing, TOKEN_NAME, (), now))
    if held.successor is not None and not _usable(held.successor, authorities, (), now):
        held = Authorities(held.signing, None, held.former)
    if _renewable(held.signing, authorities, (), now):
        held = held.with_successor(issue(authorities.signing, TOKEN_NAME, (), now))
    if _learnt(held.successor, now):
        held = held.taken_over()
    forgets = now >= _begin(held.signing.parsed()) + 2 * OVERLAP
    return held.alone() if forgets else held


def _learnt(successor: KeyPair | None, now: datetime.datetime) -> bool:
    """Whether a successor has been trusted for so long that everybody knows it."""
    return successor is not None and now >= _begin(successor.parsed()) + OVERLAP


def _check_clock(signing: KeyPair, now: datetime.datetime) -> None:
    """A clock that is far behind must not replace what is good."""
    begin = signing.parsed().not_valid_before_utc
    if now < begin:
        raise InvalidCertificateError(
            f"authority: it begins at {begin:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}; set the clock"
        )


def is_due(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    """Whether a certificate should be renewed: a third of its life is left, or less."""
    end = certificate.not_valid_after_utc
    return now >= end - (end - _begin(certificate)) / 3


def _begin(certificate: x509.Certificate) -> datetime.datetime:
    """When a certificate of ours was made."""
    return certificate.not_valid_before_utc + CLOCK_SKEW


def pair_to_use(
    held: KeyPair | None,
    authorities: Authorities,
    name: str,
    hosts: Sequence[str],
    now: datetime.datetime,
) -> KeyPair:
    """`held` while it is sound and names all `hosts`, else a new pair; see `issue`."""
    if held is not None and _sound(held, authorities, hosts, now):
        return held
    return issue(authorities.signing, name, hosts, now)


def leaves_to_use(
    held: Leaves | None, authorities: Authorities, address: str | None, now: datetime.datetime
) -> Leaves:
    """The same for both services of a node at `address`; None is the in-cluster proxy."""
    hosts = node_names(address)
    auth, distribution = (held.auth, held.distribution) if held else (None, None)
    return Leaves(
        pair_to_use(auth, authorities, AUTH_NAME, hosts, now),
        pair_to_use(distribution, authorities, DISTRIBUTION_NAME, hosts, now),
    )


def parse_certificates(pem: str, where: str) -> list[x509.Certificate]:
    """The certificates of some PEM text, at least one."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, x509.InvalidVersion) as err:
        raise InvalidCertificateError(
            f"{where}: expected PEM certificates (-----BEGIN CERTIFICATE-----), found none that "
            "can be read; give the text of the certificate file"
        ) from err


def clean_pem(pem: str, where: str) -> str:
    """The certificates of `pem` alone, without any text between them."""
    return "".join(map(_encode, parse_certificates(pem, where)))


@lru_cache(maxsize=64)
def _loaded(pem: str) -> PrivateKeyTypes:
    """The key in a PEM text. Verifying its numbers takes long, and a controller asks again."""
    return serialization.load_pem_private_key(pem.encode(), password=None)


def _sound(
    held: KeyPair, authorities: Authorities, hosts: Sequence[str], now: datetime.datetime
) -> bool:
    return _usable(held, authorities, hosts, now) and not _renewable(held, authorities, hosts, now)


def _usable(
    held: KeyPair, authorities: Authorities, hosts: Sequence[str], now: datetime.datetime
) -> bool:
    """Whether `held` is in force, trusted and good for `hosts`."""
    try:
        certificate = held.parsed()
        held.private_key()
        trusted = parse_certificates(authorities.trusted, "authority")
    except (InvalidCertificateError, ValueError):
        return False
    if not any(_is_issued_by(certificate, authority) for authority in trusted):
        return False
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin <= now < end and set(hosts) <= covered_hosts(certificate)


def _renewable(
    held: KeyPair, authorities: Authorities, hosts: Sequence[str], now: datetime.datetime
) -> bool:
    """Whether it is time for another, which lasts longer."""
    certificate, signing = held.parsed(), authorities.signing.parsed()
    end = certificate.not_valid_after_utc
    # A new one by the same authority would end at the same moment.
    longest = signing.not_valid_after_utc - BEFORE_AUTHORITY
    turn = _begin(signing) + OVERLAP + _own_delay(hosts)
    return is_due(certificate, now) and longest > end and (now >= turn or now >= end - 2 * OVERLAP)


def _own_delay(hosts: Sequence[str]) -> datetime.timedelta:
    """Whole days, less than `OVERLAP`: the same for both services of a node, another for others."""
    number = int.from_bytes(hashlib.sha256("\n".join(hosts).encode()).digest())
    return datetime.timedelta(days=number % OVERLAP.days)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def covered_hosts(certificate: x509.Certificate) -> frozenset[str]:
    """The addresses and names that a certificate is good for."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return frozenset()
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return frozenset([*addresses, *names.get_values_for_type(x509.DNSName)])


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _usage(*given: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in given for name in _USAGES})


def _pair(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> KeyPair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(_encode(certificate), text.decode())


def _encode(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
