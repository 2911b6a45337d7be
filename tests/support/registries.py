"""Every registry that can be had on this machine, and what people put in front of theirs."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import bcrypt

from bench.programs import PROGRAMS
from mirror.registry import ClientCertificate, ConnectionOptions, Credentials
from mirror.serve import FolderStorage, TokenAuth, User
from mirror.testing import EmbeddedRegistry, TlsFiles
from tests.support.nginx import Nginx
from tests.support.object_storage import LOGIN as STORAGE_LOGIN
from tests.support.object_storage import REGION, ObjectStorage
from tests.support.processes import ServerProcess, free_port
from tests.support.real_registry import RealRegistry
from tests.support.tls import Authority
from tests.support.token_server import TokenServer
from tests.support.tools import require_program
from tests.support.walker import Walker

LOGIN = ("tester", "s3cret")
"""Who may do everything, where anybody is asked."""


@dataclass(frozen=True)
class Reached:
    """A running registry, and how to get at it."""

    address: str
    authority: Path | None = None
    login: tuple[str, str] | None = None
    certificate: TlsFiles | None = None
    """What a client has to show."""

    @property
    def flags(self) -> tuple[str | Path, ...]:
        """What a command line is told besides the address."""
        if self.authority is None:
            return ("--insecure",)
        shown = self.certificate
        own = ("--cert", shown.certificate, "--cert-key", shown.key) if shown else ()
        return ("--ca", self.authority, *own)

    @property
    def options(self) -> ConnectionOptions:
        """The same for the library."""
        shown = self.certificate
        return ConnectionOptions(
            plain_http=self.authority is None,
            ca_file=self.authority,
            certificate=ClientCertificate(shown.certificate, shown.key) if shown else None,
        )

    @property
    def credentials(self) -> Credentials | None:
        """The login for the library."""
        return Credentials(*self.login) if self.login else None

    @property
    def docker_auth(self) -> dict[str, str]:
        """The login as docker stores it."""
        assert self.login is not None
        return {"auth": base64.b64encode(":".join(self.login).encode()).decode()}

    def walker(self) -> Walker:
        """Who looks at it without any code of ours."""
        scheme = "http" if self.authority is None else "https"
        shown = self.certificate
        return Walker(
            f"{scheme}://{self.address}",
            authority=self.authority,
            login=self.login,
            client=(shown.certificate, shown.key) if shown else None,
        )


Start: TypeAlias = Callable[[Path], AbstractContextManager[str]]
"""Starts a registry that keeps its content in a folder; answers its address."""
StartWithTokens: TypeAlias = Callable[[Path, Authority], AbstractContextManager[Reached]]


@dataclass(frozen=True)
class Kind:
    """A registry: who makes it, and how it is run here."""

    name: str
    version: str
    start: Start
    how: str
    """How it is run, for the page about registries."""
    with_tokens: StartWithTokens | None = None
    """The same behind its own TLS, with logins by a token server; None if it knows none."""
    deletes_tags: bool = True
    """Whether it removes a tag and keeps the manifest that others name, too."""


# -- the registries --------------------------------------------------------------------------------


@contextlib.contextmanager
def _embedded(folder: Path) -> Iterator[str]:
    with EmbeddedRegistry(FolderStorage(folder / "data")) as registry:
        yield registry.address


@contextlib.contextmanager
def _embedded_with_tokens(folder: Path, authority: Authority) -> Iterator[Reached]:
    auth = TokenAuth({LOGIN[0]: User(LOGIN[1])})
    storage = FolderStorage(folder / "data")
    with EmbeddedRegistry(storage, tls=authority.issue(), auth=auth) as registry:
        yield Reached(registry.address, authority.certificate, LOGIN)


def _distribution(program: Callable[[], Path | None]) -> Start:
    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[str]:
        with RealRegistry(folder, program=program()) as registry:
            yield registry.address

    return start


def _distribution_with_tokens(
    program: Callable[[], Path | None], **of_token: object
) -> StartWithTokens:
    @contextlib.contextmanager
    def start(folder: Path, authority: Authority) -> Iterator[Reached]:
        folder.mkdir(parents=True)
        tls, signs = authority.issue(), authority.issue("token")
        password = bcrypt.hashpw(LOGIN[1].encode(), bcrypt.gensalt(4)).decode()
        config = folder / "tokens.yml"
        server = {"addr": f"127.0.0.1:{free_port()}"} | _files(tls)
        document = {
            "server": server,
            "token": {"issuer": "tests", "expiration": 300, **of_token, **_files(signs)},
            "users": {LOGIN[0]: {"password": password}},
            "acl": [{"match": {"account": LOGIN[0]}, "actions": ["*"]}],
        }
        config.write_text(json.dumps(document))  # JSON is YAML
        token = {
            "realm": f"https://{server['addr']}/auth",
            "service": "registry",
            "issuer": "tests",
            "rootcertbundle": str(signs.certificate),
        }
        with (
            TokenServer(config),
            RealRegistry(folder, tls=tls, extra={"auth": {"token": token}}, program=program()) as r,
        ):
            yield Reached(r.address, authority.certificate, LOGIN)

    return start


def _files(tls: TlsFiles) -> dict[str, str]:
    return {"certificate": str(tls.certificate), "key": str(tls.key)}


@contextlib.contextmanager
def object_storage(folder: Path) -> Iterator[str]:
    """An S3-compatible server with a bucket for a registry; answers its address."""
    with ObjectStorage(folder, bucket="registry") as storage:
        yield storage.address


def in_bucket(address: str, *, redirects: bool = True) -> dict[str, object]:
    """The settings of a CNCF distribution that keeps its content there, and lets clients read it
    there by `redirects`."""
    access, secret = STORAGE_LOGIN
    driver = {"bucket": "registry", "region": REGION, "secure": False}
    driver |= {"accesskey": access, "secretkey": secret, "regionendpoint": f"http://{address}"}
    return {"s3": driver, "delete": {"enabled": True}, "redirect": {"disable": not redirects}}


def _over_objects(*, redirects: bool) -> Start:
    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[str]:
        with object_storage(folder / "objects") as address:
            extra = {"storage": in_bucket(address, redirects=redirects)}
            with RealRegistry(folder, extra=extra) as registry:
                yield registry.address

    return start


@contextlib.contextmanager
def _crane(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True)
    program, port = require_program("crane-registry"), free_port()
    with ServerProcess([program, "-port", str(port)], port=port, log=folder / "log") as registry:
        yield registry.address


@contextlib.contextmanager
def _olareg(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True)
    port = free_port()
    argv = [str(require_program("olareg")), "serve", "--addr", "127.0.0.1", "--port", str(port)]
    argv += ["--dir", str(folder / "data"), "--api-delete", "--gc-frequency", "-1s"]
    with ServerProcess(argv, port=port, log=folder / "log") as registry:
        yield registry.address


def _debian() -> None:
    """Debian's program of that name."""


