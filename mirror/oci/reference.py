"""Digests and references: what content is, and where an image lives.

Digests are spelled as in image-spec, descriptor.md, "Digests"; references in Docker's grammar
(distribution-spec, "Pulling manifests").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from mirror.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidReferenceError,
    SizeMismatchError,
)

_ALGORITHMS = ("sha256", "sha512")
_SHA256 = re.compile("sha256:[0-9a-f]{64}").fullmatch
_SHA512 = re.compile("sha512:[0-9a-f]{128}").fullmatch


class Digest(bytes):
    """Identity of some bytes, written `algorithm:encoded`.

    Only the registered algorithms `sha256` and `sha512` are known. Others are refused, since a
    digest that cannot be computed proves nothing. Digests sort as their texts do.

    Raises:
        ValueError: `encoded` is not hex, or the algorithm is unknown.
    """

    # Inventories hold, compare, hash and sort digests by the million. Bytes take a third of what
    # texts take, remember their hash, and lead the garbage collector nowhere.

    __slots__ = ()

    def __new__(cls, algorithm: str, encoded: str) -> Digest:
        """Make the digest of these two parts; `parse` is for what others wrote."""
        if algorithm not in _ALGORITHMS:
            raise ValueError(f"{algorithm!r} is not a digest algorithm")
        kind = _ALGORITHMS.index(algorithm)
        return bytes.__new__(cls, kind.to_bytes() + bytes.fromhex(encoded))

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read a digest as the wire spells it.

        Raises:
            InvalidDigestError: it has another shape, an unknown algorithm, or hex that is not
                lower-case.
        """
        if _SHA256(text):
            return bytes.__new__(cls, b"\0" + bytes.fromhex(text[7:]))
        if _SHA512(text):
            return bytes.__new__(cls, b"\1" + bytes.fromhex(text[7:]))
        raise InvalidDigestError(
            f"{text[:200]!r} is not a digest; expected sha256:<64 hex> or sha512:<128 hex>"
        )

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Compute the digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return _ALGORITHMS[self[0]]

    @property
    def encoded(self) -> str:
        """The lower-case hex behind the colon."""
        return self[1:].hex()

    def __str__(self) -> str:
        return f"{_ALGORITHMS[self[0]]}:{self.hex()[2:]}"

    def __repr__(self) -> str:
        return f"Digest(algorithm={self.algorithm!r}, encoded={self.encoded!r})"

    def __reduce__(self) -> tuple[type[Digest], tuple[str, str]]:
        return Digest, (self.algorithm, self.encoded)


def digest_of(pieces: Iterable[bytes | memoryview]) -> Digest:
    """The SHA-256 of what `pieces` are together."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return Digest("sha256", found.hexdigest())


class Verifier:
    """Checks bytes against their digest and size while they pass.

    `where` names the content in messages. `size` is in bytes; None if it is not known.
    """

    __slots__ = ("_expected", "_hash", "_size", "_where", "count")

    def __init__(self, expected: Digest, size: int | None, where: str) -> None:
        self._expected, self._size, self._where = expected, size, where
        self._hash = hashlib.new(expected.algorithm)
        self.count = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes into account; raise SizeMismatchError if there are too many."""
        self.count += len(chunk)
        if self._size is not None and self.count > self._size:
            raise SizeMismatchError(where=self._where, expected=self._size, actual=self.count)
        self._hash.update(chunk)

    def finish(self) -> None:
        """Judge the whole, or raise SizeMismatchError or DigestMismatchError."""
        if self._size is not None and self.count != self._size:
            raise SizeMismatchError(where=self._where, expected=self._size, actual=self.count)
        actual = Digest(self._expected.algorithm, self._hash.hexdigest())
        if actual != self._expected:
            raise DigestMismatchError(where=self._where, expected=self._expected, actual=actual)

    def passing(self, chunks: Iterable[bytes], position: int = 0) -> Generator[bytes, None, None]:
        """Pass `chunks` on, but hold the last one back until the whole has been verified.

        A receiver that needs all bytes, such as an upload of known length, therefore never
        completes with wrong ones. `chunks` begin at `position`, at most `count`; what was counted
        before is not hashed again.

        Raises:
            SizeMismatchError, DigestMismatchError: the whole is not what it should be.
        """
        held: bytes | None = None
        for chunk in chunks:
            known = self.count - position
            if known < len(chunk):
                self.update(chunk[known:] if known else chunk)
            position += len(chunk)
            if held is not None:
                yield held
            held = chunk
        self.finish()
        if held is not None:
            yield held


