"""River's two actions as operators, opaque to vLLM's compiler.

vLLM compiles a model's forward once, as a whole, and drops the guards: a branch on data is an
error, or is frozen at warm-up. Behind an operator it is neither. So one compiled forward, with
stock vLLM's fused norms and activations, serves every step, whoever leaves in it and where.

The compiler orders operators by their data alone. A decision looks at what the layer before it
made, so it comes after that layer's projections; it hands the hidden states on to its own layer, so
that layer's projections come after it.
"""

from __future__ import annotations

import torch

from river_vllm.compat import direct_register_custom_op, get_forward_context

CONTEXT = "river"
"""Where vLLM's forward context finds the model's river, among its attention layers."""

_LIBRARY = torch.library.Library("river", "FRAGMENT")


def _route(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> torch.Tensor:
    get_forward_context().no_compile_layers[CONTEXT].route(layer, hidden, residual)
    # An operator may not return what it was given.
    return hidden.clone()


def _route_fake(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> torch.Tensor:
    return torch.empty_like(hidden)


def _linear(x: torch.Tensor, index: int, out_features: int, biased: bool) -> torch.Tensor:
    out: torch.Tensor = get_forward_context().no_compile_layers[CONTEXT].linear(index, x, biased)
    return out


def _linear_fake(x: torch.Tensor, index: int, out_features: int, biased: bool) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_STRIDES = (torch.Tag.needs_fixed_stride_order,)
direct_register_custom_op(
    "route", _route, fake_impl=_route_fake, target_lib=_LIBRARY, tags=_STRIDES
)
direct_register_custom_op(
    "linear", _linear, fake_impl=_linear_fake, target_lib=_LIBRARY, tags=_STRIDES
)
