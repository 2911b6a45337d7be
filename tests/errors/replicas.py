"""Situations of generations and replicas, and of work that was stopped."""

from __future__ import annotations

import time

from mirror.bundle.reader import BundleReader
from mirror.errors import (
    CancelledError,
    ConflictError,
    DamagedReplicaError,
    DeadlineError,
    DowngradeError,
    NoSoundCopyError,
    NotFoundError,
    StatementError,
    UntrustedStatementError,
)
from mirror.events import Event, TransferStarted
from mirror.oci import Digest
from mirror.operations.push import push
from mirror.operations.trust import check_downgrade
from mirror.run import Run
from mirror.sync import FailoverSource, Inventory, InventoryBuilder, MemoryStore
from mirror.sync.publication_state import read_state, read_statement
from mirror.testing import CorruptBody, Fault
from tests.errors.lab import Lab, Told, public_key
from tests.errors.situation import situation
from tests.support.inventories import put_image


@situation(
    ConflictError,
    "Two pushes at once",
    cause="Somebody else published something in the same registry meanwhile.",
    cure="Run it again, one at a time; what arrived is not sent twice.",
)
def _conflict(lab: Lab) -> Told:
    address = lab.registry()
    other = lab.folder / "other"
    source = ("--source", lab.source.root, "--insecure")
    lab.succeeds("pull", other, *source, "--no-platform", "--no-modules", "--no-packages")
    done: list[Event] = []

    def overtake(event: Event) -> None:
        if isinstance(event, TransferStarted) and not done:
            done.append(event)
            lab.succeeds("push", other, address, "--insecure")

    with BundleReader([lab.sealed]) as reader:
        run = Run(on_event=overtake)
        return lab.raised(lambda: push(reader, lab.tree(address), run=run))


@situation(
    DowngradeError,
    "An older release over a newer one",
    cause="The bundle was made before what the registry has; it may be an old one, replayed.",
    cure="Push the newest bundle; `--allow-downgrade` where the older one is meant.",
)
def _downgrade(lab: Lab) -> Told:
    tree = lab.tree(lab.registry())
    newer, older = _channel("v1.71.0"), _channel("v1.70.0")
    return lab.raised(
        lambda: check_downgrade(tree, read_state(tree), newer, older, strict=True, run=Run())
    )


def _channel(version: str) -> Inventory:
    builder = InventoryBuilder()
    for tag in (version, "stable"):
        builder.add_tag("release-channel", tag, Digest.of(version.encode()))
    return builder.build()


@situation(
    NotFoundError,
    "A leader with nothing in it",
    cause="The path of `--from` is another one, or nothing was pushed there yet.",
    cure="Push to it first, or name the registry that has the release.",
)
def _empty_leader(lab: Lab) -> Told:
    replica = lab.registry(name="replica.example.com")
    return lab.failure("sync", "--from", lab.registry(), "--to", replica, "--insecure")


@situation(
    StatementError,
    "A statement that cannot be read",
    cause="Somebody pushed something else to `mirror/inventory`, or its layer is damaged.",
    cure="Push the bundle again: that states anew what is there.",
)
def _statement(lab: Lab) -> Told:
    tree = lab.tree(lab.registry())
    target = tree.target(Run())
    store = MemoryStore()
    put_image(store, "mirror/inventory", "latest")
    lab.copy(store, target)
    return lab.raised(lambda: read_statement(tree))


@situation(
    UntrustedStatementError,
    "A statement that nobody trusted has signed",
    cause="Keys are trusted, and this registry's statement was not signed with one of them.",
    cure="Push with `--sign-key`; find out who else writes to that registry.",
)
def _untrusted(lab: Lab) -> Told:
    address = lab.registry()
    lab.succeeds("push", lab.sealed, address, "--insecure")
    key = lab.write("trusted.pem", public_key())
    replica = lab.registry(name="replica.example.com")
    where = ("--from", address, "--to", replica, "--insecure")
    return lab.failure("sync", *where, "--trusted-key", key)


@situation(
    NoSoundCopyError,
    "Content that no registry has whole",
    cause="A layer is damaged or missing at the leader and at every replica.",
    cure="Push the bundle that has it; the message says what each place answered.",
)
def _no_sound_copy(lab: Lab) -> Told:
    source = FailoverSource([MemoryStore("leader"), MemoryStore("replica")])
    return lab.raised(lambda: source.manifest("install", Digest.of(b"nowhere")))


@situation(
    DamagedReplicaError,
    "Damage that an upload does not replace",
    cause="The registry believes to have the content and keeps its damaged file.",
    cure="Remove the file that the message names, or name the data folder by `--storage`; where "
    "the registry keeps its content in object storage, delete the object.",
)
def _damaged_replica(lab: Lab) -> Told:
    address, replica = lab.registry(), None
    lab.succeeds("push", lab.sealed, address, "--insecure")
    damaged = Fault(CorruptBody(0), "GET", "/security/trivy-db/blobs/", times=None)
    replica = lab.registry(damaged, name="replica.example.com")
    sync = ("sync", "--from", address, "--to", replica, "--insecure")
    lab.succeeds(*sync)
    return lab.failure(*sync, "--deep")


@situation(
    CancelledError,
    "Work that was stopped",
    cause="Ctrl-C, SIGTERM, or the program that calls the library.",
    cure="Run it again: it goes on where it was.",
)
def _cancelled(lab: Lab) -> Told:
    run = Run()
    run.cancellation.cancel()
    return lab.raised(lambda: run.check("registry.example.com/dkp"))


@situation(
    DeadlineError,
    "Work whose time is over",
    cause="`--deadline` was too short for what there is to do, or a registry hangs.",
    cure="Run it again, with more time.",
)
def _deadline(lab: Lab) -> Told:
    run = Run(deadline=time.monotonic() - 1)
    return lab.raised(lambda: run.check("registry.example.com/dkp"))
