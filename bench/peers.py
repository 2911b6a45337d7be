"""The tools that are compared, each with its command lines for the same work."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.programs import built

CACHE = Path(".cache/bench")


@dataclass(frozen=True)
class Job:
    """What a command line is about. All repositories lie below the same path everywhere."""

    source: str
    """Address of the registry to read from."""
    target: str
    """Address of the registry to write to."""
    bundle: Path
    """Folder of what was pulled; a tool may keep several files and folders in it."""
    repositories: tuple[str, ...]
    references: tuple[str, ...]
    tls: bool


class Peer(Protocol):
    """A tool. Each method returns a shell script, or None for what the tool cannot do."""

    name: str

    def pull(self, job: Job) -> str | None:
        """Everything from a registry into files, in the end into one that can be carried."""
        ...

    def push(self, job: Job) -> str | None:
        """The same from the files into a registry."""
        ...

    def sync(self, job: Job) -> str | None:
        """Everything from one registry to another."""
        ...


class Mirror:
    """This project."""

    name = "mirror"
    _program = f"{shlex.quote(sys.executable)} -m mirror"
    _parts = "--no-modules --no-packages --no-plugins --no-security-db --no-installer"

    def pull(self, job: Job) -> str:
        """As an administrator would, without what the made-up release tree does not have."""
        return (
            f"{self._program} pull {_at(job.bundle)} --source {job.source}/{_root(job)} "
            f"{self._parts} --json{_plain(job, ' --insecure')}"
        )

    def push(self, job: Job) -> str:
        return (
            f"{self._program} push {_at(job.bundle)} {job.target}/{_root(job)} "
            f"--json{_plain(job, ' --insecure')}"
        )

    def sync(self, job: Job) -> str:
        return (
            f"{self._program} sync --from {job.source}/{_root(job)} "
            f"--to {job.target}/{_root(job)} --json{_plain(job, ' --insecure')}"
        )

    def verify(self, job: Job) -> str:
        """Prove that every byte of a bundle is right."""
        return f"{self._program} verify {_at(job.bundle)} --json"


class Skopeo:
    """`skopeo sync`, one call per repository, and `tar`."""

    name = "skopeo"

    def pull(self, job: Job) -> str:
        calls = [
            f"skopeo sync --scoped --src docker --dest dir {_plain(job, '--src-tls-verify=false')} "
            f"{job.source}/{repository} {_at(job.bundle)}/dir"
            for repository in job.repositories
        ]
        return " && ".join([_fresh(job), *calls, _tar(job, "dir")])

    def push(self, job: Job) -> str:
        flags = _plain(job, "--dest-tls-verify=false")
        # The folder below is named as the registry that it was pulled from.
        return (
            f"skopeo sync --scoped --src dir --dest docker {flags} "
            f"{_at(job.bundle)}/dir/* {job.target}"
        )

    def sync(self, job: Job) -> str:
        flags = _plain(job, "--src-tls-verify=false --dest-tls-verify=false")
        return " && ".join(
            f"skopeo sync --src docker --dest docker {flags} {job.source}/{repository} "
            f"{job.target}/{Path(repository).parent}"
            for repository in job.repositories
        )


class Crane:
    """`crane pull` of all images at once and `tar`, `crane push --index`, `crane cp --all-tags`."""

    name = "crane"

    def __init__(self) -> None:
        self._program = str(built("crane"))

    def pull(self, job: Job) -> str:
        images = " ".join(f"{job.source}/{reference}" for reference in job.references)
        call = f"{self._program} pull {_plain(job, '--insecure')} --format=oci {images}"
        return f"{_fresh(job)} && {call} {_at(job.bundle)}/layout && {_tar(job, 'layout')}"

    def push(self, job: Job) -> str:
        return (
            f"{self._program} push {_plain(job, '--insecure')} --index {_at(job.bundle)}/layout "
            f"{job.target}/{_root(job)}:all"
        )

    def sync(self, job: Job) -> str:
        call = f"{self._program} cp {_plain(job, '--insecure')} --all-tags --jobs 8"
        return " && ".join(
            f"{call} {job.source}/{repository} {job.target}/{repository}"
            for repository in job.repositories
        )


class Regsync:
    """`regsync once`, eight images at a time, by way of a folder of OCI layouts, and `tar`."""

    name = "regsync"

    def __init__(self) -> None:
        self._program = str(built("regsync"))

    def pull(self, job: Job) -> str:
        to = f"ocidir://{job.bundle}/ocidir"
        return (
            f"{_fresh(job)} && {self._once(job, 'pull', job.source, to)} && {_tar(job, 'ocidir')}"
        )

    def push(self, job: Job) -> str:
        return self._once(job, "push", f"ocidir://{job.bundle}/ocidir", job.target)

    def sync(self, job: Job) -> str:
        return self._once(job, "sync", job.source, job.target)

    def _once(self, job: Job, name: str, source: str, target: str) -> str:
        config = {
            "version": 1,
            "creds": [
                {"registry": host, "tls": "enabled" if job.tls else "disabled", "reqConcurrent": 8}
                for host in (job.source, job.target)
            ],
            "defaults": {"parallel": 8},
            "sync": [
                {"source": f"{source}/{one}", "target": f"{target}/{one}", "type": "repository"}
                for one in job.repositories
            ],
        }
        path = job.bundle.parent / f"regsync-{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        return f"{self._program} once -c {_at(path)}"


PEERS = {one.name: one for one in (Skopeo, Crane, Regsync)}


def _root(job: Job) -> str:
    return min(job.repositories, key=len)


def _at(path: Path) -> str:
    return shlex.quote(str(path))


def _plain(job: Job, flags: str) -> str:
    return "" if job.tls else flags


def _fresh(job: Job) -> str:
    return f"rm -rf {_at(job.bundle)} && mkdir -p {_at(job.bundle)}"


def _tar(job: Job, folder: str) -> str:
    return f"tar -cf {_at(job.bundle)}/bundle.tar -C {_at(job.bundle)} {folder}"
