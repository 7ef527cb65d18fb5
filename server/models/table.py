"""The table of architectures, for the terminal, for programs and for docs/models.md."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.table import Table

from river_vllm.models.architectures import FAMILIES
from river_vllm.models.refused import REFUSED

COLUMNS = ("architecture", "models", "notes")


def rows() -> list[tuple[str, str, str]]:
    """One row per architecture that River carries."""
    return [(family.architecture, family.models, family.notes) for family in FAMILIES]


def refused() -> dict[str, list[str]]:
    """Reason → architectures that are refused for it."""
    found: dict[str, list[str]] = defaultdict(list)
    for architecture, reason in REFUSED.items():
        found[reason].append(architecture)
    return dict(found)


def document() -> dict[str, Any]:
    """The whole table as JSON."""
    return {
        "architectures": [dict(zip(COLUMNS, row, strict=True)) for row in rows()],
        "refused": REFUSED,
    }


def terminal() -> Table:
    """What River carries, for people."""
    table = Table(*COLUMNS, show_lines=False)
    for row in rows():
        table.add_row(*row)
    return table


def markdown() -> str:
    """Both tables, as docs/models.md shows them."""
    lines = [*_head("architecture", "models", "notes")]
    lines += [f"| `{name}` | {models} | {notes} |" for name, models, notes in rows()]
    lines += ["", "Refused by name:", "", *_head("reason", "architectures")]
    lines += [
        f"| {reason} | {', '.join(f'`{name}`' for name in names)} |"
        for reason, names in refused().items()
    ]
    return "\n".join(lines) + "\n"


def _head(*names: str) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", "|" + "---|" * len(names)
