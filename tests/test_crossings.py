"""A reader follows one thing through few files."""

from __future__ import annotations

from tests.crossings import pull, sync

MOST_FILES_OF_A_PULLED_IMAGE = 45
MOST_FILES_OF_A_SYNCED_BLOB = 19


def test_one_image_of_a_pull_crosses_few_files() -> None:
    files = pull().files
    assert "bundle/writer.py" in files
    assert len(files) <= MOST_FILES_OF_A_PULLED_IMAGE, sorted(files)


def test_one_blob_of_a_sync_crosses_few_files() -> None:
    files = sync().longest_way()
    assert "sync/transfer.py" in files
    assert len(files) <= MOST_FILES_OF_A_SYNCED_BLOB, sorted(files)
