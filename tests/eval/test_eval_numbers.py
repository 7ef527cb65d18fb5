"""What counts as the number of an answer."""

from __future__ import annotations

import pytest

from server.evaluate.tasks.numbers import equal, last_marked_number, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18", "18"),
        ("The answer is 18.", "18"),
        ("18 eggs, then 20 eggs", "20"),
        ("it costs $1,234,567.50 in all.", "1234567.50"),
        ("it costs $70,000.", "70000"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("a change of −3 degrees", "-3"),
        ("50%", "50"),
        (r"\boxed{42}", "42"),
        (r"so it is \$18\%", "18"),
        ("**18**", "18"),
        ("_18_", "18"),
        ("0.5", "0.5"),
        ("it is .5", ".5"),
        ("1,2,3", "3"),
        ("10,20", "20"),
        ("1,0000", "0000"),
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("(10)-5", "5"),
        ("10 is more than -5", "-5"),
        ("<<48/2=24>>24 clips", "24"),
        ("7 apples and x2", "7"),
        ("7 molecules of H2O", "7"),
        ("18km", "18"),
        ("€18", "18"),
        ("3.14", "3.14"),
        ("no number", None),
        ("", None),
        ("$,.-%", None),
        ("४२", None),
    ],
)
def test_last_number(text: str, number: str | None):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so\n#### 18", "18"),
        ("####18", "18"),
        ("#### $1,080.00 in all, for 3 people", "1080.00"),
        ("#### -7", "-7"),
        ("#### 1\nNo, wait.\n#### 2", "2"),
        ("#### 18\n\nQuestion: what is 5?", "18"),
        ("#### eighteen, that is 18", None),
        ("####\n18", None),
        ("### 18", None),
        ("18", None),
    ],
)
def test_last_marked_number(text: str, number: str | None):
    assert last_marked_number(text) == number


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("18", "18.00", True),
        ("018", "18", True),
        (".5", "0.50", True),
        ("-0", "0", True),
        ("18", "-18", False),
        ("9" * 60, "9" * 59 + "8", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
    ],
)
def test_numbers_are_compared_by_value_and_without_rounding(one: str, other: str, same: bool):
    assert equal(one, other) is same


def test_a_long_answer_is_read_in_no_time():
    """A pattern that backtracks over the rest at every digit would not come back."""
    assert last_number("1,111" * 20_000 + "-" * 20_000) is not None
