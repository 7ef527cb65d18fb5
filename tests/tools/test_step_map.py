"""Which files and classes of a package are called."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tools.step_map import StepMap

SHAPES = """
from dataclasses import dataclass

from mapped.base import Base, made

@dataclass
class Point:
    x: int

    @property
    def doubled(self):
        return 2 * self.x

class Derived(Base):
    pass

class Silent:
    pass

def run():
    point = Point(3)
    Derived().method()
    made().method()
    Silent()
    return [point.doubled + i for i in range(4)]
"""
BASE = """
class Base:
    def method(self):
        return sum(self.numbers())

    def numbers(self):
        yield 1

def made():
    def method(self):
        return 0
    return type("Made", (), {"method": method, "__module__": __name__})()
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepMap:
    """Of a call of ``mapped.shapes.run``."""
    package = tmp_path / "mapped"
    package.mkdir()
    for name, text in (("__init__", ""), ("shapes", SHAPES), ("base", BASE), ("unused", "")):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    shapes = importlib.import_module("mapped.shapes")
    step_map, before = StepMap("mapped"), sys.getprofile()
    sys.setprofile(step_map)
    try:
        shapes.run()
    finally:
        sys.setprofile(before)
        for name in [name for name in sys.modules if name.split(".")[0] == "mapped"]:
            del sys.modules[name]
    return step_map


def test_files_and_classes_in_the_order_of_their_first_calls(found: StepMap) -> None:
    """A constructor that was generated counts; a class that only inherits does not.

    shapes: run, the constructor and four times the property. base: two methods, a generator that
    goes on once, made, the method that it has made.
    """
    assert [line.split() for line in found.lines()] == [
        *(["mapped.shapes", "6"], ["Point", "5"]),
        *(["mapped.base", "5"], ["Base", "3"], ["Made", "1"]),
    ]
