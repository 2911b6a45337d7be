"""A token server for the configuration rendered for `docker_auth`, which Debian does not ship.

It does what the registry's clients see of docker_auth: Basic logins checked against bcrypt hashes,
the access list (first match decides, else denied), and tokens as JWT, signed with the rendered key
and named by the key id that distribution derives from the certificate it trusts. It refuses what
docker_auth refuses, and keys that docker_auth would ignore. As a program
(`python -m tests.support.token_server [-logtostderr] CONFIG`) it has its flags and its log file.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import os
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import bcrypt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from tests.support.scripted_server import Reply, Request, ScriptedServer


@dataclass(frozen=True)
class Asked:
    """One request for a token, and whether it was answered."""

    account: str
    scopes: tuple[str, ...]
    status: int


class Signer:
    """Signs tokens with a rendered key pair.

    `legacy_key_id` names the key as distribution 2 knows it; distribution 3 knows it by its
    thumbprint (RFC 7638).
    """

    def __init__(self, certificate: Path, key: Path, *, legacy_key_id: bool = True) -> None:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        assert isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
        self._key = loaded
        public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        spelled = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        self.key_id = (
            libtrust_key_id(public.public_bytes(*spelled))
            if legacy_key_id
            else jwk_thumbprint(loaded)
        )
        self.algorithm = "RS256" if isinstance(loaded, rsa.RSAPrivateKey) else "ES256"

    def token(self, claims: Mapping[str, Any]) -> str:
        """A signed JWT."""
        header = {"typ": "JWT", "alg": self.algorithm, "kid": self.key_id}
        text = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        return f"{text}.{_encode(self._sign(text.encode()))}"

    def _sign(self, text: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        r, s = utils.decode_dss_signature(self._key.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def libtrust_key_id(public_key: bytes) -> str:
    """The name by which distribution knows a key (DER): twelve groups of four base32 letters."""
    text = base64.b32encode(hashlib.sha256(public_key).digest()[:30]).decode()
    return ":".join(text[at : at + 4] for at in range(0, 48, 4))


def jwk_thumbprint(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """The name of a key by RFC 7638: the hash of its public part as a JSON Web Key."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key().public_numbers()
        members = {"e": _number(public.e), "kty": "RSA", "n": _number(public.n)}
    else:
        point, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
        x, y = (_number(one, size) for one in (point.x, point.y))
        members = {"crv": f"P-{key.key_size}", "kty": "EC", "x": x, "y": y}
    text = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return _encode(hashlib.sha256(text.encode()).digest())


def _number(value: int, size: int | None = None) -> str:
    return _encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


class Rules:
    """Users and access list of a rendered configuration."""

    def __init__(self, users: Mapping[str, Mapping[str, str]], acl: Sequence[Mapping[str, Any]]):
        self._users, self._acl = users, acl
        # bcrypt of cost 10 takes a while; a client asks for many tokens with one password.
        self._known = functools.lru_cache(64)(self._check)

    def knows(self, account: str, password: str) -> bool:
        """Whether this is a user with that password; the empty account is the anonymous one."""
        return self._known(account, password)

    def _check(self, account: str, password: str) -> bool:
        if account not in self._users:
            return False
        wanted = self._users[account].get("password")
        if wanted is None:
            return True
        return bcrypt.checkpw(password.encode(), wanted.encode())

    def allowed(self, account: str, kind: str, name: str, actions: Sequence[str]) -> list[str]:
        """Those of `actions` that the first matching line allows."""
        asked = {"account": account, "type": kind, "name": name}
        for line in self._acl:
            match = line.get("match", {})
            if all(fnmatchcase(asked[key], str(value)) for key, value in match.items()):
                granted = line.get("actions", [])
                return [one for one in actions if one in granted or "*" in granted]
        return []


_KEYS = {
    "": "server token users acl",
    "server": "addr certificate key real_ip_header",
    "token": "issuer expiration certificate key disable_legacy_key_id",
    "user": "password",
    "acl": "match actions",
    "match": "account type name",
}
"""Section → its keys: those of docker_auth that are used here."""


class ConfigError(Exception):
    """docker_auth does not start with such a configuration."""


def checked(text: str) -> dict[str, Any]:
    """A configuration with which docker_auth would start, without unknown keys."""
    document = yaml.safe_load(text)
    sections = [
        ("", document),
        ("server", document.get("server")),
        ("token", document.get("token")),
    ]
    sections += [("user", user) for user in (document.get("users") or {}).values()]
    for line in document.get("acl") or ():
        sections += [("acl", line), ("match", line.get("match", {}))]
    for name, section in sections:
        if odd := set(section or {}) - {*_KEYS[name].split()}:
            raise ConfigError(f"unknown keys of {name or 'the document'}: {', '.join(sorted(odd))}")
    server, token = document.get("server") or {}, document.get("token") or {}
    if not server.get("addr"):
        raise ConfigError("server.addr is required")
    if not token.get("issuer"):
        raise ConfigError("token.issuer is required")
    if int(token.get("expiration", 0)) <= 0:
        raise ConfigError(f"expiration must be positive, got {token.get('expiration', 0)}")
    if document.get("users") is None:
        raise ConfigError("no auth methods are configured, this is probably a mistake")
    if document.get("acl") is None:
        raise ConfigError("ACL is empty, this is probably a mistake")
    for name, pair in (("server", server), ("token", token)):
        if not (pair.get("certificate") and pair.get("key")):
            raise ConfigError(f"failed to load {name} cert and key: both were not provided")
    return dict(document)


