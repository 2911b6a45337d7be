"""How much of a bundle is taken in before it is refused, so that memory stays bounded.

Archives come on disks from elsewhere. Real ones are far below these limits; one that was made to
exhaust the reader is not, and is refused with less than 200 MB in use.
"""

from __future__ import annotations

from collections.abc import Mapping

from mirror.bundle.tar import Member
from mirror.errors import DamagedBundleError

MAX_MEMBERS = 100_000
"""Files that one archive may hold. The largest of the platform's so far have some 20,000."""
MAX_FILES = 150_000
"""Files that all archives read together may hold."""
MAX_NAMES = 120_000
"""Tags of a bundle, and descriptors in its manifests: room for 12,000 images of 9 layers."""
MAX_INDEX_BYTES = 8 << 20
"""A layout's index has some 400 bytes per tag: room for 20,000 tags in one repository."""
MAX_INDEX_MARKS = 1_000_000
MAX_MANIFEST_MARKS = 250_000
MAX_MEDIA_TYPE = 255
"""Characters: RFC 6838, 4.2, allows 127 on either side of the slash."""
MAX_FINDINGS = 5_000
"""Of a layout; what lies beyond them is counted."""


def marks(data: bytes) -> int:
    """How many marks JSON text has between its values.

    A parser makes some 50 bytes of each, which may be 30 times the text: by this so much is known
    before it is parsed.
    """
    return sum(map(data.count, (b",", b":", b"[", b"{")))


class Budget:
    """How many names a bundle may still have: tags, and what manifests refer to; and files.

    Each takes some hundreds of bytes for as long as the bundle is open.
    """

    def __init__(self) -> None:
        self._names, self._files = MAX_NAMES, MAX_FILES

    def take_names(self, count: int) -> None:
        """Raise DamagedBundleError if `count` more are too many."""
        self._names -= count
        if self._names < 0:
            raise DamagedBundleError(
                f"the bundle has more than {MAX_NAMES} tags and references in all; split it"
            )

    def take_files(self, members: Mapping[str, Member]) -> None:
        """Raise DamagedBundleError if these are too many; names of usual length count for one."""
        self._files -= max(len(members), sum(map(len, members)) // 128)
        if self._files < 0:
            raise DamagedBundleError(f"the bundle has more than {MAX_FILES} files in all; split it")
