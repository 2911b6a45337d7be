"""`mirror merge`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from mirror.bundle import gost
from mirror.bundle.format import parse_part_size
from mirror.bundle.reader import BundleReader
from mirror.bundle.writer import Packing
from mirror.commands import options
from mirror.commands.errors import show
from mirror.commands.login import signer
from mirror.config import PullConfig
from mirror.errors import InputError
from mirror.operations.merge import merge
from mirror.reports.bundles import merge_summary
from mirror.reports.progress import progress
from mirror.run import Run


def _about(setting: str) -> str | None:
    """What a setting of a pull that a merge has too is for."""
    return PullConfig.model_fields[setting].description


@click.command("merge")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="BASE [DELTA]... OUT",
    type=click.Path(path_type=Path),
)
@click.option("--force", is_flag=True, help="Replace the bundle that is in OUT.")
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
    "--verify-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) of who must have signed each of the bundles.",
)
@options.sign_key
@options.running
def merge_command(
    *,
    paths: Sequence[Path],
    force: bool,
    images_bundle_chunk_size: str | None,
    compress: str,
    gost_digest: bool,
    dedupe: bool,
    verify_key: Path | None,
    sign_key: Path | None,
    jobs: int,
    as_json: bool,
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
    key = verify_key.read_bytes() if verify_key is not None else None
    started = time.monotonic()
    with progress(quiet=as_json) as on_event, ExitStack() as opened:
        readers = [opened.enter_context(BundleReader([path])) for path in bundles]
        report = merge(
            readers,
            out,
            dedupe=dedupe,
            force=force,
            key=key,
            packing=packing,
            run=Run(jobs, on_event),
        )
    show(as_json, report.to_document(), merge_summary, report, started)
