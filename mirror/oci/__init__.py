"""Values and rules of the OCI specifications. No I/O beyond streams handed in."""

from mirror.oci.digest import Digest, Verifier, verified
from mirror.oci.manifest import Child, Descriptor, Manifest, Platform
from mirror.oci.reference import Reference, Repository

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
