"""A second compiled forward of the model, for the steps in which a row may leave.

vLLM's own compiled forward cannot branch on data, and its fusions decide its rounding. Steps that
need stock vLLM's bits keep it. Here the same decorator compiles the same modules once more.
Decisions between layers and projections are opaque operators there, so one graph serves every step.

The compiler orders operators by their data alone. A decision reads the previous layer's output, so
it runs after that layer's projections. It returns the hidden states for its own layer, so that
layer's projections run after it. No operator is told its layer: the decisions of a pass count the
layers. Layers with equal graphs are compiled once for all of them.
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
    CUDAGraphMode,
    VllmConfig,
    current_platform,
    direct_register_custom_op,
    get_forward_context,
    support_torch_compile,
)
from river_vllm.errors import UnsupportedModelError
from river_vllm.step.table import Current

CONTEXT = "river"
"""Key of the model's river among the attention layers of vLLM's forward context."""

_LIBRARY = torch.library.Library("river", "FRAGMENT")


def _route(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    get_forward_context().no_compile_layers[CONTEXT].route_next(hidden, residual)
    # An operator may not return its argument.
    return hidden.clone()


def _linear(x: torch.Tensor, index: int, out_features: int, biased: bool) -> torch.Tensor:
    return get_forward_context().no_compile_layers[CONTEXT].linear(index, x, biased)


_register = functools.partial(
    direct_register_custom_op, target_lib=_LIBRARY, tags=(torch.Tag.needs_fixed_stride_order,)
)
_register("route", _route, fake_impl=lambda hidden, residual: torch.empty_like(hidden))
_register(
    "linear",
    _linear,
    fake_impl=lambda x, index, out_features, biased: x.new_empty(*x.shape[:-1], out_features),
)


class RoutedForward:
    """Runs the model's inner forward in a step that may route rows: compiled, where vLLM compiles.

    ``current`` is told while the second compiled forward runs or is traced. With ``always`` no pass
    needs stock vLLM's compiled forward.
    """

    def __init__(
        self,
        current: Current,
        model: nn.Module,
        layers: Sequence[nn.Module],
        vllm_config: VllmConfig,
        always: bool = False,
    ) -> None:
        self._current = current
        self.layer = -1
        """The decoder layer that a compiled pass is in; -1 before the first."""
        self._layers = layers
        inner = _compiled_module(model, layers)
        self.within_compiled = inner is not None
        """Whether vLLM compiles a forward that holds the layers."""
        # If vLLM compiles the whole model, routed passes run uncompiled. So they do on a GPU, where
        # vLLM cuts a graph into pieces and captures each.
        whole = inner is model
        self.compiles = self.within_compiled and not whole and current_platform.is_cpu()
        """Whether there is a second compiled forward."""
        self.always = always and self.compiles
        """Whether it takes the place of vLLM's own, in every pass."""
        if always and whole:
            raise UnsupportedModelError(
                "a 4-bit checkpoint of a model that vLLM compiles as a whole (use --enforce-eager)",
                cure="",
            )
        if self.compiles:
            self._graph = _graph(inner, vllm_config)
            patches.calls_pass_through(inner, self._chosen)
            current.routed = self.always

    def __call__(self) -> AbstractContextManager[Any]:
        """The context for a forward pass that may route rows, inside its forward context of vLLM's.

        Without a second compiled forward, nothing compiled and no captured graph runs in it: both
        were made without decisions, and would leave them out without a word.
        """
        stack = ExitStack()
        if self.compiles:
            self._current.routed = True
            stack.callback(setattr, self._current, "routed", self.always)
            return stack
        context = get_forward_context()
        # Switches of ``compilation/decorators.py`` and ``compilation/cuda_graph.py``.
        switches = {"skip_compiled": True, "cudagraph_runtime_mode": CUDAGraphMode.NONE}
        for name, value in switches.items():
            stack.callback(setattr, context, name, getattr(context, name))
            setattr(context, name, value)
        return stack

    @contextmanager
    def one_layer_for_all(self) -> Iterator[None]:
        """Inside, a pass that compiles treats equal layers once for all of them."""
        with (
            patches.layers_are_regions(self._layers),
            patches.a_written_argument_may_be_none(),
            patches.a_region_takes_any_name(),
        ):
            yield

    def forget(self) -> None:
        """Discard a compiled forward that fails: the next pass and later starts compile anew."""
        graph: Any = self._graph
        graph.aot_compiled_fn = None
        # vLLM has saved it, unless the compiler itself failed.
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
    """A separate module that compiles the forward of ``inner``."""
    base = type(inner)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self.inner[0], *args, **kwargs)

    def __init__(self: Any, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        # In a tuple: the inner module is no part of this one.
        self.inner = (inner,)

    # The name is part of the key under which vLLM keeps the compiled forward.
    forward.__qualname__ = f"River{base.__qualname__}.forward"
    cls = type(f"River{base.__name__}", (nn.Module,), {"__init__": __init__, "forward": forward})
    decorated = support_torch_compile(dynamic_arg_dims=inner._dynamic_arg_dims)(cls)
    graph: nn.Module = decorated(vllm_config=vllm_config)
    return graph
