"""Values of options: what is allowed, and a one-line error that says so."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from server.bench.compare.ratios import METRICS
from server.bench.datasets import Span
from server.bench.errors import BenchError
from server.bench.formulas import as_text
from server.bench.jsontext import loads_sendable
from server.bench.measure.slo import Slo, parse_slo
from server.bench.settings import Gate

T = TypeVar("T")

DEFAULT_GATE_METRIC = "tpot"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Nothing unknown is left to parsers above, which would answer in their own way."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return found, []

    def _meant(self, unknown: Sequence[str]) -> str:
        names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        close = {name: get_close_matches(name, self._option_string_actions, 1) for name in names}
        meant = [found[0] for found in close.values() if found]
        return f" (did you mean {', '.join(meant)}?)" if meant else f" (see {self.prog} --help)"


P = TypeVar("P", bound=OneLineParser)


def add_one_line_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    kind: type[P],
    summary: str,
    description: str,
    **options: Any,
) -> P:
    """Register the subcommand ``name`` with a parser of class ``kind``.

    Args:
        summary: its line in the list of commands.
        description: shown as it is written.
        options: more arguments of the parser.
    """
    prog = subparsers.add_parser(name, help=summary).prog
    parser = kind(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    # argparse offers no class per subcommand, but looks parsers up in ``choices``.
    subparsers.choices[name] = parser
    return parser


class Explain(argparse.Action):
    """Prints the formulas and leaves."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(as_text())
        parser.exit(0)


def bad(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}: expected {allowed}")


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise bad(text, f"a whole number of at least {least}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise bad(text, "a number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise bad(text, "a number of at least 0")
    return value


def share(text: str) -> float:
    """From 0 to 1, both included."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise bad(text, "a number from 0 to 1")
    return value


def inner_share(text: str) -> float:
    """Between 0 and 1, neither included."""
    value = _number(text)
    if not 0 < value < 1:
        raise bad(text, "a number between 0 and 1")
    return value


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values separated by commas, all different."""

    def parse_all(text: str) -> list[T]:
        values = [parse(part) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise bad(text, "values that differ, separated by commas")
        return values

    return parse_all


def span(text: str) -> Span:
    """``N`` or ``LOW:HIGH``, whole numbers of at least 1."""
    low, colon, high = text.partition(":")
    one = whole(1)
    try:
        found = Span(one(low), one(high) if colon else one(low))
    except argparse.ArgumentTypeError:
        found = Span(1, 0)
    if found.low > found.high:
        raise bad(text, "N or LOW:HIGH, whole numbers of at least 1")
    return found


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = loads_sendable(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise bad(text, 'a JSON object, such as {"threshold": 0.9}')
    return value


def slo(text: str) -> Slo:
    """``METRIC:MILLISECONDS``."""
    try:
        return parse_slo(text)
    except BenchError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def gate(text: str) -> Gate:
    """``RATIO`` or ``METRIC:RATIO``."""
    metric, colon, ratio = text.rpartition(":")
    names = [item.name for item in METRICS]
    least = _number(ratio)
    metric = metric if colon else DEFAULT_GATE_METRIC
    if metric not in names or not 0 < least < math.inf:
        raise bad(text, f"RATIO or ({'|'.join(names)}):RATIO above 0, such as tpot:0.97")
    return Gate(metric, least)


def distinct(items: Sequence[T], option: str, key: Callable[[T], str]) -> tuple[T, ...]:
    """``items``, after a look that no key is given twice.

    Raises:
        BenchError: names the option and the key.
    """
    names = [key(item) for item in items]
    if len(set(names)) < len(names):
        raise BenchError(f"{option}: expected each figure once, got {', '.join(names)}")
    return tuple(items)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
