"""Pushes that are killed while a reader looks on: what it sees is always whole."""

from __future__ import annotations

import random
import signal
import time
from itertools import cycle

import httpx
import pytest

from tests.conftest import MakeRealRegistry
from tests.support.patience import wait_until
from tests.support.program import RunningMirror, call_mirror
from tests.support.releases import (
    STATEMENTS,
    PatientWire,
    Reader,
    Release,
    digest_of,
    snapshot,
)


@pytest.mark.parametrize(
    ("kills", "seed"), [(4, 5), pytest.param(50, 6, marks=pytest.mark.soak)], ids=["4", "50"]
)
def test_a_reader_never_sees_an_incomplete_release_however_often_pushes_are_killed(
    make_real_registry: MakeRealRegistry,
    releases: tuple[Release, ...],
    kills: int,
    seed: int,
) -> None:
    """Half of the kills strike at any moment, half inside the phase in which tags turn."""
    dice = random.Random(seed)
    registry = make_real_registry()
    root = "dkp/ee"
    killed = in_phase = 0
    lasts = 1.5
    with (
        httpx.Client(base_url=registry.url) as http,
        Reader(registry.url, root, releases) as reader,
    ):
        wire, statements = PatientWire(http), f"{root}/{STATEMENTS}"

        def under_way() -> bool:
            pending, latest = (digest_of(wire, statements, t) for t in ("pending", "latest"))
            return pending != latest

        for number, release in enumerate(cycle(releases)):
            if number > 1 and killed >= kills and in_phase >= kills // 4:
                break
            arguments = ("push", release.bundle, f"{registry.address}/{root}", "--insecure")
            # A few attempts at each release, then one that is left alone.
            for _ in range(dice.randint(3, 5)):
                begun = time.monotonic()
                interrupted_before = under_way()
                with RunningMirror(*arguments, "--jobs", "2") as push:
                    if killed % 2 or interrupted_before:
                        time.sleep(dice.uniform(0.3, lasts))
                    else:
                        while push.running and not under_way():
                            time.sleep(0.005)
                        time.sleep(dice.uniform(0, 0.1))
                    died = push.stop(signal.SIGKILL).code == -signal.SIGKILL
                killed += died
                in_phase += died and under_way()
                if not died:
                    lasts = max(0.6, min(lasts, time.monotonic() - begun))
            call_mirror(*arguments).succeeded()
            assert not under_way()
            if number:  # what the release has is tagged as it says, whatever was killed before
                tags = snapshot(wire, root)
                for path, digests in release.tags().items():
                    assert tags[path].items() >= digests.items()
        polls = reader.polls
        wait_until(lambda: reader.polls >= polls + 2)
    assert reader.wrong == []
    assert reader.polls > kills
    assert in_phase >= kills // 4, "too few of the kills struck while tags turned"
    assert {version for _, version in reader.channels} >= {"v1.70.0", "v1.71.0"}
    print(f"{killed} kills, {in_phase} in the tag phase, {reader.polls} polls of all tags")
