"""Numbers in an answer to a word problem."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = (
    r"(?P<before>(?<![\w)\]}])-)?"  # a minus after a digit or a bracket subtracts
    r"(?:\\?\$(?P<after>-)?)?"
    r"(?P<digits>(?<![0-9A-Za-z])"  # not within a word, nor in the middle of a number
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9A-Za-z])\.[0-9]+)"
)
_ANY = re.compile(_NUMBER)
_MARKED = re.compile(r"####[ \t]*" + _NUMBER)


def last_number(text: str) -> str | None:
    """The last number anywhere in ``text``, without grouping commas and currency."""
    return _last(_ANY, text)


def last_marked_number(text: str) -> str | None:
    """The last number that follows ``####`` directly."""
    return _last(_MARKED, text)


def equal(one: str, other: str) -> bool:
    """Whether two extracted numbers have the same value."""
    return Decimal(one) == Decimal(other)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text.replace("−", "-")):
        found = match
    if found is None:
        return None
    sign = "-" if found["before"] or found["after"] else ""
    return sign + found["digits"].replace(",", "")
