"""Every switch, and a rotation, with a death after each change: whatever dies, the end is the same.

A controller remembers nothing between two passes, so what a death leaves behind is what the cluster
holds then, and what follows from it is the same each time. It is enough to look at each such
cluster once: from any change of any pass, also of those that make good for an earlier death.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, count, pairwise, product, repeat
from typing import Any

import pytest

from mirror.controller.kube import KubeApi
from mirror.errors import CancelledError, ConflictError, UnreachableError
from tests.controller.cluster_life import Life, intercept
from tests.controller.leading import controller, settle, state_of
from tests.controller.test_controller import WALK
from tests.support.kube_api import KubeCluster
from tests.support.rendered_cluster import NOW

WAYS = (*pairwise(WALK), ("Local", "Local"))
"""From mode to mode; where both are one, its secrets change."""

pytestmark = [
    pytest.mark.usefixtures("quick_keys", "made_once"),
    pytest.mark.soak,
    pytest.mark.timeout(3000),
    pytest.mark.parametrize(("before", "after"), WAYS, ids=["-".join(pair) for pair in WAYS]),
]


@pytest.fixture
def life(cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch) -> Life:
    class Still:
        @staticmethod
        def now(_: Any) -> datetime:
            return NOW

    monkeypatch.setattr("mirror.controller.cluster.datetime", Still)
    return Life(cluster)


@pytest.fixture
def world(life: Life, cluster: KubeCluster, api: KubeApi, before: str, after: str) -> World:
    life.want(before)
    settle(controller(api), life)
    life.want(after)
    if before == after:
        life.rotate("authority,users")
    return World(life, cluster, api)


@dataclass
class World:
    """The cluster, which can be put back to what it was."""

    life: Life
    cluster: KubeCluster
    api: KubeApi
    changes: list[tuple[Any, ...]] = field(default_factory=list)
    """What it was after each change of the pass that runs."""
    struck: bool = False
    _stroke: Iterator[Callable[[], None] | None] = field(default_factory=lambda: repeat(None))
    _kind: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        def heard(send: Callable[[], Any], method: str, _path: str) -> Any:
            answered, writes = self._kind
            strike = None if writes and method == "GET" else next(self._stroke)
            if strike and not answered:
                strike()
            answer = send()
            if method != "GET":
                self.changes.append(self.taken())
            if strike and answered:
                strike()
            return answer

        intercept(self.api, heard)

    def strike_at(
        self,
        number: int,
        what: Callable[[], object],
        *,
        answered: bool = False,
        writes: bool = False,
    ) -> None:
        """Do something at a request that is still to come, before it is sent or `answered`.

        With `writes` only requests count that change something.
        """

        def strike() -> None:
            self.struck = True
            what()

        self.struck, self._kind = False, (answered, writes)
        self._stroke = chain(repeat(None, number), [strike], repeat(None))

    def taken(self) -> tuple[Any, ...]:
        """A picture of it."""
        one = self.cluster
        with one.changed:
            life = self.life
            held = (one.objects, one.owners, life.routes, life.rolled, life.read)
            return tuple({**each} for each in held)

    def put_back(self, picture: tuple[Any, ...]) -> None:
        one, life = self.cluster, self.life
        with one.changed:
            one.objects, one.owners, life.routes, life.rolled, life.read = map(dict, picture)
        self.changes = []

    def pass_(self) -> bool:
        """One pass; whether it found the cluster at rest."""
        done = controller(self.api).reconcile()
        assert not isinstance(done, str), done
        return done.reached

    def lived_on(self) -> tuple[Any, ...]:
        """What it is when all others have done their part."""
        self.life.live()
        return self.taken()

    def whole(self) -> None:
        """Everybody can pull what is in use, and what the conditions say is so."""
        assert self.life.broken == []
        assert self.life.untrue == []


def name_of(picture: tuple[Any, ...]) -> str:
    """The same for clusters that hold the same."""
    objects, owners, *others = picture
    plain = []
    for key, one in sorted(objects.items()):
        metadata = {
            name: value
            for name, value in one["metadata"].items()
            if name not in ("uid", "resourceVersion", "managedFields")
        }
        whose = sorted((who, sorted(fields)) for who, fields in owners[key].items() if fields)
        plain.append((key, {**one, "metadata": metadata}, whose))
    return json.dumps([plain, others], sort_keys=True)


def way(world: World) -> Iterator[tuple[Any, ...]]:
    """Pictures from which the passes of a switch begin, to the last, where the cluster rests."""
    for _ in range(40):
        at = world.taken()
        yield at
        reached = world.pass_()
        if reached and name_of(world.lived_on()) == name_of(at):
            return
        world.life.live()
    raise AssertionError("it does not come to rest")


def test_a_death_after_any_change_also_of_the_making_good_leads_to_the_same_end(
    world: World, before: str, after: str
) -> None:
    todo, seen = [world.taken()], dict[str, str]()
    *_, last = way(world)
    end = name_of(last)
    while todo:
        begin = todo.pop()
        name = name_of(begin)
        if name in seen:
            continue
        world.put_back(begin)
        reached = world.pass_()
        cut, after_it = world.changes, world.lived_on()
        seen[name] = name_of(after_it)
        if name == end:
            assert reached
            assert seen[name] == name
            assert state_of(world.cluster).mode == after
            continue
        todo += [after_it, *cut]
        for one in cut:  # died, and then the others went on
            world.put_back(one)
            todo.append(world.lived_on())
        world.whole()
    assert len(seen) > 20
    for name in seen:
        for _ in seen:
            name = seen[name]
        assert name == end, "no pass leads round in a circle, or to another end"


def test_a_request_that_gets_no_answer_delays_and_changes_nothing_in_the_end(
    world: World, before: str, after: str
) -> None:
    def lost() -> None:
        raise UnreachableError("the API does not answer", where="a test")

    steps = [*way(world)]
    for begin, answered in product(steps[:-1], (False, True)):
        for number in count():
            world.put_back(begin)
            world.strike_at(number, lost, answered=answered)
            with suppress(UnreachableError):
                world.pass_()
            if not world.struck:
                break
            world.life.live()
            *_, last = way(world)
            assert name_of(last) == name_of(steps[-1])
            world.whole()


def test_what_a_former_leader_still_sends_is_made_good_by_the_next(
    world: World, before: str, after: str
) -> None:
    leads = True

    def may_act() -> bool:
        return leads

    def another_leads() -> None:
        nonlocal leads
        leads = False
        *_, last = way(world)
        assert name_of(last) == name_of(steps[-1])

    steps = [*way(world)]
    for begin in steps[:-1]:
        for number in count():
            world.put_back(begin)
            leads = True
            world.strike_at(number, another_leads, writes=True)
            with suppress(CancelledError, ConflictError):
                controller(world.api, may_act=may_act).reconcile()
            if not world.struck:
                break
            world.life.live()
            *_, last = way(world)
            assert name_of(last) == name_of(steps[-1])
            # What the next one had removed may come back by it until the next pass, nothing else.
            world.life.untrue = [one for one in world.life.untrue if "Cleanup" not in one]
            world.whole()
