"""The program: the command `mirror`, and `python -m mirror`.

It imports almost nothing before it can be interrupted: the rest takes a moment to load, and an
interruption in that moment is answered like a later one.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from mirror.commands import INTERRUPTED, MESSAGE


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _stop)
    # Inventories are millions of objects without cycles: searched for cycles in vain, again and
    # again, they take half as long again.
    gc.set_threshold(50_000)
    try:
        try:
            from mirror.commands.process import prepare

            prepare()
            from mirror.cli import main as command_line

            command_line(prog_name="mirror")
        except SystemExit as end:
            # At once: to free an inventory's objects one by one takes up to seconds.
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if isinstance(end.code, int):
                os._exit(end.code)
            raise
    except KeyboardInterrupt:
        _stop()


def _stop(_signal: int = 0, _frame: FrameType | None = None) -> NoReturn:
    """End at once: nothing has begun yet, or all is done.

    An exception would not do, as what interrupts an import may be swallowed by it or be shown.
    """
    with suppress(OSError):  # closed, or full: the exit code still says it
        os.write(2, f"error: {MESSAGE}\n".encode())
    if "--json" in sys.argv:
        error = f'{{"type": "Interrupted", "message": "{MESSAGE}", "exitCode": {INTERRUPTED}}}'
        with suppress(OSError):
            os.write(1, f'{{"error": {error}}}\n'.encode())
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
