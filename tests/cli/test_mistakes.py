"""Mistakes that people make, and the words that help them on."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from mirror.bundle.folder import FolderPlace
from mirror.errors import InputError
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror


def test_a_bundle_sought_at_a_wrong_path_of_a_registry_is_one_line(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    place = f"{embedded_registry.address}/system/deckhous"
    run = call_mirror("verify", bundle, "--against", place, "--insecure")
    assert run.failed(4).stdout == f"Nothing of the bundle is at {place}; is the path right?\n"


@pytest.mark.parametrize("command", ["status", "history"])
def test_where_no_push_has_completed_the_path_is_doubted(
    embedded_registry: EmbeddedRegistry, command: str
) -> None:
    run = call_mirror(command, f"{embedded_registry.address}/nothing", "--insecure")
    assert "states no inventory" in run.stdout
    assert "no push has completed at this path. Is it the right one?" in run.stdout
    assert "behind" not in run.stdout


def test_a_number_out_of_range_is_told_by_its_flag_and_without_a_hint_at_files() -> None:
    run = call_mirror("pull", "never-written", "--jobs", "0").failed(2)
    assert run.stderr == "error: --jobs: must be 1 or more\n"


def test_who_names_a_folder_of_bundles_is_told_their_names(bundle: Path) -> None:
    told = f"{bundle.parent} holds no bundle: it has no *.tar file; bundles lie in {bundle}"
    call_mirror("verify", bundle.parent).failed(2, told)


def test_a_certificate_in_place_of_a_key_is_no_finding_about_the_bundle(
    bundle: Path, tmp_path: Path
) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    run = call_mirror("verify", bundle, "--key", certificate)
    run.failed(2, "the public key is a certificate", "-----BEGIN PUBLIC KEY-----")


def test_a_file_system_that_is_read_only_is_told_as_that(tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    read_only = os.statvfs_result([*real[:8], real.f_flag | os.ST_RDONLY, real.f_namemax])
    with (
        mock.patch.object(os, "access", return_value=False),
        mock.patch.object(os, "statvfs", return_value=read_only),
        pytest.raises(InputError, match="is on a file system that is read-only; name another"),
    ):
        FolderPlace(tmp_path).check(force=False)
