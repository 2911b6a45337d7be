"""Asking real registries whether they hold the required images."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from mirror.errors import (
    CancelledError,
    DeniedError,
    IncompleteError,
    RegistryNotFoundError,
    RouteError,
)
from mirror.events import Event, PhaseAdvanced, PhaseStarted
from mirror.modes import ModeKind, RegistryUser, Role
from mirror.modes.addressing import Route
from mirror.modes.check import (
    CheckReport,
    CheckTarget,
    ItemResult,
    ItemState,
    RegistryResult,
    check_images,
    impatient,
    targets_for,
)
from mirror.modes.required import RequiredImage, RequiredSet
from mirror.modes.settings import CheckMode, ClusterAccess, RegistrySettings
from mirror.oci import Descriptor, Digest, Manifest
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.run import Cancellation, Run
from tests.conftest import MakeRealRegistry
from tests.support.mode_samples import ACCOUNTS, SETTINGS, SITES
from tests.support.patience import PATIENCE_S
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.sample_images import image
from tests.support.tls import Authority

CONFIG = b"{}"


def manifest(number: int) -> Manifest:
    """Image `number`: all have one and the same blob."""
    return Manifest.parse(image((), CONFIG, annotations={"number": str(number)}))


IMAGES = [manifest(number) for number in range(20)]
REQUIRED = RequiredSet.of(
    CheckMode.DEFAULT,
    [
        *(
            RequiredImage("", one.descriptor.digest, f"module/m/image-{number}")
            for number, one in enumerate(IMAGES)
        ),
        RequiredImage("install", "v1.70.0", "deckhouse/containers/deckhouse"),
    ],
)
BASE = "system/deckhouse"


def connect(route: Route, limit_s: float = 60.0) -> RegistryClient:
    options = ConnectionOptions(
        plain_http=route.scheme == "http",
        ca_file=None if route.ca is None else Path(route.ca),  # these tests name a file there
    )
    credentials = None
    if route.credential is not None:
        password = route.credential.password.get_secret_value()
        credentials = Credentials(route.credential.name, password)
    return RegistryClient(route.host, options=impatient(options, limit_s), credentials=credentials)


def target(registry: RealRegistry, name: str = "", **changes: Any) -> CheckTarget:
    scheme: Literal["http", "https"] = "https" if registry.tls else "http"
    route = Route(Role.MASTER, scheme, registry.address, BASE)
    return CheckTarget(name or registry.address, replace(route, **changes))


def fill(one: CheckTarget, images: list[Manifest], *, tag: bool = True) -> None:
    """Put images there by digest, and the one that is required by tag."""
    with connect(one.route) as client:
        repositories = [BASE, f"{BASE}/install"] if tag else [BASE]
        for repository in repositories:
            client.upload(repository, Digest.of(CONFIG), len(CONFIG), lambda _: _bytes())
        for image in images:
            client.put_manifest(BASE, image.descriptor.digest, image)
        if tag:
            client.put_manifest(f"{BASE}/install", "v1.70.0", IMAGES[0])


def _bytes() -> Generator[bytes, None, None]:
    yield CONFIG


def states(report: CheckReport) -> list[list[ItemState]]:
    return [[item.state for item in one.items] for one in report.registries]


# -- whom to ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ModeKind.DIRECT, ModeKind.PROXY, ModeKind.UNMANAGED])
def test_the_upstream_is_asked_where_there_is_one(kind: ModeKind) -> None:
    (one,) = targets_for(SETTINGS[kind])
    assert one.name == one.route.host == "nexus.corp.example:8443"
    assert one.route.repository == "dkp/ee"
    assert one.route.credential is not None
    assert one.route.credential.name == "u"


def test_every_master_is_asked_in_local() -> None:
    targets = targets_for(SETTINGS[ModeKind.LOCAL], replace(SITES, names={"10.0.0.1": "master-0"}))
    assert [one.name for one in targets] == ["master-0", "10.0.0.2", "10.0.0.3"]
    assert [one.route.host for one in targets] == [
        *("10.0.0.1:5001", "10.0.0.2:5001", "10.0.0.3:5001"),
    ]
    assert {one.route.credential for one in targets} == {ACCOUNTS[RegistryUser.RO]}
    assert {one.route.ca for one in targets} == {"MODULE CA"}
    image = RequiredImage("", "v1", "s")
    assert targets[0].address(image) == "10.0.0.1:5001/system/deckhouse:v1"


def test_nobody_to_ask_is_an_error() -> None:
    with pytest.raises(RouteError, match="addresses of the masters"):
        targets_for(SETTINGS[ModeKind.LOCAL], ClusterAccess(accounts=ACCOUNTS))
    with pytest.raises(RouteError, match="name no registry"):
        targets_for(SETTINGS[ModeKind.LEGACY])
    with pytest.raises(RouteError, match="has no path"):
        targets_for(RegistrySettings.load({"mode": "Direct", "direct": {"imagesRepo": "h"}}))
    with pytest.raises(ValueError, match="needs targets"):
        check_images(REQUIRED, (), connect)


# -- asking ----------------------------------------------------------------------------------------


def test_every_master_must_hold_everything(make_real_registry: MakeRealRegistry) -> None:
    targets = [target(make_real_registry(), f"master-{number}") for number in range(3)]
    fill(targets[0], IMAGES)
    fill(targets[1], IMAGES[:12], tag=False)
    report = check_images(REQUIRED, targets, connect)
    assert not report.ready
    assert [one.complete for one in report.registries] == [True, False, False]
    assert [len(one.errors) for one in report.registries] == [0, 9, 21]
    assert [len(one.items) for one in report.registries] == [21, 21, 21]
    lines = report.message.splitlines()
    assert lines[:3] == [
        "Mode: Default",
        "master-0: all 21 items are checked",
        "master-1: 12 of 21 items processed, 9 items with errors:",
    ]
    first = report.registries[1].errors[0].image
    address = targets[1].route.host
    url = f"http://{address}/v2/{BASE}/manifests/{first.reference}"
    assert lines[3:6] == [
        f"- source: {first.source}",
        f"  image: {address}/{BASE}@{first.reference}",
        f"  error: HEAD {url}: unexpected status code 404 Not Found",
    ]
    assert sum(line.startswith("- source") for line in lines) == 10
    assert lines.count("  ...and more") == 2
    for number in (1, 2):
        fill(targets[number], IMAGES)
    assert check_images(REQUIRED, targets, connect).ready


def test_success_does_not_stick(real_registry: RealRegistry) -> None:
    targets = [target(real_registry)]
    fill(targets[0], IMAGES)
    report = check_images(REQUIRED, targets, connect)
    assert report.ready
    assert report.outcome.ready
    report.require()
    with connect(targets[0].route) as client:
        client.delete_manifest(BASE, IMAGES[7].descriptor.digest)
    again = check_images(REQUIRED, targets, connect)
    assert not again.ready
    (lost,) = again.registries[0].errors
    assert (lost.image.source, lost.state) == ("module/m/image-7", ItemState.MISSING)
    with pytest.raises(IncompleteError, match="1 required images were not found"):
        again.require()
    document = again.to_document()
    assert json.loads(json.dumps(document)) == document
    assert (document["ready"], document["registries"][0]["found"]) == (False, 20)
    assert document["registries"][0]["errors"][0]["source"] == "module/m/image-7"


def test_only_what_lacked_is_asked_again_when_one_goes_on(real_registry: RealRegistry) -> None:
    targets = [target(real_registry)]
    fill(targets[0], IMAGES[:5])
    report = check_images(REQUIRED, targets, connect)
    assert report.registries[0].found == 6
    fill(targets[0], IMAGES[5:])
    events: list[Event] = []
    again = check_images(REQUIRED, targets, connect, again=report, run=Run(on_event=events.append))
    assert again.ready
    assert events[0] == PhaseStarted("checking the required images", 15)
    assert events.count(PhaseAdvanced()) == 15
    with pytest.raises(ValueError, match="about other images or registries"):
        check_images(REQUIRED, [target(real_registry, "other")], connect, again=report)
    fewer = RequiredSet.of(CheckMode.DEFAULT, REQUIRED.images[1:])
    with pytest.raises(ValueError, match="about other images or registries"):
        check_images(fewer, targets, connect, again=report)


def test_login_and_authority_of_the_route_are_used(
    make_real_registry: MakeRealRegistry, authority: Authority
) -> None:
    registry = make_real_registry(tls=authority.issue("check"), htpasswd=HTPASSWD)
    known = replace(ACCOUNTS[RegistryUser.RO], name=ACCOUNT[0], password=_secret(ACCOUNT[1]))
    wrong = replace(known, password=_secret("other-s3cret"))
    ca = str(authority.certificate)
    good = target(registry, "good", ca=ca, credential=known)
    fill(good, IMAGES)
    bad = target(registry, "bad", ca=ca, credential=wrong)
    untrusted = target(registry, "untrusted", credential=known)
    report = check_images(REQUIRED, [good, bad, untrusted], connect)
    assert [one.complete for one in report.registries] == [True, False, False]
    refused, unknown = report.registries[1:]
    assert {type(item.error) for item in refused.errors} == {DeniedError}
    assert len(refused.errors) == len(unknown.errors) == 21
    assert "s3cret" not in report.message
    with pytest.raises(IncompleteError, match="and 20 more for the same reason"):
        CheckReport(report.mode, (refused,)).require()


def test_an_authority_that_is_unknown_is_told_once_and_where_to_name_it(
    make_real_registry: MakeRealRegistry, authority: Authority
) -> None:
    inside = target(make_real_registry(tls=authority.issue("check")), "master-0")
    for role, where in (
        (Role.MASTER, "`caFile` in the sites"),
        (Role.PUBLIC, "`publicCaFile` in the sites"),
        (Role.UPSTREAM, "`ca` in the settings"),
    ):
        one = replace(inside, route=replace(inside.route, role=role))
        message = check_images(REQUIRED, [one]).message
        assert f"name the authority that signed it as {where}, check" in message
        assert message.count("- source: ") == 1
        assert message.splitlines()[-1] == "  ...and 20 more like it"


def _secret(text: str) -> SecretStr:
    return SecretStr(text)


def test_a_registry_that_died_is_told_with_every_image(
    make_real_registry: MakeRealRegistry,
) -> None:
    targets = [target(make_real_registry(), "alive"), target(dead := make_real_registry(), "dead")]
    fill(targets[0], IMAGES)
    dead.kill()
    report = check_images(REQUIRED, targets, connect)
    assert [one.complete for one in report.registries] == [True, False]
    assert [one.found for one in report.registries] == [21, 0]
    with pytest.raises(IncompleteError) as caught:
        report.require()
    assert caught.value.exit_code == 5


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_time_runs_out_for_who_does_not_answer_and_nothing_is_dropped(
    real_registry: RealRegistry, silent: str
) -> None:
    alive = target(real_registry, "alive")
    fill(alive, IMAGES)
    hung = CheckTarget("hung", replace(alive.route, host=silent))
    began = time.monotonic()
    report = check_images(REQUIRED, [alive, hung], lambda route: connect(route, 3.0), limit_s=1.5)
    assert time.monotonic() - began < 30
    assert [len(one.items) for one in report.registries] == [21, 21]
    bad = report.registries[1]
    assert [str(item.error) for item in bad.errors] == [f"GET http://{silent}/v2/: Request timeout"]
    assert states(report)[1].count(ItemState.PENDING) == 20
    assert "hung: 0 of 21 items processed, 1 items with errors:" in report.message
    healed = check_images(
        REQUIRED,
        [alive, hung],
        lambda route: connect(replace(route, host=real_registry.address)),
        again=report,
    )
    assert healed.ready


def test_without_errors_a_report_says_how_far_it_got(real_registry: RealRegistry) -> None:
    one = target(real_registry, "nexus.corp.example")
    fill(one, IMAGES)
    report = check_images(REQUIRED, [one], connect, limit_s=0.0)
    assert len(report.registries[0].items) == 21
    found = check_images(REQUIRED, [one], connect).registries[0]
    partly = replace(
        found,
        items=(*found.items[:5], *(replace(i, state=ItemState.PENDING) for i in found.items[5:])),
    )
    assert partly.message == "nexus.corp.example: 5 of 21 items processed"


def test_a_check_is_stopped_on_request(silent: str) -> None:
    hung = CheckTarget("hung", Route(Role.MASTER, "http", silent, BASE))
    cancel = Cancellation()
    threading.Timer(0.2, cancel.cancel).start()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        check_images(
            REQUIRED, [hung], lambda route: connect(route, 2.0), run=Run(cancellation=cancel)
        )
    assert time.monotonic() - began < 30


def test_no_thread_outlives_a_check(real_registry: RealRegistry) -> None:
    before = set(threading.enumerate())

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check_images(REQUIRED, [target(real_registry)], connect, run=Run(on_event=broken))
    assert set(threading.enumerate()) <= before


def test_registries_are_asked_at_the_same_time_and_each_by_a_few(
    make_real_registry: MakeRealRegistry,
) -> None:
    targets = [target(make_real_registry(), str(number)) for number in range(2)]
    meeting = threading.Barrier(2, timeout=PATIENCE_S)
    together: list[str] = []
    lock = threading.Lock()
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    class Watched(RegistryClient):
        def ping(self) -> None:
            meeting.wait()  # fails unless both registries are greeted at once
            together.append(self.host)
            super().ping()

        def resolve(
            self, repository: str, reference: str | Digest, *, known: Descriptor | None = None
        ) -> Descriptor | None:
            with lock:
                running[self.host] = running.get(self.host, 0) + 1
                most[self.host] = max(most.get(self.host, 0), running[self.host])
            try:
                return super().resolve(repository, reference, known=known)
            finally:
                with lock:
                    running[self.host] -= 1

    make: Callable[[Route], RegistryClient] = lambda route: Watched(  # noqa: E731
        route.host, options=ConnectionOptions(plain_http=True)
    )
    check_images(REQUIRED, targets, make)
    assert len(together) == 2
    assert all(1 <= count <= 3 for count in most.values())


def test_who_goes_on_asks_first_for_what_nobody_has_asked_for(real_registry: RealRegistry) -> None:
    one = target(real_registry)
    fill(one, IMAGES)
    done = check_images(REQUIRED, [one], connect).registries[0].items
    failed = RegistryNotFoundError("gone", where="HEAD x", status=404)
    items = (
        replace(done[0], state=ItemState.MISSING, error=failed),
        *done[1:19],
        *(ItemResult(item.image) for item in done[19:]),
    )
    asked: list[str] = []

    class Watched(RegistryClient):
        def resolve(
            self, repository: str, reference: str | Digest, *, known: Descriptor | None = None
        ) -> Descriptor | None:
            asked.append(str(reference))
            return super().resolve(repository, reference, known=known)

    report = check_images(
        REQUIRED,
        [one],
        lambda route: Watched(route.host, options=ConnectionOptions(plain_http=True)),
        again=CheckReport(REQUIRED.mode, (RegistryResult(one, items),)),
        workers=1,
    )
    assert report.ready
    assert asked == [str(done[n].image.reference) for n in (19, 20, 0)]
