#!/usr/bin/env python3
"""List the files and classes of river_vllm that a decode step calls, for each kind of request.

    python tools/step_map.py [--compiled]

A random model of six layers runs a step of exact requests and a step of exits (two forced, one by
similarity), in an engine without drafts and in one with drafts. With drafts a step of verified
requests follows. A class counts if one of its own methods or its constructor is called. Resuming a
generator counts as a call.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.support.prompts import PROMPTS  # noqa: E402

KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "exact": ({"enabled": False},) * 2,
    "exit": (
        {"threshold": -1.0, "min_layers": 1},
        {"threshold": -1.0, "min_layers": 3},
        {"threshold": 0.75},
    ),
    "verified": ({"mode": "verified"},) * 2,
}
"""The ``river`` field of the requests of each step."""
BEFORE = 6
"""Steps before the profiled one: the prompts, and work that is done only once."""
INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
"""Parts of a function with frames of their own, most of them until Python 3.12."""


class StepMap:
    """A profile function (``sys.setprofile``) that counts the calls into one package.

    Args:
        package: the package's name.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self.files: Counter[str] = Counter()
        """Calls by module, in the order of the first ones."""
        self.classes: Counter[tuple[str, str]] = Counter()
        """Calls by module and name of a class, in the order of the first ones."""

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or frame.f_code.co_name in INLINE:
            return
        module, cls = str(frame.f_globals.get("__name__")), _defining_class(frame)
        if cls is not None and self._has(cls[0]):
            self.classes[cls] += 1
            self.files[module if self._has(module) else cls[0]] += 1
        elif self._has(module):
            self.files[module] += 1

    def _has(self, module: str) -> bool:
        return module.split(".")[0] == self._package

    def lines(self) -> list[str]:
        """One line per file, followed by its classes."""
        found = []
        for module, calls in self.files.items():
            found.append(f"{module:48}{calls:6}")
            own = (cls for cls in self.classes if cls[0] == module)
            found += [f"    {cls[1]:44}{self.classes[cls]:6}" for cls in own]
        return found


def _defining_class(frame: FrameType) -> tuple[str, str] | None:
    """Module and name of the class whose method is called; None for a function."""
    code = frame.f_code
    if "<locals>" not in code.co_qualname:
        name = code.co_qualname.rpartition(".")[0]
        return (str(frame.f_globals.get("__name__")), name) if name else None
    # A method made in a function: a dataclass's constructor, a class made at run time.
    first = code.co_varnames[0] if code.co_argcount else ""
    if first not in ("self", "cls", "_cls"):
        return None
    bound = frame.f_locals[first]
    cls = bound if isinstance(bound, type) else type(bound)
    return cls.__module__, cls.__qualname__


def look(engine: Any, settings: tuple[dict[str, Any], ...]) -> StepMap:
    """The calls of one decode step of requests with ``settings``."""
    from tests.support.engines import greedy

    llm = engine.llm_engine
    names = [str(index) for index in range(len(settings))]
    for name, prompt, river in zip(names, PROMPTS, settings, strict=False):
        llm.add_request(name, prompt, greedy(100, river))
    for _ in range(BEFORE):
        llm.step()
    found = StepMap("river_vllm")
    sys.setprofile(found)
    try:
        llm.step()
    finally:
        sys.setprofile(None)
    llm.abort_request(names)
    while llm.has_unfinished_requests():
        llm.step()
    return found


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiled", action="store_true", help="with vLLM's compilation on")
    options = parser.parse_args()
    # The profile covers this process only. vLLM reads all of these variables at import.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from river_vllm import RiverConfig
    from tests.support.checkpoints import tiny_qwen2
    from tests.support.engines import river_engine

    engines = {
        "engine without drafts": RiverConfig(verify=0, scope="token", max_rows="all"),
        "engine with drafts": RiverConfig(verify=4, draft="fixed", scope="token", max_rows="all"),
    }
    found: dict[str, StepMap] = {}
    with tempfile.TemporaryDirectory() as work:
        model = tiny_qwen2(Path(work, "tiny"))
        for label, config in engines.items():
            engine = river_engine(model, config, enforce_eager=not options.compiled)
            for kind, settings in KINDS.items():
                if config.verify or kind != "verified":
                    found[f"{kind} step, {label}"] = look(engine, settings)
            del engine
    for step, calls in found.items():
        print(f"{step}\n\n" + "\n".join(calls.lines()) + "\n")
    for step, calls in found.items():
        print(f"{step}: {len(calls.files)} files, {len(calls.classes)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
