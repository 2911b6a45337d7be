"""The rules of the API that a controller relies on, as the tests' server and a real one have them.

Each test runs against both; the real one is built and started in the long runs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mirror.controller.kube import KubeApi
from tests.support.kube_api import KubeCluster, kube_server
from tests.support.program import ROOT
from tests.support.real_kube import RealKube, real_kube, with_rights_of

SECRETS = "/api/v1/namespaces/d8-system/secrets"
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
RIGHTS = ROOT / "deploy/kubernetes/controller.yaml"


@dataclass(frozen=True)
class Asker:
    """Sends requests as one account does."""

    api: KubeApi

    def __call__(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        kind: str = JSON,
        **query: str,
    ) -> tuple[int, dict[str, Any]]:
        """Status and document of one request."""
        sent: Any = body if kind in (JSON, MERGE, APPLY) else json.dumps(body)
        answer = self.api._send(method, path, query, sent, kind)
        return answer.status, json.loads(answer.read())

    def apply(
        self, document: Mapping[str, Any], manager: str, path: str = f"{SECRETS}/one", **query: str
    ) -> tuple[int, dict[str, Any]]:
        """One request of server-side apply."""
        return self("PATCH", path, document, APPLY, fieldManager=manager, **query)

    def events(self, path: str, **query: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What a watch tells, until it ends."""
        for event in self.api._watch(path, query):
            yield event["type"], event.get("object", {})


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKube]:
    with real_kube(tmp_path_factory.mktemp("kube")) as running:
        yield running


class Kind(NamedTuple):
    """One of the two: kubeconfigs of an administrator and of the controller, and how it forgets."""

    free: Path
    bound: Path
    forget: Callable[[], None]


@pytest.fixture(params=["own", pytest.param("real", marks=pytest.mark.soak)])
def kinds(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kind]:
    documents = [*yaml.safe_load_all(RIGHTS.read_text())]
    if request.param == "own":
        cluster = KubeCluster()
        (tmp_path / "bound").mkdir()
        with (
            kube_server(tmp_path, cluster) as free,
            kube_server(tmp_path / "bound", cluster, documents) as bound,
        ):
            monkeypatch.setattr("mirror.controller.kube._WATCH_S", 1)
            yield Kind(free.kubeconfig, bound.kubeconfig, cluster.forget)
        return
    running: RealKube = request.getfixturevalue("real")
    running.cluster.clear()
    with_rights_of(running.cluster, documents)
    monkeypatch.setattr("mirror.controller.kube._WATCH_S", 8)
    yield Kind(running.administrators, running.kubeconfig, running.restart)


@pytest.fixture
def ask(kinds: Kind) -> Iterator[Asker]:
    api = KubeApi.connect(kinds.free, timeout_s=60)
    yield Asker(api)
    api.close()


@pytest.fixture
def bound(kinds: Kind) -> Iterator[Asker]:
    api = KubeApi.connect(kinds.bound, timeout_s=60)
    yield Asker(api)
    api.close()


def secret(name: str = "one", labels: Mapping[str, str] | None = None, **data: str) -> Any:
    metadata: dict[str, Any] = {"name": name, "namespace": "d8-system"}
    if labels:
        metadata["labels"] = labels
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": encoded,
    }


def service(*ports: Mapping[str, Any], **selector: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "registry", "namespace": "d8-system"},
        "spec": {"clusterIP": "None", "ports": [*ports], "selector": selector},
    }


def said(answer: tuple[int, dict[str, Any]]) -> tuple[int, str, str]:
    """Status, reason and message of a refusal."""
    status, document = answer
    assert document["kind"] == "Status", document
    return status, document.get("reason", ""), document["message"]


# -- versions --------------------------------------------------------------------------------------


def test_what_is_there_cannot_be_created_and_what_is_not_cannot_be_replaced(ask: Asker) -> None:
    status, made = ask("POST", SECRETS, secret(a="1"))
    assert status == 201
    assert made["metadata"]["uid"]
    assert said(ask("POST", SECRETS, secret(a="1"))) == (
        *(409, "AlreadyExists"),
        'secrets "one" already exists',
    )
    assert said(ask("PUT", f"{SECRETS}/two", secret("two"))) == (
        *(404, "NotFound"),
        'secrets "two" not found',
    )
    assert said(ask("PATCH", f"{SECRETS}/two", {"data": {}}, MERGE))[:2] == (404, "NotFound")
    assert said(ask("DELETE", f"{SECRETS}/two"))[:2] == (404, "NotFound")
    new = {**secret("two"), "metadata": {"name": "two", "resourceVersion": "1"}}
    message = said(ask("POST", SECRETS, new))[2]
    assert message == "resourceVersion should not be set on objects to be created"


