"""nginx in front of a registry, as most people set it up."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_tool

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{behind};
      proxy_set_header Host $http_host;
    }}
  }}
}}
"""


class Nginx(ServerProcess):
    """Passes requests on to the registry at `behind` (`host:port`), each once it is whole."""

    def __init__(self, folder: Path, behind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=port, behind=behind))
        super().__init__(
            [require_tool("nginx"), "-e", "stderr", "-c", config],
            port=port,
            log=folder / "nginx.log",
        )
