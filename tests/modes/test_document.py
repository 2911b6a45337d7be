"""docs/modes.md against the code: the tables of switches and steps, and the example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mirror.modes import (
    ConditionType,
    ModeKind,
    Plane,
    PlaneRow,
    Role,
    Verdict,
    conditions_of,
    legal_path,
)
from mirror.modes.settings import ProxySection, RegistrySettings
from tests.support.tls import Authority

DOCUMENT = (Path(__file__).parents[2] / "docs" / "modes.md").read_text(encoding="utf-8")

NAMES = {
    "Direct": ModeKind.DIRECT,
    "Proxy": ModeKind.PROXY,
    "Local": ModeKind.LOCAL,
    "Unmanaged": ModeKind.UNMANAGED,
    "deprecated": ModeKind.LEGACY,
}
STEPS = {
    "required images": ConditionType.IMAGES,
    "preflight": ConditionType.PREFLIGHT,
    "node services": ConditionType.NODE_SERVICES,
    "in-cluster proxy": ConditionType.IN_CLUSTER_PROXY,
    "transition": ConditionType.TRANSITION,
    "registry switch": ConditionType.REGISTRY_SWITCH,
    "final": ConditionType.FINAL,
    "clean up node services": ConditionType.CLEANUP_NODE_SERVICES,
    "clean up proxy": ConditionType.CLEANUP_IN_CLUSTER_PROXY,
    "ready": ConditionType.READY,
}


def table(first: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    lines = DOCUMENT[DOCUMENT.index(f"\n{first}") + 1 :].splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([re.sub("[¹²]", "", cell).strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_the_matrix_is_as_described() -> None:
    head, *rows = table("| from ↓ to → |")
    assert [row[0] for row in rows] == ["deprecated", "Unmanaged", "Direct", "Proxy", "Local"]
    for row in rows:
        for name, cell in zip(head[1:], row[1:], strict=True):
            before, after = NAMES[row[0]], NAMES[name]
            if cell.startswith("→"):
                path = tuple(NAMES[part.strip()] for part in cell.split("→")[1:])
                assert before.row.switches[after] in (Verdict.FORBIDDEN, Verdict.UNDOCUMENTED)
                assert path == legal_path(before, after)
            else:
                words = {
                    "yes": Verdict.SWITCH,
                    "parameters": Verdict.PARAMETERS,
                    "nothing to do": Verdict.NOTHING,
                }
                assert before.row.switches[after] is words[cell]


WORDS = {
    Role.UPSTREAM: "upstream",
    Role.BALANCER: "`127.0.0.1:5001`",
    Role.SERVICE: "Service",
    Role.PUBLIC: "`registry.<PUBLIC_DOMAIN>`",
    Role.MASTER: "each master",
}
ASKERS = {
    Plane.CRI: "nodes",
    Plane.API: "components",
    Plane.OPERATOR: "pushing",
    Plane.REPLICA: "replicas",
}


def routes_in_words(row: PlaneRow) -> str:
    """A row of the table as a cell of the document."""
    first, *others = row.roles
    words = WORDS[first]
    if row.writer is not None and row.writer is not row.reader:
        words += f", read as `{row.reader}`, write as `{row.writer}`"
    elif row.reader is not None:
        words += f" as `{row.reader}`"
    elif first is not Role.UPSTREAM:
        words += ", login of the upstream"
    return "".join([words, *(f", then {WORDS[role]}" for role in others)])


def test_the_routes_are_those_of_the_table() -> None:
    lines = [
        "| | " + " | ".join(f"{ASKERS[one]} (`{one}`)" for one in Plane) + " |",
        "|---" * 5 + "|",
    ]
    for kind in (ModeKind.UNMANAGED, ModeKind.DIRECT, ModeKind.PROXY, ModeKind.LOCAL):
        cells = [routes_in_words(kind.row.planes[plane]) for plane in Plane]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    assert "\n".join(lines) in DOCUMENT


def test_the_steps_are_as_described() -> None:
    head, *rows = table("| | Direct | Proxy | Local |")
    for column, name in enumerate(head[1:], 1):
        steps = [STEPS[row[column]] for row in rows if row[column]]
        assert steps == list(conditions_of(NAMES[name]))


def test_every_field_is_described() -> None:
    described = {
        cell for row in table("| field | rule |") for cell in re.findall("`(.*?)`", row[0])
    }
    assert {*ProxySection.document_keys().values()} <= described


def test_the_example_of_settings_is_read_but_for_its_certificate(authority: Authority) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    document = yaml.safe_load(block)
    section = document["spec"]["settings"]["registry"]["proxy"]
    assert set(section) == {*ProxySection.document_keys().values()} - {"username", "password"}
    section["ca"] = authority.certificate.read_text()
    settings = RegistrySettings.load(document)
    assert settings.proxy is not None
    assert settings.proxy.ttl_s == 72 * 3600


def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, *_ = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "now.yaml").write_text(
        "{mode: Direct, direct: {imagesRepo: nexus.corp.example/dkp/ee}}"
    )
    (tmp_path / "wanted.yaml").write_text("mode: Local")
    (tmp_path / "sites.yaml").write_text("masters: [10.0.0.1]")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "docs/modes.md", "exec"), names)
    plan = names["plan"]
    assert getattr(plan, "allowed", None) is True
