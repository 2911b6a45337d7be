"""Situations that begin with a source, a bundle or the disk that it lies on."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from contextlib import suppress
from unittest import mock

from mirror.bundle import gost
from mirror.bundle.folder import check_space
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import check_limits
from mirror.durable import Folder, write_durably
from mirror.errors import (
    BundleLimitError,
    ChangedLeftoversError,
    DamagedBundleError,
    FileSystemError,
    GostUnavailableError,
    MissingBaseError,
    NoSpaceError,
    NotFoundError,
    ResourceError,
    SignatureError,
    SourceContentError,
    UnreadableImageError,
)
from mirror.job import start
from mirror.oci import Descriptor, Digest
from mirror.operations.compare import status
from mirror.sync import InventoryBuilder
from tests.bundle.test_resume import STORE, pull_once
from tests.errors.lab import Lab, Told, public_key
from tests.errors.situation import situation
from tests.oci.test_layers import image, read, symlink
from tests.support.bundles import archives_of, seal_of
from tests.support.inventories import fake_manifest
from tests.support.release_source import replace_images
from tests.support.sources import CountedSource, StopError


@situation(
    SourceContentError,
    "A path without releases",
    cause="`--source` names no edition, another one, or a path with a slip of the pen.",
    cure="Name the edition's path, such as `registry.deckhouse.io/deckhouse/ee`.",
)
def _no_releases(lab: Lab) -> Told:
    source = f"{lab.source.address}/deckhouse/fe"
    return lab.mirror("pull", lab.folder / "b", "--source", source, "--insecure")


@situation(
    SourceContentError,
    "A module that the source does not have",
    cause="The name is spelled differently, or the edition has no such module.",
    cure="Choose among the names that the message lists.",
)
def _no_module(lab: Lab) -> Told:
    source = ("--source", lab.source.root, "--insecure")
    return lab.mirror("pull", lab.folder / "b", *source, "-i", "consol")


@situation(
    SourceContentError,
    "A release that does not say its version",
    cause="The image of a release channel is not one of Deckhouse's, or was built wrong.",
    cure="Tell whoever publishes the source; leave that channel out.",
)
def _no_version(lab: Lab) -> Told:
    source = lab.own_source()
    replace_images(source.registry, {"release-channel:alpha": {"version.json": "{}"}})
    return lab.mirror("pull", lab.folder / "b", "--source", source.root, "--insecure")


@situation(
    UnreadableImageError,
    "An image whose files cannot be read",
    cause="A layer that describes a release is damaged, or of a kind that nobody publishes.",
    cure="Tell whoever publishes the source.",
)
def _unreadable(lab: Lab) -> Told:
    return lab.raised(lambda: read(image([symlink("a", "b"), symlink("b", "a")]), "a"))


@situation(
    BundleLimitError,
    "More than a bundle can hold",
    cause="Readers of bundles take in so many files, tags and characters and no more; something in "
    "the selection has more.",
    cure="Leave the image out; pull a larger selection in several bundles.",
)
def _limit(lab: Lab) -> Told:
    node = fake_manifest([Descriptor("a" * 300, Digest.of(b"layer"), 5)])
    builder = InventoryBuilder()
    builder.add_manifest("", node)
    return lab.raised(lambda: check_limits(seal_of(archives_of(builder.build()))))


@situation(
    GostUnavailableError,
    "GOST digests without GOST",
    cause="This machine's OpenSSL has no module for GOST R 34.11-2012.",
    cure="Install the package that the message names, or leave `--gost-digest` out.",
)
def _gost(lab: Lab) -> Told:
    gost._algorithm.cache_clear()
    with mock.patch.object(gost, "_WAYS", ()):
        told = lab.raised(gost.GostHash)
    gost._algorithm.cache_clear()
    return told


@situation(
    NoSpaceError,
    "A disk without room for the bundle",
    cause="The selection is larger than what is free, as is found out beforehand.",
    cure="Free some space, choose less, or pull a delta (`--base`).",
)
def _no_space(lab: Lab) -> Told:
    class Stat:
        f_frsize, f_bavail = 1 << 30, 4

    with mock.patch.object(os, "statvfs", return_value=Stat):
        return lab.raised(lambda: check_space(Folder(lab.folder), 20 << 30))


@situation(
    FileSystemError,
    "A place that cannot be written to",
    cause="The folder is read-only, belongs to somebody else, or is a file.",
    cure="Name another place, or run as a user who may write there.",
)
def _file_system(lab: Lab) -> Told:
    return lab.raised(lambda: write_durably(lab.folder / "gone" / "sums", b""))


@situation(
    DamagedBundleError,
    "An archive that was cut",
    cause="The copy was interrupted, or the medium is damaged.",
    cure="`mirror verify` names every archive that is not right; copy these again.",
)
def _cut(lab: Lab) -> Told:
    folder = lab.bundle()
    archive = folder / "platform.tar"
    archive.write_bytes(archive.read_bytes()[:100_000])
    return lab.mirror("push", folder, "registry.example.com/dkp")


@situation(
    DamagedBundleError,
    "An archive that is missing",
    cause="Not everything was copied.",
    cure="Copy the archive again; the seal beside it (`inventory.json`) says which there must be.",
)
def _missing(lab: Lab) -> Told:
    folder = lab.bundle()
    (folder / "platform.tar").unlink()
    return lab.mirror("push", folder, "registry.example.com/dkp")


@situation(
    DamagedBundleError,
    "A seal that was changed",
    cause="`inventory.json` is not what the pull wrote.",
    cure="Copy the bundle again.",
)
def _seal(lab: Lab) -> Told:
    folder = lab.bundle()
    seal = folder / "inventory.json"
    document = json.loads(seal.read_bytes())
    document["inventory"] = f"sha256:{'0' * 64}"
    seal.write_text(json.dumps(document))
    return lab.mirror("push", folder, "registry.example.com/dkp")


@situation(
    SignatureError,
    "A bundle without the signature that is insisted on",
    cause="`--verify-key` was given, and whoever made the bundle did not sign it.",
    cure="Have it pulled with `--sign-key`.",
)
def _unsigned(lab: Lab) -> Told:
    file = lab.write("pub.pem", public_key())
    return lab.mirror("push", lab.sealed, "registry.example.com/dkp", "--verify-key", file)


@situation(
    MissingBaseError,
    "A delta without its base",
    cause="The registry lacks what the delta leaves out.",
    cure="Push the base first; `mirror inspect` says which one it is.",
)
def _no_base(lab: Lab) -> Told:
    source = ("--source", lab.source.root, "--insecure", "--base", lab.sealed)
    done = lab.succeeds("pull", lab.folder / "delta", *source)
    assert done.document["delta"]["blobs"]
    return lab.mirror("push", lab.folder / "delta", lab.registry(), "--insecure")


@situation(
    NotFoundError,
    "Content that a bundle does not have",
    cause="A program asked a bundle for a digest that is not in it.",
    cure="Ask for what its inventory names.",
)
def _not_found(lab: Lab) -> Told:
    digest = Digest.of(b"nothing")
    with BundleReader([lab.sealed]) as reader:
        return lab.raised(lambda: reader.manifest("", digest))


@situation(
    ChangedLeftoversError,
    "Leftovers that changed",
    cause="A disk was taken away, or somebody changed files, between an interrupted pull and the "
    "next.",
    cure="Run the same command again: it fetches these pieces anew.",
)
def _leftovers(lab: Lab) -> Told:
    folder = lab.folder / "bundle"
    with suppress(StopError):
        pull_once(CountedSource(STORE, most=12 << 20), folder)
    archive = max(folder.glob("*.tar*"), key=lambda path: path.stat().st_size)
    content = bytearray(archive.read_bytes())
    content[:] = bytes(len(content))
    archive.write_bytes(content)
    return lab.raised(lambda: pull_once(CountedSource(STORE), folder))


@situation(
    ResourceError,
    "Too many open files",
    cause="The limit of this process is lower than what its connections and archives need.",
    cure="Raise it (`ulimit -n 4096`, `LimitNOFILE` of a service), or work with fewer `--jobs`.",
)
def _files(lab: Lab) -> Told:
    pull = (lab.folder / "bundle", "--source", lab.source.root, "--insecure")
    refused = OSError(errno.EMFILE, "Too many open files")
    with mock.patch.object(socket, "socket", side_effect=refused):
        return lab.mirror("pull", *pull)


@situation(
    ResourceError,
    "No more threads",
    cause="The system starts no more threads for this user, or has no address space for them.",
    cure="Raise the limit (`ulimit -u`, `ulimit -v`, the number of processes of a container). An "
    "operation goes on with the threads that it has, also with none; only what runs beside its "
    "caller (`mirror.start`, a server) needs one.",
)
def _threads(lab: Lab) -> Told:
    refused = RuntimeError("can't start new thread")
    with mock.patch.object(threading.Thread, "start", side_effect=refused):
        return lab.raised(lambda: start(status, []))


@situation(
    ResourceError,
    "No more memory",
    cause="The memory that this process may have is used up.",
    cure="Raise the limit (`ulimit -v`, the memory of a container), or work with fewer `--jobs`.",
)
def _memory(lab: Lab) -> Told:
    with mock.patch.object(BundleReader, "__init__", side_effect=MemoryError):
        return lab.mirror("verify", lab.sealed)