EMBEDDED = Kind(
    "embedded",
    "of this program",
    _embedded,
    "`mirror.testing.EmbeddedRegistry` with a folder",
    _embedded_with_tokens,
)
DOCKER_REGISTRY = Kind(
    "docker-registry",
    "2.8 of Debian",
    _distribution(_debian),
    "file system storage, deletion enabled",
    _distribution_with_tokens(_debian),
    deletes_tags=False,
)
REDIRECTING = Kind(
    "docker-registry on S3",
    "2.8 of Debian",
    _over_objects(redirects=True),
    f"a bucket of versitygw {PROGRAMS['versitygw'].version}; blobs by presigned addresses",
    deletes_tags=False,
)
PASSING_ON = Kind(
    "docker-registry on S3, `redirect.disable`",
    "2.8 of Debian",
    _over_objects(redirects=False),
    "the same; blobs by way of the registry",
    deletes_tags=False,
)
DISTRIBUTION = Kind(
    "distribution",
    PROGRAMS["distribution"].version,
    _distribution(lambda: require_program("distribution")),
    "file system storage, deletion enabled",
    _distribution_with_tokens(lambda: require_program("distribution"), disable_legacy_key_id=True),
)
CRANE = Kind(
    "crane's registry",
    PROGRAMS["crane-registry"].version,
    _crane,
    "in memory; it has no settings",
)
OLAREG = Kind(
    "olareg",
    PROGRAMS["olareg"].version,
    _olareg,
    "folder storage, `--api-delete`, no collection of garbage",
)
KINDS = (EMBEDDED, DOCKER_REGISTRY, DISTRIBUTION, REDIRECTING, PASSING_ON, CRANE, OLAREG)


# -- what is in front of them ----------------------------------------------------------------------

Front: TypeAlias = Callable[[Kind, Path, Authority], AbstractContextManager[Reached]]


@contextlib.contextmanager
def bare(kind: Kind, folder: Path, _authority: Authority) -> Iterator[Reached]:
    """Plain HTTP, nothing in between."""
    with kind.start(folder) as address:
        yield Reached(address)


@contextlib.contextmanager
def nginx(kind: Kind, folder: Path, authority: Authority) -> Iterator[Reached]:
    """nginx with TLS by an own authority, which takes bodies in before it passes them on."""
    tls = authority.issue()
    with kind.start(folder / "behind") as behind, Nginx(folder, behind, tls=tls) as front:
        yield Reached(front.address, authority.certificate)


@contextlib.contextmanager
def passwords(kind: Kind, folder: Path, authority: Authority) -> Iterator[Reached]:
    """The same, which asks for a name and a password."""
    folder.mkdir(parents=True)
    accounts = folder / "accounts"
    accounts.write_text(f"{LOGIN[0]}:{{PLAIN}}{LOGIN[1]}\n")
    with (
        kind.start(folder / "behind") as behind,
        Nginx(folder, behind, tls=authority.issue(), passwords=accounts) as front,
    ):
        yield Reached(front.address, authority.certificate, LOGIN)


@contextlib.contextmanager
def certificate(kind: Kind, folder: Path, authority: Authority) -> Iterator[Reached]:
    """nginx with TLS, which asks its clients for a certificate."""
    tls, own = authority.issue(), authority.issue("client", client=True)
    with (
        kind.start(folder / "behind") as behind,
        Nginx(folder, behind, tls=tls, clients=authority.certificate) as front,
    ):
        yield Reached(front.address, authority.certificate, certificate=own)


@contextlib.contextmanager
def tokens(kind: Kind, folder: Path, authority: Authority) -> Iterator[Reached]:
    """The registry's own TLS, and tokens by which each request is allowed."""
    assert kind.with_tokens is not None
    with kind.with_tokens(folder, authority) as reached:
        yield reached


FRONTS: dict[str, Front] = {
    "bare": bare,
    "nginx": nginx,
    "password": passwords,
    "certificate": certificate,
    "tokens": tokens,
}