def test_an_object_that_changed_is_neither_replaced_nor_patched_nor_deleted(ask: Asker) -> None:
    _, first = ask("POST", SECRETS, secret(a="1"))
    _, second = ask("PUT", f"{SECRETS}/one", {**first, "data": {}})
    assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    modified = (
        'Operation cannot be fulfilled on secrets "one": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}}
    assert said(ask("PUT", f"{SECRETS}/one", first)) == (409, "Conflict", modified)
    assert said(ask("PATCH", f"{SECRETS}/one", stale, MERGE)) == (409, "Conflict", modified)
    document = {**secret(b="2"), "metadata": {"name": "one", **stale["metadata"]}}
    assert said(ask.apply(document, "us")) == (409, "Conflict", modified)
    for only in ("uid", "resourceVersion"):
        wrong = {only: "0" if only == "resourceVersion" else "another"}
        status, reason, message = said(ask("DELETE", f"{SECRETS}/one", {"preconditions": wrong}))
        assert (status, reason) == (409, "Conflict")
        assert message.startswith('Operation cannot be fulfilled on Secret "one": the ')
        assert f"in the precondition ({wrong[only]}) does not match the " in message
    only_this = {key: second["metadata"][key] for key in ("uid", "resourceVersion")}
    assert ask("DELETE", f"{SECRETS}/one", {"preconditions": only_this})[0] == 200
    # A version does not keep who applies from making anew what is gone.
    assert ask.apply(document, "us")[0] == 201


def test_what_changes_nothing_makes_no_new_version(ask: Asker) -> None:
    _, made = ask.apply(secret(a="1"), "us")
    version = made["metadata"]["resourceVersion"]
    for answer in (
        ask.apply(secret(a="1"), "us"),
        ask("PUT", f"{SECRETS}/one", made),
        ask("PATCH", f"{SECRETS}/one", {"type": "Opaque"}, MERGE),
    ):
        assert answer[0] == 200
        assert answer[1]["metadata"]["resourceVersion"] == version


def test_a_dry_run_answers_what_would_be_and_changes_nothing(ask: Asker) -> None:
    status, would = ask.apply(secret(a="1"), "us", dryRun="All")
    assert status in (200, 201)
    assert set(would["data"]) == {"a"}
    assert not would["metadata"].get("resourceVersion")
    assert ask("GET", f"{SECRETS}/one")[0] == 404
    _, made = ask.apply(secret(a="1"), "us")
    status, would = ask.apply(secret(b="1"), "us", dryRun="All")
    assert (status, set(would["data"])) == (200, {"b"})
    assert ask("GET", f"{SECRETS}/one")[1]["data"] == made["data"]


def test_what_the_schema_does_not_know_or_forbids_is_refused(ask: Asker) -> None:
    status, reason, message = said(ask.apply({**secret(), "unknown": 1}, "us"))
    assert (status, reason) == (500, "")
    assert message == (
        "failed to create typed patch object (d8-system/one; /v1, Kind=Secret): "
        ".unknown: field not declared in schema"
    )
    ask.apply(secret(a="1"), "us")
    status, reason, message = said(ask.apply({**secret(a="1"), "type": "other"}, "us"))
    assert (status, reason) == (422, "Invalid")
    assert message.startswith('Secret "one" is invalid: type: Invalid value: ')
    assert message.endswith("field is immutable")
    status, reason, message = said(ask.apply(secret("two"), "us"))
    assert (status, reason) == (400, "BadRequest")
    assert "the name of the object (two) does not match the name on the URL (one)" in message
    status, reason, message = said(ask("PATCH", f"{SECRETS}/one", {}, "text/plain"))
    assert (status, reason) == (415, "UnsupportedMediaType")


def test_the_generation_counts_changes_of_what_is_wanted(ask: Asker) -> None:
    path = "/apis/apps/v1/namespaces/d8-system/deployments"
    labels = {"app": "x"}
    containers = [{"name": "main", "image": "r.example/x:1"}]
    template: dict[str, Any] = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x", "namespace": "d8-system"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        "status": {"readyReplicas": 7},
    }
    _, made = ask("POST", path, document)
    assert made["metadata"]["generation"] == 1
    assert "readyReplicas" not in made.get("status", {}), "only its controllers write the status"
    note = {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}}
    _, noted = ask("PATCH", f"{path}/x", note, MERGE)
    assert noted["metadata"]["generation"] == 2
    _, labelled = ask("PATCH", f"{path}/x", {"metadata": {"labels": labels}}, MERGE)
    assert labelled["metadata"]["generation"] == 2


# -- lists and watches -----------------------------------------------------------------------------


