"""`python -m bench.hashing FOLDER`: SHA-256 of all bytes of its files, on all cores, by hashlib.

The bound of every verification that reads with this library. Files are hashed in pieces, so one
large file keeps all cores busy.
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE = 64 << 20
_BUFFER = 1 << 20


def _hash(path: Path, start: int) -> None:
    summed, buffer = hashlib.sha256(), bytearray(_BUFFER)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        for _ in range(_PIECE // _BUFFER):
            size = file.readinto(buffer)
            if not size:
                break
            summed.update(memoryview(buffer)[:size])


def main(folder: Path) -> None:
    """Hash everything in a folder."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = [path for path in folder.iterdir() if path.is_file()]
        pieces = [(path, at) for path in files for at in range(0, path.stat().st_size, _PIECE)]
        for done in [pool.submit(_hash, *piece) for piece in pieces]:
            done.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
