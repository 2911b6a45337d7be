"""A cluster's API: objects as JSON values, asked for by the client `kubernetes`, and a Lease.

The client is the extra `deckhouse-mirror[kubernetes]`. Only this module imports it, on connecting.
Messages quote no value of a Secret.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from mirror.errors import (
    ConflictError,
    DeniedError,
    InputError,
    MirrorError,
    NotFoundError,
    UnreachableError,
)
from mirror.modes import NAMESPACE

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = Mapping[str, Any]

MANAGER = "deckhouse-mirror"
"""Who we are among those who set fields of objects."""
_TIMEOUT_S = 10.0
_WATCH_S = 60
"""How long the API may let a watch run; then it begins anew."""
_PAGE = 500
_APPLY = "application/apply-patch+yaml"
_NOT_DECLARED = re.compile(r"\.[\w.\[\]-]+: field not declared in schema")
_MERGE = "application/merge-patch+json"


class Resource(NamedTuple):
    """Where the API has the objects of a kind."""

    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str = "") -> str:
        """The address of one object, or of all of a namespace, or of all (None)."""
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}" + (f"/{name}" if name else "")


RESOURCES = {
    "ConfigMap": Resource("v1", "configmaps"),
    "Deployment": Resource("apps/v1", "deployments"),
    "Ingress": Resource("networking.k8s.io/v1", "ingresses"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "ModuleConfig": Resource("deckhouse.io/v1alpha1", "moduleconfigs", namespaced=False),
    "Node": Resource("v1", "nodes", namespaced=False),
    "Pod": Resource("v1", "pods"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "Secret": Resource("v1", "secrets"),
    "Service": Resource("v1", "services"),
}
"""The kinds that we work with."""


@contextmanager
def read_as_told(what: str) -> Iterator[None]:
    """For code that reads what the API, or a proxy before it, told of `what`.

    Raises:
        UnreachableError: it has not the form that the API gives it.
    """
    try:
        yield
    # Not `from err`, which may quote a Secret.
    except (LookupError, TypeError, AttributeError, ValueError):
        said = f"{what}: the answer has not the form that the API gives it"
        raise UnreachableError(f"{said}; ask it with kubectl", where=what) from None


def texts_of(secret: Mapping[str, Any]) -> dict[str, str]:
    """What a Secret holds."""
    with read_as_told(f"Secret {secret['metadata']['name']}"):
        data = secret.get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def has_condition(status: Mapping[str, Any], kind: str) -> bool:
    """Whether a status says that a condition is true."""
    return any(
        one["type"] == kind and one["status"] == "True" for one in status.get("conditions") or ()
    )


def notes_of(one: Object | None) -> Mapping[str, str]:
    """The annotations of an object, if it is there."""
    return ((one or {}).get("metadata") or {}).get("annotations") or {}


class KubeApi:
    """What a cluster's API has, and how to change it.

    Every method raises `UnreachableError` where no usable answer comes, `DeniedError` for 401 and
    403, `ConflictError` for 409, `NotFoundError` for 404 and `MirrorError` for other refusals.
    Safe for threads. Each request ends after `timeout_s` without an answer.
    """

    def __init__(self, client: ApiClient, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._client, self.timeout_s = client, timeout_s
        self.host = str(client.configuration.host)

    @classmethod
    def connect(cls, kubeconfig: Path | None, *, timeout_s: float = _TIMEOUT_S) -> KubeApi:
        """The cluster that `kubeconfig` names, or (None) the one in which this program runs.

        Raises:
            InputError: the client is not installed, or the cluster cannot be found that way.
        """
        try:
            from kubernetes import client, config
        except ImportError:
            raise InputError(
                "the Kubernetes client is not installed; install it with "
                "`pip install 'deckhouse-mirror[kubernetes]'`"
            ) from None
        settings = client.Configuration()
        where = "the Pod's service account" if kubeconfig is None else str(kubeconfig)
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(str(kubeconfig), client_configuration=settings)
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as err:
            raise InputError(f"{where}: it leads to no cluster: {err}") from err
        # What is to be asked again, the controller asks in its next pass.
        settings.retries = False
        return cls(client.ApiClient(settings), timeout_s=timeout_s)

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any] | None:
        """One object; None if it is not there."""
        try:
            found = self._ask("GET", RESOURCES[kind].path(namespace, name))
        except NotFoundError:
            return None
        return _checked(found, f"{kind} {name}")

    def list(
        self, kind: str, namespace: str | None = NAMESPACE, selector: str = ""
    ) -> list[dict[str, Any]]:
        """All objects of a kind, in a namespace or (None) everywhere, with these labels."""
        items: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE), "labelSelector": selector, "continue": ""}
        while True:
            answer = self._ask("GET", RESOURCES[kind].path(namespace), query)
            version = RESOURCES[kind].version
            with read_as_told(f"the list of {kind}"):
                # Items of a list have neither of the two.
                found = [{"apiVersion": version, "kind": kind, **one} for one in answer["items"]]
                items += [_checked(one, f"the list of {kind}") for one in found]
                query["continue"] = str(answer["metadata"].get("continue") or "")
            if not query["continue"]:
                return items

    def apply(
        self, document: Object, *, force: bool = False, dry_run: bool = False, version: str = ""
    ) -> dict[str, Any]:
        """Let an object have these fields, by server-side apply; who else sets one is a conflict.

        `force` takes such fields over. With `dry_run` the API only says what would come of it. With
        a `version` (resourceVersion), an object that has another one by now is a conflict too.
        """
        if version:
            seen = {**document["metadata"], "resourceVersion": version}
            document = {**document, "metadata": seen}
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        return self._ask("PATCH", _path_of(document), query, document, _APPLY)

    def bring(self, document: Object, *, force: bool = False, dry_run: bool = False) -> str:
        """`apply`, and what came of it: created, changed or unchanged."""
        metadata = document["metadata"]
        space = metadata.get("namespace", NAMESPACE)
        before = self.get(document["kind"], metadata["name"], space)
        after = self.apply(document, force=force, dry_run=dry_run)
        if before is None:
            return "created"
        return "unchanged" if _content(before) == _content(after) else "changed"

    def merge(self, kind: str, name: str, patch: Object, namespace: str = NAMESPACE) -> None:
        """Change fields of an object that is there."""
        path = RESOURCES[kind].path(namespace, name)
        self._ask("PATCH", path, {"fieldManager": MANAGER}, patch, _MERGE)

    def put(self, document: Object) -> dict[str, Any]:
        """Replace the object as it was when it was read, or make it: a conflict if it changed."""
        path, query = _path_of(document), {"fieldManager": MANAGER}
        method = "PUT" if document["metadata"].get("resourceVersion") else "POST"
        path = path if method == "PUT" else path.rpartition("/")[0]
        return _checked(self._ask(method, path, query, document), f"{method} {path}")

    def delete(self, document: Object) -> None:
        """Remove an object as it was when it was read; nothing where it is gone already."""
        seen = document["metadata"]
        only = {"uid": seen.get("uid"), "resourceVersion": seen["resourceVersion"]}
        with suppress(NotFoundError):
            self._ask("DELETE", _path_of(document), {}, {"preconditions": only})

    def changes(
        self, kind: str, namespace: str | None, stop: threading.Event, *, field: str = ""
    ) -> Iterator[None]:
        """Yield whenever something may have changed, first when it begins to look.

        A watch that ended begins anew where it was, and from a new list where the API has
        forgotten that. Ends when `stop` is set, at the latest at the end of a request.
        """
        path, version = RESOURCES[kind].path(namespace), ""
        while not stop.is_set():
            if not version:
                found = self._ask("GET", path, {"fieldSelector": field, "limit": "1"})
                with read_as_told(f"the list of {kind}"):
                    version = str(found["metadata"]["resourceVersion"])
                yield
            for event in self._watch(path, {"fieldSelector": field, "resourceVersion": version}):
                if event.get("type") == "ERROR":
                    version = ""  # 410: too old
                    break
                with read_as_told(f"a change of {kind}"):
                    version = str(event["object"]["metadata"]["resourceVersion"])
                if stop.is_set():
                    return
                if event.get("type") != "BOOKMARK":
                    yield

    def close(self) -> None:
        """Let all connections go."""
        self._client.close()

    # -- one request -------------------------------------------------------------------------------

    def _watch(self, path: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The events of one watch, which a `410 Gone` may refuse as its first."""
        asked = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_S)}
        answer = self._send("GET", path, {**query, **asked}, None, "", timeout_s=_WATCH_S + 5.0)
        where = f"GET {self.host}{path}"
        if answer.status == 410:
            answer.read()
            yield {"type": "ERROR"}
            return
        if answer.status != 200:
            raise _refused(where, answer.status, answer.read())
        import urllib3

        rest = b""
        try:
            for piece in answer.response.stream(None):
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(bytes.strip, lines):
                    with read_as_told(where):
                        event = dict(json.loads(line))
                    yield event
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise UnreachableError(f"{where}: the watch broke: {_short(err)}", where=where) from err
        finally:
            answer.response.close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        answer = self._send(method, path, query or {}, body, content_type)
        where, content = f"{method} {self.host}{path}", answer.read()
        if not 200 <= answer.status < 300:
            raise _refused(where, answer.status, content)
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise UnreachableError(f"{where}: the answer is not an object of the API", where=where)
        return document

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None,
        content_type: str,
        timeout_s: float | None = None,
    ) -> Any:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        client, limit = self._client, timeout_s or self.timeout_s
        given = [(name, value) for name, value in query.items() if value]
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        call = client.param_serialize(
            method,
            path,
            query_params=given,
            header_params=headers,
            # It writes JSON by itself where the type says so.
            body=json.dumps(body) if content_type == _APPLY else body,
            auth_settings=["BearerToken"],
        )
        where = f"{method} {self.host}{path}"
        try:
            return client.call_api(*call, _request_timeout=(self.timeout_s, limit))
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as err:
            said = f"{where}: the cluster's API does not answer: {_short(err)}"
            raise UnreachableError(said, where=where) from err


