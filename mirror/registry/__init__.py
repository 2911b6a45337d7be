"""A client of the OCI Distribution API: authentication, retries, resumed transfers, credentials."""

from mirror.registry.auth import Credentials
from mirror.registry.client import RegistryClient
from mirror.registry.credentials import find_credentials
from mirror.registry.interfaces import RegistryReader, RegistryWriter
from mirror.registry.options import ConnectionOptions
from mirror.registry.retry import RetryPolicy

__all__ = [
    "ConnectionOptions",
    "Credentials",
    "RegistryClient",
    "RegistryReader",
    "RegistryWriter",
    "RetryPolicy",
    "find_credentials",
]
