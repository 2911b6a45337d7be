"""References: where an image lives (distribution-spec "Pulling manifests"; Docker's grammar)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mirror.errors import InvalidReferenceError
from mirror.oci.digest import Digest

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
        """Read `host[:port]/path`. One trailing `/` and a leading `http(s)://` are ignored.

        Raises:
            InvalidReferenceError: it has no path, or one that no registry accepts.
        """
        bare = re.sub(r"^https?://", "", text.strip()).removesuffix("/")
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
        # First, as its error repeats nothing of what stands before the @.
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
    if not _TAG.fullmatch(tag):
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
