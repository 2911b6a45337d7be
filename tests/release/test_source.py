"""Questions to a source are asked once, and each thread that waits hears its own answer."""

from __future__ import annotations

import threading
from typing import cast

from mirror.errors import DeniedError
from mirror.oci import Repository
from mirror.registry import RegistryReader
from mirror.release.source import ReleaseSource, SourceTree


class Denying:
    """A registry that denies access, after all threads have asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()

    def tags(self, repository: str) -> list[str]:
        self.asked += 1
        self.go_on.wait(10)
        raise DeniedError(f"{repository} is denied", where="GET registry", status=403)


def test_threads_that_ask_the_same_each_get_an_error_of_their_own() -> None:
    registry = Denying()
    tree = SourceTree(Repository("registry.example.com", "deckhouse/ee"))
    source = ReleaseSource(cast("RegistryReader", registry), tree)
    errors: list[DeniedError] = []

    def ask() -> None:
        try:
            source.tags("modules")
        except DeniedError as err:
            errors.append(err)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    registry.go_on.set()
    for thread in threads:
        thread.join()
    assert registry.asked == 1
    assert len({id(err) for err in errors}) == 8
    assert {(str(err), err.where, err.status) for err in errors} == {
        ("deckhouse/ee/modules is denied", "GET registry", 403)
    }
