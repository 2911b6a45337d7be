"""The catalogue names every fault that the vocabulary has, and each strikes."""

from __future__ import annotations

from typing import get_args

from mirror.testing import Action, every_fault


def test_every_kind_of_action_is_in_the_catalogue() -> None:
    assert {type(fault.action) for fault in every_fault().values()} == set(get_args(Action))


def test_names_say_what_happens_to_a_reader() -> None:
    for name, fault in every_fault().items():
        assert name == name.strip()
        assert fault.nth == 1
