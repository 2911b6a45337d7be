"""GOST R 34.11-2012 (Streebog), 256 bit, and the `.gostsum` files that hold it (RFC 6986).

The work is done by OpenSSL with the module of Debian's `libengine-gost-openssl`, called through
ctypes, which lets go of the interpreter's lock meanwhile. One core of a current server hashes
160 MB/s, and two threads twice that. The same through a pipe into `openssl dgst` is 130 MB/s, with
a process per file to feed and to end. The best pure Python (gostcrypto) does 0.3 MB/s, four days
for 100 GB, and has had no release since 2021. So there is one way, and an error that names the
package.

The module comes as a provider, which is asked first since it stays in a library context of its
own, and as an engine, a kind of module that OpenSSL 4 no longer knows.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from mirror.bundle.files import beginning
from mirror.bundle.format import GOST_SUFFIX
from mirror.bundle.location import Location
from mirror.errors import DamagedBundleError, GostUnavailableError, IntegrityError

PACKAGE = "libengine-gost-openssl"
"""The Debian package that brings the algorithm."""

_NAME = b"md_gost12_256"
_SIZE = 32  # bytes of a digest
_DIGEST = re.compile(r"[0-9a-f]{64}")

_INIT_ENGINES = 0x00000400 | 0x00000200  # OPENSSL_INIT_ENGINE_DYNAMIC, _OPENSSL (crypto.h)


def _unavailable(reason: str) -> GostUnavailableError:
    return GostUnavailableError(
        f"GOST R 34.11-2012 digests need OpenSSL's GOST module, and {reason}",
        advice=f"install it (on Debian: apt-get install {PACKAGE}), or leave the GOST digests out",
    )


# -- OpenSSL -------------------------------------------------------------------------------------


class _Pointer(ctypes.c_void_p):
    """What OpenSSL returns and takes. ctypes makes a number of a plain `c_void_p`, and cuts it."""


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """The digest as OpenSSL has it: a method, and the engine that carries it out (or none)."""

    library: ctypes.CDLL
    method: _Pointer
    engine: _Pointer | None
    how: str


def _returning(library: ctypes.CDLL, *names: str) -> ctypes.CDLL:
    """`library`, whose functions of these `names` return pointers."""
    for name in names:
        getattr(library, name).restype = _Pointer
    return library


def _open_library() -> ctypes.CDLL:
    """OpenSSL's libcrypto, the one that the GOST module of this system belongs to."""
    for name in ("libcrypto.so.3", ctypes.util.find_library("crypto")):
        if name is not None:
            with suppress(OSError, AttributeError):
                return _returning(ctypes.CDLL(name), "EVP_MD_CTX_new")
    raise _unavailable("there is no libcrypto.so.3 here")


def _from_provider(library: ctypes.CDLL) -> _Algorithm | None:
    _returning(library, "OSSL_LIB_CTX_new", "OSSL_PROVIDER_load", "EVP_MD_fetch")
    # A context of its own: in the common one it takes the default provider's place, for TLS too.
    context = library.OSSL_LIB_CTX_new()
    if not context or not library.OSSL_PROVIDER_load(context, b"gostprov"):
        return None
    method = library.EVP_MD_fetch(context, _NAME, None)
    return _Algorithm(library, method, None, "OpenSSL's GOST provider") if method else None


def _from_engine(library: ctypes.CDLL) -> _Algorithm | None:
    _returning(library, "ENGINE_by_id", "ENGINE_get_digest")
    library.OPENSSL_init_crypto(ctypes.c_uint64(_INIT_ENGINES), None)
    engine = library.ENGINE_by_id(b"gost")
    if not engine or not library.ENGINE_init(engine):
        return None
    method = library.ENGINE_get_digest(engine, library.OBJ_txt2nid(_NAME))
    return _Algorithm(library, method, engine, "OpenSSL's GOST engine") if method else None


_WAYS: tuple[Callable[[ctypes.CDLL], _Algorithm | None], ...] = (_from_provider, _from_engine)


@cache
def _algorithm() -> _Algorithm:
    """The algorithm, loaded once and kept: what OpenSSL loads it does not let go of."""
    library = _open_library()
    for load in _WAYS:
        try:
            found = load(library)
        except AttributeError:  # a libcrypto that has no such thing
            continue
        if found is not None:
            return found
        # Errors that stay behind would be taken for its own by whatever asks OpenSSL next.
        library.ERR_clear_error()
    raise _unavailable("it is not installed here")


