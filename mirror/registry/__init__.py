"""A client of the OCI Distribution API: authentication, retries, resumed transfers, credentials."""

from mirror.registry.client import RegistryClient, RegistryReader, RegistryWriter
from mirror.registry.options import (
    ClientCertificate,
    ConnectionOptions,
    Credentials,
    RetryPolicy,
    find_credentials,
)
from mirror.registry.upload_journal import UploadJournal
from mirror.registry.upload_sessions import OpenUpload

__all__ = [
    "ClientCertificate",
    "ConnectionOptions",
    "Credentials",
    "OpenUpload",
    "RegistryClient",
    "RegistryReader",
    "RegistryWriter",
    "RetryPolicy",
    "UploadJournal",
    "find_credentials",
]
