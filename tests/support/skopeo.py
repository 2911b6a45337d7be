"""skopeo, which copies and inspects images as other people's tools do."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.tools import require_tool

_TIMEOUT_S = 60.0


class SkopeoError(Exception):
    """skopeo failed; the text is what it printed."""


def run_skopeo(*args: str | Path, timeout_s: float = _TIMEOUT_S) -> str:
    """Run it with a home of its own and no signature policy; answer what it printed.

    Raises:
        SkopeoError: it ended with an error.
    """
    program = require_tool("skopeo")
    with tempfile.TemporaryDirectory(prefix="skopeo-") as home:
        env = {"PATH": os.environ["PATH"], "HOME": home, "XDG_RUNTIME_DIR": home, "TMPDIR": home}
        done = subprocess.run(
            [program, "--insecure-policy", *map(str, args)],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        raise SkopeoError(f"skopeo {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
    return done.stdout


def skopeo_copy(
    source: str,
    target: str,
    *options: str | Path,
    all_images: bool = True,
    preserve_digests: bool = True,
    cert_dir: Path | None = None,
) -> None:
    """Copy between transports, such as `oci:/path:tag` and `docker://127.0.0.1:5000/name:tag`.

    Without `cert_dir` (a folder with `ca.crt`) no certificate is verified and HTTP is accepted.

    Raises:
        SkopeoError: it failed.
    """
    flags: list[str | Path] = ["--all"] if all_images else []
    if preserve_digests:
        flags.append("--preserve-digests")
    for side in ("src", "dest"):
        if cert_dir is None:
            flags.append(f"--{side}-tls-verify=false")
        else:
            flags.append(f"--{side}-cert-dir={cert_dir}")
    run_skopeo("copy", *flags, *options, source, target)


def skopeo_inspect(
    image: str, *options: str | Path, raw: bool = False, cert_dir: Path | None = None
) -> Any:
    """What it says of an image, as JSON; with `raw` the manifest's text.

    Raises:
        SkopeoError: it failed.
    """
    check = "--tls-verify=false" if cert_dir is None else f"--cert-dir={cert_dir}"
    flags = [check, *(["--raw"] if raw else []), *options]
    out = run_skopeo("inspect", *flags, image)
    return out if raw else json.loads(out)
