"""Python packages as syntax trees: what a name means, and what a class has."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True, slots=True)
class Place:
    """A name of a module; without ``name`` the module itself."""

    module: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A definition, and the module that it stands in."""

    module: str
    node: Definition


@dataclass(slots=True)
class _Bindings:
    defined: dict[str, Definition] = field(default_factory=dict)
    imported: dict[str, Place] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


class Tree:
    """The modules of some packages, parsed when they are asked for.

    Args:
        files: their paths, such as ``vllm/config/__init__.py``.
        read: gives a file's text.
    """

    def __init__(self, files: list[str], read: Callable[[str], str]) -> None:
        self._files = {_module(file): file for file in files if file.endswith(".py")}
        self._packages = {
            _module(file) for file in files if file.rpartition("/")[2] == "__init__.py"
        }
        self._read = read
        self._parsed: dict[str, ast.Module] = {}
        self._bindings: dict[str, _Bindings] = {}

    @classmethod
    def of_folder(cls, *packages: Path) -> Self:
        """Of installed packages, or of a checkout's."""
        places = {
            f"{package.name}/{file.relative_to(package).as_posix()}": file
            for package in packages
            for file in package.rglob("*.py")
        }
        return cls(sorted(places), lambda name: places[name].read_text(encoding="utf-8"))

    @classmethod
    def of_wheel(cls, wheel: Path) -> Self:
        """Of a wheel, which is not unpacked."""
        archive = zipfile.ZipFile(wheel)
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return cls(names, lambda name: archive.read(name).decode("utf-8"))

    def modules(self) -> list[str]:
        """Every module's name."""
        return sorted(self._files)

    def has(self, module: str) -> bool:
        """Whether there is such a module, or a folder of that name that holds some."""
        return module in self._files or any(m.startswith(f"{module}.") for m in self._files)

    def package(self, module: str) -> str:
        """What a module's relative imports start from."""
        return module if module in self._packages else module.rpartition(".")[0]

    def parsed(self, module: str) -> ast.Module:
        """The syntax tree of a module that is there."""
        if module not in self._parsed:
            self._parsed[module] = ast.parse(self._read(self._files[module]))
        return self._parsed[module]

    def origin(self, place: Place) -> Place | None:
        """Where a name is defined, imports followed: in this tree, or where they leave it; None
        where it means nothing."""
        seen: set[Place] = set()
        while place not in seen:
            seen.add(place)
            if place.name is None or place.module not in self._files:
                # A module elsewhere is taken at its word; one of ours has to be there.
                known = self.has(place.module) or not self._owns(place.module)
                return place if known else None
            bindings = self._bound(place.module)
            if place.name in bindings.defined:
                return place
            following = bindings.imported.get(place.name)
            if following is None:
                following = self._starred(bindings, place.name)
            if following is None and self.has(f"{place.module}.{place.name}"):
                following = Place(f"{place.module}.{place.name}")
            if following is None:
                return None
            if following.name is not None and self.has(f"{following.module}.{following.name}"):
                own = self._files.get(following.module)
                if own is None or following.name not in self._bound(following.module).defined:
                    following = Place(f"{following.module}.{following.name}")
            place = following
        return None

    def find(self, place: Place) -> Found | None:
        """The definition of a name in this tree."""
        found = self.origin(place)
        if found is None or found.name is None or found.module not in self._files:
            return None
        node = self._bound(found.module).defined.get(found.name)
        return None if node is None else Found(found.module, node)

    def member(self, owner: Found, name: str) -> Found | None:
        """An attribute of a class or of its bases in this tree: of its body, or set on ``self``."""
        for module, node in self.bases(owner):
            if (own := _own_member(node, name)) is not None:
                return Found(module, own)
        return None

    def bases(self, owner: Found) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and what it inherits from in this tree, depth first."""
        if not isinstance(owner.node, ast.ClassDef):
            return
        yield owner.module, owner.node
        for base in owner.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(name, ast.Name):
                found = self.find(Place(owner.module, name.id))
                if found is not None and found.node is not owner.node:
                    yield from self.bases(found)

    def class_of(self, found: Found) -> Found | None:
        """The class whose objects a field, a property or a name holds, if it is one of ours."""
        node = found.node
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            return self.annotated(found.module, node.value.func)
        if isinstance(node, ast.AnnAssign):
            return self.annotated(found.module, node.annotation)
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            return self.annotated(found.module, node.returns)
        return None

    def annotated(self, module: str, annotation: ast.expr) -> Found | None:
        """The class that an annotation of ``module`` names, ``None`` beside it left out."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self.annotated(module, ast.parse(annotation.value, mode="eval").body)
        if isinstance(annotation, ast.BinOp):
            sides = (self.annotated(module, side) for side in (annotation.left, annotation.right))
            return next((side for side in sides if side is not None), None)
        if not isinstance(annotation, ast.Name):
            return None
        found = self.find(Place(module, annotation.id))
        return found if found is not None and isinstance(found.node, ast.ClassDef) else None

    def defining(self, name: str) -> list[str]:
        """Modules that define a class or a function of this name at their top."""
        words = re.compile(rf"^(?:async )?(?:def|class) {re.escape(name)}\b", re.MULTILINE)
        return [module for module, file in self._files.items() if words.search(self._read(file))]

    def _owns(self, module: str) -> bool:
        top = module.partition(".")[0]
        return any(known.partition(".")[0] == top for known in self._files)

    def _starred(self, bindings: _Bindings, name: str) -> Place | None:
        for module in bindings.stars:
            if module in self._files and self.origin(Place(module, name)) is not None:
                return Place(module, name)
        return None

    def _bound(self, module: str) -> _Bindings:
        if module not in self._bindings:
            found = self._bindings[module] = _Bindings()
            for node in _statements(self.parsed(module).body):
                _bind(node, self.package(module), found)
        return self._bindings[module]


