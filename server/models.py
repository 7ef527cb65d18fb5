"""``river-vllm models``: the table for the terminal, as JSON and for docs/models.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from river_vllm.errors import RiverError
from river_vllm.model.architectures import FAMILIES
from server.cli.arguments import Commands
from server.cli.output import make_console

_HELP = "the architectures that River carries"
COLUMNS = ("architecture", "models", "notes")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Register ``models``; its ``run`` takes the parsed namespace and returns an exit status."""
    description = f"{_HELP[:1].upper()}{_HELP[1:]}."
    parser = commands.add_parser("models", help=_HELP, description=description)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write JSON to FILE, or to standard output",
    )
    form.add_argument("--markdown", action="store_true", help="print the table of docs/models.md")
    parser.set_defaults(run=models_command)


def models_command(args: argparse.Namespace) -> int:
    """Print or write the table.

    Raises:
        RiverError: the file cannot be written.
    """
    if args.markdown:
        print(markdown(), end="")
    elif args.json is not None:
        _write(args.json, json.dumps(document(), indent=2, ensure_ascii=False) + "\n")
    else:
        make_console().print(terminal())
    return 0


def _write(file: str, text: str) -> None:
    if file == "-":
        print(text, end="")
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RiverError(f"--json '{file}': {error.strerror or error}") from None


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
