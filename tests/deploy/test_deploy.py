"""What `deploy/` ships, against the program, the API, Prometheus and systemd."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from mirror.bundle.format import Shard
from mirror.errors import InputError, IntegrityError
from mirror.layout import tool_name
from mirror.watch.daemon import Daemon, create_app
from mirror.watch.fleet import Fleet
from mirror.watch.monitoring import Metrics
from mirror.watch.settings import WatchSettings
from shipping import deb
from tests.deploy import chart
from tests.support.kubernetes import check_object, endpoints, pods_of
from tests.support.program import ROOT, call_mirror
from tests.support.tools import require_tool
from tests.watch.test_daemon import HOURLY, Cycles

ALERTS = chart.CHART / "files/alerts.yaml"
DASHBOARD = json.loads((chart.CHART / "files/dashboard.json").read_text(encoding="utf-8"))
UNIT = ROOT / "deploy/systemd/mirror-sync.service"
JOBS = ("pull-job.yaml", "push-job.yaml", "verify-job.yaml")
FOREIGN = frozenset({"ServiceMonitor", "PrometheusRule", "GrafanaDashboardDefinition"})
"""Kinds that operators add to the API."""


def objects(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


def plain(name: str) -> list[dict[str, Any]]:
    return objects((chart.PLAIN / name).read_text(encoding="utf-8"))


def the(kind: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (one for one in documents if one["kind"] == kind)
    return found


def run(*command: str | Path, text: str | None = None) -> str:
    """What a program says that must succeed."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- Kubernetes ------------------------------------------------------------------------------------


def test_the_plain_manifests_are_of_the_chart_as_it_is() -> None:
    for name in chart.FILES:
        text = (chart.PLAIN / name).read_text(encoding="utf-8")
        assert f"\n# chart sha256:{chart.fingerprint()}\n" in text, (
            "run `python -m tests.deploy.chart`"
        )


