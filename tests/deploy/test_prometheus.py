"""A real Prometheus beside a real daemon: what it scrapes, and what its rules make of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from mirror.watch.daemon import running
from mirror.watch.settings import WatchSettings
from tests.deploy.test_deploy import ALERTS, queries
from tests.support.inventories import sample_store
from tests.support.patience import wait_until
from tests.support.processes import ServerProcess, free_port
from tests.support.tools import require_tool
from tests.watch.test_capacity import fill


@pytest.mark.soak
def test_prometheus_scrapes_the_daemon_and_has_an_answer_to_every_query(tmp_path: Path) -> None:
    with EmbeddedRegistry(MemoryStorage()) as a, EmbeddedRegistry(MemoryStorage()) as b:
        fill(a.address, sample_store())
        registries = {
            name: {"address": one.address, "insecure": True} for name, one in (("a", a), ("b", b))
        }
        document = {"leader": "a", "root": "system/deckhouse", "listen": "127.0.0.1:0"}
        settings = WatchSettings.model_validate(
            {**document, "interval": "0.5s", "registries": registries}
        )
        with running(settings) as (_, url):
            assert url is not None
            config = tmp_path / "prometheus.yml"
            job = {
                "job_name": "mirror-sync",
                "static_configs": [{"targets": [url.removeprefix("http://")]}],
            }
            config.write_text(
                yaml.safe_dump(
                    {
                        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                        "rule_files": [str(ALERTS)],
                        "scrape_configs": [job],
                    }
                )
            )
            port = free_port()
            server = ServerProcess(
                [
                    require_tool("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                port=port,
                log=tmp_path / "log",
            )
            with server:

                def asked(path: str, **query: str) -> Any:
                    answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=query)
                    return answer.json().get("data") if answer.status_code == 200 else None

                def value(expression: str) -> list[Any]:
                    found = asked("query", query=expression)
                    return found["result"] if found else []

                wait_until(lambda: bool(value('mirror_replica_complete{job="mirror-sync"} == 1')))
                # A rate needs two scrapes, and a histogram's takes in the first look alone.
                wait_until(lambda: bool(value("rate(mirror_sync_cycles_total[1m]) > 0")))
                for query in queries():
                    text = query.replace("$__rate_interval", "1m").replace("$replica", ".*")
                    if "certificate" not in text:  # these registries have none
                        assert value(text), text
                (group,) = asked("rules")["groups"]
                wait_until(
                    lambda: all(
                        one["health"] == "ok" for one in asked("rules")["groups"][0]["rules"]
                    )
                )
                assert len(group["rules"]) == len(
                    yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
                )
                firing = [one["name"] for one in group["rules"] if one["state"] != "inactive"]
                assert firing == [], json.dumps(group)
