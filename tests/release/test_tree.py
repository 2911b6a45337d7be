"""In which order the tags of a release tree may appear."""

from __future__ import annotations

import pytest

from mirror.release.tree import publication_stage


@pytest.mark.parametrize(
    ("repository", "tag", "stage"),
    [
        ("", "v1.70.0", 0),
        ("", "alpha", 0),  # the platform's own image of that channel, which a pull may have taken
        ("install", "stable", 0),
        ("installer", "latest", 0),
        ("security/trivy-db", "2", 0),
        ("modules/console", "v1.0.0", 0),
        ("modules/release", "alpha", 0),  # a module of that name
        ("modules/console/extra/release", "alpha", 0),
        ("deckhouse-cli/plugins/stronghold", "v1.0.0", 0),
        ("release-channel", "v1.70.0", 1),
        ("release-channel", "sha256-" + "a" * 64, 1),
        ("modules/console/release", "v1.0.0", 1),
        ("packages/one/version", "v1.0.0", 1),
        ("release-channel", "rock-solid", 2),
        ("release-channel", "lts", 2),
        ("modules/console/release", "alpha", 2),
        ("packages/one/version", "early-access", 2),
        ("modules", "console", 3),
        ("packages", "one", 3),
        ("deckhouse-cli/plugins", "stronghold", 3),
    ],
)
def test_a_tag_appears_after_all_that_it_promises(repository: str, tag: str, stage: int) -> None:
    assert publication_stage(repository, tag) == stage
