"""vLLM engines for tests: the scheduler in this process, so that every step is reproducible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import river_vllm
from river_vllm import RiverConfig, engine_args
from river_vllm.config import PREFIX
from river_vllm.modes.exit import ExitMode
from tests.support import kv

COMMON: dict[str, Any] = {
    "max_model_len": 512,
    "block_size": 32,
    "max_num_seqs": 16,
    # All of it is written at the start, and a process keeps dozens of engines. SmolLM2's blocks for
    # 16 requests of 170 tokens each.
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
    "enforce_eager": True,
    "disable_log_stats": True,
}
"""The same settings for stock vLLM and for River."""

THINKING: dict[str, Any] = {
    "reasoning_config": {"reasoning_start_str": " the", "reasoning_end_str": "."}
}
"""Thoughts that small models have; only requests with ``thinking_token_budget`` look at them."""


@dataclass(frozen=True)
class Generated:
    """One request's answer."""

    tokens: list[int]
    text: str
    exit_layers: list[int]
    """One per token; the first comes out of the prefill. Empty from stock vLLM."""
    decode_tokens: int
    logprobs: list[dict[int, float]]


@contextmanager
def registry_restored() -> Iterator[None]:
    """Afterwards vLLM's registry is as it was, so that ``inspect_here`` has no effect outside."""
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # once in a process: what it registers is to be there afterwards
    registered = dict(ModelRegistry.models)
    yield
    ModelRegistry.models.clear()
    ModelRegistry.models.update(registered)


def inspect_here(architecture: str) -> None:
    """vLLM looks at a class in a process of its own, unless it is registered as a class."""
    from vllm.model_executor.models.registry import ModelRegistry

    river_vllm.register()
    for name in (architecture, PREFIX + architecture):
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


_ALIVE: list[Any] = []
"""An engine that ends takes the process's distributed groups with it: they live to the end."""


def _engine(model: Path, options: dict[str, Any]) -> Any:
    from vllm import LLM
    from vllm.model_executor.layers import rotary_embedding

    # vLLM keeps rotary tables for the process, those on the meta device too: an engine that takes
    # no pictures leaves its encoder's there.
    rotary_embedding._ROPE_DICT.clear()
    made = LLM(str(model), **options)
    _ALIVE.append(made)
    return made


def end(engine: Any) -> None:
    """End an engine whose workers are processes of their own: they wait in a loop."""
    _ALIVE.remove(engine)
    engine.llm_engine.engine_core.shutdown()


def stock_engine(model: Path, **options: Any) -> Any:
    return _engine(model, {**COMMON, **options})


def river_engine(model: Path, config: RiverConfig | None = None, **options: Any) -> Any:
    """Tokens leave on their own similarity alone unless ``config`` says otherwise: what pays
    depends on the machine."""
    config = config or RiverConfig(scope="token", max_rows="all")
    return _engine(model, engine_args(str(model), config, **{**COMMON, **options}))


def greedy(tokens: int = 64, river: dict[str, Any] | None = None, **options: Any) -> Any:
    """Greedy sampling parameters; ``river`` as a request would bring it."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=tokens,
        ignore_eos=True,
        extra_args=None if river is None else {"river": river},
        **{"temperature": 0.0, **options},
    )


def generate(engine: Any, prompts: Sequence[Any], params: Any) -> list[Generated]:
    """Run ``prompts`` as one batch; all requests are queued before the first step."""
    outputs = engine.generate(list(prompts), params, use_tqdm=False)
    return [generated(output.outputs[0]) for output in outputs]


def generate_alone(engine: Any, prompts: Sequence[Any], params: Any) -> list[Generated]:
    """Run each prompt in a batch of its own."""
    return [generate(engine, [prompt], params)[0] for prompt in prompts]


def run_with_kv(
    engine: Any, tokens: int, prompts: list[list[int]], params: list[Any]
) -> list[dict[str, Any]]:
    """Step the engine to the last of ``tokens`` of every request and read its K/V while it is
    alive: ``params`` must allow for more."""
    core = engine.llm_engine.engine_core.engine_core
    llm = engine.llm_engine
    for index, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
        llm.add_request(f"kv-{index}", {"prompt_token_ids": prompt}, param)
    while any(r.num_output_tokens < tokens for r in core.scheduler.requests.values()):
        llm.step()
    found = []
    for request in sorted(core.scheduler.requests.values(), key=lambda r: r.request_id):
        (blocks,) = core.scheduler.kv_cache_manager.get_block_ids(request.request_id)
        k, v = engine.collective_rpc(kv.read, args=(list(blocks),))[0]
        found.append(
            {
                "tokens": list(request.all_token_ids),
                "written": request.num_tokens - 1,
                "k": k,
                "v": v,
            }
        )
    llm.abort_request([f"kv-{i}" for i in range(len(prompts))])
    while llm.has_unfinished_requests():
        llm.step()
    return found


def generated(choice: Any) -> Generated:
    """One of vLLM's ``CompletionOutput``."""
    depths = choice.routed_experts
    depths = np.empty(0, dtype=np.int16) if depths is None else depths
    return Generated(
        list(choice.token_ids),
        choice.text,
        ExitMode().trace(depths),
        int((depths > 0).sum()),
        [{token: entry.logprob for token, entry in step.items()} for step in choice.logprobs or ()],
    )
