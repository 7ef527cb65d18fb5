"""Exit depths, where the server reports ``river`` at the end of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RiverReport:
    """What the answers of a level say about the river, added up."""

    answers: int
    """Completed answers that carry it."""
    num_layers: int | None
    tokens: int
    """Decode tokens, after the answers' own count."""
    mean_exit_layer: float | None
    early_share: float | None
    """Tokens that left before the last layer, of those with a known exit layer."""
    exit_layers: dict[int, int]
    """Exit layer → tokens."""
    drafted: int | None = None
    """Verified mode: tokens that the river drafted."""
    accepted: int | None = None
    acceptance: float | None = None


def river_report(fields: Iterable[Mapping[str, Any] | None]) -> RiverReport | None:
    """Add up the ``river`` objects of completed answers; ``None`` where there are none.

    Numbers that are missing or are not numbers count for nothing rather than being guessed.
    """
    present = [field for field in fields if field is not None]
    if not present:
        return None
    layers: Counter[int] = Counter()
    for field in present:
        depths = field.get("exit_layers")
        for layer, count in depths.items() if isinstance(depths, Mapping) else ():
            if str(layer).isdecimal() and isinstance(count, int):
                layers[int(layer)] += count
    num_layers = max((_count(field, "num_layers") for field in present), default=0) or None
    located = layers.total()
    early = sum(n for layer, n in layers.items() if num_layers is None or layer < num_layers)
    drafted = sum(_count(field, "drafted") for field in present)
    accepted = sum(_count(field, "accepted") for field in present)
    return RiverReport(
        answers=len(present),
        num_layers=num_layers,
        tokens=sum(_count(field, "tokens") for field in present),
        mean_exit_layer=sum(n * k for n, k in layers.items()) / located if located else None,
        early_share=early / located if located and num_layers else None,
        exit_layers=dict(sorted(layers.items())),
        drafted=drafted or None,
        accepted=accepted if drafted else None,
        acceptance=accepted / drafted if drafted else None,
    )


def _count(field: Mapping[str, Any], key: str) -> int:
    value = field.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
