"""The files that lie beside the archives of a bundle: sums, GOST digests, the signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mirror.bundle import gost
from mirror.bundle.names import SEAL, SIGNATURE
from mirror.bundle.sums import SUMS, render_sealed
from mirror.oci import Digest

_GOST_SUM_BYTES = 64
_SIGNATURE_BYTES = 1024
"""At most: an RSA signature of 4096 bits has 684 in base64."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What is put beside archives: `files` that the seal lists, and what is said of all the rest.

    `sign` makes a signature over the seal. With `with_gost` each archive or part has a GOST digest.
    """

    files: Mapping[str, bytes]
    sign: Callable[[bytes], bytes] | None = None
    with_gost: bool = False

    def size(self, archives: Iterable[str]) -> int:
        """Bytes at most, the seal aside; `archives` are the names of all archives and parts."""
        size = sum(map(len, self.files.values()))
        names = [*self.files, SEAL]
        for name in archives:
            names.append(name)
            if self.with_gost:
                names.append(name + gost.SUFFIX)
                size += _GOST_SUM_BYTES
        if self.sign is not None:
            names.append(SIGNATURE)
            size += _SIGNATURE_BYTES
        any_digest = Digest.of(b"")
        return size + len(render_sealed(dict.fromkeys(names, any_digest)))

    def render(self, sealed: bytes, digests: Mapping[str, Mapping[str, str]]) -> dict[str, bytes]:
        """All of them by name. `sealed` is the seal; `digests` has those of each archive or part in
        lower-case hex, by name and then by algorithm (`sha256`, `gost`)."""
        beside = dict(self.files)
        sums = {name: Digest.of(data) for name, data in (*beside.items(), (SEAL, sealed))}
        if self.sign is not None:
            beside[SIGNATURE] = self.sign(sealed)
            sums[SIGNATURE] = Digest.of(beside[SIGNATURE])
        for name, digest in digests.items():
            sums[name] = Digest("sha256", digest["sha256"])
            if self.with_gost:
                gostsum = name + gost.SUFFIX
                beside[gostsum] = digest["gost"].encode()
                sums[gostsum] = Digest.of(beside[gostsum])
        beside[SUMS] = render_sealed(sums)
        return beside
