"""The parts of vLLM's configuration that River replaces: the key of compiled forwards, and drafts.

vLLM puts ``additional_config`` into the key under which it keeps compiled forwards as a whole,
unless it is an object with a hash of its own (``config/vllm.py``, ``VllmConfig.compute_hash``).
Most of River's settings change no trace: decisions and 4-bit products are operators, which read
settings when a step runs. ``graph_key`` holds the settings that change a trace, River's source, the
version of torch and the CPU.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import UserDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from river_vllm.compat import SpeculativeConfig, VllmConfig, current_platform
from river_vllm.config import CONFIG_KEY, Affects, RiverConfig, layered_config
from river_vllm.errors import UnsupportedModelError
from river_vllm.host import cpu_info


class RiverAdditionalConfig(UserDict[str, Any]):
    """River's ``additional_config``, with a hash that only other compiled code changes.

    Args:
        settings: as the engine was given them; River's key is the only one.
        checkpoint: the checkpoint's own river settings, which ``settings`` override.
    """

    def __init__(self, settings: Mapping[str, Any], checkpoint: object = None) -> None:
        super().__init__(settings)
        self._checkpoint = checkpoint

    def __bool__(self) -> bool:
        """True without settings too: vLLM leaves a falsy object out of its key."""
        return True

    def compute_hash(self) -> str:
        """vLLM's ``SupportsHash``."""
        return graph_key(layered_config(self._checkpoint, self.get(CONFIG_KEY)))


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
        next((line for line in cpu_info() if line.startswith(("flags", "Features"))), ""),
    ]


class RiverSpeculativeConfig(SpeculativeConfig):
    """River's configuration of drafts, told by its type from a user's."""

    def compute_hash(self) -> str:
        """The hash of no speculation (``VllmConfig.compute_hash``). Drafts do not change the
        target's forward, so engines with and without them share compiled forwards."""
        return "None"

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """0: drafts run in passes of their own, and take no rows of vLLM's batch from prompts."""
        return 0


def speculate(vllm_config: VllmConfig, tokens: int) -> None:
    """Have vLLM allocate look-ahead slots, verify drafts and count them.

    The method ``draft_model`` does all three, here with the target model as its own draft model.
    ``engine/worker.py`` has River's drafter made; vLLM's would load a second model. vLLM's
    asynchronous scheduling is switched off: it needs equally many drafts for every request, on the
    device, before the host knows any.

    Args:
        tokens: the most that may be drafted for one pass of the backbone.

    Raises:
        UnsupportedModelError: asynchronous scheduling is asked for.
    """
    if isinstance(vllm_config.speculative_config, RiverSpeculativeConfig):
        return  # vLLM validates a configuration again when it copies it
    if vllm_config.scheduler_config.async_scheduling:
        raise UnsupportedModelError(
            "River cannot be combined with asynchronous scheduling where it verifies drafts (leave "
            "out --async-scheduling, or --river-verify 0)",
            cure="",
        )
    if not current_platform.is_cpu():
        # On the CPU vLLM turns it off itself, after it has derived other settings from it, which
        # are in the key of its compiled forwards.
        vllm_config.scheduler_config.async_scheduling = False
    model = vllm_config.model_config
    # The method ``ngram`` makes the target its own draft model. With ``draft_model`` vLLM would
    # read the checkpoint again as a drafter's: that of MiMo becomes its MTP layers.
    made = RiverSpeculativeConfig(
        method="ngram",
        num_speculative_tokens=tokens,
        draft_sample_method="probabilistic",
        target_model_config=model,
        target_parallel_config=vllm_config.parallel_config,
    )
    made.method, made.model = "draft_model", model.model
    vllm_config.speculative_config = made
