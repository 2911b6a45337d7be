"""Digests: the identity of bytes (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import DigestMismatchError, InvalidDigestError, SizeMismatchError

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_ENCODED = {name: re.compile(f"[0-9a-f]{{{length}}}") for name, length in _HEX_LENGTH.items()}


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """Identity of some bytes, written `algorithm:encoded`.

    Only the registered algorithms `sha256` and `sha512` are known. Others are refused, since a
    digest that cannot be computed proves nothing.
    """

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read a digest as the wire spells it.

        Raises:
            InvalidDigestError: it has another shape, an unknown algorithm, or hex that is not
                lower-case.
        """
        algorithm, colon, encoded = text.partition(":")
        pattern = _ENCODED.get(algorithm)
        if not colon or pattern is None or not pattern.fullmatch(encoded):
            raise InvalidDigestError(
                f"{text[:200]!r} is not a digest; expected sha256:<64 hex> or sha512:<128 hex>"
            )
        # One object per algorithm name, not one per digest: inventories hold many of these.
        return cls("sha256" if algorithm == "sha256" else "sha512", encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Compute the digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Verifier:
    """Checks bytes against their digest and size while they pass.

    `where` names the content in messages. `size` is in bytes; None if it is not known.
    """

    __slots__ = ("_expected", "_hash", "_size", "_where", "count")

    def __init__(self, expected: Digest, size: int | None, where: str) -> None:
        self._expected, self._size, self._where = expected, size, where
        self._hash: _Hasher = hashlib.new(expected.algorithm)
        self.count = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes into account.

        Raises:
            SizeMismatchError: there are more bytes than expected.
        """
        self.count += len(chunk)
        if self._size is not None and self.count > self._size:
            raise SizeMismatchError(where=self._where, expected=self._size, actual=self.count)
        self._hash.update(chunk)

    def finish(self) -> None:
        """Judge the whole.

        Raises:
            SizeMismatchError: bytes are missing.
            DigestMismatchError: the bytes have another digest.
        """
        if self._size is not None and self.count != self._size:
            raise SizeMismatchError(where=self._where, expected=self._size, actual=self.count)
        actual = Digest(self._expected.algorithm, self._hash.hexdigest())
        if actual != self._expected:
            raise DigestMismatchError(where=self._where, expected=self._expected, actual=actual)


def verified(
    chunks: Iterable[bytes], expected: Digest, size: int | None, *, where: str
) -> Iterator[bytes]:
    """Pass `chunks` on, but hold the last one back until the whole has been verified.

    A receiver that needs all bytes, such as an upload of known length, therefore never completes
    with wrong ones.

    Raises:
        SizeMismatchError, DigestMismatchError: as `Verifier`.
    """
    verifier = Verifier(expected, size, where)
    held: bytes | None = None
    for chunk in chunks:
        verifier.update(chunk)
        if held is not None:
            yield held
        held = chunk
    verifier.finish()
    if held is not None:
        yield held
