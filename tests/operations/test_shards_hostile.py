"""Shards in a bucket into which somebody else writes, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirror.bundle.bucket import Bucket
from mirror.bundle.place import AS_USUAL, Packing
from mirror.bundle.shards import ShardPlace
from mirror.errors import ConflictError, DamagedBundleError, InputError, SignatureError
from mirror.operations.pull import clean, pack
from mirror.run import Run
from mirror.signing import sign
from tests.bundle.test_bucket_place import FILES, Counted, content, other
from tests.operations.test_shards import SEAL, STORE, carry
from tests.support.object_storage import ObjectStorage
from tests.support.patience import PATIENCE_S
from tests.support.sources import StopError
from tests.test_signing import OTHER_P256, P256

MINE, FORGED = (
    Packing(sign=partial(sign, key_pem=private), public_key=public)
    for private, public in (P256, OTHER_P256)
)


def test_nobody_has_another_plan_signed_by_putting_it_there_first(storage: ObjectStorage) -> None:
    store, seal = other()
    assert carry(storage, "forged", "1/2", store, seal=seal, packing=FORGED).awaited
    with pytest.raises(SignatureError, match="was not signed with this key: somebody else put it"):
        carry(storage, "forged", "2/2", store, packing=MINE)
    assert not {"inventory.json", "inventory.json.sig"} & set(storage.names("forged"))


def test_who_has_the_key_goes_by_the_plan_that_it_signed(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    pack(SEAL, FILES, STORE, tmp_path, MINE)
    for text in ("2/2", "1/2"):
        carry(storage, "signed", text, packing=MINE)
    assert storage.content("signed") == content(tmp_path)


def _without_uploads(agreed: dict[str, Any]) -> None:
    agreed["uploads"] = {}


def _with_a_file_elsewhere(agreed: dict[str, Any]) -> None:
    agreed["files"]["../../elsewhere"] = ""


def _with_another_file(agreed: dict[str, Any]) -> None:
    agreed["files"] = dict.fromkeys(agreed["files"], "eA==")


def _without_a_seal(agreed: dict[str, Any]) -> None:
    agreed["seal"] = "{}"


def _with_odd_values(agreed: dict[str, Any]) -> None:
    agreed["files"] = 7


@pytest.mark.parametrize(
    "changed",
    [
        _without_uploads,
        _with_a_file_elsewhere,
        _with_another_file,
        _without_a_seal,
        _with_odd_values,
    ],
)
def test_a_plan_that_does_not_fit_itself_is_told_and_written_nowhere(
    changed: Callable[[dict[str, Any]], None], storage: ObjectStorage
) -> None:
    prefix = changed.__name__.strip("_")
    with pytest.raises(StopError):
        carry(storage, prefix, "1/2", Counted(STORE, most=0))
    with closing(storage.bucket(prefix)) as bucket:
        agreed = json.loads(storage.content(prefix)["shards.partial"])
        changed(agreed)
        bucket.put("shards.partial", json.dumps(agreed).encode(), Run())
    with pytest.raises(DamagedBundleError, match=r"run all shards again|copy it again"):
        carry(storage, prefix, "2/2")
    assert "elsewhere" not in storage.names("")


@pytest.mark.parametrize("sums", [5, {}, {"sha256": "zz"}, {"sha256": "00"}, {"sha256": None}, "x"])
def test_sums_that_are_none_count_for_nothing(
    sums: Any, storage: ObjectStorage, tmp_path: Path
) -> None:
    prefix = f"sums/{repr(sums).encode().hex()}"
    pack(SEAL, FILES, STORE, tmp_path, AS_USUAL)
    first = carry(storage, prefix, "1/2")
    assert first.awaited
    with closing(storage.bucket(prefix)) as bucket:
        plan = bucket.plan_of("platform.tar", Run()) or bucket.plan_of("module-console.tar", Run())
        record = {"plan": plan and plan[1], "files": dict.fromkeys(first.awaited, sums)}
        bucket.put("shard-9.partial", json.dumps(record).encode(), Run())
    assert carry(storage, prefix, "2/2").is_sealed
    assert storage.content(prefix) == content(tmp_path)


def test_sums_of_other_files_count_for_nothing(storage: ObjectStorage, tmp_path: Path) -> None:
    packing = Packing(gost_digest=True)
    pack(SEAL, FILES, STORE, tmp_path, packing)
    first = carry(storage, "odd/names", "1/2", packing=packing)
    with closing(storage.bucket("odd/names")) as bucket:
        plan = bucket.plan_of(first.summed[0], Run())
        sums = dict.fromkeys(("sha256", "gost"), "0" * 64)
        record = {"plan": plan and plan[1], "files": {"evil.tar": sums, "../elsewhere": sums}}
        bucket.put("shard-9.partial", json.dumps(record).encode(), Run())
    assert carry(storage, "odd/names", "2/2", packing=packing).is_sealed
    assert storage.content("odd/names") == content(tmp_path)
    assert not [name for name in storage.names("odd") if "elsewhere" in name]


@pytest.mark.parametrize("claim", [b"", b"9", bytes(100)])
def test_a_claim_of_nobody_is_told(claim: bytes, storage: ObjectStorage) -> None:
    prefix, soon = f"claims/{len(claim)}", Run(jobs=2).with_deadline(PATIENCE_S)
    carry(storage, prefix, "1/2")
    with closing(storage.bucket(prefix)) as bucket:
        bucket.put("shard-claims-platform.tar.partial", claim, Run())
    with pytest.raises(DamagedBundleError, match=r"platform\.tar\.partial: it names none of the s"):
        carry(storage, prefix, "2/2", run=soon)


def test_a_list_that_never_has_what_was_put_is_told(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "states", lambda *_: {})
    told = r"shards\.partial: the S3 server has it and does not list it; use a server whose lists"
    with pytest.raises(ConflictError, match=told):
        carry(storage, "unlisted", "1/2", run=Run(jobs=2).with_deadline(PATIENCE_S))


@pytest.mark.parametrize("status", [200, 501])
def test_a_server_without_conditional_writes_is_told_and_keeps_nothing(
    status: int, storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores the condition, or refuses the request. One machine needs none."""
    call = Bucket._call

    def without(bucket: Bucket, *given: Any, **named: Any) -> Any:
        if "If-None-Match" not in (named.get("headers") or {}):
            return call(bucket, *given, **named)
        if status == 200:
            return call(bucket, *given, **{**named, "headers": {}})
        return SimpleNamespace(status=status)

    monkeypatch.setattr(Bucket, "_call", without)
    prefix, source = f"unconditional/{status}", Counted(STORE)
    told = r"this S3 server does not know conditional writes \(If-None-Match: \*\)"
    for number in ("1/2", "2/2"):
        with pytest.raises(InputError, match=told):
            carry(storage, prefix, number, source)
    assert (storage.names(prefix), storage.pending(prefix), source.given) == ([], [], 0)
    with closing(storage.bucket(prefix)) as bucket:
        pack(SEAL, FILES, STORE, bucket, AS_USUAL)
    pack(SEAL, FILES, STORE, tmp_path, AS_USUAL)
    assert storage.content(prefix) == content(tmp_path)


def test_another_bundle_that_was_sealed_meanwhile_makes_a_shard_give_up_what_it_sent(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_files = ShardPlace.close_files

    def late(place: ShardPlace) -> list[str]:
        with closing(storage.bucket("late/there")) as there, closing(storage.bucket("late")) as one:
            store, seal = other()
            pack(seal, FILES, store, there, AS_USUAL)
            for name, data in storage.content("late/there").items():
                one.put(name, data, Run())
        return close_files(place)

    monkeypatch.setattr(ShardPlace, "close_files", late)
    told = "sealed here meanwhile, so that what shards had uploaded is given up; see with `mirror c"
    with pytest.raises(ConflictError, match=told) as caught:
        carry(storage, "late", "1/2")
    assert caught.value.exit_code == 1
    with closing(storage.bucket("late")) as bucket:
        assert not clean(bucket).removed
        assert bucket.uploads(Run()) == []
    told = (
        r"another bundle \(inventory sha256:[0-9a-f]{64}\), made without --shard or with other opt"
    )
    with pytest.raises(InputError, match=told):
        carry(storage, "late", "1/2")
    assert "inventory.json" in storage.names("late")
