"""What counts as the number of an answer to GSM8K: the patterns of the task file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "server" / "eval" / "tasks" / "gsm8k.yaml"


class Loader(yaml.SafeLoader):
    """Leaves functions alone."""


Loader.add_constructor("!function", lambda loader, node: node.value)
TASK = yaml.load(FILE.read_text(), Loader)
PATTERNS = {
    one["name"]: re.compile(one["filter"][0]["regex_pattern"]) for one in TASK["filter_list"]
}


def number(rule: str, text: str) -> str | None:
    """As lm-eval's ``regex`` filter and ``exact_match`` read it."""
    found = PATTERNS[rule].findall(text)
    return plain(found[-1]) if found else None


def plain(text: str) -> str:
    for pattern in TASK["metric_list"][0]["regexes_to_ignore"]:
        text = re.sub(pattern, "", text)
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 18.", "18"),
        ("18 eggs, then 20 eggs", "20"),
        ("it costs $1,234,567.50 in all.", "1234567.50"),
        ("it costs $70,000.", "70000"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("50%", "50"),
        (r"\boxed{42}", "42"),
        (r"so it is \$18\%", "18"),
        ("**18**", "18"),
        ("_18_", "18"),
        ("18.00", "18"),
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
        ("no number", None),
        ("$,.-%", None),
        ("४२", None),
    ],
)
def test_the_last_number(text: str, expected: str | None):
    assert number("flexible", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so\n#### 18", "18"),
        ("####18", "18"),
        ("#### $1,080.00 in all, for 3 people", "1080"),
        ("#### -7", "-7"),
        ("#### 1\nNo, wait.\n#### 2", "2"),
        ("#### 18\n\nQuestion: what is 5?", "18"),
        ("#### eighteen, that is 18", None),
        ("####\n18", None),
        ("### 18", None),
        ("18", None),
    ],
)
def test_the_last_marked_number(text: str, expected: str | None):
    assert number("strict", text) == expected


def test_the_reference():
    assert plain("It is <<1+1=2>>.\nSo $3.00.\n#### 1,000") == "1000"


def test_a_long_answer_is_read_in_no_time():
    """A pattern that backtracks over the rest at every digit would not come back."""
    assert number("flexible", "1,111" * 20_000 + "-" * 20_000) is not None
