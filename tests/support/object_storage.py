"""S3-compatible servers as child processes, on loopback: versitygw over a folder, and SeaweedFS."""

from __future__ import annotations

import json
import os
import subprocess
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


class S3Server(ServerProcess):
    """A server with the bucket `BUCKET`, and what tests ask of it."""

    BUCKET = "bundles"
    """The bucket that it has from the start."""
    PROGRAM: str

    def __init__(self, folder: Path, *, bucket: str = BUCKET) -> None:
        self.root, self.port = folder / "data", free_port()
        self.root.mkdir(parents=True, exist_ok=True)
        super().__init__(
            [require_program(self.PROGRAM), *self.arguments(folder, bucket)],
            port=self.port,
            log=folder / "storage.log",
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )

    def arguments(self, folder: Path, bucket: str) -> tuple[str | Path, ...]:
        """The command line behind the program."""
        raise NotImplementedError

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

    def pending(self, prefix: str = "here") -> list[str]:
        """The names that unfinished uploads are for."""
        with closing(self.bucket(prefix)) as bucket:
            return [name for name, _ in bucket.uploads(Run())]

    def names(self, prefix: str = "here") -> list[str]:
        """The objects below a prefix."""
        return sorted(self.content(prefix))

    def content(self, prefix: str = "here") -> dict[str, bytes]:
        """The same with their bytes."""
        run = Run()
        with closing(self.bucket(prefix)) as bucket:
            states = bucket.states(run)
            return {name: bucket.read(name, state, run) for name, state in states.items()}


class ObjectStorage(S3Server):
    """A server that keeps each bucket as a folder below `folder`, objects as files in it."""

    PROGRAM = "versitygw"

    def arguments(self, folder: Path, bucket: str) -> tuple[str | Path, ...]:
        (self.root / bucket).mkdir(exist_ok=True)
        beside = folder / "beside"  # what it knows of objects: not every file system keeps that
        beside.mkdir(exist_ok=True)
        return (
            *("--access", LOGIN[0], "--secret", LOGIN[1], "--region", REGION),
            *("--port", f"127.0.0.1:{self.port}", "--quiet", "--keep-alive"),
            *("posix", "--sidecar", beside, self.root),
        )

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


class SeaweedStorage(S3Server):
    """SeaweedFS, all of it in one process."""

    PROGRAM = "seaweedfs"

    def arguments(self, folder: Path, bucket: str) -> tuple[str | Path, ...]:
        self._bucket, (self._master, volume, filer) = bucket, (free_port() for _ in range(3))
        keys = {"accessKey": LOGIN[0], "secretKey": LOGIN[1]}
        identity = {"name": LOGIN[0], "credentials": [keys], "actions": ["Admin"]}
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        return (
            *("server", f"-dir={self.root}", "-filer", "-s3", f"-s3.port={self.port}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"),
            *(f"-master.port={self._master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=50"),
        )

    def __enter__(self) -> Self:
        super().__enter__()
        subprocess.run(
            [require_program("seaweedfs"), "shell", f"-master=127.0.0.1:{self._master}"],
            input=f"s3.bucket.create -name {self._bucket}\n".encode(),
            check=True,
            capture_output=True,
        )
        return self
