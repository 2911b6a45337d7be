"""Connections that `ConnectionOptions` describe: trust, proxies, pooling."""

from __future__ import annotations

import http.cookiejar
import logging
import os
import ssl
from pathlib import Path

import httpx

from mirror.errors import InputError
from mirror.registry.options import ConnectionOptions

_log = logging.getLogger(__name__)

# These report each URL and header, and addresses of storage and uploads carry signatures. A level
# that somebody has chosen on purpose stays.
for _name in ("httpx", "httpcore"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.WARNING)


def http_client(options: ConnectionOptions) -> httpx.Client:
    """A pool of HTTP/1.1 connections; thread-safe, without redirects or retries of its own.

    Raises:
        InputError: the CA file or the environment's proxy cannot be used.
    """
    # Sessions do not live in cookies here: one kept by accident makes some registries treat the
    # program as a browser and want CSRF tokens of it.
    cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    try:
        return httpx.Client(
            verify=tls_context(options),
            cookies=cookies,
            trust_env=True,
            limits=httpx.Limits(
                max_connections=options.max_connections,
                max_keepalive_connections=options.max_connections,
                keepalive_expiry=30.0,
            ),
            # Identity: blobs are carried as they are stored, and their digests are of those bytes.
            headers={"User-Agent": options.user_agent, "Accept-Encoding": "identity"},
        )
    except (ImportError, ValueError, httpx.InvalidURL) as err:
        # The text may hold a proxy's password, so it is not repeated.
        raise InputError(
            "the proxy named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used "
            f"({type(err).__name__}); write http://host:port"
        ) from None


def tls_context(options: ConnectionOptions) -> ssl.SSLContext:
    """Build what decides whom to trust.

    The system's roots are the default, not those packed with a Python library: a closed
    environment adds its authority with `update-ca-certificates`, and every other tool on the
    machine honours that. OpenSSL itself reads `SSL_CERT_FILE` and `SSL_CERT_DIR`. Only a system
    without any roots (a bare container image) gets the packed ones.

    Raises:
        InputError: `ca_file` or `ca` cannot be read or holds no certificate.
    """
    if options.verify and not _system_has_roots():
        _log.debug("this system has no certificate authorities; using those packed with httpx")
        context = httpx.create_ssl_context(trust_env=False)
    else:
        context = ssl.create_default_context()
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if options.ca_file is not None:
            _trust_file(context, options.ca_file)
        if options.ca is not None:
            _trust_text(context, options.ca)
    return context


def _trust_file(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as err:
        raise InputError(
            f"--ca {path}: no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----) could be read from it"
        ) from err
    except OSError as err:
        raise InputError(f"--ca {path}: {err.strerror or err}") from err


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
