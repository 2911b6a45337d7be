"""A cluster for tests of rendering: settings, nodes, and secrets that are made once."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import cache
from typing import Any

from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.service_secrets import ServiceSecrets, prepare_secrets

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
MASTERS = (Node("master-0", "10.0.0.1"), Node("master-1", "10.0.0.2"), Node("master-2", "10.0.0.3"))
WORKER = Node("worker-0", "10.0.0.9", master=False)
NODES = (*MASTERS, WORKER)
IMAGES = Images("r.example/distribution:1", "r.example/auth:1", "r.example/mirror:1")
ALL_IMAGES = replace(IMAGES, nginx="r.example/nginx:1")

LOGICAL = "registry.d8-system.svc:5001"


@cache
def kept() -> ServiceSecrets:
    """Secrets of `NODES`."""
    return prepare_secrets(None, NODES, NOW)


@cache
def upstream_ca() -> str:
    """Somebody's CA."""
    return pki.create_authority(NOW).certificate


def direct(repo: str = "nexus.example:8443/dkp/ee", **more: Any) -> RegistrySettings:
    """Direct mode, with a login."""
    return _settings("Direct", repo, **more)


def proxy(repo: str = "nexus.example:8443/dkp/ee", **more: Any) -> RegistrySettings:
    """Proxy mode, with a login."""
    return _settings("Proxy", repo, **more)


def unmanaged(repo: str = "nexus.example:8443/dkp/ee", **more: Any) -> RegistrySettings:
    """Configurable Unmanaged, with a login."""
    return _settings("Unmanaged", repo, **more)


def local() -> RegistrySettings:
    """Local mode."""
    return RegistrySettings.load({"mode": "Local"})


def legacy() -> RegistrySettings:
    """Unmanaged of the deprecated kind, of which nothing is known."""
    return RegistrySettings.load({"mode": "Unmanaged"})


def _settings(mode: str, repo: str, **more: Any) -> RegistrySettings:
    login = {} if more.pop("anonymous", False) else {"username": "u", "password": "p"}
    section = {"imagesRepo": repo, **login, **more}
    return RegistrySettings.load({"mode": mode, mode.lower(): section})
