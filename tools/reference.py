#!/usr/bin/env python3
"""Write tables of the documentation from the code: options, request, report, routes, classes.

``make reference`` runs this. A page holds each table between ``<!-- reference: NAME -->`` and
``<!-- end -->``, and the text around them is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from fastapi import FastAPI

from river_vllm.config import RiverConfig
from river_vllm.modes import MODES
from river_vllm.request import RiverField
from server.cli.main import build_parser
from server.cli.options import river_parser
from server.http.routes import RiverPatch, router

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs" / "reference").glob("*.md")), ROOT / "docs" / "architecture.md"]
BLOCK = re.compile(r"(<!-- reference: ([\w -]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)

API = (
    "river_vllm.engine_args",
    "river_vllm.errors.RiverError",
    "river_vllm.errors.UnsupportedModelError",
)
EXTENSIONS = (
    "river_vllm.kernels.groups.GroupedWeight",
    "river_vllm.kernels.base.LinearSpec",
    "river_vllm.kernels.base.PackedLinear",
    "river_vllm.kernels.base.Int4Kernel",
    "river_vllm.modes.mode.Mode",
    "river_vllm.modes.mode.Summary",
    "river_vllm.request.RiverSettings",
    "river_vllm.request.resolve",
    "river_vllm.request.settings_of",
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first cell of each row is code."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for first, *others in rows:
        cells = (f"`{first}`", *others)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def options(parser: argparse.ArgumentParser) -> str:
    """The options of ``parser``, a table for each of its groups."""
    parts = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            rows = [(_usage(action), _help(action)) for action in actions]
            titled = group.title not in ("options", "positional arguments", "River")
            parts.append(f"**{group.title}**\n\n" * titled + table(("option", "meaning"), rows))
    return "\n".join(parts)


def _usage(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else "X"
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    times = {None: 1, 0: 0, "?": 1, "*": 1}.get(action.nargs, action.nargs)
    return " ".join([*flags, *[value] * int(times or 0)])


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {}
    named = "default" in text or action.default in (None, False, argparse.SUPPRESS)
    return text if named else f"{text} (default: {action.default})"


def command(name: str) -> str:
    """The options of one command of ``river-vllm``."""
    parser = build_parser()
    for word in name.split():
        choices = (action.choices for action in parser._actions)
        parser = next(found[word] for found in choices if isinstance(found, dict))
    return options(parser)


def fields(schema: dict[str, Any]) -> str:
    """The fields of a JSON schema."""
    rows = [
        (name, _kind(field), str(field.get("description", "")))
        for name, field in schema["properties"].items()
    ]
    return table(("field", "type", "meaning"), rows)


def _kind(field: dict[str, Any]) -> str:
    """``number in [-1, 1]``, or the allowed words; without the null of a field that may be left
    out."""
    found = next(f for f in field.get("anyOf", [field]) if f.get("type") != "null")
    kinds = found.get("enum", found["type"])
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    least, most = found.get("minimum"), found.get("maximum")
    if least is not None and most is not None:
        return f"{kind} in [{least:g}, {most:g}]"
    return kind if least is None else f"{kind}, at least {least:g}"


def routes() -> str:
    """River's own routes."""
    app = FastAPI()
    app.include_router(router)
    rows = [
        (f"{method.upper()} {path}", route["summary"])
        for path, methods in app.openapi()["paths"].items()
        for method, route in methods.items()
    ]
    return table(("route", "meaning"), rows)


def settings() -> str:
    """The fields of ``RiverConfig`` with their defaults."""
    rows = [(name, f"`{field.default!r}`") for name, field in RiverConfig.model_fields.items()]
    return table(("setting", "default"), rows)


def patches() -> str:
    """The patches of vLLM and torch: functions whose docstrings say until when they are needed."""
    module = ast.parse((ROOT / "river_vllm" / "patches.py").read_text(encoding="utf-8"))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    told = [(node.name, ast.get_docstring(node) or "") for node in functions]
    rows = [
        (name, text.partition("\n")[0].replace("``", "`"))
        for name, text in told
        if re.search(r"\bUntil\b", text)
    ]
    return table(("patch", "effect"), rows)


def described(names: Sequence[str]) -> str:
    """Signature and docstring of each object, and of its public methods."""
    text = "\n".join(line for name in names for line in _object(name, resolve_name(name)))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _object(name: str, found: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if inspect.isfunction(found) or "__dataclass_fields__" in vars(found):
        yield f"```text\n{found.__name__}{_signature(found)}\n```\n"
    yield _prose(found)
    if inspect.isclass(found):
        members = [item for item in vars(found).items() if not item[0].startswith("_")]
        for member, value in members:
            function = value.fget if isinstance(value, property) else value
            if inspect.isfunction(function):
                call = "" if isinstance(value, property) else _signature(function)
                text = _prose(function).strip().replace("\n\n", "\n").replace("\n", "\n  ")
                yield f"- `{member}{call}`" + (f": {text}" if text else "")
        yield ""


def _signature(function: Callable[..., Any]) -> str:
    """The parameters with their annotations, which are strings in these modules."""
    shown = str(inspect.signature(function)).replace("'", "").replace(" -> None", "")
    return re.sub(r"\(self(, )?", "(", shown)


def _prose(found: Any) -> str:
    """The docstring as Markdown: arguments and attributes become lists."""
    text = inspect.cleandoc(vars(found).get("__doc__") or found.__doc__ or "")
    text, *rest = SECTION.split(text.replace("``", "`"))
    text = _listed(text)
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        items = re.sub(r"\n {2,}", " ", inspect.cleandoc(body))
        text = f"{text.rstrip()}\n\n{title}:\n\n{items if title == 'Returns' else _listed(items)}\n"
    return text.rstrip() + "\n"


def _listed(text: str) -> str:
    """``text`` whose lines ``name: meaning`` are items of a list."""
    return re.sub(r"^([A-Za-z_, ]+):(?= )", r"- `\1`:", text, flags=re.MULTILINE)


BLOCKS: dict[str, Callable[[], str]] = {
    "serve": lambda: options(river_parser()),
    **{
        name: partial(command, name)
        for name in ("bench compare", "calibrate", "eval", "models", "quantize")
    },
    "request": lambda: fields(RiverField.model_json_schema()),
    "report": lambda: fields(MODES[0].schema),
    "verified": lambda: fields(MODES[1].schema),
    "patch": lambda: fields(RiverPatch.model_json_schema()),
    "routes": routes,
    "settings": settings,
    "patches": patches,
    "python": lambda: described(API),
    "extensions": lambda: described(EXTENSIONS),
}


def written(page: str) -> str:
    """``page`` with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
