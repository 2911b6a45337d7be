from __future__ import annotations

import pytest

from mirror.bundle.format import PRESETS, parse_part_size, size_text
from mirror.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("0.0", 0),
        ("0GiB", 0),
        ("4", 4_000_000_000),
        ("0.7", 700_000_000),
        ("0.001", 1_000_000),
        ("4.3", 4_300_000_000),
        ("700MB", 700_000_000),
        ("700 mb", 700_000_000),
        ("1000kB", 1_000_000),
        ("4GiB", 4 << 30),
        ("4gib", 4 << 30),
        ("1024KiB", 1 << 20),
        ("4.7GiB", 5_046_586_572),  # and four fifths of a byte
        ("1.5TB", 1_500_000_000_000),
        ("2TiB", 2 << 40),
        ("123456789.123456789", 123456789_123456789),  # more digits than a float has
        ("fat32", 4_294_967_295),
        (" DVD ", PRESETS["dvd"]),
    ],
)
def test_a_size_is_gigabytes_a_number_with_a_unit_or_a_medium(text: str, size: int) -> None:
    assert parse_part_size(text) == size


def test_parts_for_discs_fill_them_in_whole_sectors_and_leave_room_for_the_file_system() -> None:
    capacity = {
        "cd": 360_000 * 2048,
        "dvd": 2_295_104 * 2048,  # DVD+R, the smaller of the two kinds
        "dvd-dl": 4_171_712 * 2048,  # DVD-R DL, likewise
        "bd": 24_220_008_448,
    }
    for name, most in capacity.items():
        assert PRESETS[name] % 2048 == 0
        assert most * 0.97 < PRESETS[name] < most - (10 << 20)


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1", "4,7", "1e9", "4 G", "4G", "four", "1.GB", ".5", "0x10", "٤", "4GB8", "inf"],
)
def test_what_is_no_size_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_part_size(text)
    for word in ("0.7", "700MB", "4GiB", "dvd-dl", "fat32", "0 for"):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["0.0009", "999kB", "1KB", "0.000000000001"])
def test_parts_below_a_megabyte_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="the least is 1MB"):
        parse_part_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 51, "6144.0 TiB"),
    ],
)
def test_sizes_read_as_people_write_them(count: int, text: str) -> None:
    assert size_text(count) == text
