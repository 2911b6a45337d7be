"""Values and rules of the OCI specifications. No I/O beyond streams handed in."""

from mirror.oci.manifest import Child, Descriptor, Manifest, Platform
from mirror.oci.reference import Digest, Reference, Repository, Verifier, verified

__all__ = [
    "Child",
    "Descriptor",
    "Digest",
    "Manifest",
    "Platform",
    "Reference",
    "Repository",
    "Verifier",
    "verified",
]
