"""Run an operation from an asyncio program: progress, a time limit, cancelling.

The library works in threads. `mirror.start` begins an operation and returns a handle at once; the
event loop awaits its future and stays free for other work.

    python examples/with_asyncio.py BUNDLE_DIR
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import mirror

LIMIT_S = 3600.0


async def verify(bundle: Path) -> mirror.BundleReport:
    """Check every byte of a bundle without blocking the event loop."""
    with mirror.BundleReader([bundle]) as reader:
        job = mirror.start(mirror.verify, reader)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.future), LIMIT_S)
        finally:
            # When this coroutine is cancelled, or its time is over, the work ends with it; the
            # reader is closed only after that.
            job.cancel()
            await asyncio.to_thread(job.wait)


async def main() -> None:
    """Verify the bundle that the command line names."""
    report = await verify(Path(sys.argv[1]))
    for finding in report.findings:
        print(finding)
    print("damaged" if report.findings else "whole")


if __name__ == "__main__":
    asyncio.run(main())
