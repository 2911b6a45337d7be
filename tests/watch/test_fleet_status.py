"""`mirror fleet status`: who holds what, and what is said of those who do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mirror.errors import InputError, NotFoundError, UnreachableError
from mirror.events import Event, Retrying
from mirror.oci.manifest import OCI_MANIFEST
from mirror.reports.page import fleet_html
from mirror.reports.registries import fleet_summary
from mirror.run import Run
from mirror.serve.server import ServerThread, listen
from mirror.sync.plan import missing_content
from mirror.sync.publication_state import read_statement, write_reached
from mirror.sync.statement import REPOSITORY
from mirror.testing import Answer, Delay, Fault
from mirror.watch.cycle import CycleResult
from mirror.watch.daemon import Daemon, create_app
from mirror.watch.fleet import Fleet
from mirror.watch.monitoring import FleetStatus, MemberStatus, fleet_status, parse_page
from mirror.watch.settings import CheckLevel, Schedule
from tests.support.inventories import newer_store, sample_store
from tests.support.processes import free_port
from tests.support.program import call_mirror
from tests.support.replicas import Replica, replicas
from tests.support.sample_images import image
from tests.support.scripted_server import Reply, ScriptedServer

STORE = sample_store()
NAMES = ("done", "late", "empty")


@pytest.fixture
def four() -> Iterator[list[Replica]]:
    """A hub with generation 2, who has it, who has generation 1, and who has nothing."""
    with replicas(4) as made:
        made[0].fill(STORE, 1)
        made[0].fill(newer_store(), 2)
        made[1].fill(newer_store(), 2)
        made[2].fill(STORE, 1)
        yield made


def described(members: list[Replica], **more: Any) -> dict[str, Any]:
    """A fleet of them; `more` are keys of the member that is late."""
    hub, *rest = members
    return {
        "defaults": {"insecure": True},
        "hub": {"address": hub.name},
        "rings": [{"name": "canary"}, {"name": "rest"}],
        "members": {
            name: {
                "address": one.name,
                "ring": "canary" if name == "done" else "rest",
                **(more if name == "late" else {}),
            }
            for name, one in zip(NAMES, rest, strict=True)
        },
    }


def standing(status: FleetStatus, name: str) -> MemberStatus:
    (found,) = (one for one in status.members if one.name == name)
    return found


def test_each_registry_is_asked_once_and_the_bytes_that_lack_are_counted(
    four: list[Replica],
) -> None:
    for one in four:
        one.registry.requests.clear()
    status = fleet_status(Fleet.model_validate(described(four)))
    assert (status.generation, status.complete, status.exit_code) == (2, 1, 3)
    assert [one.name for one in status.members] == ["done", "empty", "late"], "by rings"
    new = missing_content(newer_store().inventory(), STORE.inventory())
    late = standing(status, "late")
    assert (late.generation, late.lag, late.behind) == (1, 1, sum(new.blob_sizes().values()))
    empty = standing(status, "empty")
    everything = sum(newer_store().inventory().blob_sizes().values())
    assert (empty.generation, empty.lag, empty.behind) == (None, 2, everything)
    assert standing(status, "done").behind == 0
    assert [len(one.registry.requests) for one in four[1:]] == [1, 1, 1]


def test_a_member_that_does_not_answer_holds_nobody_up(
    four: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.watch.fleet.PATIENCE_S", 0.3)
    four[2].registry.faults.add(Fault(Delay(60.0), times=None))
    four[3].fill(newer_store(), 2)
    status = fleet_status(Fleet.model_validate(described(four)))
    assert status.exit_code == 5, "all that answer are complete"
    late = standing(status, "late")
    assert isinstance(late.error, UnreachableError)
    assert (late.lag, late.behind) == (None, None)
    assert "    late: no answer within 0.3 s" in fleet_summary(status, 0.1).splitlines()


def test_a_hub_that_states_nothing_is_an_error(four: list[Replica]) -> None:
    with replicas(1) as (hub,), pytest.raises(NotFoundError, match="states nothing; push to it"):
        fleet_status(Fleet.model_validate(described([hub, *four[1:]])))


def test_a_daemons_page_says_what_it_waits_for_and_how_fast_it_gets_on(
    four: list[Replica],
) -> None:
    daemon = Daemon(
        ["late"], lambda *_: CycleResult(CheckLevel.STATEMENT, complete=True), schedule=Schedule()
    )
    daemon.state.begin("late", 10.0)
    daemon.state.moved("late", 1 << 20, 12.0)
    daemon.state.moved("late", 1 << 20, 14.0)
    daemon.state.note(
        "late",
        CycleResult(
            CheckLevel.STATEMENT, complete=False, waiting="a window", errors=("disk full",)
        ),
    )
    port = free_port()
    server = ServerThread(create_app(daemon), listen("127.0.0.1", port))
    server.start()
    try:
        fleet = Fleet.model_validate(described(four, pages=f"http://127.0.0.1:{port}/"))
        late = standing(fleet_status(fleet), "late")
    finally:
        server.stop()
    assert (late.waiting, late.errors, late.rate) == ("a window", ("disk full",), (1 << 20) / 2)
    assert late.left_s == (late.behind or 0) / ((1 << 20) / 2)
    gone = standing(fleet_status(fleet), "late")
    assert (gone.error, gone.rate, gone.lag) == (None, None, 1), "its registry answers all the same"
    assert f"127.0.0.1:{port}" in gone.errors[0]


@pytest.mark.parametrize(
    "page",
    [
        '{"progress": {"late": {"seconds": 3}}}',
        '{"progress": {"late": {"bytes": -1, "seconds": 3}}}',
        '{"progress": {"late": {"bytes": 1e999, "seconds": 3}}}',
        '{"progress": 7}',
        "<html>",
    ],
)
def test_a_page_of_another_program_is_told_as_such(four: list[Replica], page: str) -> None:
    with ScriptedServer(lambda _request: Reply(200, {}, page.encode())) as server:
        address = server.url
        fleet = Fleet.model_validate(described(four, pages=address))
        late = standing(fleet_status(fleet), "late")
    assert late.rate is None
    assert late.errors == (f"{address}/readyz is not a page of mirror's",)


# -- hostile members -------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["1e-300", "5e-324", "1e-20"])
def test_a_rate_beyond_all_measure_is_none(seconds: str) -> None:
    page = f'{{"progress": {{"a": {{"bytes": 1e300, "seconds": {seconds}}}}}}}'
    assert parse_page(page.encode()).rate is None


def test_a_time_that_nobody_waits_for_is_not_told() -> None:
    slow = parse_page(b'{"progress": {"a": {"bytes": 1e-300, "seconds": 1e300}}}')
    assert MemberStatus("a", "rest", behind=10**15, rate=slow.rate).left_s is None
    crawls = parse_page(b'{"progress": {"a": {"bytes": 1, "seconds": 1e6}}}')
    one = MemberStatus("a", "rest", behind=10**15, generation=1, lag=1, rate=crawls.rate)
    assert one.left_s is None
    status = FleetStatus("hub", sample_store().inventory().digest(), 2, (one,))
    assert "left" not in fleet_summary(status, 0.1)
    assert json.loads(json.dumps(status.to_document(), allow_nan=False))
    assert fleet_html(status)


def test_of_what_a_daemon_says_only_the_beginning_is_passed_on() -> None:
    looks = {name: {"waiting": "w" * 9000, "errors": ["e" * 9000] * 900} for name in "ab"}
    said = parse_page(json.dumps({"replicas": looks}).encode())
    assert said.waiting == "w" * 300
    assert said.errors == (*["e" * 300] * 5, "and 1795 more")


def test_words_of_a_daemon_make_no_lines_and_no_marks(four: list[Replica]) -> None:
    hostile = '\x1b[2J\n  fine: generation 2<img src=x onerror="alert(1)">'
    page = {"replicas": {"late": {"waiting": hostile, "errors": [hostile]}}}
    said = parse_page(json.dumps(page).encode())
    one = MemberStatus("late", "rest", generation=1, lag=1, **said._asdict())
    status = FleetStatus("hub", sample_store().inventory().digest(), 2, (one,))
    text, html = fleet_summary(status, 0.1), fleet_html(status)
    assert "\x1b" not in text + html
    assert "<img" not in html
    assert len(text.splitlines()) == 4
    assert b"\n  fine" not in status.metrics()


@pytest.mark.parametrize("page", ["[" * 100_000, '{"a":' * 100_000, '{"replicas": {"\ud800": 1}}'])
def test_a_page_that_is_a_trap_is_another_programs(page: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_page(page.encode(errors="surrogatepass"))


def test_a_member_may_name_as_its_statement_anything_that_the_hub_has(
    four: list[Replica],
) -> None:
    """Its copy of the hub's note of a date is no statement, and the others are told of all the
    same."""
    hub, _, late, _ = four
    repository = hub.tree.locate(REPOSITORY)
    published = read_statement(hub.tree)
    assert published is not None
    write_reached(hub.tree, published)
    note = hub.tree.client.manifest(repository, "reached-2")
    late.tree.client.put_manifest(repository, "latest", note)
    status = fleet_status(Fleet.model_validate(described(four)))
    assert standing(status, "late").behind is None
    assert standing(status, "done").complete


def test_pages_may_be_at_a_short_name(four: list[Replica]) -> None:
    late = standing(
        fleet_status(Fleet.model_validate(described(four, pages="http://LocalHost"))), "late"
    )
    assert "localhost:80" in late.errors[0]


def test_of_each_member_no_more_is_read_than_a_statement_takes(four: list[Replica]) -> None:
    """Sixty-four are read at a time, and a manifest of 4 MiB takes many times that of memory."""
    manifest = image((), annotations={f"k{number}": "v" for number in range(9000)})
    large = Answer(200, {"Content-Type": OCI_MANIFEST}, manifest)
    four[2].registry.faults.add(Fault(large, "GET", "/manifests/latest", times=None))
    late = standing(fleet_status(Fleet.model_validate(described(four))), "late")
    assert "is larger than 65537 bytes" in str(late.error)


@pytest.mark.parametrize(
    "pages",
    [
        "ftp://edge",
        "edge:5003",
        "https://user:s3cret@edge",
        "https://edge?token=s3cret",
        "http://[::1",
        "https://",
        "https://ed ge",
        "https://edge:port",
    ],
)
def test_the_address_of_pages_is_checked_with_the_file(pages: str, tmp_path: Path) -> None:
    member = {"address": "e.example.com", "ring": "rest", "pages": pages}
    file = tmp_path / "fleet.yaml"
    document = {"hub": {"address": "h.example.com"}, "rings": [{"name": "rest"}]}
    file.write_text(yaml.safe_dump({"root": "dkp", **document, "members": {"e": member}}))
    with pytest.raises(InputError, match=r"members\.e\.pages: .*") as refused:
        Fleet.load(file)
    assert "s3cret" not in str(refused.value)


def test_the_command_prints_text_and_json_and_writes_metrics_and_a_page(
    four: list[Replica], tmp_path: Path
) -> None:
    file, metrics, page = (tmp_path / name for name in ("fleet.yaml", "fleet.prom", "fleet.html"))
    file.write_text(yaml.safe_dump(described(four)))
    done = call_mirror("fleet", "status", file, "--prometheus", metrics, "--html", page)
    hub = four[0].name
    text = done.failed(3).stdout
    assert f"1 of 3 members hold generation 2 of {hub}\n  canary: 1 of 1\n  rest: 0 of 2\n" in text
    assert re.search(r"late: generation 1, 1 behind \(\d+ B\)", text)
    assert "empty: nothing, 2 behind" in text
    document = json.loads(call_mirror("fleet", "status", file, "--json").failed(3).stdout)
    assert document["ok"] is False
    assert {one["member"]: one["lagGenerations"] for one in document["members"]} == {
        "done": 0,
        "late": 1,
        "empty": 2,
    }
    values = {
        (sample.name, sample.labels.get("member")): sample.value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    }
    assert values["mirror_fleet_hub_generation", None] == 2
    assert values["mirror_fleet_complete", "done"] == 1
    assert values["mirror_fleet_lag_generations", "late"] == 1
    assert values["mirror_fleet_up", "empty"] == 1
    html = page.read_text()
    assert "<td>late</td>" in html
    assert "generation 2" in html


def test_what_a_file_sets_is_told_by_its_key_and_no_flag_that_the_command_lacks(
    four: list[Replica], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({**described(four), "defaults": {}}))
    told = call_mirror("fleet", "status", file).failed(5, "does not speak TLS").stderr
    assert f"if that is intended, give {four[0].name} `insecure: true` in the file" in told
    assert "--insecure" not in told


def test_the_page_takes_every_name_as_text() -> None:
    hostile = "<script>alert(1)</script>"
    status = FleetStatus(
        "hub",
        sample_store().inventory().digest(),
        2,
        (MemberStatus(hostile, "rest", waiting=hostile),),
    )
    page = fleet_html(status)
    assert hostile not in page
    assert page.count("&lt;script&gt;") == 2
    assert page == fleet_html(status)


def test_what_is_unknown_of_a_member_is_shown_as_unknown() -> None:
    away = MemberStatus("away", "rest", error=UnreachableError("refuses connections", where="away"))
    status = FleetStatus("hub", sample_store().inventory().digest(), 2, (away,))
    page = fleet_html(status)
    assert page.count('<td class=n data-v="-1">&ndash;</td>') == 4, "generation, lag, behind, rate"
    assert "0 B" not in page
    done = replace(away, name="done", error=None, complete=True, generation=2, lag=0, behind=0)
    page = fleet_html(replace(status, members=(done,)))
    assert page.count("&ndash;") == 1, "its rate"
    assert '<td class=n data-v="0">0 B</td>' in page


def test_a_silent_member_is_told_of_once_with_its_pages_and_each_attempt_names_it(
    four: list[Replica],
) -> None:
    document = described(four)
    gone = f"127.0.0.1:{free_port()}"
    document["members"]["late"] |= {"address": f"{gone}/dkp", "pages": f"http://{gone}"}
    heard: list[Event] = []
    status = fleet_status(Fleet.model_validate(document), run=Run(on_event=heard.append))
    late = standing(status, "late")
    assert f"{gone} refuses connections" in str(late.error)
    assert late.errors == (f"http://{gone} does not answer either",)
    (line,) = (one for one in fleet_summary(status, 0.1).splitlines() if "late: " in one)
    for text in (line, fleet_html(status)):
        assert text.count("refuses connections") == 1
        assert f"http://{gone} does not answer either" in text.replace("<wbr>", "")
    reasons = [one.reason for one in heard if isinstance(one, Retrying)]
    assert reasons
    assert {one.partition(": ")[0] for one in reasons} == {"late"}
