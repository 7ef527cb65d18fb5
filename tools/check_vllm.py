#!/usr/bin/env python3
"""List River's imports from vLLM that another vLLM lacks.

    python tools/check_vllm.py vllm-0.33.0-….whl   a wheel: pip download --no-deps vllm==0.33.0
    python tools/check_vllm.py FOLDER              a source tree that holds the folder "vllm"

The script imports no vLLM. It reads the imports of ``river_vllm`` and ``server``, and looks for
each module and name in the other vLLM's source. Changed arguments, attributes and
behaviour need the tests (``.github/workflows/next-vllm.yml``), as do methods and functions that
River overrides or replaces.

Exit status: 0 if everything is there, 1 if something is gone, 2 if there is no vLLM to read.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections import defaultdict
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("river_vllm", "server")


def imports(root: Path) -> dict[tuple[str, str], list[str]]:
    """Places of River's imports from vLLM, by module and name; ``import a.b`` has the name ""."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [(node.module or "", alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            else:
                continue
            for module, name in names:
                if module.split(".")[0] == "vllm":
                    found[module, name].append(f"{path.relative_to(root)}:{node.lineno}")
    return found


def read(path: Path) -> dict[str, str]:
    """Source of vLLM's modules by file, from a wheel or a source tree.

    Raises:
        OSError: there is no vLLM in ``path``.
        zipfile.BadZipFile: ``path`` is a file and no wheel.
    """
    if path.is_dir():
        files = sorted((path / "vllm").rglob("*.py"))
        found = {str(file.relative_to(path)): file.read_text(encoding="utf-8") for file in files}
    else:
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if n.startswith("vllm/") and n.endswith(".py")]
            found = {name: wheel.read(name).decode() for name in names}
    if "vllm/__init__.py" not in found:
        raise FileNotFoundError(f"no vllm/__init__.py in {path}")
    return found


def has(files: dict[str, str], module: str, name: str) -> bool:
    """Whether ``from module import name``, or ``import module`` without a name, would work."""
    stem = module.replace(".", "/")
    file = f"{stem}/__init__.py" if f"{stem}/__init__.py" in files else f"{stem}.py"
    if file not in files:
        return False
    if not name or files.keys() & {f"{stem}/{name}.py", f"{stem}/{name}/__init__.py"}:
        return True
    package = file.rpartition("/")[0].replace("/", ".")
    waiting: list[ast.AST] = [ast.parse(files[file])]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == name:
                return True
            continue  # names inside it are its own
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and name == (node.asname or node.name):
            return True
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            star = resolve_name("." * node.level + (node.module or ""), package)
            if has(files, star, name):
                return True
        waiting.extend(ast.iter_child_nodes(node))
    return False


def homes(files: dict[str, str], name: str) -> list[str]:
    """Files that define ``name`` at their top level."""
    defined = re.compile(rf"^(?:class |def |async def )?{name}\b\s*[=:(]", re.MULTILINE)
    return [file for file, text in files.items() if defined.search(text)]


def main(arguments: list[str]) -> int:
    """Command line entry."""
    try:
        (path,) = map(Path, arguments)
        files = read(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}\nusage: check_vllm.py WHEEL_OR_FOLDER", file=sys.stderr)
        return 2
    used = imports(ROOT)
    gone = [entry for entry in used if not has(files, *entry)]
    for module, name in gone:
        now = homes(files, name) if name else []
        there = f", now in {', '.join(now)}" if now else ""
        print(f"gone: {f'{module} {name}'.strip()}{there} ({', '.join(used[module, name])})")
    print(f"{path.name}: {len(used) - len(gone)} of {len(used)} imports are there")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
