"""How several machines divide a work among them: by its plan alone, without talking."""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

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


def owner(start: int, size: int, total: int, count: int) -> int:
    """The number of the shard, of `count`, that has a piece of `size` bytes at `start`: the one in
    whose part of all `total` bytes its middle lies. So each piece has one owner, neighbours mostly
    the same, and no shard has more than the mean and half a piece at either end."""
    middle = (2 * start + size) * count // (2 * total) if total else 0
    return min(middle, count - 1) + 1


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """The owner of each of these pieces, which lie one behind the other."""
    starts, total = accumulate(sizes, initial=0), sum(sizes)
    return [owner(start, size, total, count) for start, size in zip(starts, sizes, strict=False)]


def share(sizes: Sequence[int], shard: Shard) -> range:
    """Which of these pieces are a shard's. No share is above the mean by more than the largest."""
    found = owners(sizes, shard.count)
    return range(bisect_left(found, shard.number), bisect_right(found, shard.number))
