"""Deckhouse's registry, as far as its clients see more than `docker-registry`.

The fork serves `/auth/token` itself and passes it to the token server beside it, so that clients
need one port, and believes the header `X-Forwarded-For` of whoever has a certificate of
`http.realip`. Here nginx does that in front of `docker-registry`, which has the same
`autoredirect`; and keys are refused that neither knows. It ends by `STOP`, after the requests that
it has. As a cache the fork asks its upstream for `remotepathonly` where clients name
`localpathalias`, in tokens too; here another nginx between the cache and its upstream does.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
STOP = signal.SIGQUIT
"""As an image says it: by SIGTERM nginx would break off what the fork drains."""
BETWEEN = "127.0.0.53"
"""Where this stand-in talks to itself: the fork has nothing that listens there."""
_PDEATHSIG = 1

_FRONT = """
daemon off;
user root root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  map $ssl_client_verify $client {{
    default $remote_addr;
    {believed}
  }}
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
    proxy_set_header X-Forwarded-For $client;{clients}
    location /auth/token {{
      proxy_pass {tokens}$is_args$args;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {ca};
      proxy_ssl_name localhost;
    }}
    location / {{
      proxy_pass http://unix:registry.sock;
      proxy_request_buffering off;
    }}{refused}
  }}
}}
"""
_REFUSED = """
    location ~ ^/v2/(?!$|system/deckhouse/) {{
      return 404 '{{"errors":[{{"code":"NAME_UNKNOWN"}}]}}';
    }}"""
_CLIENTS = """
    ssl_client_certificate {ca};
    ssl_verify_client optional_no_ca;"""
_BETWEEN = """
daemon off;
master_process off;
pid {folder}/between.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/between-bodies;
  proxy_temp_path {folder}/between-proxy;
  fastcgi_temp_path {folder}/between-fastcgi;
  uwsgi_temp_path {folder}/between-uwsgi;
  scgi_temp_path {folder}/between-scgi;
  map $upstream_http_www_authenticate $challenge {{
    "" "";
    default 'Bearer realm="http://{host}:{port}/token",service="{service}"';
  }}
  map $args $mapped {{
    "~^(.*repository(?::|%3A))system(?:/|%2F)deckhouse((?:/|%2F).*)$" "$1{scope}$2";
    default $args;
  }}
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {ca};
  proxy_ssl_name localhost; # nginx compares no addresses
  proxy_set_header Host $proxy_host;
  proxy_hide_header WWW-Authenticate;
  add_header WWW-Authenticate $challenge always;
  server {{
    listen {host}:{port};
    location = /v2/ {{ proxy_pass {remote}/v2/; }}
    location /v2/system/deckhouse/ {{ proxy_pass {remote}/v2{path}/; }}
    location = /token {{ proxy_pass {realm}?$mapped; }}
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
    config = str(Path(config).resolve())
    document = yaml.safe_load(Path(config).read_text())
    check_keys(document)
    http, token = document["http"], document["auth"]["token"]
    assert token["autoredirect"] is True
    folder = Path(document["storage"]["filesystem"]["rootdirectory"]) / ".front"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # the path of a socket may have 107 bytes
    Path("registry.sock").unlink(missing_ok=True)
    behind = {
        "REGISTRY_HTTP_NET": "unix",
        "REGISTRY_HTTP_ADDR": "registry.sock",
        "REGISTRY_HTTP_TLS_CERTIFICATE": "",
        "REGISTRY_HTTP_TLS_KEY": "",
        "OTEL_TRACES_EXPORTER": "none",
    }
    if "proxy" in document:
        behind["REGISTRY_PROXY_REMOTEURL"] = _between(document["proxy"], folder)
    registry = _beside(["docker-registry", "serve", config], {**os.environ, **behind})
    # The fork is one program: it does not listen before it can answer.
    while registry.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
            asking.connect("registry.sock")
            break
        time.sleep(0.01)
    known = http.get("realip", {}).get("clientcert")
    front = folder / "nginx.conf"
    front.write_text(
        _FRONT.format(
            folder=folder,
            addr=http["addr"].removeprefix(":"),
            tokens=token["proxy"]["url"],
            ca=token["proxy"]["ca"],
            refused=_REFUSED.format() if "proxy" in document else "",
            clients=_CLIENTS.format(**known) if known else "",
            believed="SUCCESS $http_x_forwarded_for;" if known else "",
            **http["tls"],
        )
    )
    os.execvp("nginx", ["nginx", "-e", "stderr", "-c", str(front)])


def _between(proxy: Mapping[str, str], folder: Path) -> str:
    """Start what asks the upstream for its own paths; where the cache is to ask."""
    assert proxy["localpathalias"] == "/system/deckhouse"
    remote, path = proxy["remoteurl"], proxy["remotepathonly"]
    with socket.socket() as chosen:
        chosen.bind((BETWEEN, 0))
        port = chosen.getsockname()[1]
    trust = ssl.create_default_context(cafile=proxy["ca"])
    try:
        urllib.request.urlopen(f"{remote}/v2/", context=trust)
    except urllib.error.HTTPError as err:
        told = err.headers["WWW-Authenticate"]
    (realm,), (service,) = (re.findall(f'{key}="([^"]+)"', told) for key in ("realm", "service"))
    config = folder / "between.conf"
    names = {
        "folder": folder,
        "host": BETWEEN,
        "port": port,
        "ca": proxy["ca"],
        "remote": remote,
        "path": path,
    }
    scope = quote(path.strip("/"), safe="")
    config.write_text(_BETWEEN.format(**names, realm=realm, service=service, scope=scope))
    _beside(["nginx", "-e", "stderr", "-c", str(config)], os.environ)
    while True:
        with suppress(OSError), socket.create_connection((BETWEEN, port)):
            break
        time.sleep(0.01)
    return f"http://{BETWEEN}:{port}"


def _beside(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that ends with this one."""
    end_with_us = partial(ctypes.CDLL(None).prctl, _PDEATHSIG, signal.SIGKILL)
    return subprocess.Popen(command, env=environment, preexec_fn=end_with_us)


if __name__ == "__main__":
    main(*sys.argv[1:])
