"""What Prometheus gets: names and types as it wants them, and when certificates end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry, TlsFiles
from mirror.watch.daemon import running
from mirror.watch.settings import WatchSettings
from tests.support.patience import wait_until
from tests.support.tls import Authority
from tests.support.tools import require_tool

EXPIRY = "mirror_registry_certificate_expiry_timestamp_seconds"


def end_of(files: TlsFiles) -> float:
    first = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
    return first.not_valid_after_utc.timestamp()


def samples(page: str) -> dict[tuple[str, ...], float]:
    """(name, label values…) → value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_page_of_a_running_daemon_keeps_to_the_conventions_and_tells_when_certificates_end(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "ca")
    shown, own = authority.issue(), authority.issue("mirror", client=True)
    with (
        EmbeddedRegistry(MemoryStorage(), tls=shown) as first,
        EmbeddedRegistry(MemoryStorage()) as second,
    ):
        settings = WatchSettings.model_validate(
            {
                "leader": "a",
                "root": "dkp",
                "listen": "127.0.0.1:0",
                "registries": {
                    "a": {
                        "address": first.address,
                        "ca": str(authority.certificate),
                        "cert": str(own.certificate),
                        "cert-key": str(own.key),
                    },
                    "b": {"address": second.address, "insecure": True},
                },
            }
        )
        with running(settings) as (_, url):
            page = ""

            def told() -> bool:
                nonlocal page
                page = httpx.get(f"{url}/metrics").text
                return (EXPIRY, "a", "server") in samples(page)

            wait_until(told)
    found = samples(page)
    assert found[EXPIRY, "a", "server"] == end_of(shown)
    assert found[EXPIRY, "a", "client"] == end_of(own)
    assert (EXPIRY, "b", "server") not in found, "it has none"
    assert [key for key in found if key[0] == "mirror_build_info"]
    assert found[("process_resident_memory_bytes",)] > 0
    promtool = require_tool("promtool")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
