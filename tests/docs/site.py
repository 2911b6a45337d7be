"""The documentation as a site in `build/docs`: `python -m tests.docs.site`, or `./run docs`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from shipping.runtime import pack
from tests.docs import commands, settings
from tests.support.program import ROOT

CONFIG = ROOT / "mkdocs.yml"
MADE = {"commands.md": commands.page, "settings.md": settings.page}
"""Pages that no file holds, so that none of them can be out of date."""
HOMES = {"README.md": "index.md", "README.ru.md": "ru/index.md"}
"""Pages beside `docs/` that the site has a page of its own for."""
BESIDE = tuple(sorted(path.name for path in ROOT.glob("*.md") if path.name not in HOMES))
"""The other pages beside `docs/`, where people look for them."""
PROGRAMS = "examples"
"""The folder of programs that pages link to."""
DECISIONS = "- Decisions: adr/"
"""The line of the navigation that stands for all of them."""


def lay_out(folder: Path) -> None:
    """Write all pages below `folder`, and the configuration of the site."""
    pages = folder / "pages"
    shutil.copytree(ROOT / "docs", pages)
    for path in sorted(pages.rglob("*.md")):
        path.write_text(inside(path.read_text("utf-8")), "utf-8")
    for name, page in MADE.items():
        (pages / name).write_text(page(), "utf-8")
    for name in BESIDE:
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        for readme, home in HOMES.items():
            text = text.replace(f"]({readme})", f"]({home})")
        (pages / name).write_text(text, "utf-8")
    (pages / PROGRAMS).mkdir()
    for path in sorted((ROOT / PROGRAMS).glob("*.py")):
        shutil.copy(path, pages / PROGRAMS)
    decisions = [f"adr/{one.name}" for one in sorted((pages / "adr").glob("*.md"))]
    config = CONFIG.read_text("utf-8")
    config = config.replace(DECISIONS, f"- Decisions: [{', '.join(decisions)}]")
    (folder / CONFIG.name).write_text(config, "utf-8")


def inside(markdown: str) -> str:
    """A page's text with links that stay within the site, where all pages lie below one folder."""
    beside = "|".join(map(re.escape, (*BESIDE, f"{PROGRAMS}/")))
    return re.sub(rf"\]\(\.\./((?:\.\./)*(?:{beside}))", r"](\1", markdown)


def render(folder: Path) -> Path:
    """Make a site of what was laid out; a dead link or anchor ends the program."""
    config = str(folder / "mkdocs.yml")
    program = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", config]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    if done.returncode:
        told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        sys.exit(told.partition("Traceback")[0] + "error: the site was not built")
    return folder / "docs"


def build(folder: Path) -> Path:
    """Lay everything out in a folder, and make a site of it there."""
    lay_out(folder)
    return render(folder)


def main() -> None:
    """Build it in `build/docs`, and pack it for where it is to be read."""
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    for name in ("pages", "docs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    packed = ROOT / "dist/mirror-docs.tar.gz"
    packed.parent.mkdir(exist_ok=True)
    pack(build(folder), packed, prefix="mirror-docs/")


if __name__ == "__main__":
    main()
