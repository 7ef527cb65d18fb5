"""Imports and patches: allowed in which module, at which cost; and River's own ``server``."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("step", "kernels", "weights", "model", "modes", "engine", "calibrate", "plugin")
"""Packages of ``river_vllm``, each above those that it may import. The modules beside them are
below all."""

HEAVY = ("torch", "vllm", "transformers")

CHECK = f"""
import sys
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit("loaded: " + ", ".join(loaded) if loaded else 0)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code + CHECK], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("module", ["river_vllm.request", "river_vllm.plugin", "server.cli.serve"])
def test_the_light_side_imports_neither_torch_nor_vllm(module: str) -> None:
    done = run(f"import {module}\n")
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_torch_nor_vllm() -> None:
    done = run("""
from server.cli.main import main
try:
    main(["bench", "--help"])
except SystemExit as stop:
    assert stop.code == 0, stop.code
""")
    assert done.returncode == 0, done.stderr
    assert "usage: river-vllm" in done.stdout


@cache
def modules() -> dict[str, Path]:
    """The modules of ``river_vllm``, by name."""
    files = {file.relative_to(ROOT): file for file in (ROOT / "river_vllm").rglob("*.py")}
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): file
        for path, file in files.items()
    }


def imported(file: Path) -> Iterator[str]:
    """What a file imports, wherever it does: of a package, the modules that are named."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def layer(module: str) -> int:
    """0 for a module below the packages; the package itself is the plugin's door."""
    part = module.split(".")[1] if "." in module else "plugin"
    is_package = (ROOT / "river_vllm" / part / "__init__.py").exists()
    return 1 + LAYERS.index(part) if is_package else 0


def test_a_module_imports_only_what_is_below_it() -> None:
    """Imports for type checkers and those in functions count too."""
    files = modules()
    below = {module: set(imported(file)) for module, file in files.items()}
    to_server = {a for a, found in below.items() if any(b.split(".")[0] == "server" for b in found)}
    assert to_server == {"river_vllm.command"}, "only the installed command starts the server"
    graph = {module: found & files.keys() for module, found in below.items()}
    assert [(a, b) for a in graph for b in graph[a] if layer(b) > layer(a)] == []
    TopologicalSorter(graph).prepare()  # raises where there is a cycle, and names it


def others(tree: ast.AST) -> set[str]:
    """The names that a file imports from vLLM and torch."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            named = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            bound = [alias.asname or alias.name for alias in node.names]
            compat = node.module == "river_vllm.compat"
            named = ["vllm" if compat else str(node.module).partition(".")[0]] * len(bound)
        else:
            continue
        found |= {name for name, of in zip(bound, named, strict=True) if of in ("vllm", "torch")}
    return found


def changed(tree: ast.AST) -> Iterator[str]:
    """The first name of each object of which an attribute is set or deleted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            owner = node.args[0]
        else:
            continue
        yield ast.unparse(owner).partition(".")[0]


def test_only_the_patches_change_modules_and_classes_of_vllm_and_torch() -> None:
    files = [file for part in ("river_vllm", "server") for file in (ROOT / part).rglob("*.py")]
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text("utf-8")) for file in files}
    found = {file for file, tree in trees.items() if others(tree) & set(changed(tree))}
    assert found == {"river_vllm/patches.py"}


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
assert EXPERIMENTS


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.name)
def test_imports_of_river_exist(file: Path) -> None:
    """Of the experiments, which no other test runs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] not in ("river_vllm", "server"):
                continue
            module = import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")


def test_another_server_package_is_named_in_one_line(tmp_path: Path) -> None:
    """By the installed command, where another ``server`` comes first."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]}; "
    code += "from river_vllm.command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--version"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert str(tmp_path / "server") in found.stderr
