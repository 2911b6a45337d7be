"""Values and rules of the OCI specifications. No I/O beyond streams handed in."""

from mirror.oci.manifest import Child, Descriptor, Manifest, ManifestNode, Platform
from mirror.oci.reference import Digest, Reference, Repository, Verifier, verified

__all__ = [
    "Child",
    "Descriptor",
    "Digest",
    "Manifest",
    "ManifestNode",
    "Platform",
    "Reference",
    "Repository",
    "Verifier",
    "verified",
]
