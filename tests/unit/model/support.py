"""Small decoder layers out of vLLM's own linears; their attention computes nothing."""

from __future__ import annotations

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
    """``hidden + residual`` through one projection, in vLLM's calling convention."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.attn = NoAttention()
        self.proj = linear(width, width, seed=seed)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden_states if residual is None else hidden_states + residual
        out, _ = self.proj(residual)
        return out, residual


class Model(nn.Module):
    """Layers in vLLM's order, ``num_layers`` of them."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, seed) for seed in range(num_layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = None
        positions = torch.arange(len(hidden))
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        assert residual is not None
        return hidden + residual