def imports(node: ast.AST, package: str) -> Iterator[tuple[str, Place]]:
    """The names that an import statement binds, and what they stand for; ``*`` as itself."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname or top), Place(alias.name if alias.asname else top)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1])
            module = f"{above}.{module}" if module else above
        for alias in node.names:
            yield (alias.asname or alias.name), Place(module, alias.name)


def parameters(found: Found) -> str | None:
    """A function's parameters, without annotations; of a class, None."""
    if not isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = ast.parse(f"def f({ast.unparse(found.node.args)}): pass").body[0]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    assert isinstance(arguments, ast.FunctionDef)
    return f"({ast.unparse(arguments.args)})"


def body(found: Found) -> str:
    """What a definition does, its documentation left out."""
    node = found.node
    lines = getattr(node, "body", None)
    if not isinstance(lines, list):
        return ast.dump(node)
    first = lines[0] if lines else None
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return "\n".join(ast.dump(line) for line in (lines[1:] if documented else lines))


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _statements(lines: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, those under ``if``, ``try`` and ``with`` too."""
    for line in lines:
        yield line
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(line, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _statements(getattr(line, part, []))
        for handler in getattr(line, "handlers", []):
            yield from _statements(handler.body)


def _bind(node: ast.stmt, package: str, found: _Bindings) -> None:
    for name, place in imports(node, package):
        if name == "*":
            found.stars.append(place.module)
        else:
            found.imported.setdefault(name, place)
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        found.defined.setdefault(node.name, node)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        found.defined.setdefault(node.target.id, node)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    found.defined.setdefault(part.id, node)


def _own_member(node: ast.ClassDef, name: str) -> Definition | None:
    bindings = _Bindings()
    for line in _statements(node.body):
        _bind(line, "", bindings)
    if name in bindings.defined:
        return bindings.defined[name]
    for part in ast.walk(node):
        if isinstance(part, ast.Assign):
            targets = [inner for target in part.targets for inner in _parts(target)]
        elif isinstance(part, ast.AnnAssign):
            targets = [part.target]
        else:
            continue
        for target in targets:
            if (
                isinstance(target, ast.Attribute)
                and target.attr == name
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            ):
                return part
    return None


def _parts(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Tuple):
        return [part for element in target.elts for part in _parts(element)]
    return [target]
