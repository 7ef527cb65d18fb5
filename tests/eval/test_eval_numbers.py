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


LAST = {
    "18": ["The answer is 18.", r"\boxed{18}", r"it is \$18\%", "**18**", "_18_", "18.00", "€18"],
    "5": ["10-5", "10 - 5", "(10)-5", "18km, 5"],
    "-5": ["a loss of -$5", "a loss of $-5", "10 is more than -5"],
    "1234567.50": ["it costs $1,234,567.50 in all."],
    "20": ["18 eggs, then 20 eggs", "10,20"],
    **{"70000": ["it costs $70,000."], "50": ["50%"], "0.5": ["0.5"], ".5": ["it is .5"]},
    **{"3": ["1,2,3"], "0000": ["1,0000"], "24": ["<<48/2=24>>24 clips"]},
    "7": ["7 apples and x2", "7 molecules of H2O"],
    None: ["no number", "$,.-%", "४२"],
}
MARKED = {
    "18": ["so\n#### 18", "####18", "#### 18\n\nQuestion: what is 5?"],
    "1080": ["#### $1,080.00 in all, for 3 people"],
    **{"-7": ["#### -7"], "2": ["#### 1\nNo, wait.\n#### 2"]},
    None: ["#### eighteen, that is 18", "####\n18", "### 18", "18"],
}


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (rule, text, expected)
        for rule, table in (("flexible", LAST), ("strict", MARKED))
        for expected, texts in table.items()
        for text in texts
    ],
)
def test_the_last_number(rule: str, text: str, expected: str | None):
    assert number(rule, text) == expected


def test_the_reference():
    assert plain("It is <<1+1=2>>.\nSo $3.00.\n#### 1,000") == "1000"


def test_a_long_answer_is_read_in_no_time():
    """A pattern that backtracks over the rest at every digit would not come back."""
    assert number("flexible", "1,111" * 20_000 + "-" * 20_000) is not None
