"""What the daemon answers over HTTP, asked over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.serve.server import ServerThread, listen
from mirror.watch.cycle import CycleResult
from mirror.watch.daemon import Daemon, create_app, tells_of_change
from tests.support.patience import wait_until
from tests.watch.test_daemon import HOURLY, Cycles

TOKEN = "between-us"


class Site:
    """A running daemon and its pages."""

    def __init__(self, cycles: Cycles, token: str | None) -> None:
        self.cycles = cycles
        self.daemon = Daemon(("a",), cycles, schedule=HOURLY)
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = ServerThread(create_app(self.daemon, notify_token=token), listener)

    def __enter__(self) -> Site:
        self._server.start()
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()
        self._server.stop()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path)

    def notify(self, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/notify", json=body, headers=headers)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(Cycles(), None) as running:
        yield running


def test_health_ends_with_the_threads(site: Site) -> None:
    assert site.get("/healthz").status_code == 200
    site.daemon.stop()
    assert site.get("/healthz").status_code == 500


def test_ready_tells_why_it_is_not() -> None:
    cycles = Cycles()
    cycles.behaviour["a"] = lambda _: CycleResult(
        HOURLY.level(0, None, None), complete=False, declared=10, verified=4, errors=("no space",)
    )
    with Site(cycles, None) as site:
        wait_until(lambda: site.daemon.state.to_document()["replicas"]["a"] is not None)
        answer = site.get("/readyz")
    assert answer.status_code == 503
    replica = answer.json()["replicas"]["a"]
    assert (replica["verifiedDigests"], replica["declaredDigests"]) == (4, 10)
    assert replica["errors"] == ["no space"]


def test_ready_when_the_replica_is_complete(site: Site) -> None:
    wait_until(lambda: site.get("/readyz").status_code == 200)
    assert site.get("/readyz").json()["ready"] is True


def test_metrics_are_read_by_prometheus_own_parser(site: Site) -> None:
    wait_until(site.daemon.state.ready)
    families = {
        family.name: family for family in text_string_to_metric_families(site.get("/metrics").text)
    }
    samples = {
        sample.name: sample.value for family in families.values() for sample in family.samples
    }
    assert samples["mirror_replica_complete"] == 1
    assert samples["mirror_replica_declared_digests"] == 5
    assert samples["mirror_replica_verified_digests"] == 5
    assert samples["mirror_sync_cycles_total"] == 1
    assert samples["mirror_sync_errors_total"] == 0
    assert samples["mirror_replica_last_success_timestamp_seconds"] > 0


def test_a_registrys_notification_of_a_push_wakes_it_and_one_of_a_pull_does_not(
    site: Site,
) -> None:
    wait_until(site.daemon.state.ready)
    assert site.notify({"events": [{"action": "pull"}]}).status_code == 202
    assert site.notify({"events": [{"action": "pull"}, {"action": "push"}]}).status_code == 202
    wait_until(lambda: site.cycles.count("a") == 2)


@pytest.mark.parametrize("body", [[], {}, {"events": 1}, {"events": ["push"]}, "push"])
def test_what_is_no_notification_is_refused(site: Site, body: Any) -> None:
    answer = site.notify(body)
    assert answer.status_code == 400
    assert "not a notification" in answer.text


def test_a_body_without_end_is_refused(site: Site) -> None:
    answer = httpx.post(f"{site.url}/notify", content=b" " * (5 << 20))
    assert answer.status_code == 413


def test_with_a_token_only_who_has_it_wakes_the_daemon() -> None:
    with Site(Cycles(), TOKEN) as site:
        push = {"events": [{"action": "push"}]}
        assert site.notify(push).status_code == 401
        assert site.notify(push, authorization="Bearer wrong").status_code == 401
        assert site.notify(push, authorization=f"Bearer {TOKEN}").status_code == 202
        wait_until(lambda: site.cycles.count("a") == 2)


def test_a_deletion_is_a_change() -> None:
    assert tells_of_change({"events": [{"action": "delete"}]})
    assert not tells_of_change({"events": []})
