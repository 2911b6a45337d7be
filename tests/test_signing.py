from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from random import Random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InputError, IntegrityError, SignatureError
from mirror.signing import (
    PASSWORD_VARIABLE,
    open_secretbox,
    passphrase_from,
    sign,
    verify,
)
from tests.support.tools import require_tool

DATA = b'{"inventory":"sha256:0"}'
PASSPHRASE = "secret words"

# Made with libsodium and OpenSSL, for these tests and nothing else; its passphrase is PASSPHRASE.
COSIGN_KEY = b"""\
-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJCdGJkYUtTQlZDZTRydktjR3RCa0lvaWNia3UrNmJW
N3hBaU5CcjEzRjIwPSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJjL05BeEhUOFRwbUFTZ3Y0Z1EvU0dadUhLVSs3bVAvaCJ9LCJj
aXBoZXJ0ZXh0IjoiZXE2cVhobW40OG5rUE41aFRUejR6VVdpZ2hKY3I4bGdmWGo1
bGtSTFRvY0Z6dEExOWlOOFgzcWU0SnRwVnZLcWV1TVlnU1oxMTZFWGFDWFN2RHlJ
SG5kNENiU01lUG1OcDZnSUxHKzd3Ui9nSjRuSTkvQ1o1dXZlSTY5SkhxQjJMRHgz
K0xqaWkwekVqUysxUklydE9yWUU3cHljSURidkdtV2ZqYm1FVWJGSEszS1BKc3R5
b1pYUDlJUFVUVTh0dWo3M2pqaTV3TlFuOUE9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
"""
COSIGN_PUBLIC = b"""\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmRNYhKwtwzL0Bm2rVZL6KgLzAP3v
rxrxSI2zBkcur19I9rIRGgiEeQ0tTO9Wo0D8zKAIdbd+MayIW8jdUhENbQ==
-----END PUBLIC KEY-----
"""


def never() -> str:
    raise AssertionError("the passphrase of a key without one was asked for")


def pair(
    key: ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | dsa.DSAPrivateKey,
) -> tuple[bytes, bytes]:
    """(private, public) PEM of a key."""
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


