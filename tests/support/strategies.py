"""Versions and tags, made up by Hypothesis: few enough numbers that they meet."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from semver import Version

MORE_EXAMPLES = settings(max_examples=3 * settings().max_examples)
"""Three times as many as usual, for texts and bytes of which few mean anything."""

_PRE_RELEASES = (None, "alpha", "rc.1", "rc.2", "main")


def versions(*, early: bool = False) -> st.SearchStrategy[Version]:
    """Versions from 0.0.0 to 2.4.3, with pre-releases if `early`."""
    return st.builds(
        Version,
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(0, 3),
        st.sampled_from(_PRE_RELEASES) if early else st.none(),
    )


def tags(*, early: bool = True) -> st.SearchStrategy[list[str]]:
    """Tag lists: versions with and without `v`, and a few that are no versions."""
    spelled = st.builds(
        lambda version, v: f"{v}{version}", versions(early=early), st.sampled_from(["v", "v", ""])
    )
    return st.lists(
        spelled | st.sampled_from(["pr1", "latest", "v1", "1.2", "stable"]), max_size=20
    )