def test_a_list_comes_in_pages_of_one_version_and_items_have_no_kind(ask: Asker) -> None:
    for number in range(5):
        ask("POST", SECRETS, secret(f"s{number}", {"part": "x"}))
    names, more, versions = list[str](), "", set[str]()
    while True:
        query = {"continue": more}
        status, page = ask("GET", SECRETS, None, "", limit="2", labelSelector="part=x", **query)
        assert (status, page["kind"]) == (200, "SecretList")
        assert not any("kind" in one or "apiVersion" in one for one in page["items"])
        names += (one["metadata"]["name"] for one in page["items"])
        versions.add(page["metadata"]["resourceVersion"])
        more = page["metadata"].get("continue", "")
        if not more:
            break
        if len(names) == 2:  # what comes meanwhile is not on the pages that are left
            ask("POST", SECRETS, secret("s9", {"part": "x"}))
    assert names == ["s0", "s1", "s2", "s3", "s4"]
    assert len(versions) == 1
    one = ask("GET", SECRETS, fieldSelector="metadata.name=s3")[1]["items"]
    assert [each["metadata"]["name"] for each in one] == ["s3"]


def test_a_watch_tells_what_changed_since_a_list_and_how_far_it_is(ask: Asker) -> None:
    ask("POST", SECRETS, secret("before", {"part": "x"}))
    version = ask("GET", SECRETS)[1]["metadata"]["resourceVersion"]
    ask("POST", SECRETS, secret(labels={"part": "x"}))
    ask("POST", SECRETS, secret("foreign"))
    ask("PATCH", f"{SECRETS}/one", {"data": {"a": "MQ=="}}, MERGE)
    ask("PATCH", f"{SECRETS}/one", {"metadata": {"labels": {"part": "y"}}}, MERGE)
    ask("DELETE", f"{SECRETS}/one")
    query = {"resourceVersion": version, "labelSelector": "part=x"}
    told = list(ask.events(SECRETS, **query))
    changes = [(kind, one["metadata"].get("name")) for kind, one in told if kind != "BOOKMARK"]
    # What leaves the selection is deleted to who watches it.
    assert changes == [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]
    for mark in (one for kind, one in told if kind == "BOOKMARK"):  # nobody promises one
        assert mark["kind"] == "Secret"
        assert int(mark["metadata"]["resourceVersion"]) >= int(version)
        assert not mark.get("data")


def test_a_watch_from_a_past_that_is_forgotten_is_gone(ask: Asker, kinds: Kind) -> None:
    ask("POST", SECRETS, secret(a="1"))
    kinds.forget()
    told = list(ask.events(SECRETS, resourceVersion="1"))
    assert [kind for kind, _ in told] == ["ERROR"]
    if told[0][1]:
        assert told[0][1]["code"] == 410
        assert told[0][1]["reason"] in ("Expired", "Gone")
        assert told[0][1]["message"].startswith("too old resource version: 1")


# -- the owners of fields --------------------------------------------------------------------------


def test_an_applied_field_is_removed_by_who_applied_it_alone(ask: Asker) -> None:
    ask.apply(secret(a="1", b="2"), "us")
    ask.apply(secret(b="2", c="3"), "they")
    _, there = ask.apply(secret(), "us")
    assert set(there["data"]) == {"b", "c"}, "b is theirs too"
    _, there = ask.apply(secret(c="3"), "they")
    assert set(there["data"]) == {"c"}


def test_another_value_is_a_conflict_with_each_owner_until_it_is_taken_over(ask: Asker) -> None:
    ask("POST", SECRETS, secret(a="1", b="1", c="1"), fieldManager="kubectl")
    status, reason, message = said(ask.apply(secret(a="2", c="1"), "us"))
    assert (status, reason) == (409, "Conflict")
    assert message == 'Apply failed with 1 conflict: conflict with "kubectl" using v1: .data.a'
    status, reason, message = said(ask.apply(secret(a="2", b="2"), "us"))
    assert message == (
        'Apply failed with 2 conflicts: conflicts with "kubectl" using v1:\n- .data.a\n- .data.b'
    )
    ask.apply(secret(c="1"), "they")
    status, reason, message = said(ask.apply(secret(c="2"), "us"))
    assert message == (
        'Apply failed with 2 conflicts: conflicts with "kubectl" using v1:\n- .data.c\n'
        'conflicts with "they":\n- .data.c'
    )
    assert ask.apply(secret(a="2", c="2"), "us", force="true")[0] == 200
    assert ask.apply(secret(a="2", c="2"), "us")[0] == 200
    status, reason, message = said(ask.apply(secret(c="1"), "they"))
    assert message == 'Apply failed with 1 conflict: conflict with "us": .data.c'


