#!/usr/bin/env python3
"""List the files and classes of river_vllm that one decode step goes through, with their calls.

    python tools/step_map.py [--compiled]

The step has an exact row, two that leave after fixed layers and one that leaves where its
similarity is above a threshold, on a random model of six layers. A class counts where a method
that it defines itself is called, or its constructor. Each time that a generator goes on is a call.
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

SETTINGS: tuple[dict[str, Any], ...] = (
    {"enabled": False},
    {"threshold": -1.0, "min_layers": 1},
    {"threshold": -1.0, "min_layers": 3},
    {"threshold": 0.75},
)
BEFORE = 6
"""Steps before the one that is looked at: the prompts, and what is done only once."""
INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
"""Parts of a function that have frames of their own, most of them until Python 3.12."""


class StepMap:
    """A profile function (``sys.setprofile``) that counts the calls into one package.

    Args:
        package: its name.
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
        """One for each file, its classes below it."""
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
    # A function has made the method: a constructor of a dataclass, a class made at run time.
    first = code.co_varnames[0] if code.co_argcount else ""
    if first not in ("self", "cls", "_cls"):
        return None
    bound = frame.f_locals[first]
    cls = bound if isinstance(bound, type) else type(bound)
    return cls.__module__, cls.__qualname__


def look(engine: Any) -> tuple[StepMap, int, list[int]]:
    """One step: who was called, how often the model ran, and each row's exit layer."""
    from vllm import SamplingParams

    from river_vllm.depths import trace

    llm = engine.llm_engine
    passes: list[None] = []
    engine.apply_model(
        lambda model: model.register_forward_pre_hook(lambda *_: passes.append(None))
    )
    for index, river in enumerate(SETTINGS):
        params = SamplingParams(
            max_tokens=BEFORE + 4, ignore_eos=True, temperature=0.0, extra_args={"river": river}
        )
        llm.add_request(str(index), PROMPTS[index], params)
    for _ in range(BEFORE):
        llm.step()
    found = StepMap("river_vllm")
    passes.clear()
    sys.setprofile(found)
    try:
        llm.step()
    finally:
        sys.setprofile(None)
    count, layers = len(passes), {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            if output.finished:
                layers[output.request_id] = trace(output.outputs[0].routed_experts)[BEFORE]
    return found, count, [layers[request] for request in sorted(layers)]


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiled", action="store_true", help="with vLLM's compilation on")
    options = parser.parse_args()
    # The profile is of this process alone. vLLM reads all of them at import.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from tests.support.checkpoints import tiny_qwen2
    from tests.support.engines import river_engine

    with tempfile.TemporaryDirectory() as work:
        model = tiny_qwen2(Path(work, "tiny"))
        found, passes, layers = look(river_engine(model, enforce_eager=not options.compiled))
    print(f"one step, exit layers {', '.join(map(str, layers))}\n")
    print("\n".join(found.lines()))
    print(f"\n{len(found.files)} files, {len(found.classes)} classes, {passes} passes of the model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
