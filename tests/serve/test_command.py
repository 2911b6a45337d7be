"""`mirror serve`, with the programs of other people as its clients."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from mirror.serve import FolderStorage, MemoryStorage
from mirror.sync import MemoryStore
from mirror.sync.statement import REPOSITORY
from tests.conftest import MakeEmbeddedRegistry
from tests.support.bundles import pack_store
from tests.support.inventories import put_image, sample_store
from tests.support.mode_stack import ContainerdProcess
from tests.support.patience import another_process_ends_within
from tests.support.places import stored
from tests.support.program import RunningMirror, call_mirror
from tests.support.runnable_images import image, pack_images
from tests.support.skopeo import SkopeoError, skopeo_copy, skopeo_inspect
from tests.support.tls import Authority

ROOT = "deckhouse/ee"


class Server(RunningMirror):
    """`mirror serve --json` on a free port; `said` is what it printed."""

    said: Any

    def __init__(self, *args: str | Path) -> None:
        super().__init__("serve", *args, "--listen", "127.0.0.1:0", "--json")

    def __enter__(self) -> Server:
        super().__enter__()
        lines = iter(self.output)
        text = next(lines)
        while not text.endswith("\n}\n"):
            text += next(lines)
        self.said = json.loads(text)
        return self

    @property
    def address(self) -> str:
        return str(self.said["address"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    pack_store(sample_store(), folder)
    return folder


def test_skopeo_copies_images_and_curl_ranges_of_them(bundle: Path, tmp_path: Path) -> None:
    with Server(bundle) as server:
        assert server.said["root"] == ROOT
        assert (server.said["readOnly"], server.said["login"]) == (True, False)
        name = f"docker://{server.address}/{ROOT}:v1.0.0"
        skopeo_copy(name, f"oci:{tmp_path / 'layout'}:v1.0.0")
        names = {file.name for file in (tmp_path / "layout/blobs/sha256").iterdir()}
        held = sample_store().inventory().repository("")
        assert {one.encoded for one in held.reachable([held.tags["v1.0.0"]])} <= names
        with pytest.raises(SkopeoError, match=r"405|read-only|unsupported"):
            skopeo_copy(name, f"docker://{server.address}/{ROOT}:new")
        layer = max(held.blobs, key=lambda digest: held.blobs[digest])
        part = subprocess.run(
            ["curl", "-s", "-r", "10-19", f"http://{server.address}/v2/{ROOT}/blobs/{layer}"],
            capture_output=True,
            check=True,
        ).stdout
        assert part == (b"base layer " * 2)[10:20]
        assert server.stop(signal.SIGTERM).code == 0


def test_containerd_pulls_by_the_file_that_the_command_prints(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = image("hello")
    bundle = pack_images(tmp_path / "bundle", {"": one})
    with RunningMirror("serve", bundle, "--listen", "127.0.0.1:0") as server:
        printed = "".join(next(iter(server.output)) for _ in range(7))
        found = re.search(r"certs\.d/(\S+)/hosts\.toml\n((?: {16}.*\n)+)", printed)
        assert found is not None, printed
        assert found[1] == "registry.example.com"
        hosts = tmp_path / "hosts" / found[1]
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(re.sub("^ +", "", found[2], flags=re.MULTILINE))
        with ContainerdProcess(tmp_path_factory.mktemp("ctr")) as containerd:
            reference = f"registry.example.com/{ROOT}:v1.70.0"
            pulled = containerd.pull(reference, tmp_path / "hosts")
            assert pulled.returncode == 0, pulled.stderr
            assert str(one.digest) in containerd.ctr("images", "ls").stdout


def test_a_sync_from_it_makes_a_registry_equal(
    bundle: Path, tmp_path: Path, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    from_served, pushed = (make_embedded_registry(MemoryStorage()) for _ in range(2))
    with Server(bundle) as server:
        call_mirror(
            *("sync", "--from", f"{server.address}/{ROOT}", "--insecure"),
            *("--to", f"{from_served.address}/dkp/ee"),
        ).succeeded()
    call_mirror("push", bundle, f"{pushed.address}/dkp/ee", "--insecure").succeeded()
    wanted = stored(pushed.storage, "dkp/ee").filtered(lambda path: path != REPOSITORY)
    assert stored(from_served.storage, "dkp/ee") == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_two_seconds_also_in_the_midst_of_an_answer(
    tmp_path: Path, number: signal.Signals
) -> None:
    store = MemoryStore()
    put_image(store, "install", "v1", layers=(bytes(40 << 20),))
    pack_store(store, tmp_path / "bundle")
    layer = max(store.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    with Server(tmp_path / "bundle") as server:
        url = f"http://{server.address}/v2/{ROOT}/install/blobs/{layer}"
        with httpx.stream("GET", url) as answer:
            assert answer.status_code == 200  # and nobody reads on
            with another_process_ends_within(2.0):
                done = server.stop(number)
        assert (done.code, done.stderr) == (0, "stopped\n")


def test_it_asks_for_a_login_and_speaks_tls(
    bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (tmp_path / "users").write_text(f"# the team\nana:{hashed}\n")
    tls = authority.issue()
    trust = tmp_path / "trust"
    trust.mkdir()
    (trust / "ca.crt").write_bytes(authority.certificate.read_bytes())
    options = ("--users", tmp_path / "users", "--tls-cert", tls.certificate, "--tls-key", tls.key)
    with Server(bundle, *options) as server:
        assert server.said["url"].startswith("https://")
        name = f"docker://{server.address}/{ROOT}:v1.0.0"
        for wrong in ((), ("--creds=ana:wrong",), ("--creds=eve:secret",)):
            with pytest.raises(SkopeoError, match=r"unauthorized|authentication required"):
                skopeo_inspect(name, *wrong, cert_dir=trust)
        assert skopeo_inspect(name, "--creds=ana:secret", cert_dir=trust)["Digest"]


def test_a_user_may_be_given_as_everywhere_else(bundle: Path) -> None:
    with Server(bundle, "-u", "ana", "--registry-password", "secret") as server:
        url = f"http://{server.address}/v2/"
        assert server.said["login"]
        assert [
            httpx.get(url, auth=auth).status_code
            for auth in (None, ("ana", "no"), ("ana", "secret"))
        ] == [401, 401, 200]


def test_a_folder_takes_pushes(bundle: Path, tmp_path: Path) -> None:
    with Server("--storage", tmp_path / "data") as server:
        assert server.said["readOnly"] is False
        call_mirror("push", bundle, f"{server.address}/dkp/ee", "--insecure").succeeded()
    assert stored(FolderStorage(tmp_path / "data"), "dkp/ee").counts()["tags"] > 13


def test_what_makes_no_sense_together_is_refused(tmp_path: Path, bundle: Path) -> None:
    for arguments, words in (
        ((), "name what to serve"),
        ((bundle, "--storage", tmp_path), "name what to serve"),
        (("--storage", tmp_path, "--root", "a"), "are about a bundle"),
        ((bundle, "--tls-cert", bundle / "SHA256SUMS"), "go together"),
        ((bundle, "--root", "Upper"), "Upper"),
        (
            (bundle, "--tls-cert", bundle / "SHA256SUMS", "--tls-key", bundle / "SHA256SUMS"),
            "cannot be used",
        ),
        ((bundle, "--users", bundle / "SHA256SUMS"), "a name, a colon and a bcrypt hash"),
    ):
        call_mirror("serve", *arguments, "--listen", "127.0.0.1:0").failed(2, words)
    call_mirror("serve", bundle, "--listen", "here").failed(2, "write HOST:PORT")
    call_mirror("serve", "--storage", bundle / "SHA256SUMS" / "x").failed(1, "cannot use")


def test_a_port_that_is_taken_is_told(bundle: Path) -> None:
    with Server(bundle) as server:
        refused = call_mirror("serve", bundle, "--listen", server.address)
        refused.failed(1, f"cannot listen on {server.address}: Address already in use", "--listen")
