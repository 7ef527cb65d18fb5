"""How long each stage of a start takes: as in the last start of the model on this machine, else by
a table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from river_vllm.folders import write_whole
from river_vllm.startup import Stage


@dataclass(frozen=True)
class About:
    """A stage: what the user reads, and about what it takes.

    Attributes:
        seconds: for any model.
        per_gib: seconds more for each GiB of the checkpoint.
        once: the first start of a model leaves what later ones read.
    """

    words: str
    seconds: float
    per_gib: float = 0.0
    once: bool = False


STAGES = {
    Stage.IMPORT: About("importing vLLM and reading the configuration", 12),
    Stage.ENGINE: About("starting vLLM's engine", 15),
    Stage.WEIGHTS: About("loading the weights", 3, 3),
    Stage.QUANTIZE: About("making the 4-bit weights (once)", 3, 25, once=True),
    Stage.GRAPH: About("reading the compiled model", 5, 3),
    Stage.COMPILE: About("compiling the model for exact steps (once)", 60, 30, once=True),
    Stage.COMPILE_RIVER: About("compiling the model for steps that exit (once)", 20, 3, once=True),
    Stage.MEASURE: About("measuring what a step costs", 3, 8),
    Stage.SERVE: About("starting the HTTP server", 8),
}
"""In their order. ``seconds`` from starts of SmolLM2 135M on one core of an Intel Xeon with AMX
(docs/experiments.md), rounded; what a larger checkpoint adds is an estimate."""

COMPILING = (Stage.GRAPH, Stage.COMPILE, Stage.COMPILE_RIVER)
GIB = 1 << 30
USUAL_BYTES = 2 * GIB
"""A checkpoint whose size is not known: it may have to be fetched first."""


@dataclass
class StageTimes:
    """What to expect of a start.

    Attributes:
        last: seconds by stage of the last start; empty if there was none.
        checkpoint_bytes: size of the model's weights.
        compiles: whether the model will be compiled.
    """

    last: Mapping[str, float] = field(default_factory=dict)
    checkpoint_bytes: int = USUAL_BYTES
    compiles: bool = True

    def of(self, stage: Stage) -> float:
        """Seconds of ``stage`` when it is run."""
        about = STAGES[stage]
        return self.last.get(stage, about.seconds + about.per_gib * self.checkpoint_bytes / GIB)

    def ahead(self, stage: Stage) -> float:
        """Seconds to expect of ``stage`` before it is known whether it will be run."""
        done = bool(self.last) and STAGES[stage].once
        without = not self.compiles and stage in COMPILING
        return 0.0 if done or without else self.of(stage)

    def remaining(self, stage: Stage, elapsed: float) -> float:
        """Seconds until the server is ready, ``elapsed`` seconds into ``stage``."""
        order = list(STAGES)
        later = order[order.index(stage) + 1 :]
        return max(0.0, self.of(stage) - elapsed) + sum(map(self.ahead, later))


def weight_bytes(model: str) -> int:
    """Size of the checkpoint in a folder, ``USUAL_BYTES`` for a hub id."""
    files = [*Path(model).glob("*.safetensors"), *Path(model).glob("*.bin")]
    total = 0
    for file in files:
        # A hub's cache may hold links to files that are not there.
        with suppress(OSError):
            total += file.stat().st_size
    return total or USUAL_BYTES


class StartRecord:
    """The stage times of a model's last start on this machine, in River's cache folder.

    Args:
        folder: of the cache.
        model: folder or hub id.
    """

    def __init__(self, folder: Path, model: str) -> None:
        # Path.is_dir raises where a folder on the way may not be entered.
        where = Path(model).resolve() if os.path.isdir(model) else model  # noqa: PTH112
        parts = [str(where), platform.node(), platform.machine(), str(os.cpu_count())]
        name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        self._path = folder / "starts" / f"{name}.json"

    def read(self) -> dict[str, float]:
        """Seconds by stage; empty where there is no record, or none that can be read."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(Stage(stage)): float(seconds) for stage, seconds in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, seconds: Mapping[str, float]) -> None:
        """Keep ``seconds`` beside those of stages that this start did without; a folder that
        refuses is no reason to say anything."""
        with suppress(OSError):
            write_whole(self._path, json.dumps({**self.read(), **seconds}).encode())
