"""`mirror inspect` and `merge`: bundles on the disk, without any registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mirror.bundle import gost
from mirror.bundle.folder import Packing
from mirror.bundle.format import parse_part_size
from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.reader import BundleReader
from mirror.bundle.report import insight_text
from mirror.commands import options
from mirror.commands.access import signer
from mirror.commands.options import FILE, Work, flag
from mirror.commands.process import tell
from mirror.config import PullConfig
from mirror.durable import write_durably
from mirror.errors import InputError
from mirror.operations.merge import merge
from mirror.release.names import component_names
from mirror.reports.bundles import merge_summary
from mirror.reports.page import html


@click.command("inspect", epilog=options.example("mirror inspect bundle --html report.html"))
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a self-contained HTML report with a map of sizes to this file.",
)
@options.as_json
def inspect_command(*, bundle_dir: Path, html_file: Path | None, work: Work) -> None:
    """Show what is in the bundle in BUNDLE_DIR: versions, channels, counts, sizes.

    Indexes and manifests are read; `mirror verify` checks all other bytes. For a report, the
    installers' lists of components are read too.
    """
    reader = work.enter_context(BundleReader([bundle_dir]))
    found = inspect_bundle(reader)
    if problems := len(reader.contents.findings):
        tell(
            f"{problems} indexes, manifests, blobs or archives are missing or damaged; this is "
            "what could be read, and `mirror verify` tells the rest",
            "warning",
        )
    if html_file is not None:
        names = component_names(reader, reader.carried())
        write_durably(html_file, html(found, names).encode())
    page = "" if html_file is None else f"\n\nThe page is {html_file}; any browser opens it offline"
    work.show(found, lambda shown, _: insight_text(shown) + page)


def _about(setting: str) -> str | None:
    """What a setting of a pull that a merge has too is for."""
    return PullConfig.model_fields[setting].description


@click.command("merge", epilog=options.example("mirror merge bundle delta-1 delta-2 whole"))
@click.argument(
    "paths", nargs=-1, required=True, metavar="BASE [DELTA]... OUT", type=click.Path(path_type=Path)
)
@flag("--force", text="Replace the bundle that is in OUT.")
@options.yes
@click.option("-c", "--images-bundle-chunk-size", help=_about("images_bundle_chunk_size"))
@click.option(
    "--compress",
    type=click.Choice(["none", "zstd"]),
    default="none",
    show_default=True,
    help=_about("compress"),
)
@click.option("--gost-digest", is_flag=True, help=_about("gost_digest"))
@click.option("--dedupe", is_flag=True, help=_about("dedupe"))
@click.option(
    "--verify-key", type=FILE, help="Check each bundle's signature with this public key (PEM)."
)
@options.sign_key
@options.running
def merge_command(
    *,
    paths: Sequence[Path],
    force: bool,
    yes: bool,
    images_bundle_chunk_size: str | None,
    compress: str,
    gost_digest: bool,
    dedupe: bool,
    verify_key: Path | None,
    sign_key: Path | None,
    work: Work,
) -> None:
    """Make a complete bundle in OUT out of BASE and the DELTAs made behind it, oldest first.

    No registry is needed. OUT is, byte for byte, what a complete pull of the last one's selection
    would have made. BASE alone is written anew: in parts, say, or for d8 to read without --dedupe
    and --compress.
    """
    *bundles, out = paths
    if not bundles:
        raise InputError("name what to merge and where to: mirror merge BASE DELTA OUT")
    if gost_digest:
        gost.require()
    packing = Packing(
        part_size=parse_part_size(images_bundle_chunk_size or "0"),
        gost_digest=gost_digest,
        sign=signer(sign_key) if sign_key is not None else None,
        compress=compress == "zstd",
    )
    if force:
        options.confirm_replacing(work, out, yes)
    report = merge(
        [work.enter_context(BundleReader([path])) for path in bundles],
        out,
        dedupe=dedupe,
        force=force,
        key=verify_key.read_bytes() if verify_key is not None else None,
        packing=packing,
        run=work.run,
    )
    work.show(report, merge_summary)
