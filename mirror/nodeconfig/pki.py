"""The certificates of the cluster's registry: an authority and what it signs.

The authority is ECDSA P-256 and lives ten years. It signs the pair with which tokens are signed,
and one leaf per service and node (RSA-2048). Everything that it signs ends an hour before it does.
A leaf is kept while it chains to the authority and names every host it must; else it is replaced.
Functions here take the time as an argument and touch no file.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
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
from mirror.modes.constants import SERVICE_NAME

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

AUTHORITY_NAME = "registry-ca"
TOKEN_NAME = "registry-auth-token"  # noqa: S105 -- a name
AUTH_NAME = "registry-auth"
DISTRIBUTION_NAME = "registry-distribution"

AUTHORITY_LIFE = datetime.timedelta(days=3650)
BEFORE_AUTHORITY = datetime.timedelta(hours=1)
"""How long before the authority everything that it signed ends."""
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
                "private key: expected an ECDSA or RSA key, found another kind; "
                "let a new pair be made"
            )
        if key.public_key() != self.parsed().public_key():
            raise InvalidCertificateError(
                "private key: it does not belong to the certificate beside it; "
                "take both from one place, or let a new pair be made"
            )
        return key


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
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def create_token_pair(authority: KeyPair, now: datetime.datetime) -> KeyPair:
    """The pair with which the token service signs and which registries trust (RS256)."""
    return _issue(authority, TOKEN_NAME, (), now)


def create_leaf(
    authority: KeyPair, name: str, hosts: Iterable[str], now: datetime.datetime
) -> KeyPair:
    """A server's certificate for `hosts` (addresses or names), with `name` as its common name."""
    hosts = tuple(hosts)
    if not hosts:
        raise ValueError("a server's certificate names at least one host")
    return _issue(authority, name, hosts, now)


def authority_to_use(held: KeyPair | None, now: datetime.datetime) -> KeyPair:
    """`held` while it can still sign, else a new authority.

    Raises:
        InvalidCertificateError: `held` is no certificate authority with its key. It is never
            replaced silently, since every client of the registry trusts it.
    """
    if held is None:
        return create_authority(now)
    certificate = held.parsed()
    held.private_key()
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise InvalidCertificateError(
            "authority: this certificate may not sign others (no CA basic constraint); "
            "give the registry's own authority"
        )
    if certificate.not_valid_after_utc - BEFORE_AUTHORITY <= now:
        return create_authority(now)
    return held


def token_pair_to_use(held: KeyPair | None, authority: KeyPair, now: datetime.datetime) -> KeyPair:
    """`held` while it is sound, else a new pair."""
    if held is not None and _sound(held, authority, (), now):
        return held
    return create_token_pair(authority, now)


def leaf_to_use(
    held: KeyPair | None,
    authority: KeyPair,
    name: str,
    hosts: Sequence[str],
    now: datetime.datetime,
) -> KeyPair:
    """`held` while it chains to `authority`, names all `hosts` and is in force; else a new leaf."""
    if held is not None and _sound(held, authority, hosts, now):
        return held
    return create_leaf(authority, name, hosts, now)


def parse_certificates(pem: str, where: str) -> list[x509.Certificate]:
    """The certificates of some PEM text, at least one.

    Raises:
        InvalidCertificateError: `where` is named in it.
    """
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as err:
        raise InvalidCertificateError(
            f"{where}: expected PEM certificates (-----BEGIN CERTIFICATE-----), found none that "
            "can be read; give the text of the certificate file"
        ) from err


def clean_pem(pem: str, where: str) -> str:
    """The certificates of `pem` alone, without any text between them, as they are written to files.

    Raises:
        InvalidCertificateError: there is none.
    """
    return "".join(_encode(certificate) for certificate in parse_certificates(pem, where))


@lru_cache(maxsize=64)
def _loaded(pem: str) -> PrivateKeyTypes:
    """The key in a PEM text; raises as cryptography does.

    Its numbers are verified, which takes tens of milliseconds, and who reconciles asks every time.
    """
    return serialization.load_pem_private_key(pem.encode(), password=None)


def _sound(held: KeyPair, authority: KeyPair, hosts: Sequence[str], now: datetime.datetime) -> bool:
    try:
        certificate = held.parsed()
        held.private_key()
        certificate.verify_directly_issued_by(authority.parsed())
    except (InvalidCertificateError, InvalidSignature, ValueError, TypeError):
        return False
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        return False
    return set(hosts) <= covered_hosts(certificate)


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


def _issue(authority: KeyPair, name: str, hosts: Sequence[str], now: datetime.datetime) -> KeyPair:
    issuer, issuer_key = authority.parsed(), authority.private_key()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    end = issuer.not_valid_after_utc - BEFORE_AUTHORITY
    builder = (
        _builder(_name(name), issuer.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        builder = (
            builder.add_extension(_usage(digital_signature=True, key_encipherment=True), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), False)
        )
    else:
        builder = builder.add_extension(_usage(digital_signature=True), True)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


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


def _usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> KeyPair:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return KeyPair(_encode(certificate), text.decode())


def _encode(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
