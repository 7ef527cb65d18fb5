"""What touches vLLM stands where a reader looks for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for name in ("river_vllm", "server") for path in (ROOT / name).rglob("*.py"))


def replaced(tree: ast.Module) -> Iterator[str]:
    """Attributes that a module sets on what it imports from vLLM, and classes that it gives to
    objects."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            owner, name = node.args[0], ast.unparse(node.args[1])
        else:
            continue
        if name == "__class__" or (isinstance(owner, ast.Name) and owner.id in imported):
            yield f"{ast.unparse(owner)}.{name}"


def test_only_patches_replaces_something_of_vllms() -> None:
    found = {path: list(replaced(ast.parse(path.read_text("utf-8")))) for path in MODULES}
    assert [path.relative_to(ROOT).as_posix() for path, what in found.items() if what] == [
        "river_vllm/patches.py"
    ]


def test_a_replacement_is_seen() -> None:
    code = "from vllm.v1 import a\na.f = 1\nsetattr(a, name, 1)\nx.__class__ = C\nx.y = a.z = a.f"
    assert sorted(replaced(ast.parse(code))) == ["a.f", "a.name", "a.z", "x.__class__"]


@pytest.mark.parametrize("kind", [ast.FunctionDef, ast.ClassDef, ast.If, ast.Try])
def test_compat_holds_imports_only(kind: type) -> None:
    tree = ast.parse((ROOT / "river_vllm" / "compat.py").read_text("utf-8"))
    assert [node for node in ast.walk(tree) if isinstance(node, kind)] == []
