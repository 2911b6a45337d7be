"""Local mode at work, from rendered files."""

from __future__ import annotations

import dataclasses
import http.server
import json
import queue
import ssl
import threading
from typing import Any

import httpx
import pytest

from mirror.errors import DeniedError
from mirror.modes.sites import User
from mirror.oci import Digest
from tests.modes.images import client, image, push
from tests.modes.stack import (
    LOGICAL,
    Cluster,
    running,
)
from tests.support.mode_stack import (
    ContainerdProcess,
    balancer,
)


def test_containerd_pulls_by_tag_and_digest_and_goes_on_when_a_replica_dies(
    local: Cluster, containerd: ContainerdProcess
) -> None:
    one = image("local")
    for node in local.masters:
        with client(node.registry, local.ca, local.account(User.RW)) as to:
            push(to, "system/deckhouse/install", "v1.70.0", one)
    by_tag, by_digest = f"{LOGICAL}/install:v1.70.0", f"{LOGICAL}/install@{one.digest}"
    login = local.login(User.RO)
    with running(balancer(local.out, local.worker)):
        for reference in (by_tag, by_digest):
            done = containerd.pull(reference, local.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(reference)
        dead = local.registries["master-1"]
        dead.kill()
        for _ in range(3):
            done = containerd.pull(by_tag, local.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(by_tag)
        dead.start()


def test_each_user_may_do_what_the_access_list_says(local: Cluster) -> None:
    node = local.masters[0]
    one = image("access")
    with client(node.registry, local.ca, local.account(User.RW)) as to:
        push(to, "system/deckhouse/access", "v1", one)
    with client(node.registry, local.ca, local.account(User.RO)) as reader:
        assert reader.manifest("system/deckhouse/access", "v1").raw == one.manifest
        with pytest.raises(DeniedError):
            push(reader, "system/deckhouse/access", "v2", one)
        with pytest.raises(DeniedError):
            list(reader.catalogue())
    with client(node.registry, local.ca, local.account(User.MIRROR_PULLER)) as puller:
        assert "system/deckhouse/access" in list(puller.catalogue())
        assert puller.resolve("system/deckhouse/access", "v1")
        with pytest.raises(DeniedError):
            push(puller, "system/deckhouse/access", "v2", one)
    with client(node.registry, local.ca, local.account(User.MIRROR_PUSHER)) as pusher:
        push(pusher, "system/deckhouse/access", "v2", one)
        pusher.delete_manifest("system/deckhouse/access", Digest.parse(one.digest))
    wrong = dataclasses.replace(local.account(User.RO), name="rw")
    with (
        client(node.registry, local.ca, wrong) as stranger,
        pytest.raises(DeniedError),
    ):
        stranger.manifest("system/deckhouse/access", "v1")
    with client(node.registry, local.ca, None) as nobody, pytest.raises(DeniedError):
        nobody.manifest("system/deckhouse/access", "v1")


def test_metrics_are_on_the_loopback_port(local: Cluster) -> None:
    node = local.masters[2]
    answer = httpx.get(f"http://127.0.0.1:{node.ports.debug}/metrics")
    assert answer.status_code == 200
    assert "registry_http" in answer.text


def test_pythons_strictest_verification_accepts_the_replica(local: Cluster) -> None:
    context = ssl.create_default_context(cadata=local.kept.authority.certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    answer = httpx.get(f"https://{local.masters[0].registry}/v2/", verify=context)
    assert answer.status_code == 401
    challenge = answer.headers["www-authenticate"]
    assert f'realm="https://{local.masters[0].token}/auth"' in challenge


def test_a_push_is_told_to_replication(local: Cluster) -> None:
    node = local.masters[0]
    events: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.put((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", node.ports.replication), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        with client(node.registry, local.ca, local.account(User.RW)) as to:
            push(to, "system/deckhouse/told", "v1", image("told"))
            push(to, "system/deckhouse/told", "v2", image("told again"))
        # It was away during the tests before, and what it missed then is told now too.
        told: list[dict[str, Any]] = []
        while not any(one["target"].get("tag") == "v2" for one in told):
            path, body = events.get(timeout=30)
            assert path == "/notify"
            told += [one for one in body["events"] if "told" in one["target"]["repository"]]
        assert "push" in {one["action"] for one in told}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
