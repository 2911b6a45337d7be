"""`mirror` with a meter at its sockets: `-m tests.support.counted_program FILE PORT ARGUMENTS`.

A registry can count only what it sent. When its reader is killed, megabytes of that lie unread in
buffers of the kernel, the more of them the busier the machine is. This counts what the program has
read, in FILE, where the count outlives the program; from servers at PORT alone, or with 0 from all.
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirror.__main__ import main

_COUNT = struct.Struct("<Q")


class Meter:
    """Bytes that programs have read from their sockets, or from a server's, kept in a file."""

    def __init__(self, path: Path, port: int = 0) -> None:
        self.program = (sys.executable, "-m", __name__, str(path), str(port))
        self._path = path
        path.write_bytes(bytes(_COUNT.size))

    def so_far(self) -> int:
        """Bytes that were read since `read` was asked last."""
        (count,) = _COUNT.unpack(self._path.read_bytes())
        return int(count)

    def read(self) -> int:
        """The same, and count anew. No program may be running."""
        count = self.so_far()
        self._path.write_bytes(bytes(_COUNT.size))
        return count


def _install(path: Path, port: int) -> None:
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _COUNT.size)
    lock = threading.Lock()  # guards `memory`

    def counted(method: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        def read(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if port and args[0].getpeername()[1] != port:
                return answer
            with lock:
                _COUNT.pack_into(memory, 0, _COUNT.unpack_from(memory)[0] + size(answer))
            return answer

        return read

    # Both are methods of the class that `socket.socket` extends.
    vars_of: Any = socket.socket
    vars_of.recv = counted(socket.socket.recv, len)
    vars_of.recv_into = counted(socket.socket.recv_into, int)


if __name__ == "__main__":
    file, of_server, *arguments = sys.argv[1:]
    _install(Path(file), int(of_server))
    sys.argv[1:] = arguments
    main()
