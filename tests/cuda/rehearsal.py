"""CUDA graphs, rehearsed on CPU tensors: what a capture records, forbids, and replays.

A CUDA graph holds the kernels that a block launched, with their addresses. Python runs once, while
it is captured. So a replay repeats every operator on the same storages, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.compilation import cuda_graph
from vllm.platforms import current_platform

_BY_DATA = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)
_READS = (
    *(torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu),
    *(torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__),
    *(torch.Tensor.__index__, torch.Tensor.__array__),
)
_OF_PYTHON = ("vllm", "river")
"""Operators that are Python functions: a capture sees what they call, not them."""


class Uncapturable(Exception):
    """A CUDA graph cannot hold this: it needs the host, or sizes that depend on data."""


class Graph:
    """Plays ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        """Operators with their arguments, and the tensors that they made."""
        self._replayed: list[torch.Tensor] = []

    def replay(self) -> None:
        self._replayed.clear()
        for operator, args, kwargs, made in self.steps:
            again = [leaf for leaf in tree_leaves(operator(*args, **kwargs)) if _is_tensor(leaf)]
            # vLLM's attention on the CPU keeps addresses of its plan inside the plan.
            self._replayed += again
            for out, value in zip(made, again, strict=True):
                if out.data_ptr() != value.data_ptr():
                    out.copy_(value)


@contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    """Plays ``torch.cuda.graph``."""
    with _Reads(), _Operators(graph):
        yield


class _Operators(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        by_mask = func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default
        by_mask = by_mask and any(map(_is_mask, args[1]))
        repeats = func is torch.ops.aten.repeat_interleave.Tensor
        if func in _BY_DATA or by_mask or (repeats and kwargs.get("output_size") is None):
            raise Uncapturable(str(func))
        if func.namespace in _OF_PYTHON:
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if _is_tensor(leaf)]
        self._graph.steps.append((func, args, kwargs, made))
        return out


class _Reads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            raise Uncapturable(func.__name__)
        return func(*args, **kwargs or {})


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_mask(index: Any) -> bool:
    return _is_tensor(index) and index.dtype in (torch.bool, torch.uint8)


def rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's ``CUDAGraphWrapper`` captures and replays by this module."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cuda_graph, "current_stream", lambda: None)
    monkeypatch.setattr(cuda_graph, "capture_pool", lambda *_: nullcontext())
    monkeypatch.setattr(cuda_graph, "weak_ref_tensors", lambda tensors: tensors)
    monkeypatch.setattr(current_platform, "get_global_graph_pool", lambda: None, raising=False)
