"""Deckhouse's registry, as far as its clients see more than `docker-registry`.

The fork serves `/auth/token` itself and passes it to the token server beside it, so that clients
need one port. Here nginx does that in front of `docker-registry`, which has the same
`autoredirect`; and keys are refused that neither knows. What the fork does as a cache is not here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_KEYS: dict[str, Any] = {
    "version": None,
    "log": {"level": None},
    "storage": {
        "filesystem": {"rootdirectory": None},
        "delete": {"enabled": None},
        "redirect": {"disable": None},
        "maintenance": {"uploadpurging": {"enabled": None}, "readonly": {"enabled": None}},
    },
    "http": {
        "addr": None,
        "prefix": None,
        "secret": None,
        "draintimeout": None,
        "debug": {"addr": None, "prometheus": {"enabled": None, "path": None}},
        "tls": {"certificate": None, "key": None},
        "realip": {"enabled": None, "clientcert": {"ca": None, "cn": None}},
    },
    "auth": {
        "token": {
            **dict.fromkeys(("realm", "service", "issuer", "rootcertbundle", "autoredirect")),
            "proxy": {"url": None, "ca": None},
        }
    },
    "notifications": {"endpoints": None},
    "proxy": {
        **dict.fromkeys(("remoteurl", "username", "password", "ttl", "ca")),
        **dict.fromkeys(("remotepathonly", "localpathalias", "nocache")),
    },
}
"""All keys that are used of the fork's and of distribution's own."""
_PDEATHSIG = 1

_FRONT = """
daemon off;
user root root;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {addr} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    client_max_body_size 0;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Proto https;
    proxy_set_header X-Forwarded-For $remote_addr;
    location /auth/token {{
      proxy_pass {tokens}$is_args$args;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {ca};
      proxy_ssl_name localhost;
    }}
    location / {{
      proxy_pass http://unix:{folder}/registry.sock;
      proxy_request_buffering off;
    }}
  }}
}}
"""


def check_keys(found: Mapping[str, Any], known: Mapping[str, Any] = _KEYS, where: str = "") -> None:
    """Refuse a key that nobody reads."""
    for key, value in found.items():
        assert key in known, f"the registry does not know {where}{key}"
        if known[key] is not None:
            check_keys(value, known[key], f"{where}{key}.")


def main(command: str, config: str) -> None:
    """`serve CONFIG`: this process becomes nginx, and the registry ends with it."""
    assert command == "serve"
    document = yaml.safe_load(Path(config).read_text())
    check_keys(document)
    http, token = document["http"], document["auth"]["token"]
    assert token["autoredirect"] is True
    folder = Path(document["storage"]["filesystem"]["rootdirectory"]) / ".front"
    folder.mkdir(exist_ok=True)
    (folder / "registry.sock").unlink(missing_ok=True)
    behind = {
        "REGISTRY_HTTP_NET": "unix",
        "REGISTRY_HTTP_ADDR": str(folder / "registry.sock"),
        "REGISTRY_HTTP_TLS_CERTIFICATE": "",
        "REGISTRY_HTTP_TLS_KEY": "",
        "OTEL_TRACES_EXPORTER": "none",
    }
    subprocess.Popen(
        ["docker-registry", "serve", config],
        env={**os.environ, **behind},
        preexec_fn=lambda: ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL),
    )
    front = folder / "nginx.conf"
    front.write_text(
        _FRONT.format(
            folder=folder,
            addr=http["addr"],
            tokens=token["proxy"]["url"],
            ca=token["proxy"]["ca"],
            **http["tls"],
        )
    )
    os.execvp("nginx", ["nginx", "-e", "stderr", "-c", str(front)])


if __name__ == "__main__":
    main(*sys.argv[1:])
