import math

import pytest

from tersor.report import format_bytes, format_number, format_share, printable


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1,000 B (1 kB)"), (123_456_789_012, "123,456,789,012 B (123 GB)"),
     (10**16, "10,000,000,000,000,000 B")],
)  # fmt: skip
def test_bytes_keep_the_exact_number(size, text):
    assert format_bytes(size) == text


def test_numbers():
    assert (
        format_number(math.nan) == "nan" and format_number(-0.5) == "-0.5000" and format_number(0) == "0.0000"
    )


def test_a_share_is_rounded_to_all_only_if_it_is_all():
    assert format_share(1.0) == "100.0 %" and format_share(0.9999) == "> 99.9 %"


def test_names_cannot_command_a_terminal():
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert printable("größe.weight/0") == "größe.weight/0"
