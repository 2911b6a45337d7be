"""docs/replication.md against the code: its examples are loaded, its tables compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.watch.cycle import CycleResult
from mirror.watch.daemon import Daemon, create_app
from mirror.watch.fleet import Fleet
from mirror.watch.monitoring import Metrics
from mirror.watch.settings import CheckLevel, Schedule, WatchedRegistry, WatchSettings
from tests.support.program import ROOT

PAGE = (ROOT / "docs/replication.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    """The fenced example that begins with a comment."""
    return PAGE.partition(f"```yaml\n# {first_line}")[2].partition("\n")[2].partition("```")[0]


def section(title: str) -> str:
    """The text below a heading."""
    return re.split(r"^##+ ", PAGE.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def tables(title: str) -> list[dict[str, str]]:
    """The tables of a section: for each row its first cell's names, and the second cell."""
    found: list[dict[str, str]] = []
    for lines in re.findall(r"(?:^\|.*\n)+", section(title), flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines.splitlines()[2:]]
        found.append(
            {name: row[1].strip() for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
        )
    return found


@pytest.mark.parametrize("name", ["replication.yaml", "mirrorer.yaml"])
def test_the_examples_are_settings(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(block(name), encoding="utf-8")
    settings = WatchSettings.load(path)
    assert settings.leader == "auto"
    assert len(settings.registries) == 3
    assert len(settings.followers) == 1
    own = settings.repository(settings.followers[0])
    assert str(own) == "10.0.0.6:5001/system/deckhouse"


def test_the_examples_of_a_fleet_belong_together(tmp_path: Path) -> None:
    for name in ("edge.yaml", "fleet.yaml"):
        (tmp_path / name).write_text(block(name), encoding="utf-8")
    fleet = Fleet.load(tmp_path / "fleet.yaml")
    settings = WatchSettings.load(tmp_path / "edge.yaml")
    assert settings.followers == ("edge-17",)
    assert settings.ring == fleet.members["edge-17"].ring
    assert settings.fleet == Path("/etc/mirror/fleet.yaml")
    assert str(settings.repository("hub")) == f"{fleet.hub.address}/{fleet.root}"
    (described,) = tables("Fleets")
    keys = {field.alias or name for name, field in Fleet.model_fields.items()}
    assert described.keys() == keys
    for key in ("after", "may-lack", "ring", "pages"):
        assert f"`{key}`" in section("Fleets").partition("| Key of a fleet")[2]


def test_every_setting_is_described_with_its_default() -> None:
    ours, places = tables("Settings")
    for described, model in ((ours, WatchSettings), (places, WatchedRegistry)):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert described.keys() == fields.keys()
        for name, cell in described.items():
            if not re.fullmatch(r"`[^`]*`", cell):
                continue  # told in words
            default = fields[name].default
            shown = yaml.safe_load(cell.strip("`"))
            if isinstance(shown, str) and isinstance(default, float):
                shown = {"10s": 10.0, "5m": 300.0, "1h": 3600.0}[shown]
            assert shown == default, name


def test_the_registrys_example_names_the_daemons_page_and_token(tmp_path: Path) -> None:
    (endpoint,) = yaml.safe_load(block("config.yml of the registry"))["notifications"]["endpoints"]
    path = tmp_path / "replication.yaml"
    path.write_text(block("replication.yaml"), encoding="utf-8")
    settings = WatchSettings.load(path)
    assert settings.notify_token is not None
    assert endpoint["url"] == f"http://{settings.listen}/notify"
    assert endpoint["headers"]["Authorization"] == [
        f"Bearer {settings.notify_token.get_secret_value()}"
    ]


def test_all_pages_and_metrics_are_listed() -> None:
    pages, metrics = tables("Pages")
    look = CycleResult(
        CheckLevel.AUDIT, complete=True, generation=1, leader_generation=1, declared=1
    )

    def cycle(*_: Any) -> CycleResult:
        return look

    app = create_app(Daemon(["a"], cycle, schedule=Schedule()))
    routes = {(next(iter(r.methods - {"HEAD"})), r.path) for r in app.routes}  # type: ignore[attr-defined]
    assert {tuple(name.split(" ")) for name in pages} == routes
    measured = Metrics(("a",))
    measured.record("a", look, now_s=1.0)
    measured.watch_certificates({}, {})
    types = re.findall(r"# TYPE (\S+) ", measured.page().decode())
    own = {name for name in types if not name.endswith("_created")}
    common = {name for name in own if name.startswith("process_")}
    assert metrics.keys() == own - common
    assert common == set(re.findall(r"`(process_\w+)`", section("Pages")))
    shown = re.findall(r"`(\w+)`", pages["GET /readyz"])
    assert {"ready", "progress", *look.to_document()} == {one for one in shown if one != "this"}


def test_the_probes_ask_pages_that_there_are() -> None:
    probes = yaml.safe_load(block("of the container"))
    assert {one["httpGet"]["path"] for one in probes.values()} == {"/healthz", "/readyz"}
    assert {one["httpGet"]["port"] for one in probes.values()} == {5003}
