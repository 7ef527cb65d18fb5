"""From an answer to a program that can be run."""

from __future__ import annotations

import re

STOP = ("\ndef ", "\n#", "\nif ", "\n```", "\nclass ", "\n@", "\nprint(", "\nassert ")
"""Where a function that is being completed has ended and something else begins."""

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def completed(prompt: str, answer: str) -> str | None:
    """``prompt`` continued by ``answer`` up to the end of the function.

    The server was asked to stop at some of the texts; the answer is cut at the first of all.
    """
    end = min((at for stop in STOP if (at := answer.find(stop)) >= 0), default=len(answer))
    body = answer[:end]
    return prompt + body if body.strip() else None


def from_chat(prompt: str, entry_point: str, answer: str) -> str | None:
    """The code block of a chat answer, made whole by ``prompt``.

    The first block that defines ``entry_point`` counts, or else the first block, or an answer
    that is code throughout. ``prompt`` stands before it: its imports and helpers are needed, and
    a function with a doc string alone is replaced by the definition that follows.
    """
    blocks = [match[1] for match in _BLOCK.finditer(answer)]
    defines = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.M)
    whole = [block for block in blocks or [answer] if defines.search(block)]
    if whole:
        code = _dedent(whole[0])
        return code if "from __future__ import" in code else f"{prompt}\n\n{code}"
    return prompt + blocks[0] if blocks and blocks[0].strip() else None


def with_tests(program: str, tests: str, entry_point: str) -> str:
    """The program, the reference tests, and the call that runs them."""
    return f"{program}\n\n{tests}\n\ncheck({entry_point})\n"


def _dedent(block: str) -> str:
    """A block in a list is indented as a whole; lines indented less are left as they are."""
    first = next(line for line in block.split("\n") if line.strip())
    margin = first[: len(first) - len(first.lstrip(" \t"))]
    return "\n".join(line.removeprefix(margin) for line in block.split("\n"))