class TokenServer(ScriptedServer):
    """Serves a rendered token-auth configuration while the `with` block lasts.

    `config` is the rendered file; paths in it are used as they stand. Its clock is `ahead_s` ahead.
    """

    def __init__(self, config: Path, *, ahead_s: float = 0.0) -> None:
        self.ahead_s = ahead_s
        document = checked(config.read_text())
        token, server = document["token"], document["server"]
        self._issuer, self._lifetime_s = token["issuer"], int(token["expiration"])
        legacy = not token.get("disable_legacy_key_id", False)
        self._signer = Signer(Path(token["certificate"]), Path(token["key"]), legacy_key_id=legacy)
        self._rules = Rules(document["users"], document["acl"])
        self._real_ip_header = server.get("real_ip_header")
        self.asked: list[Asked] = []
        host, _, port = server["addr"].rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server["certificate"], server["key"])
        super().__init__(self._answer, at=(host, int(port)), tls=context)
        self.address = f"{host or '127.0.0.1'}:{port}"

    def _answer(self, request: Request) -> Reply:
        if request.method != "GET":  # as docker_auth: clients then ask with GET
            return _reply(405, "Method Not Allowed")
        if request.path == "/":
            return _reply(200, f"<h1>{self._issuer}</h1>")
        if request.path != "/auth":
            return _reply(404, "Not found")
        query = request.query
        scopes = tuple(one for text in query.get("scope", []) for one in text.split())
        account, password = _login(request.headers.get("authorization"))
        if wrong := self._wrong(request, account, query.get("account", [""])[0], scopes):
            self.asked.append(Asked(account, scopes, 400))
            return _reply(400, f"Bad request: {wrong}")
        known = self._rules.knows(account, password)
        self.asked.append(Asked(account, scopes, 200 if known else 401))
        if not known:
            return _reply(401, "Auth failed.")
        now = int(time.time() + self.ahead_s)
        claims = {
            "iss": self._issuer,
            "sub": account,
            "aud": query.get("service", [""])[0],
            "exp": now + self._lifetime_s,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [self._access(account, one) for one in scopes],
        }
        token = self._signer.token(claims)
        return _reply(200, json.dumps({"access_token": token, "token": token}))

    def _wrong(self, request: Request, user: str, account: str, scopes: Sequence[str]) -> str:
        """What docker_auth has against a request; empty if nothing."""
        header = self._real_ip_header
        if header and not request.headers.get(header.lower(), "").partition(",")[0].strip():
            return "client address not provided"
        if account and user and account != user:
            return f'user and account are not the same ("{user}" vs "{account}")'
        odd = [one for one in scopes if one.count(":") < 2]
        return f'invalid scope: "{odd[0]}"' if odd else ""

    def _access(self, account: str, scope: str) -> dict[str, Any]:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = self._rules.allowed(account, kind, name, actions.split(","))
        return {"type": kind, "name": name, "actions": allowed}


def _reply(status: int, body: str) -> Reply:
    """Tokens as JSON, and everything else as plain text."""
    headers = {"Content-Type": "application/json" if body[0] == "{" else "text/plain"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="tests"'
    return Reply(status, headers, body.encode())


def _login(header: str | None) -> tuple[str, str]:
    """User and password of a Basic login; empty ones are the anonymous user's."""
    if not header or not header.lower().startswith("basic "):
        return "", ""
    try:
        text = base64.b64decode(header[6:].strip()).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    name, _, password = text.partition(":")
    return name, password


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def main(words: Sequence[str]) -> int:
    """docker_auth as a program: runs until it is ended."""
    flags = [word for word in words if word.startswith("-")]
    if odd := [flag for flag in flags if flag not in ("-logtostderr", "--logtostderr")]:
        print(f"flag provided but not defined: {odd[0]}", file=sys.stderr)
        return 2
    if not flags:
        # glog makes its file when it logs first, which is at once.
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"auth_server.{os.getpid()}.log"
        try:
            path.write_text("")
        except OSError as err:
            print(f"log: exiting because of error: log: cannot create log: {err}", file=sys.stderr)
            return 2
    (config,) = (Path(word) for word in words if not word.startswith("-"))
    try:
        server = TokenServer(config)
    except (ConfigError, OSError) as err:
        print(f"Failed to load config: invalid config: {err}", file=sys.stderr)
        return 1
    with server:
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