def verified(
    chunks: Iterable[bytes], expected: Digest, size: int | None, *, where: str
) -> Iterator[bytes]:
    """Pass `chunks` on, which begin with the first byte; see `Verifier.passing`."""
    return Verifier(expected, size, where).passing(chunks)


# -- references ------------------------------------------------------------------------------------

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9A-Fa-f]{32,}")
_MAX_REPOSITORY = 255


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A repository of a registry, or the root that a tree of them shares: `host[:port]/path`."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read `host[:port]/path`. A leading `http(s)://` and slashes at the end are ignored, and
        several slashes in a row count as one, as `d8 mirror` takes them.

        Raises:
            InvalidReferenceError: it has no path, or one that no registry accepts.
        """
        bare = re.sub("/+", "/", re.sub(r"^https?://", "", text.strip())).removesuffix("/")
        before, at, behind = bare.rpartition("@")
        if at and _DIGEST.fullmatch(behind) and "@" not in before:
            raise InvalidReferenceError(
                f"a repository is named without a digest; leave out @{behind}"
            )
        if at:
            raise _credentials_inside(behind)
        host, slash, path = bare.partition("/")
        if not _is_host(host):
            raise InvalidReferenceError(
                f"{text!r} does not start with a registry host; write host[:port]/path, "
                "such as registry.example.com:5000/deckhouse/ee"
            )
        if not slash or not path:
            raise InvalidReferenceError(
                f"{text!r} has no path behind the registry host; "
                f"say where in the registry, such as {host}/deckhouse/ee"
            )
        check_repository(path, text)
        return cls(host, path)

    def join(self, relative: str) -> Repository:
        """The repository at `relative` below this one; the empty path is this one itself."""
        return replace(self, path=f"{self.path}/{relative}") if relative else self

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image: a repository with a tag, a digest, or both (the digest decides)."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `host[:port]/path[:tag][@digest]`, with a tag, a digest or both.

        Raises:
            InvalidReferenceError, InvalidDigestError: a part is invalid.
        """
        name, at, behind = text.strip().rpartition("@")
        if not at:
            name = behind
        elif "@" in name or "/" in behind:
            raise _credentials_inside(behind)
        # First: its error does not repeat what stands before the @.
        digest = Digest.parse(behind) if at else None
        head, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:  # that colon belongs to the port
            head, tag = name, ""
        if not tag and digest is None:
            raise InvalidReferenceError(f"{text!r} names no image; add :tag or @sha256:digest")
        if tag:
            check_tag(tag)
        return cls(Repository.parse(head), tag or None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def _credentials_inside(address: str) -> InvalidReferenceError:
    """The error for `user:password@address`. It must repeat nothing but the address."""
    return InvalidReferenceError(
        f"credentials do not belong in an address; write {address!r} without what stands before "
        "the @, and give the login by the options for it, or with `docker login`"
    )


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text):
        return False
    port = text.rpartition(":")[2] if re.search(r":[0-9]+$", text) else ""
    return not port or 0 < int(port) < 65536


def check_repository(path: str, text: str | None = None) -> None:
    """Raise InvalidReferenceError unless `path` can name a repository. `text` is what was typed."""
    if not valid_repository(path):
        raise InvalidReferenceError(
            f"{text or path!r}: {path!r} is not a repository path; use lower-case letters, digits "
            "and . _ - inside parts that are joined by /, 255 characters at most"
        )


def check_tag(tag: str) -> None:
    """Raise InvalidReferenceError unless `tag` is a tag (distribution-spec: 128 characters)."""
    if not valid_tag(tag):
        raise InvalidReferenceError(
            f"{tag[:200]!r} is not a tag; use letters, digits and . _ -, 128 characters at most"
        )


def valid_repository(path: str) -> bool:
    """Whether `path` can name a repository."""
    return len(path) <= _MAX_REPOSITORY and _REPOSITORY.fullmatch(path) is not None


def valid_tag(tag: str) -> bool:
    """Whether `tag` is a tag (distribution-spec, "Pulling manifests")."""
    return _TAG.fullmatch(tag) is not None


def referrers_tag(digest: Digest) -> str:
    """The tag for what refers to a manifest (distribution-spec, "Referrers Tag Schema").

    Cosign appends `.sig`, `.att` or `.sbom` to it.
    """
    return f"{digest.algorithm[:32]}-{digest.encoded[:64]}"