P256 = pair(ec.derive_private_key(0x5EED, ec.SECP256R1()))
OTHER_P256 = pair(ec.derive_private_key(0x0DD, ec.SECP256R1()))
ED25519 = pair(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture(scope="session")
def rsa_pair() -> tuple[bytes, bytes]:
    return pair(rsa.generate_private_key(65537, 2048))


# -- signatures ------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_what_was_signed_verifies_and_nothing_else(data: bytes) -> None:
    for private, public in (P256, ED25519):
        signature = sign(data, private, never)
        verify(data, signature, public)
        with pytest.raises(SignatureError, match="were changed, or they were signed with another"):
            verify(data + b"\n", signature, public)


def test_rsa_keys_sign_too(rsa_pair: tuple[bytes, bytes]) -> None:
    private, public = rsa_pair
    verify(DATA, sign(DATA, private, never), public)


def test_equal_data_gets_equal_signatures(rsa_pair: tuple[bytes, bytes]) -> None:
    """So that who signs a bundle or a statement once more changes nothing."""
    for private, _ in (P256, ED25519, rsa_pair):
        assert sign(DATA, private, never) == sign(DATA, private, never)
    assert sign(DATA, P256[0]) != sign(DATA + b"x", P256[0])


def test_another_key_of_the_same_kind_does_not_verify() -> None:
    with pytest.raises(SignatureError, match="secp256r1"):
        verify(DATA, sign(DATA, P256[0]), OTHER_P256[1])


def test_a_key_of_another_kind_does_not_verify() -> None:
    with pytest.raises(SignatureError, match="Ed25519"):
        verify(DATA, sign(DATA, P256[0]), ED25519[1])


def test_every_flipped_bit_of_a_signature_shows() -> None:
    signature = bytearray(base64.b64decode(sign(DATA, P256[0])))
    for bit in range(8 * len(signature)):
        signature[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify(DATA, base64.b64encode(signature), P256[1])
        signature[bit // 8] ^= 1 << bit % 8


def test_a_signature_is_one_line_of_base64_however_it_was_wrapped_since() -> None:
    signature = sign(DATA, P256[0])
    assert signature == base64.b64encode(base64.b64decode(signature))
    verify(DATA, signature[:20] + b"\r\n" + signature[20:] + b"\n", P256[1])


@pytest.mark.parametrize("text", [b"\0\1\2", b"-----BEGIN PGP SIGNATURE-----", b"abc", b"abc?"])
def test_garbage_is_no_signature(text: bytes) -> None:
    with pytest.raises(SignatureError, match="not one line of base64"):
        verify(DATA, text, P256[1])


def test_an_empty_signature_does_not_fit() -> None:
    for _, public in (P256, ED25519):
        with pytest.raises(SignatureError, match="does not fit"):
            verify(DATA, b"", public)


def test_a_wrong_signature_is_a_matter_of_integrity() -> None:
    assert issubclass(SignatureError, IntegrityError)


# -- openssl ---------------------------------------------------------------------------------------


def openssl(folder: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [require_tool("openssl"), *args], cwd=folder, capture_output=True, timeout=60
    )


EC = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")


@pytest.mark.parametrize("kind", [EC, RSA], ids=["ecdsa", "rsa"])
def test_openssl_and_we_accept_each_others_signatures(tmp_path: Path, kind: list[str]) -> None:
    assert openssl(tmp_path, "genpkey", *kind, "-out", "key.pem").returncode == 0
    openssl(tmp_path, "pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem")
    key, public = ((tmp_path / name).read_bytes() for name in ("key.pem", "pub.pem"))
    (tmp_path / "data").write_bytes(DATA)

    (tmp_path / "ours").write_bytes(base64.b64decode(sign(DATA, key, never)))
    check = ("dgst", "-sha256", "-verify", "pub.pem", "-signature", "ours")
    assert openssl(tmp_path, *check, "data").stdout == b"Verified OK\n"
    (tmp_path / "changed").write_bytes(DATA + b" ")
    assert openssl(tmp_path, *check, "changed").returncode == 1

    theirs = openssl(tmp_path, "dgst", "-sha256", "-sign", "key.pem", "data").stdout
    verify(DATA, base64.encodebytes(theirs), public)


def test_openssl_and_we_agree_about_ed25519(tmp_path: Path) -> None:
    (tmp_path / "pub.pem").write_bytes(ED25519[1])
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "raw").write_bytes(base64.b64decode(sign(DATA, ED25519[0])))
    done = openssl(
        tmp_path,
        *("pkeyutl", "-verify", "-pubin", "-inkey", "pub.pem"),
        *("-rawin", "-in", "data", "-sigfile", "raw"),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "commands",
    [
        [("genpkey", *EC, "-aes256", "-pass", f"pass:{PASSPHRASE}", "-out", "key.pem")],
        [("ecparam", "-name", "prime256v1", "-genkey", "-out", "key.pem")],
        [
            ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "plain.pem"),
            (
                *("ec", "-aes128", "-in", "plain.pem"),
                *("-passout", f"pass:{PASSPHRASE}", "-out", "key.pem"),
            ),
        ],
        [
            ("genpkey", *RSA, "-out", "plain.pem"),
            ("rsa", "-traditional", "-in", "plain.pem", "-out", "key.pem"),
        ],
    ],
    ids=["encrypted PKCS #8", "SEC 1 behind its parameters", "encrypted SEC 1", "PKCS #1"],
)
def test_whatever_openssl_writes_as_a_key_signs(
    tmp_path: Path, commands: list[tuple[str, ...]]
) -> None:
    for command in commands:
        done = openssl(tmp_path, *command)
        assert done.returncode == 0, done.stderr
    passin = ("-passin", f"pass:{PASSPHRASE}")
    public = openssl(tmp_path, "pkey", "-in", "key.pem", "-pubout", *passin).stdout
    key = (tmp_path / "key.pem").read_bytes()
    verify(DATA, sign(DATA, key, lambda: PASSPHRASE), public)
    if b"ENCRYPTED" in key:
        with pytest.raises(InputError, match=f"check its passphrase .{PASSWORD_VARIABLE}"):
            sign(DATA, key, lambda: "another")


# -- cosign's keys ---------------------------------------------------------------------------------


def test_a_key_of_cosign_signs() -> None:
    verify(DATA, sign(DATA, COSIGN_KEY, lambda: PASSPHRASE), COSIGN_PUBLIC)
    older = COSIGN_KEY.replace(b"SIGSTORE", b"COSIGN")
    verify(DATA, sign(DATA, older, lambda: PASSPHRASE), COSIGN_PUBLIC)


def test_a_key_of_cosign_does_not_open_with_another_passphrase() -> None:
    with pytest.raises(InputError, match="cannot be decrypted; check its passphrase"):
        sign(DATA, COSIGN_KEY, lambda: "another")


def cosign_pem(document: object) -> bytes:
    body = base64.encodebytes(json.dumps(document).encode())
    label = b"ENCRYPTED SIGSTORE PRIVATE KEY"
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, body, label)


def cosign_document() -> dict[str, dict[str, object]]:
    document: dict[str, dict[str, object]] = json.loads(
        base64.b64decode(b"".join(COSIGN_KEY.splitlines()[1:-1]))
    )
    return document


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("kdf", {"name": "argon2"}),
        ("kdf", {"params": {"N": 1 << 40, "r": 8, "p": 1}}),  # would take all memory there is
        ("kdf", {"params": {"N": 65537, "r": 8, "p": 1}}),
        ("kdf", {"params": {"N": 65536, "r": 8, "p": 0}}),
        ("kdf", {"params": {"N": 65536, "r": -8, "p": -1}}),
        ("kdf", {"params": []}),
        ("kdf", {"salt": 7}),
        ("cipher", {"name": "none"}),
        ("cipher", {"nonce": "AAAA"}),
    ],
)
def test_what_only_looks_like_a_key_of_cosign_is_refused(
    part: str, change: dict[str, object]
) -> None:
    document = cosign_document()
    document[part] |= change
    with pytest.raises(InputError, match="not one that cosign wrote"):
        sign(DATA, cosign_pem(document), lambda: PASSPHRASE)


