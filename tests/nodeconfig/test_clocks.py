"""Tokens of a server whose clock is not the registry's, from rendered files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.errors import DeniedError
from mirror.modes import RegistryUser
from tests.support.mode_stack import Registry, master
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import LOCAL, Cluster

NAME = ("system/deckhouse/install", "v1.70.0")
LEEWAY_S = 60
"""By how much distribution lets clocks differ; docker_auth dates its tokens back by ten seconds."""
LIFETIME_S = 900


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    one = Cluster.create(tmp_path_factory.mktemp("clocks"), 1)
    one.render(LOCAL)
    return one


@pytest.fixture(scope="module")
def registry(cluster: Cluster) -> Iterator[Registry]:
    (node,) = cluster.masters
    with master(cluster.out, node) as running:
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RW)) as to:
            push(to, *NAME, image("clocks"))
        yield running


@pytest.mark.parametrize("ahead_s", [LEEWAY_S - 15, -LEEWAY_S, -LIFETIME_S + 30])
def test_clocks_may_differ_a_little_and_a_token_server_may_be_late(
    cluster: Cluster, registry: Registry, ahead_s: float
) -> None:
    registry.tokens.ahead_s = ahead_s
    (node,) = cluster.masters
    with client(node.registry, cluster.ca, cluster.account(RegistryUser.RO)) as reader:
        assert reader.manifest(*NAME)


@pytest.mark.parametrize("ahead_s", [120, -LIFETIME_S - 120])
def test_a_token_that_is_not_yet_or_no_more_valid_is_told_as_a_matter_of_clocks(
    cluster: Cluster, registry: Registry, ahead_s: float
) -> None:
    registry.tokens.ahead_s = ahead_s
    asked = len(registry.tokens.asked)
    (node,) = cluster.masters
    with (
        client(node.registry, cluster.ca, cluster.account(RegistryUser.RO)) as reader,
        pytest.raises(DeniedError, match="does not accept the token") as refused,
    ):
        reader.manifest(*NAME)
    assert "check that the clocks of the two agree" in str(refused.value)
    assert len(registry.tokens.asked) <= asked + 2, "asking again and again would not help"
