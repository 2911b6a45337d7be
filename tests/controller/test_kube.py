"""The API of a cluster, asked by the real client."""

from __future__ import annotations

import base64
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mirror.controller.kube import KubeApi
from mirror.errors import (
    ConflictError,
    DeniedError,
    InputError,
    MirrorError,
    NotFoundError,
    UnreachableError,
)
from tests.support.kube_api import KubeCluster, KubeServer, kube_server


def secret(name: str = "one", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "d8-system"},
        "type": "Opaque",
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }


def test_an_applied_object_has_our_fields_and_keeps_those_of_others(
    api: KubeApi, cluster: KubeCluster
) -> None:
    assert api.bring(secret(a="1", b="2")) == "created"
    cluster.write({**secret(a="1", b="2"), "metadata": {"name": "one", "labels": {"theirs": "x"}}})
    assert api.bring(secret(a="1")) == "changed"
    there = cluster.get("Secret", "one")
    assert there is not None
    assert set(there["data"]) == {"a"}  # what we set and set no more is gone
    assert there["metadata"]["labels"] == {"theirs": "x"}
    before = there["metadata"]["resourceVersion"]
    assert api.bring(secret(a="1")) == "unchanged"
    assert api.get("Secret", "one") == cluster.get("Secret", "one")
    assert cluster.objects["Secret", "d8-system", "one"]["metadata"]["resourceVersion"] == before


def test_a_field_of_somebody_else_is_a_conflict_unless_it_is_taken_over(
    api: KubeApi, cluster: KubeCluster
) -> None:
    cluster.write(secret(a="theirs"), manager="helm")
    with pytest.raises(ConflictError, match=r'conflict with "helm" using v1: \.data\.a') as refused:
        api.apply(secret(a="ours"))
    assert base64.b64encode(b"ours").decode() not in str(refused.value)
    assert api.bring(secret(a="ours"), force=True) == "changed"
    assert api.bring(secret(a="ours")) == "unchanged"


def test_a_dry_run_is_checked_by_the_api_and_changes_nothing(
    api: KubeApi, cluster: KubeCluster
) -> None:
    assert api.bring(secret(a="1"), dry_run=True) == "created"
    assert cluster.objects == {}
    api.apply(secret(a="1"))
    assert api.bring(secret(a="2"), dry_run=True) == "changed"
    assert api.bring(secret(a="1"), dry_run=True) == "unchanged"
    with pytest.raises(MirrorError, match=r"\.unknown: field not declared in schema") as refused:
        api.apply({**secret(a="s3cret"), "unknown": 1}, dry_run=True)
    assert not isinstance(refused.value, UnreachableError), "to try again is of no use"


def test_a_replaced_object_must_be_the_one_that_was_read(
    api: KubeApi, cluster: KubeCluster
) -> None:
    first = api.put(secret(a="1"))
    with pytest.raises(ConflictError, match="already exists"):
        api.put(secret(a="1"))
    second = api.put({**first, "data": {}})
    with pytest.raises(ConflictError, match="has been modified"):
        api.put(first)
    with pytest.raises(ConflictError, match=r"in the precondition .* does not match"):
        api.delete(first)
    api.delete(second)
    api.delete(second)  # gone is gone
    assert cluster.objects == {}
    assert api.get("Secret", "one") is None
    with pytest.raises(NotFoundError):
        api.merge("Secret", "one", {"data": None})


def test_lists_come_in_pages_and_items_know_their_kind(
    api: KubeApi, cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.controller.kube._PAGE", 2)
    for number in range(5):
        cluster.write(secret(f"s{number}"))
    cluster.write({**secret("s9"), "metadata": {"name": "s9", "namespace": "other"}})
    found = api.list("Secret")
    assert [one["metadata"]["name"] for one in found] == ["s0", "s1", "s2", "s3", "s4"]
    assert {(one["apiVersion"], one["kind"]) for one in found} == {("v1", "Secret")}
    assert len(api.list("Secret", None)) == 6


def test_a_watch_tells_of_changes_outlives_a_break_and_a_forgotten_past(
    api: KubeApi, cluster: KubeCluster
) -> None:
    stop = threading.Event()
    changes = api.changes("Secret", "d8-system", stop)
    next(changes)  # it looks
    cluster.write(secret(a="1"))
    next(changes)
    cluster.write({**secret(), "metadata": {"name": "one", "namespace": "other"}})  # a bookmark
    cluster.forget()
    next(changes)  # begun anew from a list
    cluster.remove("Secret", "one")
    next(changes)
    lists = [one for one in cluster.requests if one.startswith("GET")]
    assert len(lists) == 2
    stop.set()
    cluster.write(secret(a="2"))
    assert list(changes) == []


def test_an_api_that_does_not_answer_and_one_that_refuses_are_told_apart(
    api: KubeApi, server: KubeServer, tmp_path: Path, cluster: KubeCluster
) -> None:
    with server.down(), pytest.raises(UnreachableError, match="does not answer"):
        api.get("Secret", "one")
    assert api.get("Secret", "one") is None
    text = server.kubeconfig.read_text()
    server.kubeconfig.write_text(text.replace("token-of", "no-token-of"))
    with pytest.raises(DeniedError, match="Unauthorized; give the account the rights"):
        KubeApi.connect(server.kubeconfig).get("Secret", "one")
    role = {
        "kind": "Role",
        "metadata": {"namespace": "d8-system"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
    }
    other = tmp_path / "other"
    other.mkdir()
    with kube_server(other, cluster, [role]) as strict:
        bound = KubeApi.connect(strict.kubeconfig)
        assert bound.get("Secret", "one") is None
        with pytest.raises(DeniedError, match="cannot patch"):
            bound.apply(secret(a="1"))


def test_a_cluster_that_cannot_be_found_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd"
    odd.write_text("{")
    with pytest.raises(InputError, match=f"{odd}: it leads to no cluster"):
        KubeApi.connect(odd)
    with pytest.raises(InputError, match="the Pod's service account: it leads to no cluster"):
        KubeApi.connect(None)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(
        InputError, match=r"install it with `pip install 'deckhouse-mirror\[kubernetes\]'`"
    ):
        KubeApi.connect(None)
