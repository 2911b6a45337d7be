"""Every kind of content goes whole from a source through a bundle, and from registry to registry.

The list of kinds is that of the OCI conformance suite (`tests.support.content_kinds`). What arrives
is read by plain requests and compared byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import httpx
import pytest

from examples.release_tree import ModuleSpec, TreeSpec
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeRealRegistry
from tests.support.content_kinds import KINDS, Content, content_of, sparse_index
from tests.support.program import Finished, call_mirror
from tests.support.real_registry import RealRegistry
from tests.support.release_source import TINY, publish

ROOT = "r/ee"
SPEC = replace(TINY, versions=("v1.70.0",), channels={}, components=1, packages=())
PARTS_LEFT_OUT = [
    f"--no-{part}" for part in ("platform", "packages", "plugins", "security-db", "installer")
]
REFUSED_BY_DISTRIBUTION: dict[str, tuple[Callable[[], Content], str]] = {
    # It computes SHA-256 of every manifest and compares that with the digest in the address.
    "sha512-manifest": (lambda: content_of("sha512-manifest"), "may take no manifest by sha512"),
    # It takes an index only with all its images; version 3 can be told otherwise.
    "sparse-index": (sparse_index, "MANIFEST_BLOB_UNKNOWN"),
    # As long as `validation.manifests.urls.allow` in its settings names no address.
    "foreign": (lambda: content_of("foreign"), "validation.manifests.urls.allow"),
}
"""What Debian's registry does not take: how it is made, and what the error says."""
ALLOW_URLS = {"validation": {"manifests": {"urls": {"allow": [".*"]}}}}


@dataclass(frozen=True)
class Kinds:
    """A source with all kinds, and the two places that they went to."""

    registry: str
    names: frozenset[str]
    contents: dict[str, Content]
    through_bundle: httpx.Client
    by_sync: httpx.Client
    runs: dict[str, Finished]


def with_extras(spec: TreeSpec, *names: str) -> TreeSpec:
    """The tree, with one module that has these extra images."""
    extra = dict.fromkeys(names, "v1")
    module = ModuleSpec("kinds", ("v1.0.0",), {"stable": "v1.0.0"}, internal=0, extra=extra)
    return replace(spec, modules=(module,))


def repository(tree: str, kind: str) -> str:
    return f"{tree}/modules/kinds/extra/{kind}"


COSTLY = frozenset({"two-hundred", "large-manifest"})
"""Kinds that take seconds for each command."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("embedded", KINDS.keys() - COSTLY), id="embedded"),
        pytest.param(("docker-registry", KINDS.keys() - COSTLY), id="docker-registry"),
        pytest.param(("embedded", COSTLY), id="embedded-costly", marks=pytest.mark.soak),
        pytest.param(
            ("docker-registry", COSTLY), id="docker-registry-costly", marks=pytest.mark.soak
        ),
    ],
)
def kinds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kinds]:
    folder = tmp_path_factory.mktemp("kinds")
    registry, names = request.param
    with ExitStack() as opened:

        def start(name: str) -> tuple[str, httpx.Client]:
            if registry == "embedded":
                address = opened.enter_context(EmbeddedRegistry(MemoryStorage())).address
            else:
                real = RealRegistry(folder / name, extra=ALLOW_URLS)
                address = opened.enter_context(real).address
            http = opened.enter_context(httpx.Client(base_url=f"http://{address}", timeout=60))
            return address, http

        (source, http), (target, pushed), (replica, synced) = map(start, ("a", "b", "c"))
        published = publish(with_extras(SPEC, *names), source)
        contents = {}
        for kind in sorted(names):
            if registry != "embedded" and kind in REFUSED_BY_DISTRIBUTION:
                continue
            contents[kind] = content_of(kind)
            contents[kind].put(http, repository(published.tree.root, kind))
        bundle, to = folder / "bundle", f"{target}/{ROOT}"
        plain = ("--insecure", "--json")
        leader = ("--from", published.root, "--to", f"{replica}/{ROOT}")
        runs = {
            "pull": call_mirror(
                *("pull", bundle, "--source", published.root), *PARTS_LEFT_OUT, *plain
            ),
            "verify": call_mirror("verify", bundle, "--json"),
            "push": call_mirror("push", bundle, to, *plain),
            "against": call_mirror("verify", bundle, "--against", to, *plain),
            "again": call_mirror("push", bundle, to, *plain),
            "sync": call_mirror("sync", *leader, *plain),
            "audit": call_mirror("sync", *leader, "--audit", *plain),
        }
        yield Kinds(registry, names, contents, pushed, synced, runs)


def test_every_command_succeeds_and_a_second_push_or_sync_sends_nothing(kinds: Kinds) -> None:
    for name, run in kinds.runs.items():
        assert run.code == 0, (name, run.text)
    assert kinds.runs["again"].document["uploaded"] == {
        "blobs": 0,
        "bytes": 0,
        "manifests": 0,
        "tags": 0,
    }
    (audited,) = kinds.runs["audit"].document["replicas"]
    assert audited["outcome"] == "equal"


@pytest.mark.parametrize("kind", KINDS)
def test_it_arrives_byte_for_byte(kinds: Kinds, kind: str) -> None:
    if kind not in kinds.contents:
        assert kind not in kinds.names or kind in REFUSED_BY_DISTRIBUTION
        return
    content = kinds.contents[kind]
    where = repository(ROOT, kind)
    assert not content.differences(kinds.through_bundle, where)
    assert not content.differences(kinds.by_sync, where)


@pytest.mark.parametrize("kind", REFUSED_BY_DISTRIBUTION)
def test_what_distribution_does_not_take_costs_that_alone_and_its_reason_is_told(
    kind: str, make_real_registry: MakeRealRegistry
) -> None:
    with EmbeddedRegistry(MemoryStorage(), sparse_indexes=True) as source:
        target = make_real_registry()
        with (
            httpx.Client(base_url=f"http://{source.address}") as http,
            httpx.Client(base_url=target.url) as there,
        ):
            image = content_of("image")
            image.put(http, "r/ee/modules/one")
            REFUSED_BY_DISTRIBUTION[kind][0]().put(http, "r/ee/modules/other")
            run = call_mirror(
                *("sync", "--from", f"{source.address}/r/ee", "--to", f"{target.address}/r/ee"),
                *("--insecure", "--sparse-indexes", "carry", "--json", "--retry-for", "0s"),
            )
            assert run.code != 0
            told = " ".join(failure["message"] for failure in run.document["failures"])
            assert REFUSED_BY_DISTRIBUTION[kind][1] in told
            assert not image.differences(there, "r/ee/modules/one")
