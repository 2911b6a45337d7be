"""nginx in front of a registry, as most people set it up, or as a server of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.testing import TlsFiles
from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_tool

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  {http}
  access_log off;
  client_max_body_size {body_limit};
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} {ssl};
    {server}
    location / {{
      {location}
    }}
  }}
}}
"""


class Nginx(ServerProcess):
    """Passes requests on to the registry at `behind` (`host:port`), each once it is whole.

    `body_limit` is nginx's `client_max_body_size`; 0 sets none. `passwords` is a file of names and
    hashed passwords. `clients` is the authority of the certificates that it wants from clients.
    `http` and `location` are more for those blocks of the file. With `files` it serves that folder
    instead.
    """

    def __init__(
        self,
        folder: Path,
        behind: str = "",
        *,
        files: Path | None = None,
        tls: TlsFiles | None = None,
        body_limit: str = "0",
        passwords: Path | None = None,
        clients: Path | None = None,
        scheme: str = "http",
        http: str = "",
        location: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        server: list[str] = []
        location = [
            *(
                (f"root {files};",)
                if files is not None
                else (
                    f"proxy_pass {scheme}://{behind};",
                    "proxy_set_header Host $http_host;",
                    "proxy_set_header X-Forwarded-Proto $scheme;",
                )
            ),
            *location,
        ]
        if tls is not None:
            server += [
                f"ssl_certificate {tls.certificate};",
                f"ssl_certificate_key {tls.key};",
            ]
        if clients is not None:
            server += [f"ssl_client_certificate {clients};", "ssl_verify_client on;"]
        if passwords is not None:
            # The registry behind is not to see a login that is not its own.
            location += [
                'auth_basic "tests";',
                f"auth_basic_user_file {passwords};",
                'proxy_set_header Authorization "";',
            ]
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder,
                port=port,
                body_limit=body_limit,
                ssl="ssl" if tls else "",
                http=http,
                server=" ".join(server),
                location=" ".join(location),
            )
        )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        super().__init__(
            [require_tool("nginx"), "-e", "stderr", "-c", config],
            port=port,
            log=folder / "nginx.log",
        )
