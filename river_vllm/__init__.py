"""River: early exit for vLLM with one K/V cache and two precisions of the weights.

Importing this package imports neither torch nor vLLM. So vLLM can load the plugin in
every process at no cost, and the load-test client needs no GPU stack.
"""

from __future__ import annotations

from typing import Any

from river_vllm.config import RiverConfig

__version__ = "0.2.0"
__all__ = ["RiverConfig", "__version__", "engine_args", "register"]


def register() -> None:
    """Entry point of vLLM's ``general_plugins``; safe to call more than once."""
    from river_vllm.plugin import register_all

    register_all()


def engine_args(model: str, config: RiverConfig | None = None, **options: Any) -> dict[str, Any]:
    """Keyword arguments that make ``vllm.LLM(model, **engine_args(model))`` a River engine.

    Args:
        model: a Hugging Face id or a folder.
        config: River's settings; the defaults when omitted.
        options: further arguments of ``vllm.LLM``; ``hf_overrides`` and
            ``additional_config`` are merged with River's own.
    """
    from river_vllm.plugin import merge_engine_args

    return merge_engine_args(model, config or RiverConfig(), options)
