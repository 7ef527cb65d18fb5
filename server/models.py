"""``river-vllm models``: what River serves, for the terminal, as JSON and for docs/models.md.

With a path it tells what will become of one model, by its configuration alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table

from river_vllm.architectures import ARCHITECTURES, FAMILIES, REFUSED, no_exits
from river_vllm.errors import RiverError, UnsupportedModelError
from server.cli.arguments import Commands
from server.cli.output import make_console

_HELP = "the models that River serves, or what becomes of one"

DRAFTED: dict[str, str] = {
    "ApertusForCausalLM": "Apertus",
    "Cohere2ForCausalLM": "Command R7B, Command A",
    "FalconForCausalLM": "Falcon 7B, 40B",
    "Gemma4ForCausalLM": "Gemma 4 (dense, without per-layer embeddings)",
    "GPT2LMHeadModel": "GPT-2",
    "GPTNeoXForCausalLM": "GPT-NeoX, Pythia",
    "GraniteSWAForCausalLM": "Granite with sliding windows",
    "InternLM3ForCausalLM": "InternLM3",
    "MiMoForCausalLM": "MiMo 7B",
    "OPTForCausalLM": "OPT",
    "OrionForCausalLM": "Orion 14B",
    "StableLmForCausalLM": "StableLM 2",
    "TeleChat2ForCausalLM": "TeleChat2",
}
"""The rows of ``tests/engine/test_drafted_families.py``. Nothing in River asks for these names."""

FORMATS = ("dense", "int-quantized", "float-quantized", "pack-quantized", "mixed-precision")
"""Formats of compressed-tensors in which each projection may be one that River takes."""

EXITS, DRAFTS, NO = "exits and drafts", "drafts", "refused"
Rows = list[tuple[str, ...]]


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Register ``models``; its ``run`` takes the parsed namespace and returns an exit status."""
    description = f"{_HELP[:1].upper()}{_HELP[1:]}."
    parser = commands.add_parser("models", help=_HELP, description=description)
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="a folder or a hub id, of which to say what happens"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the configuration's own code"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write JSON to FILE, or to standard output",
    )
    form.add_argument("--markdown", action="store_true", help="print the tables of docs/models.md")
    parser.set_defaults(run=models_command)


def models_command(args: argparse.Namespace) -> int:
    """Print or write the tables, or the outlook of one model; returns 1 if that is refused.

    Raises:
        RiverError: the file cannot be written, or the model's configuration cannot be read.
    """
    found = None if args.path is None else outlook(args.path, args.trust_remote_code)
    if args.json is not None:
        _write(args.json, json.dumps(found or document(), indent=2, ensure_ascii=False) + "\n")
    elif found is not None:
        print(f"{found['architecture']}: {found['class']}; {found['reason']}")
    elif args.markdown:
        print(markdown(), end="")
    else:
        for title, columns, rows in tables():
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            make_console().print(table)
    return int(found is not None and found["class"] == NO)


def _write(file: str, text: str) -> None:
    if file == "-":
        print(text, end="")
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RiverError(f"--json '{file}': {error.strerror or error}") from None


def outlook(path: str, trust_remote_code: bool = False) -> dict[str, str]:
    """What will become of a model: its ``architecture``, its ``class`` and the ``reason``.

    Raises:
        RiverError: its configuration cannot be read.
    """
    from river_vllm.plugin.naming import checkpoint_architecture, river_architecture
    from river_vllm.plugin.refusals import refused_quantization

    options = {"trust_remote_code": trust_remote_code}
    architecture, config = checkpoint_architecture(path, options)
    quantization = getattr(config, "quantization_config", None)
    quantized = quantization if isinstance(quantization, dict) else {}
    method, form = quantized.get("quant_method"), quantized.get("format", FORMATS[0])
    method = method if form in FORMATS else form
    try:
        river_architecture(architecture, config)
        if refused := refused_quantization(method):
            raise UnsupportedModelError(f"River cannot be combined with {refused}", cure="")
    except UnsupportedModelError as error:
        found = NO, str(error)
    else:
        reason = no_exits(architecture, quantization)
        tried = architecture in ARCHITECTURES or architecture in DRAFTED
        check = "tests prove its drafts" if tried else "River checks its drafts at the start"
        found = (EXITS, "tests prove both") if reason is None else (DRAFTS, f"{reason}; {check}")
    return dict(zip(("architecture", "class", "reason"), (architecture, *found), strict=True))


def tables() -> list[tuple[str, tuple[str, ...], Rows]]:
    """Title, columns and rows of each class of models."""
    exits: Rows = [(family.architecture, family.models, family.notes) for family in FAMILIES]
    return [
        (EXITS, ("architecture", "models", "notes"), exits),
        (DRAFTS, ("architecture", "models"), list(DRAFTED.items())),
        (NO, ("form", "reason"), [(form.name, form.reason) for form in REFUSED]),
    ]


def document() -> dict[str, list[dict[str, str]]]:
    """The tables as JSON, by class."""
    return {
        title.replace(" ", "_"): [dict(zip(columns, row, strict=True)) for row in rows]
        for title, columns, rows in tables()
    }


def markdown() -> str:
    """The tables as docs/models.md shows them."""
    lines = []
    for title, columns, rows in tables():
        lines += [f"## {title.capitalize()}", "", f"| {' | '.join(columns)} |"]
        lines += ["|" + "---|" * len(columns)]
        for first, *others in rows:
            name = f"`{first}`" if columns[0] == "architecture" else first
            lines.append(f"| {' | '.join((name, *others))} |")
        lines.append("")
    return "\n".join(lines)
