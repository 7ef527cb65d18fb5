"""Pieces of a self-contained HTML page: no script, no font, no link to anywhere."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from server.bench.errors import BenchError
from server.bench.formulas import Formula

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 2rem auto;
       max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0;
        font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; }
.note { color: #57606a; }
.warning { border-left: 4px solid #bf8700; background: #fff8e6; padding: .4rem .8rem;
           margin: .4rem 0; }
svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f6f8fa; padding: .8rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin-left: 1.2rem; }
"""


def require_plots() -> None:
    """Find out before the load starts that the report could not be drawn.

    Raises:
        BenchError: the plotting library is not installed; says how to get it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(
            "--html: the report needs matplotlib; install it with: pip install 'river-vllm[bench]'"
        )


def page(title: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def warnings(texts: Iterable[str]) -> str:
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in texts)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(formulas: Iterable[Formula]) -> str:
    items = (
        f"<dt>{escape(f.name)}</dt><dd><code>{escape(f.formula)}</code><br>{escape(f.note)}</dd>"
        for f in formulas
    )
    return f"<dl>{''.join(items)}</dl>"


def data(document: Mapping[str, Any], names: Sequence[str]) -> str:
    """Some fields of a document, as they are in the JSON file."""
    chosen = {name: document[name] for name in names}
    return f"<pre>{escape(json.dumps(chosen, indent=2, ensure_ascii=False))}</pre>"
