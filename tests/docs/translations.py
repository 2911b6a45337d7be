"""The Russian pages, kept in step with their originals.

A translation begins with the hash of what it translates. `python -m tests.docs.translations` names
those whose original changed; with the names of pages it notes that they were brought up to date.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from tests.docs.pages import blocks
from tests.support.program import ROOT

RUSSIAN = {ROOT / "README.md": ROOT / "README.ru.md"} | {
    ROOT / "docs" / path.relative_to(ROOT / "docs/ru"): path
    for path in sorted((ROOT / "docs/ru").rglob("*.md"))
    if path.name != "messages.md"
}
"""Originals and their translations. The glossary of messages has no original."""
_UNTRANSLATED = "\n## As a library"
"""Where the part of the README begins that is for programmers, who read English."""
_MARK = re.compile(r"\A<!-- original: (\w+) -->\n")


def digest(markdown: str) -> str:
    """The hash of a page's text without what its commands print, which translations share."""
    translated = markdown.partition(_UNTRANSLATED)[0]
    prose = re.sub(r"^```\w*\n.*?^```$", "", translated, flags=re.MULTILINE | re.DOTALL)
    return hashlib.sha256(prose.encode()).hexdigest()[:16]


def noted(translation: str) -> str | None:
    """The hash of the original that a translation was made of."""
    found = _MARK.match(translation)
    return found[1] if found else None


def stale() -> list[str]:
    """The translations whose original changed since, or is gone."""
    return [
        str(russian.relative_to(ROOT))
        for original, russian in RUSSIAN.items()
        if not original.exists()
        or not russian.exists()
        or noted(russian.read_text("utf-8")) != digest(original.read_text("utf-8"))
    ]


def copy_blocks(original: Path) -> None:
    """Give a page's translation the same blocks of code, if there is one."""
    russian = RUSSIAN.get(original)
    if russian is None:
        return
    text, wanted = russian.read_text("utf-8"), blocks(original.read_text("utf-8"))
    found = blocks(text)
    assert len(found) == len(wanted), f"{russian}: {len(found)} blocks instead of {len(wanted)}"
    for old, new in reversed([*zip(found, wanted, strict=True)]):
        if old.kind != "lab":
            text = text[: old.start] + new.body + text[old.start + len(old.body) :]
    russian.write_text(text, "utf-8")


def note(russian: Path) -> None:
    """Write into a translation that it is up to date."""
    original = {one: other for other, one in RUSSIAN.items()}[russian.resolve()]
    text = _MARK.sub("", russian.read_text("utf-8"))
    mark = f"<!-- original: {digest(original.read_text('utf-8'))} -->\n"
    russian.write_text(mark + text, "utf-8")


def main() -> None:
    """Note that translations are up to date, or name those that are not."""
    for name in sys.argv[1:]:
        note(Path(name))
    for name in stale():
        print(f"{name}: its original changed")


if __name__ == "__main__":
    main()
