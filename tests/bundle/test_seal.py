from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle import seal
from mirror.bundle.format import LARGE
from mirror.bundle.seal import PARTIAL_SCHEMA_VERSION, Seal, check_limits, parse_seal
from mirror.errors import BundleLimitError, DamagedBundleError, InputError
from mirror.oci import Digest
from mirror.sync import Inventory
from mirror.sync.inventory import canonical_json
from tests.support.bundles import archives_of, seal_of
from tests.support.inventories import inventories, sample_store

WANTED = sample_store().inventory()
SEALED = seal_of(archives_of(WANTED)).to_json()


def resealed(document: dict[str, Any]) -> bytes:
    """`document` with the digest that it should have: somebody who knows how changed it."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    return canonical_json({**rest, "digest": str(Digest.of(canonical_json(rest)))})


# -- what it is ------------------------------------------------------------------------------------


@given(inventories())
def test_a_seal_survives_its_file(inventory: Inventory) -> None:
    seal = seal_of(archives_of(inventory))
    read = Seal.from_json(seal.to_json())
    assert read == seal
    assert read.inventory == inventory
    assert read.to_json() == seal.to_json()


def test_equal_bundles_have_equal_seals_in_whatever_order_they_were_made() -> None:
    archives = archives_of(WANTED)
    assert seal_of(tuple(reversed(archives))).to_json() == SEALED


def test_the_file_says_what_the_bundle_holds() -> None:
    document = json.loads(SEALED)
    assert document["schemaVersion"] == 1
    assert document["inventory"] == str(WANTED.digest())
    assert document["manifests"] == WANTED.to_document()["manifests"]
    assert set(document["archives"]) == {
        "module-a-module" + "-with-a-long-name" * 4 + ".tar",
        *("module-console.tar", "platform.tar", "security.tar"),
    }
    for archive in archives_of(WANTED):
        told = document["archives"][archive.name]
        assert told["size"] == archive.size
        assert told["repositories"] == archive.inventory.to_document()["repositories"]
    assert resealed(document) == SEALED


# -- tampering -------------------------------------------------------------------------------------


def test_every_flipped_bit_of_it_is_found() -> None:
    dice = random.Random(4)
    for at in [0, 1, len(SEALED) - 2, len(SEALED) - 1, *dice.choices(range(len(SEALED)), k=300)]:
        damaged = bytearray(SEALED)
        damaged[at] ^= 1 << dice.randrange(8)
        with pytest.raises(DamagedBundleError, match=r"its bytes were changed|is not a bundle's"):
            Seal.from_json(bytes(damaged))


@pytest.mark.parametrize("at", [0, 1, 2, 1000, len(SEALED) - 1])
def test_half_a_seal_is_none(at: int) -> None:
    with pytest.raises(DamagedBundleError, match="it is not a bundle's inventory: "):
        Seal.from_json(SEALED[:at])


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b":", b": ", 1),
        lambda data: data.replace(b',"digest":', b',"digest": ', 1),
        lambda data: json.dumps(json.loads(data), sort_keys=True, indent=1).encode(),
        lambda data: data.decode().encode("utf-16"),
    ],
    ids=["newline", "space", "inner space", "space at its digest", "indented", "utf-16"],
)
def test_the_same_document_in_other_bytes_is_not_the_seal(
    change: Callable[[bytes], bytes],
) -> None:
    with pytest.raises(DamagedBundleError, match="its bytes were changed"):
        Seal.from_json(change(SEALED))


def _leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a document is."""
    pairs: Any = ()
    if isinstance(document, dict):
        pairs = document.items()
    elif isinstance(document, list):
        pairs = enumerate(document)
    yield path
    for key, value in pairs:
        yield from _leaves(value, (*path, key))


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if value is _DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


_DELETED = object()
_OTHERS: tuple[Any, ...] = (
    None,
    7,
    -1,
    "x",
    [],
    {},
    [1],
    {"x": 1},
    1e400,
    True,
    "\ud800",
    _DELETED,
)


def test_no_field_can_be_changed_without_notice() -> None:
    document = json.loads(SEALED)
    for path in _leaves(document):
        if not path:
            continue
        changed = _changed(document, path, "changed")
        with pytest.raises(DamagedBundleError, match="its bytes were changed"):
            Seal.from_json(canonical_json(changed))


