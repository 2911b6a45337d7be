"""TLS with one host: whom to trust there, and the certificate that proves who we are.

Besides the options, the folders `certs.d` of docker, podman and skopeo count, read as these tools
read them (containers-certs.d(5)): `certs.d/HOST[:PORT]/` has authorities (`*.crt`) and client
certificates (`*.cert`, each with its `*.key`). The first folder that exists for a host decides.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mirror.errors import InputError
from mirror.registry.addresses import PORTS, Origin
from mirror.registry.options import ClientCertificate, ConnectionOptions

_log = logging.getLogger(__name__)

SYSTEM_FOLDERS = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_CERTIFICATE, _KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"


class HostFiles(NamedTuple):
    """What a folder `certs.d` has for a host."""

    authorities: tuple[Path, ...] = ()
    certificates: tuple[ClientCertificate, ...] = ()

    @classmethod
    def of(cls, origin: Origin) -> HostFiles:
        """Those for `origin`, in the order of their names.

        Raises:
            InputError: a certificate is there without its key.
        """
        for folder in _folders(origin):
            try:
                files = sorted(folder.iterdir())
            except OSError as err:  # mostly it does not exist; one of another user is not for us
                if not isinstance(err, FileNotFoundError):
                    _log.debug("%s is passed over: %s", folder, err)
                continue
            _log.debug("%s: using the certificates in %s", origin.host, folder)
            pairs = [ClientCertificate(one, _key_of(one)) for one in files if one.suffix == ".cert"]
            return cls(tuple(one for one in files if one.suffix == ".crt"), tuple(pairs))
        return cls()


NO_FILES = HostFiles()


def _folders(origin: Origin) -> Iterator[Path]:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    names = [f"{host}:{origin.port}"]
    if origin.port == PORTS.get(origin.scheme):
        names.append(host)
    roots = list(SYSTEM_FOLDERS)
    with suppress(RuntimeError):  # a user whom nobody told where home is
        config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        roots.insert(0, config / "containers" / "certs.d")
    for root in roots:
        yield from (root / name for name in names)


def _key_of(certificate: Path) -> Path:
    key = certificate.with_suffix(".key")
    if not key.is_file():
        raise InputError(
            f"{certificate}: its private key is missing; put it beside the certificate as "
            f"{key.name}, or take the certificate away"
        )
    return key


def tls_context(
    options: ConnectionOptions, files: HostFiles = NO_FILES, *, ours: bool = True
) -> ssl.SSLContext:
    """Build what decides whom to trust at a host, and what to show there.

    The system's roots are the default, not those packed with a Python library: a closed
    environment adds its authority with `update-ca-certificates`, and every other tool on the
    machine honours that. OpenSSL itself reads `SSL_CERT_FILE` and `SSL_CERT_DIR`. Only a system
    without any roots (a bare container image) gets the packed ones.

    `files` are those of `certs.d`. `ours` says that the certificate of `options` is for this host;
    it takes the place of those in `files`.

    Raises:
        InputError: a file cannot be read, holds no certificate, or a key does not fit.
    """
    if options.verify and not _system_has_roots():
        _log.debug("this system has no certificate authorities; using those packed with httpx")
        from httpx import create_ssl_context  # it takes a while to load

        context = create_ssl_context(trust_env=False)
    else:
        context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        for path in files.authorities:
            _trust_file(context, path, str(path))
        if options.ca_file is not None:
            _trust_file(context, options.ca_file, f"--ca {options.ca_file}")
        if options.ca is not None:
            _trust_text(context, options.ca)
    if ours and options.certificate is not None:
        _show(context, options.certificate, "--cert ", "--key ")
    else:
        for certificate in files.certificates:
            _show(context, certificate)
    return context


def _show(
    context: ssl.SSLContext, certificate: ClientCertificate, cert_flag: str = "", key_flag: str = ""
) -> None:
    """Prove who we are by `certificate`; what is wrong with it is told by the names of flags."""
    cert, key = certificate.cert_file, certificate.key_file or certificate.cert_file
    cert_name, key_name = f"{cert_flag}{cert}", f"{key_flag}{key}"
    if _CERTIFICATE not in (text := _read(cert, cert_name)):
        found = "has a private key; were the two mixed up?" if _KEY in text else "has none in PEM"
        raise InputError(f"{cert_name}: a certificate is needed, and this file {found}")
    text = _read(key, key_name)
    if certificate.key_file is None and _KEY not in text:
        raise InputError(f"{cert_name}: its private key is not in it; name the key's file by --key")
    if _KEY not in text:
        found = "a certificate; were the two mixed up?" if _CERTIFICATE in text else "none in PEM"
        raise InputError(f"{key_name}: a private key is needed, and this file has {found}")
    if b"ENCRYPTED" in text:
        raise InputError(
            f"{key_name}: the private key is encrypted, and nobody may be there to type its "
            f"passphrase; write it unencrypted: openssl pkey -in {key} -out PLAIN.key"
        )
    try:
        context.load_cert_chain(cert, key, password=b"")
    except ssl.SSLError as err:
        if "MISMATCH" in (err.reason or ""):
            raise InputError(
                f"{key_name}: it is not the key of the certificate in {cert}; give the two that "
                "were issued together"
            ) from err
        raise InputError(f"{cert_name}: certificate or key is damaged: {err.reason}") from err


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{name}: {err.strerror or err}") from err


def _trust_file(context: ssl.SSLContext, path: Path, name: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as err:
        raise InputError(
            f"{name}: no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----) could be read from it"
        ) from err
    except OSError as err:
        raise InputError(f"{name}: {err.strerror or err}") from err


def _trust_text(context: ssl.SSLContext, pem: str) -> None:
    try:
        # Remarks between certificates may be in any language.
        context.load_verify_locations(cadata=pem.encode("ascii", "ignore").decode())
    except (ssl.SSLError, ValueError) as err:  # ValueError: empty
        raise InputError(
            "the certificate authority that was given as text is no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----)"
        ) from err


def _system_has_roots() -> bool:
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ or paths.openssl_capath_env in os.environ:
        return True  # an explicit choice, even of nothing, is not to be widened
    if paths.cafile and Path(paths.cafile).is_file():
        return True
    return bool(paths.capath and any(Path(paths.capath).glob("*.[0-9]")))
