"""Norms and rotary embedding by vLLM's own C++ operators in uncompiled steps.

On the CPU vLLM leaves these to the compiler: uncompiled, each is a handful of torch calls. A step
whose rows may all leave the backbone is uncompiled and promises nobody stock vLLM's bits, so it
takes the C++ operators that vLLM ships as well (``vllm/_custom_ops.py``); docs/experiments.md has
their times, and why the activation is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from river_vllm.compat import Attention, RMSNorm, RotaryEmbedding, current_platform
from river_vllm.router.plan import RowPlan

_LANES = 8
"""bfloat16 values that vLLM's CPU operators read and write at a time (``cpu_types_x86.hpp``)."""


def use_eager_ops(model: nn.Module, plan: RowPlan) -> None:
    """Let the model's small operators ask ``plan`` how to run; a no-op off the CPU."""
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        fast = _fast(module)
        if fast is not None:
            module._forward_method = partial(_choose, plan, fast, module._forward_method)


class DirectAttention:
    """Attention without the custom-op dispatch that only compilation needs.

    vLLM wraps the K/V write and the attention of each layer in two registered operators, opaque to
    the compiler. An uncompiled step can call what is inside them.

    Args:
        layers: the model's decoder layers.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        found = [m for layer in layers for m in layer.modules() if isinstance(m, Attention)]
        self._switches = [module.__dict__ for module in found]

    def __enter__(self) -> None:
        self._set(True)

    def __exit__(self, *_: object) -> None:
        self._set(False)

    def _set(self, direct: bool) -> None:
        if current_platform.is_cpu():
            for switch in self._switches:
                switch["use_direct_call"] = direct


def _choose(
    plan: RowPlan, fast: Callable[..., Any], stock: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    return fast(*args, **kwargs) if plan.free else stock(*args, **kwargs)


def _fast(module: nn.Module) -> Callable[..., Any] | None:
    if type(module) is RMSNorm and module.has_weight and module.variance_size_override is None:
        return partial(_rms_norm, module)
    if isinstance(module, RotaryEmbedding):
        overridden = type(module).forward_native is not RotaryEmbedding.forward_native
        # The operator writes halves in whole vectors, past the end of a half of another width.
        whole = module.rotary_dim % (2 * _LANES) == 0
        return partial(_rotary, module) if whole and not overridden else None
    return None


def _rms_norm(module: Any, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
    weight, eps = module.weight.data, module.variance_epsilon
    if residual is None:
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, eps)
        return out
    torch.ops._C.fused_add_rms_norm(x, residual, weight, eps)
    return x, residual


def _rotary(
    module: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    cache = module._match_cos_sin_cache_dtype(query)
    torch.ops._C.rotary_embedding(
        positions, query, key, module.head_size, cache, module.is_neox_style
    )
    return query, key
