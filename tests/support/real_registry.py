"""CNCF distribution, as Debian packages it, as a child process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.testing import TlsFiles
from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_tool

ACCOUNT = ("tester", "s3cret")
"""Name and password in `HTPASSWD`."""
# bcrypt of the least cost, as the password is checked anew with every request
HTPASSWD = "tester:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"


class RealRegistry(ServerProcess):
    """A `docker-registry` that keeps its content in `folder`/data.

    `htpasswd` is the content of a password file (bcrypt lines); `proxy` is the address of a
    registry to be a pull-through cache of; `extra` is merged into the configuration last.
    `program` is another version of it than Debian's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: TlsFiles | None = None,
        htpasswd: str | None = None,
        secret: str = "tests",
        notify: str | None = None,
        proxy: str | None = None,
        delete: bool = True,
        read_only: bool = False,
        extra: Mapping[str, Any] | None = None,
        program: Path | None = None,
    ) -> None:
        program = program or require_tool("docker-registry")
        port = free_port() if port is None else port
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "data"
        self.config_path = folder / "config.yml"
        self.tls = tls
        http: dict[str, Any] = {"addr": f"{host}:{port}", "secret": secret}
        if tls:
            http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        storage: dict[str, Any] = {
            "filesystem": {"rootdirectory": str(self.root)},
            "delete": {"enabled": delete},
        }
        if read_only:
            storage["maintenance"] = {"readonly": {"enabled": True}}
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": storage,
            "http": http,
        }
        if htpasswd is not None:
            path = folder / "htpasswd"
            path.write_text(htpasswd)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(path)}}
        if notify is not None:
            endpoint = {
                "name": "tests",
                "url": notify,
                "timeout": "1s",
                "threshold": 3,
                "backoff": "1s",
            }
            config["notifications"] = {"endpoints": [endpoint]}
        if proxy is not None:
            config["proxy"] = {"remoteurl": proxy}
        config.update(extra or {})
        self.config_path.write_text(json.dumps(config, indent=2))  # JSON is YAML
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        super().__init__(
            [program, "serve", self.config_path],
            host=host,
            port=port,
            log=folder / "registry.log",
            env={**own, "OTEL_TRACES_EXPORTER": "none"},
        )

    @property
    def url(self) -> str:
        """`address` with its scheme."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    def blob_path(self, digest: str) -> Path:
        """Where it keeps the bytes of a digest, for tests that damage or remove them."""
        algorithm, _, encoded = digest.partition(":")
        blobs = self.root / "docker/registry/v2/blobs"
        return blobs / algorithm / encoded[:2] / encoded / "data"
