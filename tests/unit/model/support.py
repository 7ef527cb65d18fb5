"""Small decoder layers out of vLLM's own linears, which compute nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ReplicatedLinear


class NoAttention(Attention):
    """Has the type that River looks for, and none of its state."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def linear(k: int, n: int, bias: bool = False, seed: int = 0) -> ReplicatedLinear:
    """A bf16 linear of vLLM's with random weights, not yet processed."""
    module = ReplicatedLinear(k, n, bias=bias, params_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.weight.copy_(torch.randn(n, k, generator=generator) * 0.1)
        if bias:
            module.bias.copy_(torch.randn(n, generator=generator))
    return module


class Layer(nn.Module):
    """One projection beside its attention, in vLLM's calling convention."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.attn = NoAttention()
        self.proj = linear(width, width, seed=seed)

    def forward(self, positions: Any, hidden_states: Any, residual: Any) -> Any: ...


class Model(nn.Module):
    """``num_layers`` of them."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, seed) for seed in range(num_layers))
