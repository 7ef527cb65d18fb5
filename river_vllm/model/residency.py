"""Backbone offloading: which decoder layers hold bf16 weights beside their 4-bit ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from river_vllm.compat import LinearBase
from river_vllm.config import RiverConfig
from river_vllm.model.linear import RiverLinearMethod

FETCHED = 2
"""Layers beyond the resident ones whose weights stay after they were read."""

Tensors = Iterable[tuple[str, torch.Tensor]]


class Residency:
    """Drops bf16 weights of layers that tokens hardly ever reach, and reads them again if asked to.

    Args:
        layers: the projections of each decoder layer.
        config: how many stay, and what happens beyond them.
        load: gives vLLM's model tensors of the checkpoint to load.
        read: the tensors of a layer, where layers are fetched.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[LinearBase]],
        config: RiverConfig,
        load: Callable[[Tensors], object],
        read: Callable[[int], Tensors] | None = None,
    ) -> None:
        self.num_layers = len(layers)
        self._layers = layers
        self._load = load
        self._read = read
        self._fetches = config.deep == "fetch"
        self._fetched: OrderedDict[int, None] = OrderedDict()
        self._fetch_count = 0
        self.offloads = config.offloads(len(layers))
        """Whether some layers may be without backbone weights."""
        self.resident = len(layers)
        """Leading layers that hold their backbone weights."""
        if isinstance(config.resident_layers, int):
            self.resident = config.resident_layers

    @property
    def limit(self) -> int:
        """Backbone layers after which every row of a step leaves. Warm-up and dummy runs leave
        after the ``resident`` ones: they fetch nothing."""
        return self.num_layers if self._fetches else self.resident

    def need(self, index: int) -> None:
        """Read the backbone weights of layer ``index``, unless they are in memory.

        Raises:
            RuntimeError: tokens should have left before this layer.
        """
        if index < self.resident:
            return
        if index in self._fetched:
            self._fetched.move_to_end(index)
            return
        while len(self._fetched) >= FETCHED:
            oldest, _ = self._fetched.popitem(last=False)
            self._drop(oldest)
        self._fetch(index)
        self._fetched[index] = None

    def info(self) -> dict[str, Any]:
        """The settings and memory in use, for operators."""
        methods = [_method(linear) for layer in self._layers for linear in layer]
        return {
            "resident_layers": self.resident,
            "backbone_bytes": sum(m.backbone_nbytes for m in methods if m.has_backbone),
            "deep": "fetch" if self._fetches else "exit",
            "fetched_layers": sorted(self._fetched),
            "fetches": self._fetch_count,
        }

    def _fetch(self, index: int) -> None:
        if self._read is None:
            raise RuntimeError(f"layer {index} holds no backbone weights, and a row needs them")
        for linear in self._layers[index]:
            _method(linear).expect_backbone(linear)
        self._load(self._read(index))
        if not all(_method(linear).has_backbone for linear in self._layers[index]):
            raise RuntimeError(f"the checkpoint does not hold every weight of layer {index}")
        self._fetch_count += 1

    def _drop(self, index: int) -> None:
        for linear in self._layers[index]:
            _method(linear).drop_backbone(linear)


def _method(linear: LinearBase) -> RiverLinearMethod:
    method: RiverLinearMethod = linear.quant_method
    return method
