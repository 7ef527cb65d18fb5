"""From answers to programs."""

from __future__ import annotations

import pytest

from server.eval.tasks.code import completed, from_chat, with_tests

PROMPT = 'from math import pi\n\n\ndef area(r):\n    """Of a circle."""\n'
BODY = "    return pi * r * r\n"


def value(program: str | None) -> float:
    """What the program's ``area(2)`` is, in units of pi."""
    assert program is not None
    names: dict = {}
    exec(program, names)
    return names["area"](2) / names["pi"]


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "\n\ndef other():\n    return (",
        "\nclass Other:\n  x = (",
        "\nprint(area(",
        "\n# a comment (",
        "\nif __name__ == '__main__':\n    (",
        "\n@decorated(",
        "```\n\nThis works since (",
        "\nassert (",
    ],
)
def test_a_completion_ends_where_its_function_does(rest: str):
    assert value(completed(PROMPT, BODY + rest)) == 4


def test_a_completion_keeps_what_is_indented():
    body = (
        "    # a comment\n    if r < 0:\n        raise ValueError\n    def f(): return 1\n" + BODY
    )
    assert value(completed(PROMPT, body)) == 4


@pytest.mark.parametrize("answer", ["", "  \n \n", "\n# nothing but this", "\ndef other(): pass"])
def test_a_completion_without_code_is_none(answer: str):
    assert completed(PROMPT, answer) is None


WHOLE = "def area(r):\n" + BODY


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure!\n```python\n{WHOLE}```\nIt multiplies.",
        f"```\n{WHOLE}```",
        f"```py\n{WHOLE}",  # cut off before the block ended
        f"First:\n```python\nprint(area(2))\n```\nthen\n```python\n{WHOLE}```",
        f"```python\n{WHOLE}```\nUse it:\n```python\nimport nonsense\n```",
        f"```python\ndef helper():\n    return 1\n\n{WHOLE}```",
        WHOLE,
        f"```python\n{BODY}```",  # the body alone
        f"```python\nfrom __future__ import annotations\nfrom math import pi\n{WHOLE}```",
        "1. This:\n   ```python\n   def area(r):\n       return pi * r * r\n   ```",
        f"```python\n{WHOLE}```\n```python\ndef area(r):\n    return 0\n```",
    ],
)
def test_the_code_of_a_chat_answer(answer: str):
    """It need not repeat the import of the prompt."""
    assert value(from_chat(PROMPT, "area", answer)) == 4


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", "```\n\n```", "The area is `pi * r * r`."]
)
def test_a_chat_answer_without_code_is_none(answer: str):
    assert from_chat(PROMPT, "area", answer) is None


def test_a_name_that_only_begins_alike_is_not_the_function():
    answer = f"```python\ndef area_of_square(a):\n    return a * a\n```\n```python\n{WHOLE}```"
    assert value(from_chat(PROMPT, "area", answer)) == 4


def test_the_tests_are_called():
    program = with_tests(PROMPT + BODY, "def check(f):\n    assert f(1) == 0", "area")
    with pytest.raises(AssertionError):
        exec(program, {})
