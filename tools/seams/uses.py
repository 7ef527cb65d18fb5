"""What River uses of vLLM: imports, attributes, overridden methods, replaced functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tools.seams.source import Found, Place, Tree, imports

VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Use:
    """One thing of vLLM's.

    Attributes:
        place: a module, or a name of one.
        member: an attribute of that name.
        body: whether River replaces it or calls it in the middle of its own, so that what it does
            matters and not only how it is called.
        where: River's file that uses it.
    """

    place: Place
    member: str | None
    body: bool
    where: str

    @property
    def name(self) -> str:
        """As people write it."""
        parts = (self.place.module, self.place.name, self.member)
        return ".".join(part for part in parts if part)


def uses(river: Tree, vllm: Tree) -> list[Use]:
    """Everything that the modules of ``river`` use; ``vllm`` tells what the names are."""
    found: set[Use] = set()
    for module in river.modules():
        reader = _Reader(river, vllm, module)
        found.update(reader.imported())
        found.update(reader.attributes())
        found.update(reader.typed())
        found.update(reader.replaced())
        found.update(reader.subclassed())
    return sorted(found, key=lambda use: (use.name, use.where, use.body))


class _Reader:
    """One module of River's."""

    def __init__(self, river: Tree, vllm: Tree, module: str) -> None:
        self._river, self._vllm, self._module = river, vllm, module
        self._tree = river.parsed(module)
        # Imports in functions count for the whole module: names are not used twice here.
        self._names = {
            name: place
            for node in ast.walk(self._tree)
            for name, place in imports(node, river.package(module))
            if name != "*"
        }

    def imported(self) -> Iterator[Use]:
        for place in self._names.values():
            if _is_vllm(place):
                yield self._use(place)

    def attributes(self) -> Iterator[Use]:
        """``name.attribute`` of what is imported."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                place = self._vllm_place(node.value.id)
                if place is not None:
                    yield self._attribute(place, node.attr)

    def typed(self) -> Iterator[Use]:
        """``argument.field.field`` of arguments annotated with a class of vLLM's."""
        for function in ast.walk(self._tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            known = {}
            arguments = function.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                if isinstance(argument.annotation, ast.Name):
                    place = self._vllm_place(argument.annotation.id)
                    found = None if place is None else self._vllm.find(place)
                    if found is not None:
                        known[argument.arg] = found
            for node in ast.walk(function) if known else ():
                for name, value in _assigned(node):
                    if (held := self._held(value, known)) is not None:
                        known.setdefault(name, held)
            for node in ast.walk(function) if known else ():
                if isinstance(node, ast.Attribute):
                    owner = self._held(node.value, known)
                    if owner is not None and isinstance(owner.node, ast.ClassDef):
                        yield self._use(Place(owner.module, owner.node.name), node.attr)

    def replaced(self) -> Iterator[Use]:
        """``module.function = …`` and ``setattr(module, "function", …)``."""
        for node in ast.walk(self._tree):
            targets: list[tuple[ast.expr, str]] = []
            if isinstance(node, ast.Assign):
                targets = [(t.value, t.attr) for t in node.targets if isinstance(t, ast.Attribute)]
            elif isinstance(node, ast.Call) and _called(node) == "setattr" and len(node.args) == 3:
                name = node.args[1]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    targets = [(node.args[0], name.value)]
            for owner, attribute in targets:
                if isinstance(owner, ast.Name):
                    place = self._vllm_place(owner.id)
                    if place is not None:
                        yield self._attribute(place, attribute, body=True)

    def subclassed(self) -> Iterator[Use]:
        """What classes of River's override, call through ``super()`` and read from ``self``."""
        for bases in self._class_bases():
            rivers, vllms = self._flattened(bases)
            own = {name for found in rivers for name in _own_names(found.node)}
            for base in vllms:
                place = Place(base.module, _class_name(base))
                for found in rivers:
                    where = found.module
                    for name in _methods(found.node):
                        if self._vllm.member(base, name) is not None:
                            yield self._use(place, name, body=True, where=where)
                    for name in _super_calls(found.node):
                        yield self._use(place, name, body=True, where=where)
                    for name in _read_from_self(found.node) - own:
                        if self._vllm.member(base, name) is not None:
                            yield self._use(place, name, where=where)

    def _class_bases(self) -> Iterator[list[tuple[str, ast.expr]]]:
        """Of every class statement its own name, and of every ``type(name, bases, {})`` its
        bases, as expressions of this module."""
        local = {name: value for node in ast.walk(self._tree) for name, value in _assigned(node)}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ClassDef):
                yield [(self._module, ast.Name(node.name))]
            elif isinstance(node, ast.Call) and _called(node) == "type" and len(node.args) == 3:
                bases = node.args[1]
                if isinstance(bases, ast.Tuple):
                    named = [e for e in bases.elts if isinstance(e, ast.Name)]
                    values = [local.get(e.id, e) for e in named if e.id not in self._names]
                    chosen = [n for v in values for n in ast.walk(v) if isinstance(n, ast.Name)]
                    direct = [e for e in named if e.id in self._names]
                    yield [(self._module, name) for name in (*direct, *chosen)]

    def _flattened(self, bases: list[tuple[str, ast.expr]]) -> tuple[list[Found], list[Found]]:
        """Classes of River's and those of vLLM's that they inherit from, in order."""
        rivers: list[Found] = []
        vllms: list[Found] = []
        waiting = list(bases)
        while waiting:
            module, expression = waiting.pop(0)
            if not isinstance(expression, ast.Name):
                continue
            reader = self if module == self._module else _Reader(self._river, self._vllm, module)
            place = reader._names.get(expression.id, Place(module, expression.id))
            origin = self._river.origin(place)
            if origin is None:
                continue
            if _is_vllm(origin):
                found = self._vllm.find(origin)
                if found is not None and isinstance(found.node, ast.ClassDef):
                    vllms.append(found)
                continue
            found = self._river.find(origin)
            if found is not None and isinstance(found.node, ast.ClassDef) and found not in rivers:
                rivers.append(found)
                waiting += [(found.module, base) for base in found.node.bases]
        return rivers, vllms

    def _held(self, value: ast.expr, known: dict[str, Found]) -> Found | None:
        """The class of an expression of names and attributes, where vLLM says what it is."""
        if isinstance(value, ast.Name):
            return known.get(value.id)
        if not isinstance(value, ast.Attribute):
            return None
        owner = self._held(value.value, known)
        member = None if owner is None else self._vllm.member(owner, value.attr)
        return None if member is None else self._vllm.class_of(member)

    def _vllm_place(self, name: str) -> Place | None:
        place = self._names.get(name)
        origin = None if place is None else self._river.origin(place)
        return origin if origin is not None and _is_vllm(origin) else None

    def _attribute(self, place: Place, attribute: str, body: bool = False) -> Use:
        origin = self._vllm.origin(place)
        if origin is not None and origin.name is None:
            return self._use(Place(origin.module, attribute), None, body)
        return self._use(place, attribute, body)

    def _use(
        self, place: Place, member: str | None = None, body: bool = False, where: str | None = None
    ) -> Use:
        return Use(place, member, body, where or self._module)


