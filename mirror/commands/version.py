"""`mirror version`: which release this is, for a report of a fault or an inventory of programs."""

from __future__ import annotations

import platform
import re
import ssl
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from mirror.bundle.seal import PARTIAL_SCHEMA_VERSION, SCHEMA_VERSION
from mirror.commands import options
from mirror.commands.options import Work, example

DISTRIBUTION = "deckhouse-mirror"
"""What the package is called in an index; the import package and the command are `mirror`."""


def executable() -> Path | None:
    """The one file that this program runs from (`shipping/launcher`); None: it was installed."""
    found = sys._xoptions.get("mirror_executable")
    return Path(found) if isinstance(found, str) else None


@click.command("version", epilog=example("mirror version --json"))
@options.as_json
def version_command(*, work: Work) -> None:
    """Print the version of this release, of Python, of its libraries, and of the bundles that it
    reads."""
    found = _about()
    lines = [
        f"mirror {found['version']}",
        f"bundles: format {' and '.join(map(str, found['bundleFormats']))}",
        f"Python {found['python']}, {found['openssl']}, {found['platform']}",
        *([f"one file: {found['executable']}"] if found["executable"] else []),
        *(f"{name} {version}" for name, version in found["libraries"].items()),
    ]
    work.say(found, lines)


def _about() -> dict[str, Any]:
    file = executable()
    return {
        "version": metadata.version(DISTRIBUTION),
        "bundleFormats": [SCHEMA_VERSION, PARTIAL_SCHEMA_VERSION],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "platform": f"{sys.platform} {platform.machine()}",
        "executable": None if file is None else str(file),
        "libraries": dict(sorted(_libraries().items())),
    }


def _libraries() -> dict[str, str]:
    """Name → version of what the installation was made to depend on."""
    wanted = metadata.requires(DISTRIBUTION) or []
    names = [re.split(r"[^\w.-]", one)[0] for one in wanted if "extra ==" not in one]
    return {name: metadata.version(name) for name in names}
