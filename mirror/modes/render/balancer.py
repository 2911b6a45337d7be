"""nginx on a node: the balancer in front of the replicas, and the relay of Direct mode.

The **balancer** passes TCP through and reads no TLS: certificates and logins stay between client
and replica. A replica that refuses a connection is left out for ten seconds. The **relay** rewrites
paths for who cannot do it: stock containerd on a node, and the API plane where no fork of the
registry runs. Logins, challenges and redirects pass through it unchanged; it only reads.

nginx has no format that a library could write, so every value is one that `values` has checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template

from mirror.errors import RenderingError
from mirror.modes.constants import LOGICAL_PATH
from mirror.modes.render import values
from mirror.modes.render.hosts import Way
from mirror.modes.render.layout import Node


@dataclass(frozen=True, slots=True)
class Nginx:
    """What differs between installations of nginx. The defaults suit an image of nginx.

    `modules` are paths of modules to load, which packages keep apart: Debian's stream module is
    `/usr/lib/nginx/modules/ngx_stream_module.so`. `runtime` is a folder that nginx may write to,
    for its pid file and the relay's temporary files.
    """

    modules: tuple[str, ...] = ()
    runtime: str = "/tmp"  # noqa: S108 -- inside nginx's own container
    system_authorities: str = "/etc/ssl/certs/ca-certificates.crt"

    def __post_init__(self) -> None:
        for module in self.modules:
            values.file_path(module, "nginx module")
        values.file_path(self.runtime, "nginx runtime folder")
        values.file_path(self.system_authorities, "file of system authorities")


_BALANCER = Template("""\
${modules}worker_processes 2;
pid ${runtime}/registry-proxy.pid;
error_log stderr notice;

events {
  worker_connections 16384;
}

stream {
  upstream registry {
    least_conn;
${servers}
  }

  server {
    listen ${listen};
    proxy_pass registry;
    proxy_connect_timeout 1s;
    proxy_timeout 1h;
  }
}
""")

_RELAY = Template("""\
worker_processes 2;
pid ${runtime}/registry-relay.pid;
error_log stderr notice;

events {
  worker_connections 4096;
}

http {
  access_log off;
  server_tokens off;
  client_body_temp_path ${runtime}/client_body;
  proxy_temp_path ${runtime}/proxy;
  fastcgi_temp_path ${runtime}/fastcgi;
  uwsgi_temp_path ${runtime}/uwsgi;
  scgi_temp_path ${runtime}/scgi;

  server {
    listen ${listen};
${tls}
    merge_slashes off;
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_redirect off;
    proxy_connect_timeout 10s;
    proxy_read_timeout 5m;

${locations}
    location / {
      default_type application/json;
      return 404 '{"errors":[{"code":"NAME_UNKNOWN","message":"only ${logical} is here"}]}\\n';
    }
  }
}
""")

_TARGET = Template("""\
      limit_except GET {
        deny all;
      }
${rewrite}      proxy_pass ${scheme}://${host};
      proxy_set_header Host ${host};
${tls}    }
""")


def balancer_conf(node: Node, masters: Iterable[Node], nginx: Nginx) -> bytes:
    """`nginx_new.conf`: from the node's loopback to every master's replica, sorted by address."""
    replicas = sorted({master.registry for master in masters if master.master})
    if not replicas:
        raise ValueError("a balancer needs at least one replica")
    return _BALANCER.substitute(
        modules="".join(f"load_module {module};\n" for module in nginx.modules),
        runtime=nginx.runtime,
        servers="\n".join(f"    server {replica};" for replica in replicas),
        listen=node.balancer,
    ).encode()


@dataclass(frozen=True, slots=True)
class Relayed:
    """One registry behind the relay: `slot` is the path in front of `/v2`, empty for none."""

    way: Way
    slot: str = ""
    authority: str | None = None
    """A file of certificates to trust in the system's place."""


@dataclass(frozen=True, slots=True)
class RelayTls:
    """Files of the relay's own certificate."""

    certificate: str
    key: str


def relay_conf(
    listen: str, registries: Sequence[Relayed], nginx: Nginx, tls: RelayTls | None = None
) -> bytes:
    """A relay on `listen` (host:port, or a port for all addresses), with TLS if there is a pair."""
    own = ""
    if tls is not None:
        own = (
            f"    ssl_certificate {values.file_path(tls.certificate, 'certificate')};\n"
            f"    ssl_certificate_key {values.file_path(tls.key, 'key')};\n"
        )
    return _RELAY.substitute(
        runtime=nginx.runtime,
        listen=listen if tls is None else f"{listen} ssl",
        tls=own,
        locations="\n".join(_locations(one, nginx) for one in registries),
        logical=LOGICAL_PATH,
    ).encode()


def _locations(one: Relayed, nginx: Nginx) -> str:
    path = values.repository_path(one.way.path or "", "upstream path")
    slot = f"/{one.slot}" if one.slot else ""
    common: Mapping[str, str] = {
        "scheme": values.scheme(one.way.scheme, "upstream scheme"),
        "host": values.registry_host(one.way.host, "upstream host"),
        "tls": _upstream_tls(one, nginx),
    }
    ping = f"      rewrite ^{slot}(/v2/)$ $1 break;\n"
    # An upstream without a path has its images at the root: the slash goes with the prefix.
    image = (
        f"      rewrite ^{slot}/v2/{LOGICAL_PATH}/(.*)$ /v2/{path}/$1 break;\n"
        if path
        else f"      rewrite ^{slot}/v2/{LOGICAL_PATH}/(.*)$ /v2/$1 break;\n"
    )
    return (
        f"    location = {slot}/v2/ {{\n{_TARGET.substitute(common, rewrite=ping)}"
        f"    location {slot}/v2/{LOGICAL_PATH}/ {{\n{_TARGET.substitute(common, rewrite=image)}"
    )


def _upstream_tls(one: Relayed, nginx: Nginx) -> str:
    if one.way.scheme == "http":
        return ""
    trusted = one.authority or nginx.system_authorities
    name = one.way.host.partition(":")[0]
    if values.is_address(name):
        # nginx compares a certificate with DNS names alone, and unverified is no choice.
        raise RenderingError(
            f"upstream {one.way.host}: expected a DNS name, found an address; the nginx that "
            "rewrites paths for stock programs cannot verify a certificate for an address. Give "
            "the upstream by a name that its certificate has, or render for the deckhouse flavour"
        )
    return (
        "      proxy_ssl_verify on;\n"
        "      proxy_ssl_verify_depth 5;\n"
        f"      proxy_ssl_trusted_certificate {values.file_path(trusted, 'authorities')};\n"
        "      proxy_ssl_server_name on;\n"
        f"      proxy_ssl_name {name};\n"
    )
