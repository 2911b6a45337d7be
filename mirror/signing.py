"""Detached signatures over a file's bytes, as `cosign sign-blob` makes them.

A signature file is one line of base64. With an ECDSA key on P-256, cosign's default, it holds the
ASN.1 DER signature of the SHA-256; with RSA the PKCS #1 v1.5 signature of it; with Ed25519 the
signature of the bytes themselves (RFC 8032). So these accept it, whatever `mirror` is:

    cosign verify-blob --key pub.pem --signature FILE.sig FILE
    base64 -d FILE.sig > raw && openssl dgst -sha256 -verify pub.pem -signature raw FILE

(openssl checks Ed25519 by `pkeyutl -verify -rawin`.) Keys are PEM files: PKCS #8, PKCS #1 or SEC 1,
encrypted or not, and what `cosign generate-key-pair` writes.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    load_pem_public_key,
)

from mirror.documents import parse_json
from mirror.errors import InputError, SignatureError

PASSWORD_VARIABLE = "MIRROR_SIGN_PASSWORD"  # noqa: S105 - its name

PrivateKey: TypeAlias = EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey
PublicKey: TypeAlias = EllipticCurvePublicKey | RSAPublicKey | Ed25519PublicKey

_MIN_RSA_BITS = 2048
_PEM = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]{1,60})-----\r?\n(?P<body>.*?)-----END (?P=label)-----",
    re.DOTALL,
)
_PRIVATE = frozenset(
    {b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY"}
)
_PUBLIC = frozenset({b"PUBLIC KEY", b"RSA PUBLIC KEY"})
_COSIGN = frozenset({b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY"})
_ADVICE = {
    b"OPENSSH PRIVATE KEY": "an OpenSSH key; convert a copy: ssh-keygen -p -m PKCS8 -f KEY",
    b"CERTIFICATE": "a certificate; take its key: openssl x509 -in CERT -noout -pubkey",
}
_NEW_KEY = (
    "make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"
)
_TAKE_PUBLIC = "take the public one from it: openssl pkey -in key.pem -pubout -out pub.pem"


def passphrase_from(
    environ: Mapping[str, str] | None = None, prompt: Callable[[], str] | None = None
) -> Callable[[], str]:
    """Return a way to get the passphrase of a signing key: `MIRROR_SIGN_PASSWORD`, else `prompt`.

    The returned function raises InputError where there is neither.
    """

    def ask() -> str:
        stored = (os.environ if environ is None else environ).get(PASSWORD_VARIABLE)
        if stored is not None:
            return stored
        if prompt is None:
            raise InputError(
                "the signing key is encrypted and there is nobody to ask for its passphrase; "
                f"set {PASSWORD_VARIABLE}"
            )
        return prompt()

    return ask


def sign(data: bytes, key_pem: bytes, passphrase: Callable[[], str] | None = None) -> bytes:
    """Sign `data` with the private key in `key_pem`; return the content of a signature file.

    `passphrase` is called once, and only if the key is encrypted. Equal data gets equal signatures,
    by ECDSA too (RFC 6979), unless this machine's OpenSSL is older than 3.2.

    Raises:
        InputError: the private key is not usable, or its passphrase is missing or wrong.
    """
    key = _private_key(key_pem, passphrase)
    match key:
        case EllipticCurvePrivateKey():
            signature = key.sign(data, _ecdsa())
        case RSAPrivateKey():
            signature = key.sign(data, padding.PKCS1v15(), SHA256())
        case Ed25519PrivateKey():
            signature = key.sign(data)
    return base64.b64encode(signature)


def _ecdsa() -> ECDSA:
    try:
        return ECDSA(SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return ECDSA(SHA256())


def public_half(key_pem: bytes, passphrase: Callable[[], str] | None = None) -> bytes:
    """The public key, in PEM, that belongs to the private key in `key_pem`.

    Raises:
        InputError: the private key is not usable, or its passphrase is missing or wrong.
    """
    key = _private_key(key_pem, passphrase)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def verify(data: bytes, signature_text: bytes, public_pem: bytes) -> None:
    """Check that the holder of the key of `public_pem` signed exactly `data`.

    Raises:
        SignatureError: somebody else did, or signed other data, or this is not a signature.
        InputError: the public key is not usable.
    """
    key = public_key(public_pem)
    try:
        signature = base64.b64decode(b"".join(signature_text.split()), validate=True)
    except binascii.Error as err:
        raise SignatureError(
            "the signature is not one line of base64, as `mirror` and `cosign sign-blob` write it; "
            "copy it again from its origin"
        ) from err
    try:
        match key:
            case EllipticCurvePublicKey():
                key.verify(signature, data, ECDSA(SHA256()))
            case RSAPublicKey():
                key.verify(signature, data, padding.PKCS1v15(), SHA256())
            case Ed25519PublicKey():
                key.verify(signature, data)
    except InvalidSignature as err:
        raise SignatureError(
            "the signature does not fit: the signed bytes were changed, or they were signed with "
            f"another key than the one given, {_kind(key)} key; get both again from whoever signed"
        ) from err


# -- keys ----------------------------------------------------------------------------------------


def _blocks(pem: bytes) -> dict[bytes, bytes]:
    """PEM blocks (RFC 7468) by label, with their marks; the first of each label."""
    blocks: dict[bytes, bytes] = {}
    for match in _PEM.finditer(pem):
        blocks.setdefault(match["label"], match[0] + b"\n")
    return blocks


def _private_key(pem: bytes, passphrase: Callable[[], str] | None) -> PrivateKey:
    blocks, passphrase = _blocks(pem), passphrase or passphrase_from()
    for label, block in blocks.items():
        if label in _COSIGN:
            return _usable_private(_cosign_key(block, passphrase))
        if label in _PRIVATE:
            encrypted = label == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block
            password = passphrase().encode() if encrypted else None
            try:
                return _usable_private(load_pem_private_key(block, password))
            except (ValueError, TypeError, UnsupportedAlgorithm) as err:
                raise InputError(
                    "the signing key cannot be decrypted; check its passphrase "
                    f"({PASSWORD_VARIABLE})"
                    if encrypted
                    else f"the signing key is damaged ({err}); take it again from where it is kept"
                ) from err
    if blocks.keys() & _PUBLIC:
        raise InputError("signing needs the private key, and this is the public one of a pair")
    raise InputError(f"the signing key is {_found(blocks)}; {_NEW_KEY}")


def public_key(pem: bytes) -> PublicKey:
    """Read the key that `verify` needs.

    Raises:
        InputError: it is not a public key, or one of another kind.
    """
    blocks = _blocks(pem)
    for label, block in blocks.items():
        if label in _PRIVATE | _COSIGN:
            raise InputError(
                "verifying needs the public key, and this is the private one, which should not "
                f"leave the place where it signs; {_TAKE_PUBLIC}"
            )
        if label in _PUBLIC:
            try:
                key = load_pem_public_key(block)
            except (ValueError, UnsupportedAlgorithm) as err:
                raise InputError(
                    f"the public key is damaged ({err}); get it again from whoever signed"
                ) from err
            return _usable(key)
    raise InputError(
        f"the public key is {_found(blocks)}; it is a PEM file that begins with "
        "-----BEGIN PUBLIC KEY-----"
    )


def _found(blocks: Mapping[bytes, bytes]) -> str:
    for label in blocks:
        if label in _ADVICE:
            return _ADVICE[label]
    return f"a PEM file of {next(iter(blocks)).decode()!r}" if blocks else "no PEM file"


def _usable_private(key: object) -> PrivateKey:
    _usable(key.public_key() if hasattr(key, "public_key") else key)
    assert isinstance(key, PrivateKey)
    return key


def _usable(key: object) -> PublicKey:
    match key:
        case EllipticCurvePublicKey(curve=SECP256R1()) | Ed25519PublicKey():
            return key
        case RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return key
    raise InputError(
        f"this is {_kind(key)} key; known are ECDSA on P-256, Ed25519, and RSA from "
        f"{_MIN_RSA_BITS} bits on: {_NEW_KEY}"
    )


def _kind(key: object) -> str:
    match key:
        case EllipticCurvePublicKey():
            return f"an ECDSA {key.curve.name}"
        case RSAPublicKey():
            return f"an RSA {key.key_size}"
        case Ed25519PublicKey():
            return "an Ed25519"
    return f"a {type(key).__name__.removesuffix('PublicKey').lstrip('_')}"


# -- keys of cosign ------------------------------------------------------------------------------


def _cosign_key(block: bytes, passphrase: Callable[[], str]) -> object:
    """Open what `cosign generate-key-pair` writes: PKCS #8 in a NaCl secretbox under scrypt.

    The box is the format of go-securesystemslib's `encrypted` package.
    """
    try:
        document = parse_json(base64.b64decode(b"".join(block.split(b"\n")[1:-2])))
        kdf, cipher = document["kdf"], document["cipher"]
        params = kdf["params"]
        cost, width, lanes = int(params["N"]), int(params["r"]), int(params["p"])
        if (kdf["name"], cipher["name"]) != ("scrypt", "nacl/secretbox"):
            raise ValueError(f"{kdf['name']} with {cipher['name']}")
        # At most 1 GiB of memory; cosign takes 64 MiB.
        if min(cost, width, lanes) < 1 or cost * width * lanes > 1 << 23:
            raise ValueError("a cost beyond reason")
        salt, nonce = base64.b64decode(kdf["salt"]), base64.b64decode(cipher["nonce"])
        box = base64.b64decode(document["ciphertext"])
        key = Scrypt(salt, 32, cost, width, lanes).derive(passphrase().encode())
        if len(nonce) != 24:
            raise ValueError("a nonce of another length")
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise InputError(
            f"the signing key is not one that cosign wrote ({err!r}); use a PEM key: {_NEW_KEY}"
        ) from err
    try:
        return load_der_private_key(open_secretbox(box, nonce, key), None)
    except (InvalidSignature, ValueError) as err:
        raise InputError(
            f"the signing key cannot be decrypted; check its passphrase ({PASSWORD_VARIABLE})"
        ) from err


def open_secretbox(box: bytes, nonce: bytes, key: bytes) -> bytes:
    """Open a NaCl secretbox, XSalsa20 with Poly1305 (D. J. Bernstein, "Cryptography in NaCl").

    `cryptography` has Poly1305 and no Salsa20, which is written out here for the few hundred bytes
    of a key file; `box` has the tag before the text, `nonce` 24 bytes and `key` 32.

    Raises:
        InvalidSignature: another key, or changed bytes.
    """
    inner = _hsalsa20(key, nonce[:16])
    stream = b"".join(
        _salsa20_block(inner, nonce[16:], counter) for counter in range((len(box) + 16) // 64 + 1)
    )
    tag, text = box[:16], box[16:]
    Poly1305.verify_tag(stream[:32], text, tag)
    return bytes(a ^ b for a, b in zip(text, stream[32:], strict=False))


_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_QUARTERS = (  # columns, then rows (Salsa20 specification, sections 4 to 6)
    *((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)),
    *((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)),
)


def _salsa20_rounds(key: bytes, input_: bytes) -> tuple[list[int], list[int]]:
    """(state before, state after) the 20 rounds over `key` and 16 bytes of input."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", input_)
    first, second, third, fourth = _CONSTANTS
    before = [first, *k[:4], second, *n, third, *k[4:], fourth]
    x = list(before)
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            for into, one, two, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
                total = (x[one] + x[two]) & 0xFFFFFFFF
                x[into] ^= (total << turn & 0xFFFFFFFF) | total >> (32 - turn)
    return before, x


def _salsa20_block(key: bytes, nonce: bytes, counter: int) -> bytes:
    before, after = _salsa20_rounds(key, nonce + struct.pack("<Q", counter))
    words = ((a + b) & 0xFFFFFFFF for a, b in zip(before, after, strict=True))
    return struct.pack("<16I", *words)


def _hsalsa20(key: bytes, input_: bytes) -> bytes:
    after = _salsa20_rounds(key, input_)[1]
    return struct.pack("<8I", *(after[number] for number in (0, 5, 10, 15, 6, 7, 8, 9)))
