"""How several machines divide a work among them: by its plan alone, without talking."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mirror.errors import InputError, printable

_SHARD = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` machines that share a work; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read `3/8`. `auto` is what the pod of an Indexed Job of Kubernetes is told by
        JOB_COMPLETION_INDEX, which counts from 0, and JOB_COMPLETIONS.

        Raises:
            InputError: it is something else.
        """
        given = text
        if text == "auto":
            index, count = (environment.get(f"JOB_COMPLETION{end}", "") for end in ("_INDEX", "S"))
            if not index.isdecimal():
                raise InputError(
                    "--shard auto takes its number from JOB_COMPLETION_INDEX, which only pods of "
                    "an Indexed Job have; write it as --shard 3/8"
                )
            text = f"{int(index) + 1}/{count}"
            given = f"JOB_COMPLETION_INDEX={index} with JOB_COMPLETIONS={count}"
        found = _SHARD.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise InputError(
                f"{printable(given)} is not one of several shards; write its number and how many "
                "there are, as 3/8: from 1/8 to 8/8"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def share(sizes: Sequence[int], shard: Shard) -> range:
    """Which of these pieces are a shard's: neighbours, whose middles lie in its part of all bytes.

    Each piece is in one share. No share is above the mean by more than the largest piece.
    """
    total, position, mine = sum(sizes), 0, []
    for number, size in enumerate(sizes):
        middle = (2 * position + size) * shard.count // (2 * total) if total else 0
        if min(middle, shard.count - 1) == shard.number - 1:
            mine.append(number)
        position += size
    return range(mine[0], mine[-1] + 1) if mine else range(0)
