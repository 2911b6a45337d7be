"""Who we are is proved by a certificate where a server asks for one, and there alone."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mirror.errors import InputError, UnreachableError
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy, hosts
from mirror.registry.hosts import HostFiles, Origin, tls_context
from mirror.registry.options import ClientCertificate
from mirror.testing import TlsFiles
from tests.support.nginx import Nginx
from tests.support.scripted_server import Reply, Request, ScriptedServer
from tests.support.tls import Authority, served_with

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
WANTED = "wants a client certificate that it accepts"


@contextmanager
def asking(
    authority: Authority, version: ssl.TLSVersion = TLS13, body: bytes = b'{"tags": ["v1"]}'
) -> Iterator[ScriptedServer]:
    """A registry that talks to nobody without a certificate of `authority`."""
    context = served_with(authority.issue())
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    with ScriptedServer(lambda request: Reply(body=body), tls=context) as server:
        yield server


def connect(
    host: str, authority: Authority, certificate: ClientCertificate | None = None
) -> RegistryClient:
    retries = RetryPolicy(attempts=2, sleep=lambda delay_s: None)
    options = ConnectionOptions(
        ca_file=authority.certificate, certificate=certificate, retries=retries
    )
    return RegistryClient(host, options=options)


@pytest.fixture
def ours(authority: Authority) -> ClientCertificate:
    return pair(authority.issue("robot", client=True))


@pytest.fixture
def certs_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's podman would keep certificates; the system has none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(hosts, "SYSTEM_FOLDERS", (tmp_path / "system", tmp_path / "docker"))
    return tmp_path / "config" / "containers" / "certs.d"


def put(folder: Path, certificate: ClientCertificate, authority: Authority) -> None:
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (folder / "client.cert").write_bytes(certificate.cert_file.read_bytes())
    assert certificate.key_file is not None
    (folder / "client.key").write_bytes(certificate.key_file.read_bytes())


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_certificate_opens_a_registry_that_asks_for_one(
    version: ssl.TLSVersion, authority: Authority, ours: ClientCertificate
) -> None:
    with asking(authority, version) as server, connect(server.host, authority, ours) as client:
        assert client.tags("a") == ["v1"]


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_without_one_the_message_says_that_it_is_wanted(
    version: ssl.TLSVersion, authority: Authority
) -> None:
    with asking(authority, version) as server, connect(server.host, authority) as client:
        with pytest.raises(UnreachableError) as caught:
            client.tags("a")
        told = str(caught.value)
    assert "client certificate" in told
    assert "--cert and --key" in told
    assert not caught.value.may_pass


def test_one_of_another_authority_is_told_as_not_accepted(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.create(tmp_path / "other", "stranger").issue("robot", client=True)
    with (
        asking(authority) as server,
        connect(server.host, authority, pair(stranger)) as client,
        pytest.raises(UnreachableError, match=rf"{WANTED} \(TLS alert: unknown ca\)"),
    ):
        client.tags("a")


def test_nginx_says_it_in_a_page_and_that_is_read(
    authority: Authority, ours: ClientCertificate, tmp_path: Path
) -> None:
    with (
        ScriptedServer(lambda request: Reply(body=b'{"tags": ["v1"]}')) as behind,
        Nginx(
            tmp_path / "nginx", behind.host, tls=authority.issue(), clients=authority.certificate
        ) as nginx,
    ):
        host = nginx.url.removeprefix("https://")
        with connect(host, authority, ours) as client:
            assert client.tags("a") == ["v1"]
        with connect(host, authority) as client, pytest.raises(UnreachableError) as caught:
            client.tags("a")
        assert f"{WANTED} (HTTP 400, No required SSL certificate was sent)" in str(caught.value)
        stranger = Authority.create(tmp_path / "other", "stranger").issue("robot", client=True)
        with (
            connect(host, authority, pair(stranger)) as client,
            pytest.raises(UnreachableError, match="HTTP 400, The SSL certificate error"),
        ):
            client.tags("a")


def pair(files: TlsFiles) -> ClientCertificate:
    return ClientCertificate(files.certificate, files.key)


def test_the_certificate_is_shown_to_the_registry_and_to_no_other_host(
    authority: Authority, ours: ClientCertificate
) -> None:
    with asking(authority, body=b"blob") as storage:
        name = storage.host.replace("127.0.0.1", "localhost")

        def registry(request: Request) -> Reply:
            return Reply(307, {"Location": f"https://{name}/blob"})

        with (
            ScriptedServer(registry, tls=served_with(authority.issue("home"))) as server,
            connect(server.host, authority, ours) as client,
            pytest.raises(UnreachableError, match=f"localhost {WANTED}"),
        ):
            client.tags("a")


# -- certs.d ---------------------------------------------------------------------------------------


def test_what_podman_keeps_for_a_host_is_used_there(
    authority: Authority, ours: ClientCertificate, certs_d: Path
) -> None:
    with asking(authority) as server:
        put(certs_d / server.host, ours, authority)
        with RegistryClient(server.host) as client:
            assert client.tags("a") == ["v1"]


def test_a_certificate_that_is_given_goes_before_one_that_is_kept(
    authority: Authority, ours: ClientCertificate, certs_d: Path, tmp_path: Path
) -> None:
    stranger = Authority.create(tmp_path / "other", "stranger").issue("robot", client=True)
    with asking(authority) as server:
        put(certs_d / server.host, pair(stranger), authority)
        with connect(server.host, authority, ours) as client:
            assert client.tags("a") == ["v1"]


def test_the_first_folder_that_exists_for_the_host_decides(
    authority: Authority, ours: ClientCertificate, certs_d: Path, tmp_path: Path
) -> None:
    origin = Origin("https", "reg.example.com", 443)
    assert HostFiles.of(origin) == ((), ())
    for folder in (
        tmp_path / "docker" / "reg.example.com",
        tmp_path / "system" / "reg.example.com:443",
        certs_d / "reg.example.com",
    ):
        put(folder, ours, authority)
        (one,) = HostFiles.of(origin).authorities
        assert one == folder / "ca.crt"
    assert HostFiles.of(Origin("https", "reg.example.com", 5000)) == ((), ())


def test_a_kept_certificate_without_its_key_is_named(
    authority: Authority, ours: ClientCertificate, certs_d: Path
) -> None:
    put(certs_d / "reg.example.com", ours, authority)
    (certs_d / "reg.example.com" / "client.key").unlink()
    with pytest.raises(InputError, match=r"client\.cert: its private key is missing; .*client\.k"):
        RegistryClient("reg.example.com")


def test_a_kept_authority_that_is_none_is_named(certs_d: Path) -> None:
    folder = certs_d / "reg.example.com"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("hello")
    with pytest.raises(InputError, match=re.escape(f"{folder}/ca.crt: no certificate in PEM form")):
        RegistryClient("reg.example.com")


def test_a_registry_over_plain_http_needs_no_folder_to_be_sound(certs_d: Path) -> None:
    folder = certs_d / "reg.example.com:80"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("hello")
    RegistryClient("reg.example.com", options=ConnectionOptions(plain_http=True)).close()


# -- files that are not what they should be --------------------------------------------------------


def refused(cert: Path, key: Path | None = None) -> str:
    options = ConnectionOptions(certificate=ClientCertificate(cert, key))
    with pytest.raises(InputError) as caught:
        tls_context(options)
    return str(caught.value)


def test_a_key_in_the_certificates_place_is_noticed(ours: ClientCertificate) -> None:
    cert, key = ours.cert_file, ours.key_file
    assert key is not None
    assert refused(key, cert) == (
        f"--cert {key}: a certificate is needed, and this file has a private key; "
        "were the two mixed up?"
    )
    assert refused(cert, cert) == (
        f"--key {cert}: a private key is needed, and this file has a certificate; "
        "were the two mixed up?"
    )
    assert (
        refused(cert)
        == f"--cert {cert}: its private key is not in it; name the key's file by --key"
    )


def test_certificate_and_key_may_share_a_file(ours: ClientCertificate, tmp_path: Path) -> None:
    assert ours.key_file is not None
    both = tmp_path / "both.pem"
    both.write_bytes(ours.key_file.read_bytes() + ours.cert_file.read_bytes())
    tls_context(ConnectionOptions(certificate=ClientCertificate(both)))


def test_a_key_of_another_certificate_is_noticed(
    authority: Authority, ours: ClientCertificate
) -> None:
    other = authority.issue("another", client=True)
    assert refused(ours.cert_file, other.key) == (
        f"--key {other.key}: it is not the key of the certificate in {ours.cert_file}; "
        "give the two that were issued together"
    )


def test_an_encrypted_key_is_refused_with_how_to_write_it(
    ours: ClientCertificate, tmp_path: Path
) -> None:
    assert ours.key_file is not None
    key = serialization.load_pem_private_key(ours.key_file.read_bytes(), None)
    path = tmp_path / "locked.key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    told = refused(ours.cert_file, path)
    assert told.startswith(f"--key {path}: the private key is encrypted")
    assert f"openssl pkey -in {path} -out PLAIN.key" in told


def test_other_files_are_told_for_what_they_are(ours: ClientCertificate, tmp_path: Path) -> None:
    text, damaged = tmp_path / "text", tmp_path / "damaged"
    text.write_text("hello")
    damaged.write_bytes(ours.cert_file.read_bytes().replace(b"M", b"#", 1))
    assert "and this file has none in PEM" in refused(text, ours.key_file)
    assert "and this file has none in PEM" in refused(ours.cert_file, text)
    assert "certificate or key is damaged" in refused(damaged, ours.key_file)
    assert "No such file or directory" in refused(tmp_path / "absent", ours.key_file)