def test_the_chart_installs_this_version() -> None:
    described = yaml.safe_load((chart.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert described["appVersion"] == tool_name().removeprefix("mirror ")


@pytest.mark.parametrize("name", [*chart.FILES, *JOBS])
def test_the_api_takes_every_object(name: str) -> None:
    for one in plain(name):
        if one["kind"] not in FOREIGN:
            check_object(one)


def test_the_daemon_takes_the_settings_and_answers_where_it_is_asked(tmp_path: Path) -> None:
    documents = plain("mirror-sync.yaml")
    file = tmp_path / "replication.yaml"
    file.write_text(the("ConfigMap", documents)["data"]["replication.yaml"])
    settings = WatchSettings.load(file)
    assert settings.followers == ("spare",)
    (container,) = the("Deployment", documents)["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert settings.listener() == ("0.0.0.0", port["containerPort"])
    routes = create_app(Daemon(("a",), Cycles(), schedule=HOURLY)).routes
    pages = {route.path for route in routes if isinstance(route, Route)}
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert asked["path"] in pages


def test_a_fleet_lies_beside_the_settings_that_name_it(tmp_path: Path) -> None:
    values = {
        "settings": {"fleet": "/etc/mirror/settings/fleet.yaml", "ring": "rest"},
        "fleet": {
            "root": "dkp",
            "hub": {"address": "hub.example.com"},
            "rings": [{"name": "canary"}, {"name": "rest", "after": "1d"}],
            "members": {
                name: {"address": f"{name}.example.com", "ring": name}
                for name in ("canary", "rest")
            },
        },
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    documents = objects(chart.render("--values", str(file)))
    (container,) = the("Deployment", documents)["spec"]["template"]["spec"]["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    for name, text in the("ConfigMap", documents)["data"].items():
        (tmp_path / name).write_text(text)
    settings = WatchSettings.load(tmp_path / "replication.yaml")
    assert settings.fleet == Path(mounts["settings"], "fleet.yaml")
    assert Fleet.load(tmp_path / "fleet.yaml").members_of("rest") == ["rest"]


def test_the_program_takes_the_arguments_and_looks_for_passwords_where_they_are_mounted(
    tmp_path: Path,
) -> None:
    documents = plain("mirror-sync.yaml")
    pod = the("Deployment", documents)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    file = tmp_path / "replication.yaml"
    file.write_text(the("ConfigMap", documents)["data"]["replication.yaml"])
    place = f"{mounts['settings']}/{file.name}"
    arguments = [str(file) if one == place else one for one in container["args"]]
    assert arguments != container["args"], "the settings are read from their mount"
    call_mirror(*arguments).failed(2, f"{mounts['secrets']}/main.password")


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    pod = the("Deployment", plain("mirror-sync.yaml"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", JOBS)
def test_every_pod_of_a_job_of_shards_has_a_share_of_its_own(name: str) -> None:
    job = the("Job", plain(name))["spec"]
    (container,) = job["template"]["spec"]["containers"]
    env = {one["name"]: one.get("value", "7d2f") for one in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    shares = [
        Shard.parse("auto", {**env, "JOB_COMPLETION_INDEX": str(index)})
        for index in range(job["completions"])
    ]
    assert shares == [Shard(index + 1, 8) for index in range(8)]
    command = ("--shard=0/1" if one == "--shard=auto" else one for one in container["args"])
    call_mirror(*command, env=env).failed(2, "0/1 is not one of several shards")


def test_a_job_that_verifies_gathers_its_findings_in_a_place_of_its_own() -> None:
    """Its uid names that. Damage is told once, by exit code 4, and not looked for again."""
    job = the("Job", plain("verify-job.yaml"))["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert "--findings=s3://bundles/verify/$(JOB_UID)" in container["args"]
    (uid,) = (one["valueFrom"] for one in container["env"] if one["name"] == "JOB_UID")
    assert uid["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/controller-uid']"
    rules = {one["action"]: one["onExitCodes"] for one in job["podFailurePolicy"]["rules"]}
    assert rules["FailIndex"]["values"] == [IntegrityError.exit_code]
    assert rules["FailJob"]["values"] == [InputError.exit_code]
    assert {one["containerName"] for one in rules.values()} == {container["name"]}
    assert job["template"]["spec"]["restartPolicy"] == "Never", "the policy asks for it"


def test_services_monitors_and_policies_find_the_pod() -> None:
    documents = plain("mirror-sync.yaml")
    (pod,) = pods_of(documents)
    service = the("Service", documents)
    assert endpoints(service, [pod]) == [f"{pod.name}:5003"]
    monitor = the("ServiceMonitor", plain("monitoring.yaml"))["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {one["port"] for one in monitor["endpoints"]} <= {
        one["name"] for one in service["spec"]["ports"]
    }
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "mirror-sync", "as alerts have it"
    policy = the("NetworkPolicy", documents)["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod.labels.items()
    ((port,),) = (rule["ports"] for rule in policy["ingress"])
    assert port["port"] in pod.ports


def test_the_clusters_prometheus_and_grafana_get_the_same_files() -> None:
    documents = plain("monitoring.yaml")
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    assert the("PrometheusRule", documents)["spec"] == rules
    (dashboard,) = the("ConfigMap", documents)["data"].values()
    assert json.loads(dashboard) == DASHBOARD


@pytest.mark.soak
def test_helm_renders_the_chart_into_the_plain_manifests(tmp_path: Path) -> None:
    chart.write(tmp_path)
    for name in chart.FILES:
        assert (tmp_path / name).read_text() == (chart.PLAIN / name).read_text(), (
            "run `python -m tests.deploy.chart`"
        )


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        ["networkPolicy.enabled=false"],
        ["networkPolicy.notifiers={10.0.0.0/24,10.1.0.0/24}"],
        ["monitoring.enabled=true", "monitoring.dashboard=GrafanaDashboardDefinition"],
        ["imagePullSecrets[0].name=registry", "priorityClassName=system-cluster-critical"],
        ["nodeSelector.zone=a", "tolerations[0].operator=Exists", "image.tag=v9"],
    ],
)
def test_other_values_make_objects_too(options: list[str]) -> None:
    flags = [part for option in options for part in ("--set", option)]
    documents = objects(chart.render(*flags))
    assert {"Deployment", "Service", "ConfigMap"} <= {one["kind"] for one in documents}
    for one in documents:
        if one["kind"] not in FOREIGN:
            check_object(one)


# -- Prometheus and Grafana ------------------------------------------------------------------------


def metric_names() -> set[str]:
    """Every name that Prometheus gets to know from a daemon, and `up`, which is its own."""
    measured = Metrics(("a",))
    measured.watch_certificates({}, {})
    page = measured.page().decode()
    declared = re.findall(r"# TYPE (\S+) (\S+)", page)
    histograms = {f"{name}_bucket" for name, kind in declared if kind == "histogram"}
    return {name for name, _ in declared} | histograms | {"up"}


WORDS = re.compile(r"(?<![\w$\"{.])([a-z_]\w*)\b(?!\s*\(|=|~)")
LABELS = frozenset({"replica", "registry", "side", "depth", "le", "instance", "job"})
SYNTAX = frozenset({"by", "on", "and", "or", "unless", "min", "sum"})


def named_in(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", expression)
    return set(WORDS.findall(bare)) - LABELS - SYNTAX


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_every_query_asks_for_what_the_daemon_shows() -> None:
    known = metric_names()
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    asked = [*queries(), *(rule["expr"] for rule in rules)]
    assert all(named_in(one) for one in asked)
    assert {name for one in asked for name in named_in(one)} <= known
    (variable,) = (one for one in DASHBOARD["templating"]["list"] if one["type"] == "query")
    assert variable["query"]["query"] == "label_values(mirror_replica_complete, replica)"


def test_every_metric_of_the_daemons_own_is_on_the_dashboard() -> None:
    shown = {name.removesuffix("_bucket") for one in queries() for name in named_in(one)}
    own = {name for name in metric_names() if name.startswith("mirror_")}
    assert {name.removesuffix("_bucket") for name in own if not name.endswith("_created")} <= shown


def test_prometheus_reads_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", file)


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool = require_tool("promtool")
    run(promtool, "check", "rules", ALERTS)
    tests = ROOT / "tests/deploy/alerts.test.yaml"
    run(promtool, "test", "rules", tests)
    tried = {
        one["alertname"]
        for test in yaml.safe_load(tests.read_text(encoding="utf-8"))["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert tried == {rule["alert"] for rule in rules}


def test_the_handbook_says_what_each_alert_means_and_what_to_do() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    described = re.findall(
        r"^### (Mirror\w+)\n\n(.+?)(?=^##)", page, flags=re.MULTILINE | re.DOTALL
    )
    assert [name for name, _ in described] == [rule["alert"] for rule in rules]
    for name, text in described:
        assert "**Means:**" in text, name
        assert "**Do:**" in text, name


def test_the_handbook_names_files_and_values_that_there_are() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"\bdeploy/[\w./-]+", page)):
        assert (ROOT / path).exists(), path
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    named = re.findall(r"`((?:networkPolicy|monitoring)\.\w+)", page)
    assert len(named) > 4
    for name in named:
        section, _, key = name.partition(".")
        assert key in values[section], name


# -- systemd ---------------------------------------------------------------------------------------


def test_systemd_takes_the_unit_and_finds_it_well_shut_off(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze")
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("/usr/bin/mirror ") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/usr/bin/mirror ", "/usr/bin/env "))  # the package is not here
    assert run(analyze, "verify", copy) == ""
    # 2.0 of 10, where 0 is nothing allowed at all.
    run(analyze, "security", "--offline=true", "--threshold=20", UNIT)


def test_the_debian_package_brings_the_unit_for_the_program_that_it_brings() -> None:
    sources = {ROOT / source for source in deb.SERVICE.values()}
    assert sources == set(UNIT.parent.iterdir())
    assert "\nExecStart=/usr/bin/mirror " in UNIT.read_text(encoding="utf-8")


def test_the_units_user_is_made_by_sysusers() -> None:
    unit = UNIT.read_text(encoding="utf-8")
    (user,) = re.findall(r"^User=(.+)$", unit, flags=re.MULTILINE)
    made = (ROOT / "deploy/systemd/mirror.sysusers.conf").read_text(encoding="utf-8")
    assert re.search(rf"^u {user} ", made, flags=re.MULTILINE)