def _checked(document: dict[str, Any], what: str) -> dict[str, Any]:
    """The same, if it has the form of an object: so much that whoever reads one relies on it."""
    with read_as_told(what):
        metadata = document["metadata"]
        texts = [metadata["name"], metadata["resourceVersion"]]
        for one in (metadata.get("labels"), metadata.get("annotations"), document.get("data")):
            texts += (one or {}).values()
        parts = [document.get(key) or {} for key in ("spec", "status")]
        if not all(isinstance(one, str) for one in texts) or {*map(type, parts)} != {dict}:
            raise TypeError
    return document


def _path_of(document: Object) -> str:
    metadata = document["metadata"]
    resource = RESOURCES[document["kind"]]
    return resource.path(metadata.get("namespace", NAMESPACE), metadata["name"])


def _content(document: Object) -> Object:
    """An object without what the API notes about it."""
    notes = ("resourceVersion", "managedFields", "generation")
    given = document.get("metadata")
    known = given if isinstance(given, Mapping) else {}
    return {**document, "metadata": {key: one for key, one in known.items() if key not in notes}}


def _short(err: Exception) -> str:
    return str(getattr(err, "reason", None) or err).partition("\n")[0][:200]


def _refused(where: str, status: int, content: bytes) -> MirrorError:
    """What the API refused, and why. Why may quote what was sent, so of Secrets it is left out."""
    with suppress(ValueError):
        content = json.loads(content)
    said: dict[str, Any] = content if isinstance(content, dict) else {}
    reason = str(said.get("reason") or f"HTTP {status}")
    text = ""
    with suppress(AttributeError, TypeError):  # a proxy's
        causes = (said.get("details") or {}).get("causes") or ()
        text = ", ".join(filter(None, (str(one.get("field") or "") for one in causes)))
    if status in (403, 409) or "/secrets" not in where:
        text = str(said.get("message") or "")[:500] or text
    message = f"{where}: {reason}" + (f": {text}" if text else "")
    if status in (401, 403):
        advice = "give the account the rights that docs/controller.md lists"
        return DeniedError(f"{message}; {advice}", where=where, status=status)
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    if odd := _NOT_DECLARED.search(str(said.get("message") or "")):
        return MirrorError(f"{message}: {odd[0]}")  # with status 500, and to no avail again
    if status == 429 or status >= 500:
        return UnreachableError(message, where=where, status=status)
    return MirrorError(message)