def _is_vllm(place: Place) -> bool:
    return place.module == VLLM or place.module.startswith(f"{VLLM}.")


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target.id, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for part, value in zip(target.elts, node.value.elts, strict=False):
                if isinstance(part, ast.Name):
                    yield part.id, value


def _called(node: ast.Call) -> str | None:
    return node.func.id if isinstance(node.func, ast.Name) else None


def _class_name(found: Found) -> str:
    assert isinstance(found.node, ast.ClassDef)
    return found.node.name


def _methods(node: ast.AST) -> set[str]:
    lines = getattr(node, "body", [])
    return {line.name for line in lines if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef)}


def _own_names(node: ast.AST) -> set[str]:
    """Methods, annotated attributes, and what is set on ``self``."""
    found = _methods(node)
    for line in ast.walk(node):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found.add(line.target.id)
        if isinstance(line, ast.Attribute) and isinstance(line.ctx, ast.Store) and _on_self(line):
            found.add(line.attr)
    return found


def _read_from_self(node: ast.AST) -> set[str]:
    attributes = (line for line in ast.walk(node) if isinstance(line, ast.Attribute))
    return {a.attr for a in attributes if isinstance(a.ctx, ast.Load) and _on_self(a)}


def _super_calls(node: ast.AST) -> set[str]:
    attributes = (line for line in ast.walk(node) if isinstance(line, ast.Attribute))
    return {
        a.attr for a in attributes if isinstance(a.value, ast.Call) and _called(a.value) == "super"
    }


def _on_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"
