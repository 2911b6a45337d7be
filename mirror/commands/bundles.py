"""`mirror inspect`, `merge` and `serve`: bundles on the disk; `inventory`, for the next delta."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.bundle import gost
from mirror.bundle.format import parse_part_size, size_text
from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.commands import options
from mirror.commands.access import (
    AccessOptions,
    bundle_access,
    login_options,
    registry_access,
    sign_key_option,
    signer,
)
from mirror.commands.options import Work, argument, command, file_option, flag, option, repeatable
from mirror.commands.process import handling, tell
from mirror.config import PullConfig
from mirror.documents import document
from mirror.durable import os_errors, write_durably
from mirror.errors import FileSystemError, InputError, counted, printable
from mirror.events import Warned
from mirror.oci.reference import check_repository
from mirror.operations.merge import merge
from mirror.release.discovery import component_names, discovery_images
from mirror.reports.bundles import insight_text, inventory_summary, merge_summary
from mirror.reports.page import html
from mirror.sync import Inventory

if TYPE_CHECKING:
    from mirror.serve import Auth


@command("inspect", "mirror inspect bundle --html report.html")
def inspect_command(
    bundle_dir: Path | str = argument(type=options.BUNDLE),
    html_file: Path | None = options.html_option,
    access: AccessOptions = bundle_access,
    work: Work = options.as_json,
) -> None:
    """Show what is in the bundle in BUNDLE_DIR, or at an address: versions, counts, sizes.

    The command reads indexes, manifests and the installers' lists of components; `mirror verify`
    checks all other bytes.
    """
    reader = work.enter_context(BundleReader([options.located(bundle_dir, access, work)]))
    found = inspect_bundle(reader)
    unread = ""
    if findings := reader.findings():
        unread = (
            f"{len(findings)} indexes, manifests, blobs or archives are missing or damaged; this "
            "is what could be read, and `mirror verify` tells the rest"
        )
        tell(unread, "warning")
    unnamed = work.as_json and html_file is None
    names = {} if unnamed else component_names(reader, reader.carried())
    if html_file is not None:
        notes = [("Not all of it", unread)] if unread else []
        work.write_page(html_file, html(found, names, findings, notes))
    work.show(found, lambda shown, _: insight_text(shown, names))


def _about(setting: str) -> str | None:
    """What a setting of a pull that a merge has too is for."""
    return PullConfig.model_fields[setting].description


@command("merge", "mirror merge bundle delta-1 delta-2 whole")
def merge_command(
    paths: Sequence[Path | str] = argument(
        nargs=-1, required=True, metavar="BASE [DELTA]... OUT", type=options.BUNDLE
    ),
    force: bool = flag("Replace the bundle that is in OUT."),
    yes: bool = options.yes_option,
    images_bundle_chunk_size: str | None = option(_about("images_bundle_chunk_size"), "-c"),
    compress: str = option(_about("compress"), type=click.Choice(["none", "zstd"]), default="none"),
    gost_digest: bool = flag(_about("gost_digest")),
    dedupe: bool = flag(_about("dedupe")),
    verify_key: bytes | None = file_option(
        "Check each bundle's signature with this public key (PEM).", read=Path.read_bytes
    ),
    sign_key: Path | None = sign_key_option,
    access: AccessOptions = bundle_access,
    work: Work = options.running,
) -> None:
    """Make a complete bundle in OUT out of BASE and the DELTAs that follow it, oldest first.

    This needs no registry. BASE and DELTAs may be addresses, which are read in place, and OUT may
    be a place in a bucket, s3://BUCKET/PREFIX. OUT is, byte for byte, what a complete pull of the
    last selection would have made. BASE alone is rewritten: in parts, for example, or without
    --dedupe and --compress, so that d8 can read it.
    """
    *bundles, last = paths
    if not bundles:
        raise InputError("name what to merge and where to: mirror merge BASE DELTA OUT")
    from mirror.commands.pull import confirm_replacing, made_at  # loaded by this command alone

    out = made_at(last, access, work)
    if gost_digest:
        gost.require()
    packing = Packing(
        part_size=parse_part_size(images_bundle_chunk_size or "0"),
        gost_digest=gost_digest,
        sign=signer(sign_key)[0],
        compress=compress == "zstd",
    )
    if force:
        confirm_replacing(work, out, yes)
    report = merge(
        [work.enter_context(BundleReader([options.located(one, access, work)])) for one in bundles],
        out,
        dedupe=dedupe,
        force=force,
        key=verify_key,
        packing=packing,
        run=work.run,
    )
    work.show(report, merge_summary)


@command("inventory", "mirror inventory registry.example.com/dkp -o held.json")
def inventory_command(
    registry: str = argument(),
    output: Path = option(
        "Where to write the inventory; - is standard output.",
        "-o",
        "--output FILE",
        required=True,
        type=options.RESULT_FILE_OR_DASH,
    ),
    known: Sequence[Path] = repeatable(
        "A bundle or inventory with repositories that the registry may not list. Repeatable.",
        type=options.PathHere(exists=True),
    ),
    access: AccessOptions = registry_access,
    work: Work = options.running,
) -> None:
    """Write down what REGISTRY (host[:port]/path) holds, to be the base of the next delta.

    The command follows every tag to its manifests, asks for every blob that they need, and lists
    what is there. It reports and leaves out what it cannot read; the exit code is then not 0.
    Carry the file to where bundles are made: mirror pull --base FILE.
    """
    from mirror.operations.trees import registry_inventory  # loaded by this command alone

    to_stdout = str(output) == options.STANDARD_OUTPUT
    if to_stdout and work.as_json:
        raise InputError("--json and -o - both want standard output; write the inventory to a file")
    target = access.to(registry)
    paths = {path for one in known for path in read_inventory(one).repositories}
    tree = work.enter_context(target.open(work.on_event))
    found = registry_inventory(tree, known=paths, run=work.run)
    data = found.inventory.to_json()
    if to_stdout:
        click.echo(data.decode(), nl=False)
        click.get_current_context().exit(found.exit_code)
    write_durably(output, data)
    summary = partial(inventory_summary, output=str(output), size=len(data))
    work.show(found, summary, code=found.exit_code, output=str(output), bytes=len(data))


# -- serve -----------------------------------------------------------------------------------------

_ROOT = "deckhouse/ee"
"""Where images go that say not where they come from: archives without a seal."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A registry that answers. `root` is the path of what is served; `origin` what that was called
    at the source, host/path, and `certificate` the file that clients verify the server by."""

    url: str
    root: str = ""
    origin: str | None = None
    certificate: Path | None = None
    read_only: bool = False
    login: bool = False
    held: Inventory | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.url.partition("://")[2]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        found = document(self, "url", "address", "root", "origin", "readOnly=read_only", "login")
        if self.held is not None:
            found |= {**self.held.counts(), "bytes": sum(self.held.blob_sizes().values())}
        return found

    def lines(self) -> Iterator[str]:
        """Yield what a person does with it."""
        if self.held is None:
            yield f"the registry takes pushes at {self.url}"
        else:
            counts = self.held.counts()
            size = size_text(sum(self.held.blob_sizes().values()))
            tags, manifests = (counted(counts[f"{one}s"], one) for one in ("tag", "manifest"))
            tags = f"{tags}, {manifests}, {size}"
            yield f"the bundle is served at {self.url}/{self.root}, read-only: {tags}"
            yield from self._uses(self.held)
        yield "Ctrl-C ends it"

    def _uses(self, held: Inventory) -> Iterator[str]:
        plain = self.certificate is None
        named = [
            (len(tag), f"{path}:{tag}" if path else f":{tag}")
            for path, content in held.repositories.items()
            for tag in content.tags
        ]
        image = min(named)[1] if named else ""
        tree = f"{self.address}/{self.root}"
        shown = f"docker://{tree}{image if image.startswith(':') else f'/{image}'}"
        unverified = " --src-tls-verify=false" if plain else ""
        trusted = f"/etc/docker/certs.d/{self.address}/ca.crt"
        if not plain:
            yield f"  trust:      copy {self.certificate} to {trusted} where it is not trusted yet"
        if self.login:
            yield f"  login:      skopeo login {self.address}"
        yield f"  one image:  skopeo copy{unverified} {shown} oci:FOLDER"
        insecure = " --insecure" if plain else f" --ca {self.certificate}"
        yield f"  all:        mirror sync --from {tree} --to REGISTRY{insecure}"
        host, _, path = (self.origin or "").partition("/")
        if path == self.root:
            yield f"  containerd: /etc/containerd/certs.d/{printable(host)}/hosts.toml"
            yield f'                [host."{self.url}"]'
            yield '                capabilities = ["pull", "resolve"]'
            if self.certificate is not None:
                yield f'                ca = "{trusted}"'


_USER = login_options("registry", "Let in this user only.", ["-u"], ["-p"])


@command("serve", "mirror serve /media/disk/bundle --listen 0.0.0.0:5000")
def serve_command(
    bundle_dir: Path | str | None = argument(required=False, type=options.BUNDLE_HERE),
    bases: Sequence[Path | str] = repeatable(
        "A bundle that a delta was made against, or one between. Repeatable.",
        "--base",
        type=options.BUNDLE_HERE,
    ),
    storage: Path | None = option(
        "Without BUNDLE_DIR: the folder of a registry that takes pushes.",
        type=options.PathHere(
            file_okay=False,
            instead="mirror serve keeps its images in a folder of this machine; name one, or run a "
            "registry that has a driver for object storage, such as CNCF distribution",
        ),
    ),
    where: str = option(
        "Where to serve; without HOST on all addresses of this machine.",
        "--listen [HOST]:PORT",
        default="127.0.0.1:5000",
    ),
    root: str | None = option(
        "The path below which the bundle is served.  [default: the path at its source]"
    ),
    tls_cert: Path | None = file_option("Serve TLS with this certificate (PEM, with chain)."),
    tls_key: Path | None = file_option("The private key of --tls-cert (PEM)."),
    users: Path | None = file_option(
        "Let in only the users of this file: lines that `htpasswd -B` writes."
    ),
    login: str | None = _USER["login"],
    password: str | None = _USER["password"],
    access: AccessOptions = bundle_access,
    work: Work = options.as_json,
) -> None:
    """Serve the bundle in BUNDLE_DIR (or at an address) as a registry, until Ctrl-C or SIGTERM.

    It unpacks and writes nothing: bytes come straight from the archives, in parts and compressed
    ones as well. A delta needs the bundles that it was made against, as --base. With --storage DIR
    instead, it serves an empty or earlier folder as a registry that takes pushes.
    """
    if (bundle_dir is None) == (storage is None):
        raise InputError(
            "name what to serve: mirror serve BUNDLE_DIR, or mirror serve --storage DIR"
        )
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together")
    if storage is not None and (bases or root):
        raise InputError("--base and --root are about a bundle; leave them out with --storage")
    # The server is loaded here: the other commands of this module start without it.
    from mirror.serve import Anonymous, FolderStorage, ReadableStore, create_app
    from mirror.serve.server import ServerThread
    from mirror.serve.store import BundleStorage

    auth = _auth(users, login, password, read_only=storage is None)
    held: ReadableStore
    origin, read_only = None, storage is None
    if storage is not None:
        with os_errors(storage, "use"):
            held = FolderStorage(storage)
    else:
        paths = [
            options.located(one, access, work) for one in (bundle_dir, *bases) if one is not None
        ]
        readers = [work.enter_context(BundleReader([one], flattened=True)) for one in paths]
        bundle, origin = readers[0], readers[0].origin
        root = (root or (origin or "").partition("/")[2] or _ROOT).strip("/")
        check_repository(root)
        for warning in bundle.warnings():
            work.on_event(Warned(warning))
        held = BundleStorage(
            bundle, readers[1:], root=root, index=discovery_images(bundle.inventory())
        )
    with ExitStack() as running:
        app = create_app(held, auth=auth, read_only=read_only)
        listener, url = _listener(where, tls=tls_cert is not None)
        running.callback(listener.close)
        try:
            server = ServerThread(app, listener, certificate=tls_cert, key=tls_key)
        except OSError as err:  # an SSLError is one
            raise InputError(
                f"--tls-cert {tls_cert} and --tls-key {tls_key} cannot be used: {err}",
                advice="name a PEM file with the certificate, and one with its private key",
            ) from err
        server.start()
        running.callback(server.stop)
        stopped: list[int] = []
        with handling(lambda: stopped.append(1), once=True):
            inventory = held.inventory if isinstance(held, BundleStorage) else None
            closed = auth.__class__ is not Anonymous
            served = Serving(url, root or "", origin, tls_cert, read_only, closed, inventory)
            work.say(served.to_document(), served.lines())
            while not stopped:  # a wait without an end may miss a signal that comes as it begins
                time.sleep(0.1)
    tell("stopped")


def _auth(users: Path | None, login: str | None, password: str | None, *, read_only: bool) -> Auth:
    from mirror.serve import Anonymous, BasicAuth, User
    from mirror.serve.call import ALL, PULL, read_users

    actions = PULL if read_only else ALL
    given = AccessOptions(login, password).given_credentials("this registry")
    if users is None and given is None:
        return Anonymous()
    known = {given.username: User(given.password, actions)} if given is not None else {}
    if users is not None:
        known.update(read_users(users.read_text(errors="replace"), actions))
    return BasicAuth(known)


def _listener(where: str, *, tls: bool) -> tuple[socket.socket, str]:
    """A listening socket at `where`, and the address of the registry for clients."""
    from mirror.serve.server import listen

    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--listen {where}: write HOST:PORT, such as 0.0.0.0:5000")
    try:
        listener = listen(host or "0.0.0.0", int(port))  # noqa: S104 - as others write `:5000`
    except OSError as err:
        raise FileSystemError(
            f"cannot listen on {where}: {err.strerror}", advice="name another address: --listen"
        ) from err
    shown = host if host not in ("", "0.0.0.0", "::") else socket.gethostname()  # noqa: S104
    shown = f"[{shown}]" if ":" in shown else shown
    return listener, f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
