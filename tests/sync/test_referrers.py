"""The list of what refers to an image, where a registry has no API for it."""

from __future__ import annotations

import json

from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import referrers_tag
from mirror.serve import MemoryStorage
from mirror.sync.content import referrers_list
from mirror.testing import EmbeddedRegistry
from tests.support.places import client_of


def test_a_list_that_says_null_in_place_of_its_entries_is_an_empty_one() -> None:
    subject = Digest.of(b"an image")
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None}).encode()
    with EmbeddedRegistry(MemoryStorage()) as registry, client_of(registry) as client:
        client.put_manifest("a", referrers_tag(subject), Manifest.parse(raw, OCI_INDEX))
        assert referrers_list(client, "a", subject)["manifests"] == []
