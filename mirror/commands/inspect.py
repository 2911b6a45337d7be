"""`mirror inspect`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mirror.bundle.inspect import inspect_bundle
from mirror.bundle.reader import BundleReader
from mirror.bundle.report import html, insight_text
from mirror.commands import options
from mirror.commands.errors import show
from mirror.durable import write_durably


@click.command("inspect")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a report with a map of sizes to this file: one page, to be opened offline.",
)
@options.as_json
def inspect_command(*, bundle_dir: Path, html_file: Path | None, as_json: bool) -> None:
    """Show what is in the bundle in BUNDLE_DIR: versions, channels, counts, sizes.

    Indexes and manifests are read; whether all bytes are right is for `mirror verify`.
    """
    started = time.monotonic()
    with BundleReader([bundle_dir]) as reader:
        found = inspect_bundle(reader)
        problems = len(reader.contents.findings)
    if problems:
        click.echo(
            f"warning: {problems} indexes, manifests, blobs or archives are missing or damaged; "
            "this is what could be read, and `mirror verify` tells the rest",
            err=True,
        )
    if html_file is not None:
        write_durably(html_file, html(found).encode())
    show(as_json, found.to_document(), lambda shown, _: insight_text(shown), found, started)