def test_who_writes_without_applying_takes_over_what_changes(ask: Asker) -> None:
    ask.apply(secret(a="1", b="1"), "us")
    changed = {"data": {"a": base64.b64encode(b"2").decode()}}
    ask("PATCH", f"{SECRETS}/one", changed, MERGE, fieldManager="kubectl")
    message = said(ask.apply(secret(a="1", b="1"), "us"))[2]
    assert message == 'Apply failed with 1 conflict: conflict with "kubectl" using v1: .data.a'
    _, there = ask.apply(secret(b="1"), "us")
    assert set(there["data"]) == {"a", "b"}, "a is not ours any more"
    ask("PATCH", f"{SECRETS}/one", {"data": {"b": None}}, MERGE, fieldManager="kubectl")
    status, there = ask.apply(secret(b="1"), "us")
    assert (status, set(there["data"])) == (200, {"a", "b"}), "what is gone has no owner"


def test_who_applies_says_who_it_is_and_nothing_of_owners(ask: Asker) -> None:
    status, reason, message = said(ask("PATCH", f"{SECRETS}/one", secret(), APPLY))
    assert (status, reason) == (422, "Invalid")
    assert message.endswith("fieldManager: Required value: is required for apply patch")
    owned = secret()
    owned["metadata"]["managedFields"] = [{"manager": "us", "operation": "Apply"}]
    status, reason, message = said(ask.apply(owned, "us"))
    assert (status, reason) == (400, "BadRequest")
    assert message == "metadata.managedFields must be nil"


def test_a_selector_has_one_owner_and_ports_have_their_own(ask: Asker) -> None:
    path = "/api/v1/namespaces/d8-system/services/registry"
    first = {"name": "https", "port": 5001, "protocol": "TCP", "targetPort": "distribution"}
    other = {"name": "debug", "port": 5002, "protocol": "TCP", "targetPort": "debug"}
    assert ask.apply(service(first, type="a"), "us", path)[0] == 201
    message = said(ask.apply(service(other, type="b"), "they", path))[2]
    assert message == 'Apply failed with 1 conflict: conflict with "us": .spec.selector'
    status, there = ask.apply(service(other, type="a"), "they", path)
    assert status == 200
    assert [one["port"] for one in there["spec"]["ports"]] == [5001, 5002]
    _, there = ask.apply(service(first, type="a"), "us", path)
    assert [one["port"] for one in there["spec"]["ports"]] == [5001, 5002], "one is theirs"
    _, there = ask.apply(service(type="a"), "they", path)
    assert [one["port"] for one in there["spec"]["ports"]] == [5001]
    moved = said(ask.apply(service({**first, "targetPort": "x"}, type="a"), "they", path))[2]
    assert message != moved
    assert moved == (
        'Apply failed with 1 conflict: conflict with "us": '
        '.spec.ports[port=5001,protocol="TCP"].targetPort'
    )


# -- rights ----------------------------------------------------------------------------------------


def test_who_is_unknown_is_told_so(kinds: Kind, tmp_path: Path) -> None:
    document = yaml.safe_load(kinds.free.read_text())
    document["users"][0]["user"]["token"] = "of-nobody"
    other = tmp_path / "other"
    other.write_text(yaml.safe_dump(document))
    api = KubeApi.connect(other)
    assert said(Asker(api)("GET", SECRETS)) == (401, "Unauthorized", "Unauthorized")
    api.close()


def test_the_account_may_what_its_roles_say_and_nothing_else(bound: Asker) -> None:
    configs = "/apis/deckhouse.io/v1alpha1/moduleconfigs"
    assert bound("GET", SECRETS)[0] == 200
    assert bound("GET", "/api/v1/pods")[0] == 200
    assert bound("GET", configs, fieldSelector="metadata.name=deckhouse")[0] == 200
    watch = bound.events(configs, fieldSelector="metadata.name=deckhouse", resourceVersion="1")
    assert next(watch)[0] == "ERROR", "it is let in, and told that this is long ago"
    user = "system:serviceaccount:d8-system:mirror-controller"
    status, _, message = said(bound("GET", configs))
    assert status == 403
    assert message == (
        f'moduleconfigs.deckhouse.io is forbidden: User "{user}" cannot list resource '
        '"moduleconfigs" in API group "deckhouse.io" at the cluster scope'
    )
    elsewhere = SECRETS.replace("d8-system", "other")
    status, _, message = said(bound("GET", f"{elsewhere}/one"))
    assert status == 403
    assert message == (
        f'secrets "one" is forbidden: User "{user}" cannot get resource "secrets" in API group '
        '"" in the namespace "other"'
    )
    lease = "/apis/coordination.k8s.io/v1/namespaces/d8-system/leases/mirror-controller"
    assert said(bound("DELETE", lease))[:2] == (403, "Forbidden")
    installed = "/api/v1/namespaces/kube-system/secrets/d8-cluster-configuration"
    assert said(bound("GET", installed))[:2] == (404, "NotFound")
