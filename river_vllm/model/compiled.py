"""A second compiled forward of the model, for the steps in which a row may leave.

vLLM's own compiled forward cannot branch on data, and what it fuses decides what it rounds; the
steps that must have stock vLLM's bits keep it as it is. Here the same modules are compiled once
more by the same decorator. A decision between layers and a projection are operators there, which
the compiler cannot look into: one graph serves every step, whoever leaves in it and where.

The compiler orders operators by their data alone. A decision looks at what the layer before it
made, so it comes after that layer's projections; it hands the hidden states on to its own layer, so
that layer's projections come after it. So neither has to be told its layer: the decisions of a pass
count them. Layers whose graphs are the same are compiled once for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from river_vllm import patches
from river_vllm.compat import (
    VllmConfig,
    direct_register_custom_op,
    get_forward_context,
    support_torch_compile,
)
from river_vllm.model.passes import Current

CONTEXT = "river"
"""Where vLLM's forward context finds the model's river, among its attention layers."""

_LIBRARY = torch.library.Library("river", "FRAGMENT")


def _route(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    get_forward_context().no_compile_layers[CONTEXT].route_next(hidden, residual)
    # An operator may not return what it was given.
    return hidden.clone()


def _route_fake(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
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


class RoutedForward:
    """Runs the model's inner forward in a step that may route rows: compiled, where vLLM compiles.

    Args:
        current: told while the second compiled forward runs or is traced.
        model: the whole model; the module that vLLM compiles gets a subclass that chooses.
        layers: the decoder layers.
    """

    def __init__(
        self,
        current: Current,
        model: nn.Module,
        layers: Sequence[nn.Module],
        vllm_config: VllmConfig,
    ) -> None:
        self._current = current
        self.layer = -1
        """The decoder layer that a compiled pass is in; -1 before the first."""
        self._layers = layers
        inner = _compiled_module(model, layers)
        self.within_compiled = inner is not None
        """Whether vLLM compiles a forward that holds the layers."""
        # Where the whole model is what vLLM compiles, routed steps run as they are written.
        self._skips = inner is model
        self.compiles = self.within_compiled and not self._skips
        """Whether there is a second compiled forward."""
        if self.compiles:
            self._graph = _graph(inner, vllm_config)
            patches.calls_pass_through(inner, self._chosen)

    def __call__(self) -> AbstractContextManager[Any]:
        """Around a forward pass that may route rows."""
        stack = ExitStack()
        if self.compiles:
            self._current.routed = True
            stack.callback(setattr, self._current, "routed", False)
        elif self._skips:
            stack.enter_context(_skipping_compiled())
        return stack

    @contextmanager
    def one_layer_for_all(self) -> Iterator[None]:
        """Around a pass that compiles: layers that are alike are compiled once for all of them."""
        with (
            patches.layers_are_regions(self._layers),
            patches.a_written_argument_may_be_none(),
            patches.a_region_takes_any_name(),
        ):
            yield

    def forget(self) -> None:
        """What was compiled fails: the next pass compiles anew, and no other start reads it."""
        graph: Any = self._graph
        graph.aot_compiled_fn = None
        # Where vLLM has saved it, and it was not the compiler that failed.
        if saved := getattr(graph, "_aot_compilation_path", None):
            Path(saved).unlink(missing_ok=True)

    def _chosen(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._current.routed:
            return own(*args, **kwargs)
        self.layer = -1
        return self._graph(*args, **kwargs)


def _compiled_module(model: nn.Module, layers: Sequence[nn.Module]) -> nn.Module | None:
    """The module whose forward vLLM compiles and that holds the decoder layers, if it does."""
    wanted = {id(layer) for layer in layers}
    for module in model.modules():
        if getattr(module, "do_not_compile", True):
            continue
        if wanted <= {id(part) for part in module.modules()}:
            return module
    return None


def _graph(inner: Any, vllm_config: VllmConfig) -> nn.Module:
    """A module of its own whose compiled forward is that of ``inner``."""
    base = type(inner)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self.inner[0], *args, **kwargs)

    def __init__(self: Any, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        # In a tuple: the inner module is no part of this one.
        self.inner = (inner,)

    # The name is part of the key under which vLLM keeps what it has compiled.
    forward.__qualname__ = f"River{base.__qualname__}.forward"
    cls = type(f"River{base.__name__}", (nn.Module,), {"__init__": __init__, "forward": forward})
    decorated = support_torch_compile(dynamic_arg_dims=inner._dynamic_arg_dims)(cls)
    graph: nn.Module = decorated(vllm_config=vllm_config)
    return graph


@contextmanager
def _skipping_compiled() -> Iterator[None]:
    """Inside, the model runs as it is written (a switch of ``compilation/decorators.py``)."""
    context = get_forward_context()
    before, context.skip_compiled = context.skip_compiled, True
    try:
        yield
    finally:
        context.skip_compiled = before
