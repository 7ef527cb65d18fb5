"""River's part of the key under which vLLM keeps its compiled forwards.

vLLM puts ``additional_config`` into that key as a whole, unless it is an object with a hash of its
own (``config/vllm.py``, ``VllmConfig.compute_hash``). Most of River's settings change no trace:
decisions and 4-bit products are operators, which read settings when a step runs. This hash holds
the settings that change a trace, River's source, the version of torch and the CPU.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from river_vllm.config import CONFIG_KEY, RiverConfig, layered_config
from river_vllm.settings import Affects


class RiverAdditionalConfig(Mapping[str, Any]):
    """River's ``additional_config``, with a hash that only other compiled code changes.

    Args:
        settings: as the engine was given them; River's key is the only one.
        checkpoint: the checkpoint's own river settings, which ``settings`` override.
    """

    def __init__(self, settings: Mapping[str, Any], checkpoint: object = None) -> None:
        self._settings = dict(settings)
        self._checkpoint = checkpoint

    def __getitem__(self, key: str) -> Any:
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __bool__(self) -> bool:
        """True without settings too: vLLM leaves a falsy object out of its key."""
        return True

    def __repr__(self) -> str:
        return repr(self._settings)

    def compute_hash(self) -> str:
        """vLLM's ``SupportsHash``."""
        return graph_key(layered_config(self._checkpoint, self._settings.get(CONFIG_KEY)))


def graph_key(config: RiverConfig) -> str:
    """A hash of what River's compiled code depends on, beside the model."""
    parts = [config.what_affects(Affects.GRAPH), sources(), torch.__version__, machine()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def sources() -> str:
    """A hash of this package's Python files, through some of which a trace runs."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@cache
def machine() -> list[Any]:
    """CPU features on which the compiler and vLLM's choice of a CPU product depend."""
    asked = [name for name in dir(torch.cpu) if name.startswith("_is_")]
    return [
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        {name: bool(getattr(torch.cpu, name)()) for name in asked},
        _flags(),
    ]


def _flags() -> str:
    """The kernel's list of the CPU's instruction sets; empty where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
