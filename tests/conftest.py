"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, settings

from mirror.nodeconfig import service_secrets
from mirror.testing.plugin import MakeEmbeddedRegistry as MakeEmbeddedRegistry
from tests.support.loopback import leave_home, stay_on_loopback
from tests.support.real_registry import RealRegistry
from tests.support.tls import Authority

# Machines that run tests are slow at odd moments, which says nothing about the code. The long runs
# (`./run soak`) take the profile "long".
settings.register_profile(
    "local",
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.register_profile("long", settings.get_profile("local"), max_examples=300)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

pytest_plugins = ["mirror.testing.plugin"]

_ROOT = Path(__file__).parents[1]


# What is imported and collected lives as long as the run, so to look for garbage in it is in vain.
gc.disable()


def pytest_collection(session: pytest.Session) -> None:
    """Let the workers compile the tests together.

    What pytest makes of a test's assertions is kept beside it, which takes twice as long as all
    that every worker then reads. So each begins with other files, and finds the rest done.
    """
    worker: Mapping[str, Any] | None = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    files = sorted(
        path for argument in session.config.args for path in Path(argument).rglob("test_*.py")
    )
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for path in (*files[begin:], *files[:begin]):
        with suppress(Exception):  # pytest tells of it, as soon as it collects that file
            import_module(".".join(path.resolve().relative_to(_ROOT).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


MakeRealRegistry: TypeAlias = Callable[..., RealRegistry]


@pytest.fixture(scope="session", autouse=True)
def _this_machine_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        leave_home(patch, home)
        stay_on_loopback(patch)
        # Registries would spend a quarter of their time on garbage, of which they have little, and
        # a tenth on waking threads; tests want all processors anyway.
        patch.setenv("GOGC", "800")
        patch.setenv("GOMAXPROCS", "1")
        # Whoever issues certificates on loopback is named by the test. To load the hundreds of
        # authorities of the system takes 25 ms of each client's start.
        patch.setenv("SSL_CERT_FILE", str(Authority.create(home / "roots").certificate))
        yield


@cache
def _key() -> rsa.RSAPrivateKey:
    """A key that is as good as a new one."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """One RSA key for all pairs, which their certificates tell apart, and light hashes: each takes
    long to make."""
    key = _key()
    monkeypatch.setattr(rsa, "generate_private_key", lambda **_: key)
    monkeypatch.setattr(service_secrets, "BCRYPT_COST", 4)


@pytest.fixture
def make_real_registry(tmp_path: Path) -> Iterator[MakeRealRegistry]:
    """Start `docker-registry` processes: `make(**options)` as `RealRegistry` has them."""
    with ExitStack() as running:
        made = 0

        def make(**options: Any) -> RealRegistry:
            nonlocal made
            made += 1
            registry = RealRegistry(tmp_path / f"registry-{made}", **options)
            return running.enter_context(registry)

        yield make


@pytest.fixture
def real_registry(make_real_registry: MakeRealRegistry) -> RealRegistry:
    """A `docker-registry` process with nothing in it."""
    return make_real_registry()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that no machine trusts unless told to."""
    return Authority.create(tmp_path_factory.mktemp("authority"))