def available() -> str | None:
    """How GOST digests are computed on this machine, in words; None if they are not."""
    try:
        return _algorithm().how
    except GostUnavailableError:
        return None


def require() -> None:
    """Raise GostUnavailableError unless GOST digests can be computed on this machine."""
    _algorithm()


class GostHash:
    """Computes one GOST R 34.11-2012 digest of 256 bits. For one thread at a time.

    Raises:
        GostUnavailableError: this machine cannot; the message says what to install.
    """

    def __init__(self) -> None:
        self._context: _Pointer | None = None
        self._digest: str | None = None
        self._openssl = _algorithm()
        library = self._openssl.library
        self._context = library.EVP_MD_CTX_new()
        begun = self._context and library.EVP_DigestInit_ex(
            self._context, self._openssl.method, self._openssl.engine
        )
        if not begun:
            self.close()
            raise _unavailable("it refuses to work")

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes into account.

        Raises:
            ValueError: the digest was asked for already, or the object is closed.
        """
        if self._context is None or self._digest is not None:
            raise ValueError("this digest is finished")
        size = ctypes.c_size_t(len(data))
        if not self._openssl.library.EVP_DigestUpdate(self._context, bytes(data), size):
            raise _unavailable("it failed at its work")

    def hexdigest(self) -> str:
        """Return the digest: 64 digits of lower-case hex, in the byte order of `.gostsum`.

        It ends the computation; a second call gives the same.

        Raises:
            ValueError: the object was closed before.
        """
        if self._digest is None:
            if self._context is None:
                raise ValueError("this digest was given up")
            out = ctypes.create_string_buffer(2 * _SIZE)
            if not self._openssl.library.EVP_DigestFinal_ex(self._context, out, None):
                raise _unavailable("it failed at its work")
            self._digest = out.raw[:_SIZE].hex()
            self.close()
        return self._digest

    def close(self) -> None:
        """Release it; a second call does nothing."""
        context, self._context = self._context, None
        if context is not None:
            self._openssl.library.EVP_MD_CTX_free(context)

    __del__ = close


def gost_digest(chunks: Iterable[bytes]) -> str:
    """Return the digest of some bytes, as `GostHash.hexdigest` does."""
    gost = GostHash()
    for chunk in chunks:
        gost.update(chunk)
    return gost.hexdigest()


# -- .gostsum --------------------------------------------------------------------------------------


def gostsum_path(path: Location) -> Location:
    """Return where the sum of `path` lies: beside it, with `.gostsum` added to its name."""
    return path.with_name(path.name + GOST_SUFFIX)


def gostsum(digest: str) -> bytes:
    """Return the content of such a file: 64 digits, and nothing else, as d8 writes it.

    Raises:
        ValueError: `digest` is not a digest in lower-case hex.
    """
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a digest of 64 hex digits")
    return digest.encode()


def read_gostsum(path: Location) -> str | None:
    """Return the digest that is written down for `path`; None where no such file is.

    White space around it and upper case are forgiven: people write such files with other tools.

    Raises:
        DamagedBundleError: the file beside `path` holds something else.
    """
    source = gostsum_path(path)
    if not source.exists():
        return None
    text = beginning(source, 256).decode("ascii", "replace").strip().lower()
    if not _DIGEST.fullmatch(text):
        raise DamagedBundleError(
            "it does not hold a GOST digest, which has 64 hex digits",
            where=source.name,
            advice="copy it again from its origin",
        )
    return text


def check_gostsum(path: Location, chunks: Iterable[bytes]) -> bool:
    """Compare the digest of `chunks`, the bytes of `path`, with the one written down for it.

    Return False, without reading any, where none is written down.

    Raises:
        IntegrityError: they differ.
        DamagedBundleError: as `read_gostsum`.
        GostUnavailableError: this machine cannot compute the digest.
    """
    expected = read_gostsum(path)
    if expected is None:
        return False
    actual = gost_digest(chunks)
    if actual != expected:
        raise IntegrityError(
            f"expected GOST digest {expected}, got {actual}",
            where=path.name,
            advice="this copy is damaged, take it again from its origin",
        )
    return True
