"""Where a registry without the referrers API lists what refers to an image: under a tag.

Distribution-spec, "Referrers Tag Schema" and "Pushing Manifests with Subject". Whoever pushes keeps
the list, so a push that is killed between a manifest and its entry leaves the list as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from mirror.documents import parse_json
from mirror.errors import InvalidManifestError, MirrorError, RegistryNotFoundError
from mirror.oci import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import referrers_tag
from mirror.registry import RegistryReader
from mirror.run import PerItemErrors
from mirror.sync.content import Place
from mirror.sync.inventory import RepositoryContent

Held = tuple[str, Digest | None]
"""A manifest in a repository."""


def referrers_list(client: RegistryReader, repository: str, subject: Digest) -> Any:
    """The index in which a registry without the referrers API lists what refers to `subject`.

    As JSON values (distribution-spec, "Referrers Tag Schema"); an empty one where there is none,
    and None where its tag names something else, which somebody set for a purpose of his own.
    """
    try:
        found = client.manifest(repository, referrers_tag(subject))
    except RegistryNotFoundError:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    except InvalidManifestError:
        return None
    if not found.is_index:
        return None
    index = parse_json(found.raw)
    index["manifests"] = index.get("manifests") or []  # Go writes an empty list as null
    return index


def unlisted(
    place: Place,
    questions: PerItemErrors,
    asked: Mapping[str, RepositoryContent],
    there: Set[Held],
) -> set[Held]:
    """Those `there` that have a subject and that nobody finds from it: they are to be put again.

    Where the list is one of the wanted tags of `asked`, it turns with them.
    """
    referring: dict[tuple[str, Digest], list[Digest]] = {}
    for path, content in asked.items():
        for digest, node in content.manifests.items():
            subject = node.subject
            if subject is None or (path, digest) not in there:
                continue
            if referrers_tag(subject) not in content.tags:
                referring.setdefault((path, subject), []).append(digest)
    if not referring:
        return set()
    client, locate = place.client, place.locate
    path, image = next(iter(referring))
    if questions.ask(lambda: client.referrers_api(locate(path), image)) is not None:
        return set()
    lists = questions.ask_all(
        list(referring), lambda one: referrers_list(client, locate(one[0]), one[1])
    )
    found: set[Held] = set()
    for ((path, _), digests), index in zip(referring.items(), lists, strict=True):
        if index is not None and not isinstance(index, MirrorError):
            entries = {one["digest"] for one in index["manifests"]}
            found.update((path, one) for one in digests if str(one) not in entries)
    return found
