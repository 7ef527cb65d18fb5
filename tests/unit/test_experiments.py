"""What the experiments import of River exists: no other test runs them."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))
assert EXPERIMENTS


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.name)
def test_imports_of_river_exist(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.partition(".")[0] not in ("river_vllm", "server"):
            continue
        module = import_module(node.module)
        for name in node.names:
            assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")