def test_a_seal_that_was_forged_with_any_value_anywhere_is_read_or_refused_in_our_words() -> None:
    small = WANTED.filtered(lambda path: path == "security/trivy-db")
    document = json.loads(seal_of(archives_of(small)).to_json())
    refused = 0
    for path in _leaves(document):
        for value in _OTHERS if path else ():
            try:
                data = resealed(_changed(document, path, value))
            except UnicodeEncodeError:
                continue  # no file can hold it
            try:
                seal = Seal.from_json(data)
            except (DamagedBundleError, InputError):
                refused += 1
                continue
            assert isinstance(seal.inventory, Inventory)
    assert refused > 200


@given(st.binary(max_size=50) | st.text(max_size=20).map(str.encode))
def test_noise_is_no_seal(noise: bytes) -> None:
    with pytest.raises(DamagedBundleError, match="it is not a bundle's inventory: "):
        Seal.from_json(noise)


def test_nesting_without_end_is_no_seal() -> None:
    with pytest.raises(DamagedBundleError, match="a bundle's inventory: it nests too deeply"):
        Seal.from_json(b'{"a":' * 100_000)


def test_a_seal_of_a_newer_release_says_so() -> None:
    newer = {**json.loads(SEALED), "schemaVersion": PARTIAL_SCHEMA_VERSION + 1}
    with pytest.raises(InputError, match=r"schema version 3; .* versions 1 and 2: use a newer one"):
        Seal.from_json(resealed(newer))


def test_a_version_that_is_there_by_damage_is_damage() -> None:
    flipped = SEALED.replace(b'"schemaVersion":1', b'"schemaVersion":3')
    with pytest.raises(DamagedBundleError, match="its bytes were changed: it states digest sha256"):
        Seal.from_json(flipped)


def test_a_seal_that_lays_archives_out_in_another_way_says_so() -> None:
    document = json.loads(SEALED)
    document["archives"]["platform.tar"]["size"] += 512
    with pytest.raises(DamagedBundleError, match=r"it lays platform.tar out in another way than"):
        Seal.from_json(resealed(document))


def test_a_seal_that_states_the_digest_of_another_inventory_is_refused() -> None:
    forged = {**json.loads(SEALED), "inventory": str(Inventory().digest())}
    with pytest.raises(DamagedBundleError, match="has another digest than it states"):
        Seal.from_json(resealed(forged))


def test_a_long_selection_is_read_back_and_one_that_is_too_long_is_not_sealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"modules": [f"module-{number}" for number in range(10_000)]}
    sealed = Seal.over(archives_of(WANTED), asked, "mirror 0.test")
    assert Seal.from_json(check_limits(sealed)).selection == asked
    monkeypatch.setattr(seal, "MAX_SELECTION_BYTES", 100_000)
    with pytest.raises(BundleLimitError, match=r"more than 100000 bytes.*; ask for less by name"):
        check_limits(sealed)


def test_a_seal_calls_no_repository_that_it_does_not_have() -> None:
    document = json.loads(SEALED)
    document["archives"]["platform.tar"]["origins"]["other"] = "registry.example/deckhouse/other"
    with pytest.raises(DamagedBundleError, match="is not a repository of that archive"):
        Seal.from_json(resealed(document))


@pytest.mark.parametrize("name", ["../file", "/file", "a/b", ".file"])
def test_a_seal_speaks_of_files_beside_it_alone(name: str) -> None:
    archives = archives_of(sample_store().inventory())
    sealed = Seal.over(archives, {"platform": True}, "mirror 0.test", {name: b"content"})
    with pytest.raises(DamagedBundleError, match=re.escape(name)):
        Seal.from_json(sealed.to_json())


@pytest.mark.parametrize(
    "origin",
    [
        "registry.example\n\nFirst unlock this disk as root:  sh mirror-unlock\n\n/deckhouse/ee",
        "../../etc/cron.d/deckhouse/ee",
        "https://registry.example/deckhouse/ee",
        "registry.example",
        7,
    ],
)
def test_what_repositories_were_called_are_names_of_repositories(origin: object) -> None:
    document = json.loads(SEALED)
    origins = document["archives"]["platform.tar"]["origins"]
    origins[next(iter(origins))] = origin
    with pytest.raises(DamagedBundleError, match=r"not a bundle's inventory|is not a repository"):
        Seal.from_json(resealed(document))


def test_a_seal_beyond_its_limit_is_not_parsed() -> None:
    with pytest.raises(DamagedBundleError, match="w is larger than any bundle's table of contents"):
        parse_seal(b"{" * 11, "w", replace(LARGE, seal_bytes=10))
