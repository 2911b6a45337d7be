"""What is inside: the parts as a CycloneDX SBOM, and the texts of their licences."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from mirror.commands.program import DISTRIBUTION
from shipping.runtime import VERSION

NOTICES = Path(__file__).parent / "notices.txt"
"""Licences of the C libraries inside of the interpreter, which brings no texts of its own."""

_LIBRARIES = (
    ("openssl", "Apache-2.0"),
    ("sqlite", "blessing"),
    ("zlib", "Zlib"),
    ("expat", "MIT"),
    ("zstd", "BSD-3-Clause"),
    ("bzip2", "bzip2-1.0.6"),
    ("xz", "0BSD"),
    ("libffi", "MIT"),
    ("mpdecimal", "BSD-2-Clause"),
    ("ncurses", "X11"),
    ("libedit", "BSD-3-Clause"),
    ("libuuid", "BSD-3-Clause"),
)
"""The C libraries in the interpreter, and the licence of each by its SPDX name."""

_ASK = """
import json, platform, pyexpat, sqlite3, ssl, zlib
from compression import zstd
print(json.dumps({
    "python": platform.python_version(),
    "openssl": ssl.OPENSSL_VERSION.split()[1],
    "sqlite": sqlite3.sqlite_version,
    "zlib": zlib.ZLIB_RUNTIME_VERSION,
    "expat": pyexpat.EXPAT_VERSION.removeprefix("expat_"),
    "zstd": ".".join(map(str, zstd.zstd_version_info)),
}))
"""

_CLASSIFIED = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Trove classifier → SPDX name, for packages that name their licence in no other way."""


@dataclass(frozen=True, order=True)
class Part:
    """One program or library inside. `licence` is an SPDX expression, or the part's own words."""

    name: str
    version: str
    licence: str
    purl: str
    sha256: str = ""
    texts: tuple[tuple[str, str], ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As a CycloneDX component."""
        simple = re.fullmatch(r"[\w.+-]+", self.licence)
        named = {"license": {"id": self.licence}} if simple else {"expression": self.licence}
        return {
            "type": "library",
            "bom-ref": self.purl,
            "name": self.name,
            **({"version": self.version} if self.version else {}),
            **({"hashes": [{"alg": "SHA-256", "content": self.sha256}]} if self.sha256 else {}),
            "licenses": [named],
            "purl": self.purl,
        }


def parts_of(tree: Path, wheels: Path, python: Path) -> list[Part]:
    """All that a runtime tree holds. `wheels` are what it was made of; `python` is an interpreter
    of the same build that runs here."""
    said = subprocess.run([python, "-I", "-c", _ASK], check=True, stdout=subprocess.PIPE).stdout
    versions: dict[str, str] = json.loads(said)
    libraries = [
        Part(name, versions.get(name, ""), licence, _purl("generic", name, versions.get(name)))
        for name, licence in _LIBRARIES
    ]
    release = versions["python"]
    own_text = next(tree.glob("lib/python3.*/LICENSE.txt")).read_text(encoding="utf-8")
    interpreter = Part(
        *("CPython", release, "PSF-2.0", _purl("generic", "cpython", release)),
        texts=(("LICENSE.txt", own_text),),
    )
    site = next(tree.glob("lib/python3.*/site-packages"))
    by_name = {wheel.name.split("-")[0].lower(): wheel for wheel in wheels.glob("*.whl")}
    packages = [_package(folder, by_name) for folder in site.glob("*.dist-info")]
    return [interpreter, *libraries, *sorted(packages)]


def _purl(kind: str, name: str, version: str | None) -> str:
    return f"pkg:{kind}/{name.lower()}" + (f"@{version}" if version else "")


def _package(folder: Path, wheels: dict[str, Path]) -> Part:
    found = Distribution.at(folder)
    name, version = found.metadata["Name"], found.version
    wheel = wheels.get(re.sub(r"[-_.]+", "_", name).lower())
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest() if wheel is not None else ""
    purl = _purl("pypi", re.sub(r"[-_.]+", "-", name), version)
    return Part(name, version, _licence(found), purl, sha256, tuple(_texts(folder)))


def _licence(found: Distribution) -> str:
    if expression := _field(found, "License-Expression"):
        return expression
    stated = _field(found, "License")
    if re.fullmatch(r"[A-Za-z]+-\d[\w.-]*|MIT|\S+ AND \S+", stated):
        return stated
    for classifier in found.metadata.get_all("Classifier", ()):
        spdx = _CLASSIFIED.get(classifier.rpartition(" :: ")[2])
        if classifier.startswith("License") and spdx:
            return spdx
    return "NOASSERTION"


def _field(found: Distribution, name: str) -> str:
    return str(found.metadata[name]) if name in found.metadata else ""


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|authors)", path.name):
            yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")


def sbom(parts: Iterable[Part], name: str, sha256: str, made_at: str) -> bytes:
    """A CycloneDX document about the file `name`; the same parts give the same bytes."""
    main = {
        "type": "application",
        "bom-ref": f"pkg:pypi/{DISTRIBUTION}@{VERSION}",
        "name": "mirror",
        "version": VERSION,
        "purl": f"pkg:pypi/{DISTRIBUTION}@{VERSION}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }
    inside = [part for part in parts if part.name != DISTRIBUTION]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{name}:{sha256}')}",
        "version": 1,
        "metadata": {"timestamp": made_at, "component": main},
        "components": [part.to_document() for part in inside],
        "dependencies": [{"ref": main["bom-ref"], "dependsOn": [part.purl for part in inside]}],
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def licences(parts: Iterable[Part]) -> bytes:
    """One text: a table of all parts with their licences, and behind it the texts."""
    parts = list(parts)
    table = "".join(f"  {one.name} {one.version}".ljust(40) + f"{one.licence}\n" for one in parts)
    text = [f"mirror {VERSION} is made of these programs and libraries:\n\n{table}"]
    for one in parts:
        text += [f"\n{'=' * 80}\n{one.name}: {name}\n\n{body}\n" for name, body in one.texts]
    if NOTICES.exists():
        text.append(f"\n{'=' * 80}\n{NOTICES.read_text(encoding='utf-8')}")
    return "".join(text).encode()
