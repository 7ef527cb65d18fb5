"""The table of architectures, for the terminal, for programs and for docs/models.md."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from river_vllm.models.architectures import FAMILIES

COLUMNS = ("architecture", "models", "notes")


def rows() -> list[tuple[str, str, str]]:
    """One row per architecture that River carries."""
    return [(family.architecture, family.models, family.notes) for family in FAMILIES]


def document() -> dict[str, Any]:
    """The table as JSON."""
    return {"architectures": [dict(zip(COLUMNS, row, strict=True)) for row in rows()]}


def terminal() -> Table:
    """The table for people."""
    table = Table(*COLUMNS, show_lines=False)
    for row in rows():
        table.add_row(*row)
    return table


def markdown() -> str:
    """The table as docs/models.md shows it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| `{name}` | {models} | {notes} |" for name, models, notes in rows()]
    return "\n".join(lines) + "\n"
