"""Descriptors: typed, sized references to content (image-spec, descriptor.md)."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.oci.digest import Digest


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """What an image of an index runs on (image-spec, image-index.md, `platform`)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, order=True)
class Descriptor:
    """Names some content by digest; `size` is its length in bytes."""

    media_type: str
    digest: Digest
    size: int
