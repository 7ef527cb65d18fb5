"""Sphinx extension: River's routes, request field and report, read from the code."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from fastapi import FastAPI
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from river_vllm.modes import MODES
from river_vllm.request import RiverField
from server.http.routes import RiverPatch, router


def _table(head: list[str], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    body = nodes.tbody()
    body += [_row(row) for row in rows]
    group += [nodes.thead("", _row(head)), body]
    return nodes.table("", group)


def _row(cells: list[str]) -> nodes.row:
    entries = []
    for place, text in enumerate(cells):
        inner = nodes.literal(text=text) if place == 0 else nodes.Text(text)
        entries.append(nodes.entry("", nodes.paragraph("", "", inner)))
    return nodes.row("", *entries)


def _fields(schema: dict[str, Any]) -> list[list[str]]:
    return [
        [name, _kind(field), str(field.get("description", ""))]
        for name, field in schema["properties"].items()
    ]


def _kind(field: dict[str, Any]) -> str:
    """``number in [-1, 1]``, without the null of a field that may be left out."""
    found = next(f for f in field.get("anyOf", [field]) if f.get("type") != "null")
    kind = found["type"] if isinstance(found["type"], str) else " or ".join(found["type"])
    least, most = found.get("minimum"), found.get("maximum")
    if least is not None and most is not None:
        return f"{kind} in [{least:g}, {most:g}]"
    return kind if least is None else f"{kind}, at least {least:g}"


class RiverRoutes(SphinxDirective):
    """``river-routes``: what the server's own routes are."""

    def run(self) -> list[nodes.Node]:
        app = FastAPI()
        app.include_router(router)
        rows = [
            [f"{method.upper()} {path}", route["summary"]]
            for path, methods in app.openapi()["paths"].items()
            for method, route in methods.items()
        ]
        return [_table(["route", "what"], rows)]


class RiverFields(SphinxDirective):
    """``river-fields`` request, report, verified or patch: a body's fields."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        schemas = {
            "request": RiverField.model_json_schema(),
            "report": MODES[0].schema,
            "verified": MODES[1].schema,
            "patch": RiverPatch.model_json_schema(),
        }
        return [_table(["field", "type", "meaning"], _fields(schemas[self.arguments[0]]))]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("river-routes", RiverRoutes)
    app.add_directive("river-fields", RiverFields)
    return {"parallel_read_safe": True}
