"""An S3-compatible server as a child process: versitygw over a folder, on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self
from unittest import mock

from mirror.bundle.bucket import Bucket, BucketAddress
from mirror.registry import ConnectionOptions, RetryPolicy
from mirror.run import Run
from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_program

LOGIN = ("tester", "s3cret-of-tests")
"""Access key and secret key."""
REGION = "test-1"


class ObjectStorage(ServerProcess):
    """A server that keeps each bucket as a folder below `folder`, objects as files in it."""

    BUCKET = "bundles"
    """The bucket that it has from the start."""

    def __init__(self, folder: Path, *, bucket: str = BUCKET) -> None:
        self.root = folder / "data"
        (self.root / bucket).mkdir(parents=True, exist_ok=True)
        beside = folder / "beside"  # what it knows of objects: not every file system keeps that
        beside.mkdir(exist_ok=True)
        port = free_port()
        access, secret = LOGIN
        super().__init__(
            [
                require_program("versitygw"),
                *("--access", access, "--secret", secret, "--region", REGION),
                *("--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive"),
                *("posix", "--sidecar", beside, self.root),
            ],
            port=port,
            log=folder / "storage.log",
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )

    @classmethod
    @contextmanager
    def of_this_process(cls, folder: Path) -> Iterator[Self]:
        """One that this process has the login and the address of, in its environment."""
        with cls(folder) as server, mock.patch.dict(os.environ, server.environment()):
            yield server

    def environment(self, address: str | None = None) -> dict[str, str]:
        """The variables by which AWS's tools, and ours, reach it (or `address` before it)."""
        access, secret = LOGIN
        return {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": f"http://{address or self.address}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self, prefix: str = "here", *, address: str | None = None) -> Bucket:
        """A place in its bucket, for a process that has `environment`; it never waits for long."""
        place = BucketAddress(self.BUCKET, prefix)
        never = RetryPolicy(sleep=lambda _seconds: None)
        options = ConnectionOptions(plain_http=True, retries=never)
        return Bucket(place, environment=self.environment(address), options=options)

    def names(self, prefix: str = "here") -> list[str]:
        """The objects below a prefix, as the folder has them."""
        folder = self.root / self.BUCKET / prefix
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def has(self, name: str) -> bool:
        """Whether there is an object of this name, prefix and all."""
        return (self.root / self.BUCKET / name).is_file()

    def content(self, prefix: str = "here") -> dict[str, bytes]:
        """The same with their bytes."""
        folder = self.root / self.BUCKET / prefix
        return {name: (folder / name).read_bytes() for name in self.names(prefix)}

    def pending(self, prefix: str = "here") -> list[str]:
        """The names that unfinished uploads are for."""
        with closing(self.bucket(prefix)) as bucket:
            return [name for name, _ in bucket.uploads(Run())]
