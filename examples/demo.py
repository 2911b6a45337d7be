"""The whole journey on one machine: registry → bundle → registry, proved at every step.

Embedded registries stand in for the connected and the closed zone. The first is filled with a
made-up release tree; the rest are the commands that an administrator runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from examples.release_tree import DEMO, ReleaseTree, TreeSpec, build
from mirror.bundle.format import size_text
from mirror.oci import Digest, Manifest, Repository
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.reports.messages import duration_text
from mirror.serve import FolderStorage, MemoryStorage, put_blob
from mirror.testing import EmbeddedRegistry

FOLDER = Path(".demo")
LATER = replace(
    DEMO,
    versions=(*DEMO.versions, "v1.72.0"),
    channels={**DEMO.channels, "alpha": "v1.72.0", "beta": "v1.71.0"},
)
"""The same tree after the vendor's next release."""

COLOURS = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
BOLD, DIM, RESET = ("\033[1m", "\033[2m", "\033[0m") if COLOURS else ("", "", "")
INTERRUPTED = 130


def main() -> None:
    """Run it; Ctrl-C ends it like any command."""
    try:
        journey()
    except KeyboardInterrupt:
        print("\ninterrupted; nothing but the folder .demo is left", file=sys.stderr)
        sys.exit(INTERRUPTED)


def journey() -> None:
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    bundle, delta = FOLDER / "bundle", FOLDER / "delta"
    offered = MemoryStorage()
    with (
        EmbeddedRegistry(offered) as connected,
        EmbeddedRegistry(FolderStorage(FOLDER / "closed-zone")) as closed,
        EmbeddedRegistry(MemoryStorage()) as second,
    ):
        title("A registry in the connected zone is filled with a made-up release tree")
        tree = fill(offered, DEMO)
        source = f"{connected.address}/{tree.root}"
        target = f"{closed.address}/system/deckhouse"

        title("Connected zone: pack the releases between rock-solid and alpha")
        mirror("pull", str(bundle), "--source", source, "--insecure")

        title("Is every byte of the bundle right? Ask before the disk leaves, and when it arrives")
        mirror("verify", str(bundle))

        title("Closed zone: load the bundle into the cluster's registry")
        mirror("push", str(bundle), target, "--insecure")

        title("Prove that the registry holds all of it, reading every byte back")
        mirror("verify", str(bundle), "--against", target, "--deep", "--insecure")

        title("And if one byte goes bad on the way?")
        with one_bad_byte(bundle / "platform.tar"):
            mirror("verify", str(bundle), expect=4)

        title("The vendor publishes a release. A delta carries what the closed zone lacks")
        tree = fill(offered, LATER)
        mirror("pull", str(delta), "--source", source, "--base", str(bundle), "--insecure")
        mirror("push", str(delta), target, "--insecure")

        title("The registry remembers its states")
        mirror("history", target, "--insecure")

        title("A second registry of the cluster is brought to the same state, and asked for it")
        replica = f"{second.address}/system/deckhouse"
        mirror("sync", "--from", target, "--to", replica, "--insecure")
        mirror("status", target, replica, "--insecure")

        images = images_by_digest(second, tree)

        title("Each state can be gone back to in seconds; replicas follow")
        mirror("rollback", target, "--insecure", "--yes")
        mirror("sync", "--from", target, "--to", replica, "--insecure")
    took = duration_text(time.monotonic() - started)
    print(f"\n{BOLD}The journey took {took}.{RESET} All {images} components of the newest release")
    print("can be pulled from the replica by the digests that its installer lists.")
    print(f"The bundles are in {FOLDER}/ to look at.")


def title(text: str) -> None:
    print(f"\n{BOLD}{text}{RESET}", flush=True)


def mirror(*arguments: str, expect: int = 0) -> None:
    """Run the command line as a person would, and insist on its exit code."""
    print(f"{DIM}$ mirror {shlex.join(arguments)}{RESET}", flush=True)
    over = threading.Event()
    if not sys.stderr.isatty():  # a terminal has bars, whose place a line would take
        threading.Thread(target=tell_of_life, args=(over,), daemon=True).start()
    try:
        done = subprocess.run([sys.executable, "-m", "mirror", *arguments], check=False)
    finally:
        over.set()
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode != expect:
        sys.exit(f"the demonstration failed: exit code {done.returncode} instead of {expect}")
    if expect:
        print(f"{DIM}(exit code {done.returncode}){RESET}", flush=True)


def tell_of_life(over: threading.Event) -> None:
    """Print a sign every 1.5 s until it is over."""
    while not over.wait(1.5):
        print("  …", flush=True)


class Shelves:
    """A registry's storage as the store that a release tree is built into."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._manifests, self._told_at = 0, time.monotonic()

    def add_blob(self, repository: str, data: bytes) -> Digest:
        return put_blob(self._storage, repository, data)

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest:
        manifest = Manifest.parse(raw, media_type=media_type)
        self._manifests += 1
        if time.monotonic() - self._told_at > 1:
            self._told_at = time.monotonic()
            print(f"  {self._manifests} manifests", flush=True)
        for tag in [None, *tags]:
            self._storage.put_manifest(repository, manifest, tag)
        return manifest


def fill(storage: MemoryStorage, spec: TreeSpec) -> ReleaseTree:
    """Make a release tree up in a registry's storage."""
    print("making images up …", flush=True)
    tree = build(spec, Shelves(storage))
    repositories = tree.repositories.values()
    print(
        f"{tree.root} and the repositories beside it: {size_text(tree.size)} in "
        f"{sum(len(one.manifests) for one in repositories)} manifests and what they need, under "
        f"{sum(len(one.tags) for one in repositories)} tags"
    )
    return tree


class one_bad_byte:  # noqa: N801 - reads as the statement that it is
    """Turns one bit in the middle of a file, and turns it back."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, path.stat().st_size // 2

    def __enter__(self) -> None:
        self._turn()

    def __exit__(self, *_: object) -> None:
        self._turn()

    def _turn(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            (byte,) = file.read(1)
            file.seek(self._offset)
            file.write(bytes([byte ^ 1]))


def images_by_digest(registry: EmbeddedRegistry, tree: ReleaseTree) -> int:
    """How many components of the newest release a node could pull; all of them, or it ends here."""
    repository = Repository.parse(f"{registry.address}/system/deckhouse")
    newest = tree.platform[tree.channels["alpha"]]
    with RegistryClient(repository.host, options=ConnectionOptions(plain_http=True)) as client:
        components = set(newest.components.values())
        for digest in components:
            client.manifest(repository.path, digest)
    return len(components)


if __name__ == "__main__":
    main()