@pytest.mark.parametrize("document", [None, [], {}, {"kdf": 1, "cipher": 2}, "x"])
def test_neither_is_anything_else(document: object) -> None:
    with pytest.raises(InputError, match="not one that cosign wrote"):
        sign(DATA, cosign_pem(document), lambda: PASSPHRASE)


# What libsodium makes of the key, nonce and text, of so many bytes, that `Random(1)` gives in turn.
LIBSODIUM_BOXES = {
    0: "T4gGMPhAmRxcK28YYMtu1w==",
    32: "3QXayEtmGG2YrI6hCGYGG5P9HaA82MKflNNUgOhvRHWZczBA2yDnSdb9kq372tqW",
    33: "Jo5IwiAmgcdK+oyaXtB21vBVANLFVAPMXs80n2BLs6CLqPsT/I8EZiuebsBaA3Sp9A==",
    97: (
        "R2LPTon14a6pjzL4zqRSstzpqWQqg2NS4whJpl9oQg36N5UJTYvdtFG6Y1l0PIpNRvSNhVNIaXX6"
        "UymNN3NnvuI1FIV5jjRFmphwJvPSiOC6Yf5PWjuy8lZDKu2cqI+bmV/DQqdoxLX4+bh91rXu6Ps="
    ),
}


def test_boxes_open_as_libsodium_closed_them() -> None:
    random = Random(1)
    for size, encoded in LIBSODIUM_BOXES.items():
        key, nonce, text = (random.randbytes(count) for count in (32, 24, size))
        box = base64.b64decode(encoded)
        assert open_secretbox(box, nonce, key) == text
        for changed in range(len(box)):
            damaged = bytearray(box)
            damaged[changed] ^= 1
            with pytest.raises(InvalidSignature):
                open_secretbox(bytes(damaged), nonce, key)


# -- keys that do not do ---------------------------------------------------------------------------


def test_the_public_key_does_not_sign() -> None:
    with pytest.raises(InputError, match="signing needs the private key"):
        sign(DATA, P256[1])


@pytest.mark.parametrize("key", [P256[0], COSIGN_KEY], ids=["PKCS #8", "cosign"])
def test_the_private_key_does_not_verify(key: bytes) -> None:
    with pytest.raises(InputError, match=r"openssl pkey -in key\.pem -pubout -out pub\.pem"):
        verify(DATA, sign(DATA, P256[0]), key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (pair(ec.derive_private_key(7, ec.SECP384R1())), "ECDSA secp384r1"),
        (pair(rsa.generate_private_key(65537, 1024)), "RSA 1024"),
        (pair(dsa.generate_private_key(2048)), "a DSA"),
    ],
    ids=["P-384", "short RSA", "DSA"],
)
def test_keys_of_other_kinds_are_refused_with_those_that_do(
    key: tuple[bytes, bytes], kind: str
) -> None:
    message = f"{kind}.* key; known are ECDSA on P-256, Ed25519, and RSA from 2048 bits on"
    with pytest.raises(InputError, match=message):
        sign(DATA, key[0])
    with pytest.raises(InputError, match=message):
        verify(DATA, b"AAAA", key[1])


def block(label: str, body: str = "AAAA") -> bytes:
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        (b"", "no PEM file"),
        (b"\xff\0", "no PEM file"),
        (block("OPENSSH PRIVATE KEY"), "ssh-keygen -p -m PKCS8"),
        (block("CERTIFICATE"), "openssl x509"),
        (block("PGP PRIVATE KEY BLOCK"), "a PEM file of 'PGP PRIVATE KEY BLOCK'"),
    ],
)
def test_what_is_no_key_is_told_with_what_to_do(pem: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sign(DATA, pem)
    with pytest.raises(InputError, match=says):
        verify(DATA, b"AAAA", pem)


def test_damaged_keys_are_told() -> None:
    with pytest.raises(InputError, match="the signing key is damaged"):
        sign(DATA, block("PRIVATE KEY"))
    with pytest.raises(InputError, match="the public key is damaged"):
        verify(DATA, b"AAAA", block("PUBLIC KEY"))


# -- passphrases -----------------------------------------------------------------------------------


def test_the_passphrase_comes_from_the_environment_or_a_person() -> None:
    assert passphrase_from({PASSWORD_VARIABLE: ""}, never)() == ""
    assert passphrase_from({PASSWORD_VARIABLE: "x"}, never)() == "x"
    assert passphrase_from({}, lambda: "typed")() == "typed"
    with pytest.raises(InputError, match=f"set {PASSWORD_VARIABLE}"):
        passphrase_from({})()


def test_the_environment_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSPHRASE)
    verify(DATA, sign(DATA, COSIGN_KEY), COSIGN_PUBLIC)
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with pytest.raises(InputError, match=f"set {PASSWORD_VARIABLE}"):
        sign(DATA, COSIGN_KEY)
